//! What the source knows of the container's pages: where they are, which of
//! them the target lacks, and which are written again and again. Pure.

use crate::track::runs::Runs;
use crate::track::{Scan, SpaceScan};
use blip_transport::page::{PageRun, SpaceId};
use blip_transport::units::PageCount;
use std::collections::BTreeMap;

/// Pages, by address space.
pub(super) type Pages = BTreeMap<SpaceId, Runs>;

/// What to do with the pages a scan found dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Send them all.
    All,
    /// Send them, except those that the scan before found dirty too: they will
    /// be dirty again.
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
    /// Dirty in this scan and in the one before.
    pub hot: PageCount,
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
    /// What the last two scans found dirty, the latest last.
    dirty: [Pages; 2],
}

impl Books {
    /// Divides what a scan found dirty, and what was held back before, into
    /// what is sent now and what is not.
    pub(super) fn share(&self, space: &SpaceScan, take: Take) -> Share {
        let dirty = Runs::from(space.dirty.as_slice());
        let nothing = Runs::default();
        let held = self.held.get(&space.space).filter(|_| !space.restarted);
        let resident = Runs::from(space.resident.as_slice());
        let due = dirty.union(&held.unwrap_or(&nothing).intersect(&resident));
        let before = self.dirty[1].get(&space.space).filter(|_| !space.restarted);
        let hot = dirty.intersect(before.unwrap_or(&nothing));
        let pages = hot.pages();
        match take {
            Take::All => Share { read: due, kept: nothing, hot: pages },
            Take::Cool => Share { read: due.subtract(&hot), kept: hot, hot: pages },
            Take::Nothing => Share { read: nothing, kept: due, hot: pages },
        }
    }

    /// Takes a scan in. What is kept of it has been told to
    /// [`hold`](Self::hold).
    pub(super) fn remember(&mut self, scan: Scan) {
        let first = self.resident.is_empty();
        self.resident.clear();
        self.dirty.swap(0, 1);
        self.dirty[1].clear();
        for space in scan.spaces {
            // A first scan finds everything dirty, which says nothing.
            if !first && !space.restarted {
                self.dirty[1].insert(space.space, Runs::from(space.dirty.as_slice()));
            }
            self.resident.insert(space.space, space.resident);
        }
        self.held.retain(|space, _| self.resident.contains_key(space));
    }

    /// These pages of a space, and only these, are held back.
    pub(super) fn hold(&mut self, space: SpaceId, kept: Runs) {
        if kept.is_empty() {
            self.held.remove(&space);
        } else {
            self.held.insert(space, kept);
        }
    }

    /// Pages of a space that were dirty in the last two scans, the latest first.
    pub(super) fn hot(&self, space: SpaceId) -> Vec<PageRun> {
        let latest_first = self.dirty.iter().rev();
        latest_first
            .filter_map(|scan| scan.get(&space))
            .flat_map(|runs| runs.as_slice())
            .copied()
            .collect()
    }

    /// All pages held back.
    pub(super) fn held_pages(&self) -> PageCount {
        PageCount(self.held.values().map(|runs| runs.pages().0).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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

    /// One live round: what is read and what is kept.
    fn round(books: &mut Books, take: Take, resident: u64, dirty: &[(u64, u64)]) -> (Runs, Runs) {
        let space = scan(resident, dirty);
        let share = books.share(&space, take);
        books.hold(SPACE, share.kept.clone());
        books.remember(Scan { spaces: vec![space], gone: vec![], took: Duration::ZERO });
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
}
