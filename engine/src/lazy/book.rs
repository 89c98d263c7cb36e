//! What all address spaces share: the source of bytes, what has been asked of
//! the source host and what it has answered, and the counts.

use super::error::Loss;
use super::owed::{Owed, Piece};
use super::plan::LazyPlan;
use super::{LazyEvent, LazyOptions, LazyStats, Local, PageSource, RemoteAnswer, Urgency};
use blip_transport::page::{PageAt, PageBytes, PageRun, SpaceId};
use blip_transport::units::PAGE_SIZE;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// What fetching one page brought.
pub(super) enum Fetched {
    Zero {
        remote: bool,
    },
    /// The bytes are in [`Book::page`].
    Data {
        remote: bool,
    },
    /// The source host has to be asked, or has been.
    Absent,
    Lost(Loss),
}

/// How it stands with a page that the store did not have.
pub(super) enum Standing {
    /// Fetching it gives an answer, good or bad.
    Decided,
    /// The source host has been asked.
    Requested,
    /// The source host may be asked.
    MayRequest,
    /// Too much has been asked of the source host already.
    Full,
}

pub(super) struct Book {
    pub(super) source: Arc<dyn PageSource>,
    pub(super) options: LazyOptions,
    pub(super) observer: Box<dyn FnMut(LazyEvent) + Send>,
    pub(super) started: Instant,
    /// CRIU has said that it is done.
    pub(super) finished: bool,
    stats: Arc<Mutex<LazyStats>>,
    requested: HashMap<PageAt, Urgency>,
    answers: HashMap<PageAt, Option<Box<PageBytes>>>,
    lost: HashMap<PageAt, Loss>,
    /// Why the source host cannot be asked any more.
    source_lost: Option<String>,
    /// What has not been settled yet, of each task; nothing in it moves.
    unsettled: HashMap<SpaceId, Owed>,
    /// Pieces that have been placed or dropped since they were last settled.
    pub(super) taken: Vec<(SpaceId, Piece)>,
    pub(super) page: Box<PageBytes>,
    pub(super) pages: Vec<PageBytes>,
    pub(super) found: Vec<Local>,
}

impl Book {
    pub(super) fn new(
        plan: &LazyPlan,
        source: Arc<dyn PageSource>,
        options: LazyOptions,
        observer: Box<dyn FnMut(LazyEvent) + Send>,
        stats: Arc<Mutex<LazyStats>>,
    ) -> Self {
        let room = options.chunk.0.max(options.chunk_under_faults.0).max(1) as usize;
        Self {
            source,
            options,
            observer,
            started: Instant::now(),
            finished: false,
            stats,
            requested: HashMap::new(),
            answers: HashMap::new(),
            lost: HashMap::new(),
            source_lost: None,
            unsettled: plan.tasks().map(|(s, task)| (s, Owed::new(&task.missing))).collect(),
            taken: Vec::new(),
            page: Box::new([0; PAGE_SIZE]),
            pages: vec![[0; PAGE_SIZE]; room],
            found: vec![Local::Absent; room],
        }
    }

    pub(super) fn stats(&self) -> MutexGuard<'_, LazyStats> {
        self.stats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn tell(&mut self, event: LazyEvent) {
        (self.observer)(event);
    }

    /// Looks for one page everywhere on this host.
    pub(super) fn fetch(&mut self, at: PageAt) -> Fetched {
        match self.answers.get(&at) {
            Some(Some(bytes)) => {
                self.page.copy_from_slice(&bytes[..]);
                return Fetched::Data { remote: true };
            }
            Some(None) => return Fetched::Zero { remote: true },
            None => {}
        }
        if let Some(why) = self.lost.get(&at) {
            return Fetched::Lost(why.clone());
        }
        match (self.source.local(at, &mut self.page), &self.source_lost) {
            (Local::Data, _) => Fetched::Data { remote: false },
            (Local::Zero, _) => Fetched::Zero { remote: false },
            (Local::Absent, None) => Fetched::Absent,
            (Local::Absent, Some(why)) => Fetched::Lost(Loss::SourceLost(why.clone())),
        }
    }

    /// Asks the source host, unless it has been asked as urgently before.
    pub(super) fn request(&mut self, at: PageAt, urgency: Urgency) {
        if self.requested.get(&at).is_some_and(|&before| before >= urgency) {
            return;
        }
        self.requested.insert(at, urgency);
        self.source.request_remote(at, urgency);
    }

    /// How it stands with a page that the store did not have.
    pub(super) fn standing(&self, at: PageAt) -> Standing {
        if self.answers.contains_key(&at) || self.lost.contains_key(&at) {
            Standing::Decided
        } else if self.requested.contains_key(&at) {
            Standing::Requested
        } else if self.source_lost.is_some() {
            Standing::Decided
        } else if !self.options.wait_for_push && self.requested.len() < self.options.requests {
            Standing::MayRequest
        } else {
            Standing::Full
        }
    }

    /// Takes in an answer of the source host.
    pub(super) fn answered(&mut self, at: PageAt, answer: RemoteAnswer) {
        self.requested.remove(&at);
        match answer {
            RemoteAnswer::Data(bytes) => {
                self.answers.insert(at, Some(bytes));
            }
            RemoteAnswer::Zero => {
                self.answers.insert(at, None);
            }
            RemoteAnswer::InStore => {}
            // The source host drops what it has pushed: look again.
            RemoteAnswer::Gone => {
                if self.source.local(at, &mut self.page) == Local::Absent {
                    self.lose(at, Loss::Gone);
                }
            }
        }
    }

    /// Nobody needs the answer about this page.
    pub(super) fn forget(&mut self, at: PageAt) {
        self.answers.remove(&at);
    }

    /// The source host cannot be asked any more; answers the pages it owes.
    pub(super) fn source_lost(&mut self, why: String) -> Vec<PageAt> {
        self.source_lost = Some(why);
        self.requested.drain().map(|(at, _)| at).collect()
    }

    /// This page will never come.
    pub(super) fn lose(&mut self, at: PageAt, why: Loss) {
        self.lost.insert(at, why);
    }

    /// Nobody needs the pages of `piece` any more.
    pub(super) fn settle(&mut self, space: SpaceId, piece: Piece) {
        if !(self.requested.is_empty() && self.answers.is_empty()) {
            for index in piece.dumped().pages() {
                let at = PageAt { space, index };
                self.requested.remove(&at);
                self.answers.remove(&at);
            }
        }
        let Some(unsettled) = self.unsettled.get_mut(&space) else { return };
        for piece in unsettled.take(piece.origin, piece.origin + piece.count) {
            self.source.settled(space, piece.dumped());
        }
    }

    /// Pages that are lost stay lost, whatever the store says.
    pub(super) fn strike_lost(&self, space: SpaceId, run: PageRun, found: &mut [Local]) {
        if self.lost.is_empty() {
            return;
        }
        for (index, found) in run.pages().zip(found) {
            if self.lost.contains_key(&PageAt { space, index }) {
                *found = Local::Absent;
            }
        }
    }
}
