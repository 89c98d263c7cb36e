//! What the source knows of the container's pages: where they are, which of
//! them the target lacks, and which are written again and again. Pure: time is
//! an argument.

mod heat;

use crate::track::runs::Runs;
use crate::track::{Scan, SpaceScan};
use blip_transport::page::{PageRun, SpaceId};
use blip_transport::units::PageCount;
pub(super) use heat::Heat;
use heat::Looks;
use std::collections::BTreeMap;
use std::time::Duration;

/// Pages, by address space.
pub(super) type Pages = BTreeMap<SpaceId, Runs>;

/// What to do with the pages a scan found dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Send them all.
    All,
    /// Send them all, unless they are more than this: then send none.
    UpTo(PageCount),
    /// Send them, except those that are written again and again: they will be
    /// dirty again.
    Cool,
    /// Send none; the target forgets what it has of them.
    Nothing,
}

/// The pages of one address space in one round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// To be read and sent.
    pub read: Runs,
    /// The target's copy is old, or there is none.
    pub kept: Runs,
    /// Of both, those that are written again and again.
    pub hot: PageCount,
}

impl Share {
    /// All that was to be read is kept.
    fn left(self) -> Self {
        Self { read: Runs::default(), kept: self.kept.union(&self.read), ..self }
    }
}

/// **Invariant**: a page whose content the target lacks was reported by the
/// last scan and is in a [`Share::read`] not yet sent, or is in `held`, or will
/// be reported by the next scan.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// Owner of each space, as this host numbers it.
    pub owners: BTreeMap<SpaceId, i32>,
    /// What the last scan found resident.
    pub resident: BTreeMap<SpaceId, Vec<PageRun>>,
    /// Pages found dirty and not sent since.
    pub held: Pages,
    /// Found written by glances after they had been read: the next scan reports
    /// them once more.
    pub again: Pages,
    /// What was written from one look to the next, and what follows from it.
    looks: Looks,
    heat: BTreeMap<SpaceId, Heat>,
}

impl Books {
    /// Takes a scan in. `live`: when it was made, if the container runs;
    /// nothing is learned inside the freeze.
    pub(super) fn remember(&mut self, scan: &Scan, live: Option<Duration>) {
        let first = self.resident.is_empty();
        self.resident.clear();
        let mut written = Pages::new();
        for space in &scan.spaces {
            self.resident.insert(space.space, space.resident.clone());
            if space.restarted {
                self.looks.forget(space.space);
                self.heat.remove(&space.space);
                self.held.remove(&space.space);
            } else if live.is_some() {
                // What a glance has seen was counted then.
                let nothing = Runs::default();
                let again = self.again.get(&space.space).unwrap_or(&nothing);
                let dirty = Runs::from(space.dirty.as_slice()).subtract(again);
                written.insert(space.space, dirty);
            }
        }
        self.again.clear();
        self.held.retain(|space, _| self.resident.contains_key(space));
        if let Some(now) = live {
            // A first scan finds everything dirty, which says nothing.
            self.glanced(now, if first { Pages::new() } else { written });
        }
    }

    /// Takes in what a glance has found written.
    pub(super) fn glanced(&mut self, now: Duration, written: Pages) {
        self.looks.add(now, written);
        let spaces = self.resident.keys();
        self.heat = spaces.map(|&space| (space, self.looks.heat(space))).collect();
    }

    /// Divides what a scan found dirty, and what was held back before, into
    /// what is sent now and what is not, for each of its spaces; answers what is
    /// taken, now that it is known how much that is. The scan has been told to
    /// [`remember`](Self::remember).
    pub(super) fn divide(&self, scan: &Scan, take: Take) -> (Take, Vec<Share>) {
        let shares = scan.spaces.iter().map(|space| self.share(space, take));
        let Take::UpTo(most) = take else { return (take, shares.collect()) };
        let shares: Vec<_> = shares.collect();
        let found: u64 = shares.iter().map(|share| share.read.pages().0).sum();
        match found > most.0 {
            true => (Take::Nothing, shares.into_iter().map(Share::left).collect()),
            false => (Take::All, shares),
        }
    }

    fn share(&self, space: &SpaceScan, take: Take) -> Share {
        let nothing = Runs::default();
        let held = self.held.get(&space.space).unwrap_or(&nothing);
        let resident = Runs::from(space.resident.as_slice());
        let dirty = Runs::from(space.dirty.as_slice());
        let due = dirty.union(&held.intersect(&resident));
        let hot = self.heat.get(&space.space).map_or(nothing, |heat| due.intersect(&heat.hot));
        let nothing = Runs::default();
        let pages = hot.pages();
        match take {
            Take::All | Take::UpTo(_) => Share { read: due, kept: nothing, hot: pages },
            Take::Cool => Share { read: due.subtract(&hot), kept: hot, hot: pages },
            Take::Nothing => Share { read: nothing, kept: due, hot: pages },
        }
    }

    /// These pages of a space, and only these, are held back.
    pub(super) fn hold(&mut self, space: SpaceId, kept: Runs) {
        if kept.is_empty() {
            self.held.remove(&space);
        } else {
            self.held.insert(space, kept);
        }
    }

    /// How often pages of a space were written of late.
    pub(super) fn heat(&self, space: SpaceId) -> Option<&Heat> {
        self.heat.get(&space)
    }

    /// When the container was last looked at while it ran.
    pub(super) fn last_look(&self) -> Option<Duration> {
        self.looks.last()
    }

    /// The latest looks after `since`, each with the time from the look before:
    /// how much was written, and how much of it outside of what is held back.
    pub(super) fn seen(&self, since: Duration) -> Vec<(Duration, PageCount, PageCount)> {
        self.looks.seen(since, &self.held)
    }

    /// All pages held back.
    pub(super) fn held_pages(&self) -> PageCount {
        total(&self.held)
    }

    /// Pages that are due again, as far as is known, and how many of those and
    /// of the held ones are written again and again.
    pub(super) fn due_again(&self) -> (PageCount, PageCount) {
        let hot = self.heat.iter().map(|(space, Heat { hot, .. })| {
            let of = |pages: &Pages| pages.get(space).map_or(0, |p| p.intersect(hot).pages().0);
            of(&self.held) + of(&self.again)
        });
        (total(&self.again), PageCount(hot.sum()))
    }
}

fn total(pages: &Pages) -> PageCount {
    PageCount(pages.values().map(|runs| runs.pages().0).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: SpaceId = SpaceId(1);

    fn scan(resident: u64, dirty: &[(u64, u64)]) -> SpaceScan {
        SpaceScan {
            space: SPACE,
            pid: 1,
            restarted: false,
            resident: vec![PageRun::new(0, resident)],
            dirty: dirty.iter().map(|&(start, count)| PageRun::new(start, count)).collect(),
            scanned: PageCount(resident),
        }
    }

    fn runs(of: &[(u64, u64)]) -> Runs {
        let runs: Vec<_> = of.iter().map(|&(start, count)| PageRun::new(start, count)).collect();
        Runs::from(runs.as_slice())
    }

    /// One live round, 5 s long: what is read and what is kept.
    fn round(books: &mut Books, take: Take, resident: u64, dirty: &[(u64, u64)]) -> (Runs, Runs) {
        let scan = Scan { spaces: vec![scan(resident, dirty)], gone: vec![], took: Duration::ZERO };
        let now = books.looks.last().map_or(Duration::ZERO, |at| at + Duration::from_secs(5));
        books.remember(&scan, Some(now));
        let share = books.share(&scan.spaces[0], take);
        books.hold(SPACE, share.kept.clone());
        (share.read, share.kept)
    }

    #[test]
    fn a_page_written_in_two_rounds_is_held_until_it_cools() {
        let mut books = Books::default();
        round(&mut books, Take::Cool, 100, &[(0, 100)]);
        let (read, kept) = round(&mut books, Take::Cool, 100, &[(0, 10)]);
        assert_eq!((read, kept), (runs(&[(0, 10)]), runs(&[])), "the first scan says nothing");
        let (read, kept) = round(&mut books, Take::Cool, 100, &[(5, 10)]);
        assert_eq!((read, kept), (runs(&[(10, 5)]), runs(&[(5, 5)])));
        let (read, kept) = round(&mut books, Take::Cool, 100, &[(7, 1)]);
        assert_eq!((read, kept), (runs(&[(5, 2), (8, 2)]), runs(&[(7, 1)])), "cooled pages go");
    }

    #[test]
    fn what_is_held_back_goes_in_the_end() {
        let mut books = Books::default();
        round(&mut books, Take::Cool, 100, &[(0, 100)]);
        round(&mut books, Take::Cool, 100, &[(0, 10)]);
        round(&mut books, Take::Cool, 100, &[(0, 10)]);
        let (read, kept) = round(&mut books, Take::All, 100, &[(50, 1)]);
        assert_eq!((read, kept), (runs(&[(0, 10), (50, 1)]), runs(&[])));
    }

    #[test]
    fn pages_that_are_gone_are_held_no_more() {
        let mut books = Books::default();
        round(&mut books, Take::All, 100, &[(0, 100)]);
        books.hold(SPACE, runs(&[(40, 60)]));
        let (read, _) = round(&mut books, Take::All, 50, &[]);
        assert_eq!(read, runs(&[(40, 10)]));
    }

    #[test]
    fn leaving_everything_reads_nothing() {
        let mut books = Books::default();
        let (read, kept) = round(&mut books, Take::Nothing, 100, &[(0, 100)]);
        assert_eq!((read, kept), (runs(&[]), runs(&[(0, 100)])));
        let (_, kept) = round(&mut books, Take::Nothing, 100, &[(3, 1)]);
        assert_eq!(kept, runs(&[(0, 100)]), "still nowhere else");
    }

    #[test]
    fn more_than_was_meant_to_go_is_left_behind_whole() {
        let mut books = Books::default();
        round(&mut books, Take::Cool, 100, &[(0, 100)]);
        books.hold(SPACE, runs(&[(40, 5)]));
        let found = Scan { spaces: vec![scan(100, &[(0, 5)])], gone: vec![], took: Duration::ZERO };
        books.remember(&found, None);
        let divided = |most| {
            let (take, shares) = books.divide(&found, Take::UpTo(PageCount(most)));
            (take, shares[0].read.clone(), shares[0].kept.clone())
        };
        let all = runs(&[(0, 5), (40, 5)]);
        assert_eq!(divided(10), (Take::All, all.clone(), runs(&[])));
        assert_eq!(divided(9), (Take::Nothing, runs(&[]), all));
    }

    #[test]
    fn what_glances_find_hot_waits_from_the_next_scan_on() {
        let mut books = Books::default();
        round(&mut books, Take::Cool, 100, &[(0, 100)]);
        for second in 1..3 {
            let pages = Pages::from([(SPACE, runs(&[(20, 10)]))]);
            books.glanced(Duration::from_secs(second), pages.clone());
            books.again = pages;
        }
        assert_eq!(books.due_again(), (PageCount(10), PageCount(10)));
        // They are owed, and counted once only; page 30 is new.
        let scan =
            Scan { spaces: vec![scan(100, &[(20, 11)])], gone: vec![], took: Duration::ZERO };
        books.remember(&scan, Some(Duration::from_millis(2_100)));
        let share = books.share(&scan.spaces[0], Take::Cool);
        assert_eq!((share.read, share.kept), (runs(&[(30, 1)]), runs(&[(20, 10)])));
        assert_eq!(books.due_again().0, PageCount(0));
    }
}
