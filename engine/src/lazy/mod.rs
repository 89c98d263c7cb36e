//! Serving a restored container's memory from the page store: blip's own
//! lazy-pages server, in place of `criu lazy-pages`.
//!
//! CRIU restores the processes without the memory that the dump left out, and
//! hands a userfaultfd of each of them to whoever listens on
//! `lazy-pages.socket`. This server fills that memory: at once and in the
//! background from the store, before all else where a thread waits, and from
//! the source host where the store has nothing. It begins as soon as a
//! descriptor arrives, so that most pages are there before anything runs.
//!
//! Participants: the *restorer* (CRIU) connects and sends descriptors; the
//! [`PageSource`] knows the bytes; a [`RemoteInbox`] brings what the source host
//! answers; the observer hears what happens; the [`LazyHandle`] is the owner's
//! end. Non-goal: deciding what to do about a failure, which the owner must.
//!
//! **Invariants**
//! * A page the dump left out is never answered with zeros unless the source
//!   says it is zero. If its bytes are nowhere to be had, the thread waits, the
//!   observer hears [`LazyEvent::Lost`], and the owner decides.
//! * A userfaultfd is closed only when nothing is owed behind it, or the process
//!   is dead, or the owner has called [`LazyHandle::abort`]: closing it makes
//!   the kernel answer with zeros. Neither an error nor a panic closes one.
//! * Every decision about a page is taken anew each time it is tried, because
//!   the process may have moved or dropped it in between.

mod book;
mod client;
mod error;
mod fill;
mod owed;
mod plan;
mod server;
mod serving;
mod space;
mod stats;

pub use error::{LazyError, Loss};
pub use plan::{LazyPlan, TaskPlan};
pub use server::{LazyHandle, LazyMeter, LazyServer, RemoteInbox};
pub use stats::{LazyStats, LazySummary};

use blip_transport::page::{PageAt, PageBytes, PageRun, SpaceId};
use blip_transport::units::PageCount;
use std::sync::Arc;

/// What a page source has for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// The page is all zeros.
    Zero,
    /// The bytes have been written to the buffer.
    Data,
    /// The page is not here; ask the source host.
    Absent,
}

/// How pressing a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nobody waits yet.
    Background,
    /// A thread of the container waits.
    Fault,
}

/// What the source host answered for a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteAnswer {
    /// The bytes.
    Data(Box<PageBytes>),
    /// The page is all zeros.
    Zero,
    /// The bytes are in the store now; look again.
    InStore,
    /// The source host does not have it.
    Gone,
}

/// Where the bytes come from: the page store, seen from here. Pages are named
/// as at the dump, wherever the process has moved them since.
///
/// The server calls this from its own thread while threads of the container
/// wait: nothing here may block for long.
pub trait PageSource: Send + Sync {
    /// Looks up one page and writes its bytes to `into` if there are any.
    fn local(&self, at: PageAt, into: &mut PageBytes) -> Local;

    /// Looks up consecutive pages; `into` and `found` have one place for each.
    /// A store that can answer several pages under one lock should.
    fn local_run(&self, space: SpaceId, run: PageRun, into: &mut [PageBytes], found: &mut [Local]) {
        for ((index, into), found) in run.pages().zip(into).zip(found) {
            *found = self.local(PageAt { space, index }, into);
        }
    }

    /// Asks the source host for a page. The answer comes through the
    /// [`RemoteInbox`], some time later. Called again with
    /// [`Urgency::Fault`] when a page asked for in the background has become
    /// urgent.
    fn request_remote(&self, at: PageAt, urgency: Urgency);

    /// These pages will not be asked for again: they are in place in every
    /// process that needs them, or nobody does. The store may free them.
    fn settled(&self, _space: SpaceId, _run: PageRun) {}
}

/// What the owner of a server hears while it works, from the server's thread.
#[derive(Clone, Debug)]
pub enum LazyEvent {
    /// The restorer has handed over this task; filling begins.
    TaskArrived {
        /// The task.
        space: SpaceId,
    },
    /// CRIU has restored everything; it lets the processes run next.
    RestoreFinished,
    /// A process forked while pages of it were missing; its child, which has
    /// no name here, is served as well.
    Forked {
        /// The task it descends from.
        space: SpaceId,
    },
    /// The task cannot go on. Reported once a task; the threads that need the
    /// page wait until the owner ends them.
    Lost {
        /// The task.
        space: SpaceId,
        /// The page, as at the dump.
        page: u64,
        /// Why.
        why: Loss,
    },
    /// Nothing is missing any more; the server ends.
    Drained,
    /// The server ends without having drained. Descriptors stay open, and
    /// threads wait, until [`LazyHandle::abort`].
    Failed(Arc<LazyError>),
}

/// How the server works. The defaults are measured; see `tests/lazy/speed.rs`.
#[derive(Clone, Debug)]
pub struct LazyOptions {
    /// Pages filled in the background between two looks for faults.
    pub chunk: PageCount,
    /// The same while faults come in.
    pub chunk_under_faults: PageCount,
    /// After a fault, the aligned window of this many pages around it is filled
    /// next. One means the page only.
    pub fault_around: PageCount,
    /// How many pages may be asked for in the background at a time.
    pub requests: usize,
    /// Ask for nothing in the background before
    /// [`LazyHandle::ask_for_all`]: the source host sends it unasked.
    pub wait_for_push: bool,
    /// Fill before the restore has finished.
    pub early: bool,
    /// What to fill first, such as the pages dirtied last.
    pub hot: Vec<(SpaceId, Vec<PageRun>)>,
}

impl Default for LazyOptions {
    fn default() -> Self {
        Self {
            chunk: PageCount(64),
            chunk_under_faults: PageCount(16),
            fault_around: PageCount(16),
            requests: 256,
            wait_for_push: false,
            early: true,
            hot: Vec::new(),
        }
    }
}
