//! One address space: what it is owed, who waits in it, and putting pages there.

use super::book::{Book, Fetched};
use super::error::Loss;
use super::owed::{Owed, Piece};
use super::plan::TaskPlan;
use super::{LazyEvent, Urgency};
use crate::sys::uffd_copy::{Stop, Uffd, UffdEvent};
use blip_transport::page::{PageAt, PageIndex, PageRun, SpaceId};
use blip_transport::units::PAGE_SIZE;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

/// How long to leave a mapping alone that CRIU has not registered yet.
const REGISTER_PAUSE: Duration = Duration::from_millis(1);
/// How long to leave a container alone that has no memory left.
const MEMORY_PAUSE: Duration = Duration::from_millis(10);

/// Where a page came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    Store,
    Source,
    Zero,
}

/// See the module's header. Pages are page numbers; *place* is where they are
/// in the process now.
pub(super) struct Space {
    /// The task of the dump whose pages these are.
    pub(super) origin: SpaceId,
    /// Whether it was forked from that task after the restore.
    child: bool,
    pub(super) uffd: Uffd,
    pub(super) owed: Owed,
    /// Places to fill next.
    pub(super) soon: VecDeque<(u64, u64)>,
    /// Everything before this place has been looked at.
    pub(super) cursor: u64,
    /// What the store did not have.
    pub(super) absent: VecDeque<Piece>,
    /// Faults not answered yet, and since when they are known.
    faults: BTreeMap<u64, Instant>,
    /// Places to try (again).
    pub(super) retry: BTreeSet<u64>,
    /// Those of them that the kernel called unregistered.
    suspects: BTreeSet<u64>,
    rest_until: Option<Instant>,
    /// A page that cannot be had.
    pub(super) lost: Option<(u64, Loss)>,
    /// The process is dead.
    pub(super) gone: bool,
    wiped_on_fork: Vec<PageRun>,
}

impl Space {
    pub(super) fn restored(origin: SpaceId, uffd: Uffd, plan: &TaskPlan, hot: &[PageRun]) -> Self {
        Self {
            origin,
            child: false,
            uffd,
            owed: Owed::new(&plan.missing),
            soon: hot.iter().map(|run| (run.start.0, run.end())).collect(),
            cursor: 0,
            absent: VecDeque::new(),
            faults: BTreeMap::new(),
            retry: BTreeSet::new(),
            suspects: BTreeSet::new(),
            rest_until: None,
            lost: None,
            gone: false,
            wiped_on_fork: plan.wiped_on_fork.clone(),
        }
    }

    /// The address space of a child that this one has just forked. It misses
    /// what its parent missed, except for what is wiped by forking.
    fn forked(&self, uffd: Uffd) -> Self {
        let mut owed = self.owed.clone();
        for run in &self.wiped_on_fork {
            let wiped: Vec<u64> = owed.all().flat_map(|piece| piece.places_of(*run)).collect();
            for place in wiped {
                owed.take(place, place + 1);
            }
        }
        Self {
            origin: self.origin,
            child: true,
            uffd,
            owed,
            soon: self.soon.clone(),
            cursor: 0,
            absent: VecDeque::new(),
            faults: BTreeMap::new(),
            retry: BTreeSet::new(),
            suspects: BTreeSet::new(),
            rest_until: None,
            lost: self.lost.clone(),
            gone: false,
            wiped_on_fork: self.wiped_on_fork.clone(),
        }
    }

    /// Nothing is owed any more.
    pub(super) fn is_drained(&self) -> bool {
        self.owed.is_empty()
    }

    /// Puts `runs` before everything else.
    pub(super) fn fill_first(&mut self, runs: &[PageRun]) {
        for run in runs.iter().rev() {
            self.soon.push_front((run.start.0, run.end()));
        }
    }

    /// Tries the pages dumped at `origins` again.
    pub(super) fn try_again(&mut self, origins: impl Iterator<Item = PageIndex>) {
        let places = origins.filter_map(|index| self.owed.place_of(index.0));
        self.retry.extend(places);
    }

    /// The store has got the pages dumped at `origins`: those that a thread
    /// waits for are tried at once, the others when their turn comes.
    pub(super) fn stored(&mut self, origins: impl Iterator<Item = PageIndex>) {
        for index in origins {
            let Some(place) = self.owed.place_of(index.0) else { continue };
            if self.faults.contains_key(&place) {
                self.retry.insert(place);
            } else if let Some(last) = self.soon.back_mut().filter(|last| last.1 == place) {
                last.1 = place + 1;
            } else {
                self.soon.push_back((place, place + 1));
            }
        }
    }

    /// Reads what the kernel reports and answers it. Faults come last: the
    /// kernel hands them over before changes of the address space that
    /// preceded them. Answers the children forked, and how many messages.
    pub(super) fn hear(&mut self, book: &mut Book, children: &mut Vec<Self>) -> io::Result<usize> {
        let mut events = Vec::new();
        let heard = self.uffd.read_events(&mut events);
        let now = Instant::now();
        let count = events.len();
        let mut touched = Vec::new();
        for event in events {
            if !matches!(event, UffdEvent::PageFault { .. }) {
                // The layout has changed: what the kernel said before is stale.
                self.suspects.clear();
            }
            match event {
                UffdEvent::PageFault { address } => touched.push(page_of(address)),
                UffdEvent::Fork { child } => {
                    children.push(self.forked(child));
                    book.tell(LazyEvent::Forked { space: self.origin });
                }
                UffdEvent::Remap { from, to, len } => self.moved(from, to, len),
                UffdEvent::Remove { start, end } | UffdEvent::Unmap { start, end } => {
                    self.dropped(book, page_of(start), page_of(end));
                }
            }
        }
        book.stats().faults += touched.len() as u64;
        for page in touched {
            self.faults.entry(page).or_insert(now);
            self.serve(book, page);
        }
        heard.map(|()| count)
    }

    fn moved(&mut self, from: u64, to: u64, len: u64) {
        let (from, to, count) = (page_of(from), page_of(to), len / PAGE_SIZE as u64);
        self.owed.shift(from, to, count);
        self.cursor = self.cursor.min(to);
        self.forget(from, from + count);
    }

    fn dropped(&mut self, book: &mut Book, from: u64, end: u64) {
        let taken = self.owed.take(from, end);
        book.stats().dropped += taken.iter().map(|piece| piece.count).sum::<u64>();
        self.hand_in(book, taken);
        self.forget(from, end);
    }

    /// What waited in `from .. end` shall look again at what is there now.
    fn forget(&mut self, from: u64, end: u64) {
        self.retry.retain(|page| !(from..end).contains(page));
        self.suspects.retain(|page| !(from..end).contains(page));
        let before = self.faults.len();
        self.faults.retain(|page, _| !(from..end).contains(page));
        if self.faults.len() < before {
            self.wake(from, end - from);
        }
    }

    fn wake(&self, page: u64, count: u64) {
        // Fails only for a dead process or a range outside of it: nobody waits.
        let _ = self.uffd.wake(page * PAGE_SIZE as u64, count);
    }

    /// Tries to put one page in place.
    fn serve(&mut self, book: &mut Book, page: u64) {
        let address = page * PAGE_SIZE as u64;
        self.retry.remove(&page);
        let faulted = self.faults.contains_key(&page);
        let (placed, from) = match self.owed.at(page) {
            None if !faulted => return,
            // Memory that was empty at the dump, or has been thrown away since.
            None => (self.uffd.zero(address, 1), Via::Zero),
            Some(origin) => {
                let at = PageAt { space: self.origin, index: PageIndex(origin) };
                match book.fetch(at) {
                    Fetched::Data { remote } => {
                        let from = if remote { Via::Source } else { Via::Store };
                        (self.uffd.copy(address, &book.page[..]), from)
                    }
                    Fetched::Zero { remote } => {
                        let from = if remote { Via::Source } else { Via::Zero };
                        (self.uffd.zero(address, 1), from)
                    }
                    Fetched::Absent => {
                        let urgency = if faulted { Urgency::Fault } else { Urgency::Background };
                        return book.request(at, urgency);
                    }
                    Fetched::Lost(why) => return self.lose(book, at, why),
                }
            }
        };
        if faulted && self.owed.at(page).is_some() {
            self.fill_around(page, book.options.fault_around.0);
        }
        match placed.stop {
            None => self.in_place(book, page, 1, from),
            Some(Stop::Exists) => self.was_there(book, page),
            Some(stop) => self.set_back(book, page, stop),
        }
    }

    fn fill_around(&mut self, page: u64, window: u64) {
        if window > 1 {
            let start = page - page % window;
            self.soon.push_front((start, start + window));
        }
    }

    /// `count` pages from `page` are in place, and whoever waited is awake.
    pub(super) fn in_place(&mut self, book: &mut Book, page: u64, count: u64, from: Via) {
        let taken = self.owed.take(page, page + count);
        let missing: u64 = taken.iter().map(|piece| piece.count).sum();
        let waited = self.settle_faults(page, page + count);
        let early = !book.finished;
        let mut stats = book.stats();
        for since in &waited {
            let latency = since.elapsed().as_nanos() as u64;
            match from {
                Via::Store => stats.from_store += 1,
                Via::Source => stats.from_source += 1,
                Via::Zero => stats.zero += 1,
            }
            let histogram = match from {
                Via::Source => &mut stats.remote_latency,
                Via::Store | Via::Zero => &mut stats.local_latency,
            };
            histogram.saturating_record(latency);
        }
        let unasked = missing.saturating_sub(waited.len() as u64);
        stats.prefilled += unasked;
        stats.prefilled_early += if early { unasked } else { 0 };
        drop(stats);
        self.hand_in(book, taken);
    }

    /// The page is in place, but we have not put it there: two threads waited
    /// for one page, or the process has set a guard over it.
    pub(super) fn was_there(&mut self, book: &mut Book, page: u64) {
        let taken = self.owed.take(page, page + 1);
        book.stats().raced += taken.len() as u64;
        self.hand_in(book, taken);
        self.settle_faults(page, page + 1);
        self.wake(page, 1);
    }

    /// Forgets the faults in a range; answers since when they waited.
    fn settle_faults(&mut self, from: u64, end: u64) -> Vec<Instant> {
        let mut later = self.faults.split_off(&from);
        let mut beyond = later.split_off(&end);
        self.faults.append(&mut beyond);
        if !self.retry.is_empty() {
            self.retry.retain(|page| !(from..end).contains(page));
            self.suspects.retain(|page| !(from..end).contains(page));
        }
        later.into_values().collect()
    }

    fn hand_in(&self, book: &mut Book, taken: Vec<Piece>) {
        book.taken.extend(taken.into_iter().map(|piece| (self.origin, piece)));
    }

    /// The kernel would not take the page at `page`.
    pub(super) fn set_back(&mut self, book: &mut Book, page: u64, stop: Stop) {
        self.retry.insert(page);
        match stop {
            // `hear` comes before the next try.
            Stop::Again | Stop::Exists => {}
            Stop::Gone => self.gone = true,
            Stop::NoMemory => {
                book.stats().no_memory += 1;
                self.rest_until = Some(Instant::now() + MEMORY_PAUSE);
            }
            // A mapping may just have gone, its message unread: believe it only
            // when the kernel repeats it after we have listened.
            Stop::Unregistered if self.suspects.insert(page) => {}
            Stop::Unregistered => self.unregistered(book, page),
            Stop::Other(errno) => self.lose_at(book, page, Loss::Kernel(errno)),
        }
    }

    fn unregistered(&mut self, book: &mut Book, page: u64) {
        self.suspects.remove(&page);
        if !self.child && !book.finished {
            // CRIU sends the descriptor first and registers mappings later.
            self.rest_until = Some(Instant::now() + REGISTER_PAUSE);
        } else if !self.child && self.owed.at(page).is_some() {
            self.lose_at(book, page, Loss::NotRegistered);
        } else {
            // MADV_DONTFORK memory of a child, or a fault in memory that has
            // been unmapped since.
            self.dropped(book, page, page + 1);
        }
    }

    fn lose_at(&mut self, book: &mut Book, page: u64, why: Loss) {
        match self.owed.at(page) {
            Some(origin) => {
                let at = PageAt { space: self.origin, index: PageIndex(origin) };
                book.lose(at, why.clone());
                self.lose(book, at, why);
            }
            None => {
                self.lost.get_or_insert((page, why));
            }
        }
        self.retry.remove(&page);
        self.suspects.remove(&page);
    }

    fn lose(&mut self, book: &mut Book, at: PageAt, why: Loss) {
        if self.lost.is_none() {
            self.lost = Some((at.index.0, why.clone()));
            book.tell(LazyEvent::Lost { space: at.space, page: at.index.0, why });
        }
    }

    /// Until when the space is to be left alone.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.rest_until
    }

    /// Whether the space waits for the kernel to let it try again.
    pub(super) fn is_held_up(&self) -> bool {
        !self.retry.is_empty()
    }

    /// Whether pages remain that have not been looked at.
    pub(super) fn has_unseen(&self) -> bool {
        !self.soon.is_empty() || self.owed.next(self.cursor).is_some()
    }

    /// Tries again what could not be put in place.
    pub(super) fn retry(&mut self, book: &mut Book, now: Instant) {
        if self.rest_until.is_some_and(|until| now < until) {
            return;
        }
        self.rest_until = None;
        let pages: Vec<u64> = self.retry.iter().copied().collect();
        for page in pages {
            self.serve(book, page);
        }
    }
}

fn page_of(address: u64) -> u64 {
    address / PAGE_SIZE as u64
}
