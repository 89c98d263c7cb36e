//! The ends that others hold of the server: its owner, and the source host.

use super::book::Book;
use super::client::{SOCKET, bind_in};
use super::error::LazyError;
use super::plan::LazyPlan;
use super::serving::{Keepsakes, Serving};
use super::{LazyEvent, LazyOptions, LazyStats, PageSource, RemoteAnswer};
use crate::sys::uffd_copy::Uffd;
use blip_transport::page::{PageAt, PageRun, SpaceId};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// Where the answers of the source host are put in. Clones are the same box.
#[derive(Clone)]
pub struct RemoteInbox(Arc<Mailbox>);

impl RemoteInbox {
    /// The source host's answer about one page.
    pub fn answer(&self, at: PageAt, answer: RemoteAnswer) {
        self.0.post(Mail::Answer(at, answer));
    }

    /// The store has got these pages without being asked: use them.
    pub fn stored(&self, space: SpaceId, run: PageRun) {
        self.0.post(Mail::Stored(space, run));
    }

    /// The source host will answer no more. Tasks that miss pages the store
    /// does not have are lost.
    pub fn source_lost(&self, why: impl Into<String>) {
        self.0.post(Mail::SourceLost(why.into()));
    }
}

/// A lazy-pages server that listens, but does not serve yet.
pub struct LazyServer {
    listener: UnixListener,
    mailbox: Arc<Mailbox>,
}

impl LazyServer {
    /// Binds `dir/lazy-pages.socket`, mode 0600. `dir` is the work directory
    /// of the `criu restore --lazy-pages` that will connect, and should be
    /// closed to everybody else. A socket left there is replaced.
    ///
    /// # Errors
    /// [`LazyError::Listen`].
    pub fn listen(dir: &Path) -> Result<Self, LazyError> {
        let path = dir.join(SOCKET);
        let listener = bind_in(dir).map_err(|error| LazyError::Listen { path, error })?;
        let mailbox = Mailbox::new().map_err(LazyError::system("make an eventfd"))?;
        Ok(Self { listener, mailbox: Arc::new(mailbox) })
    }

    /// Where answers of the source host go; for the [`PageSource`] to keep.
    pub fn inbox(&self) -> RemoteInbox {
        RemoteInbox(self.mailbox.clone())
    }

    /// Serves `plan` from `source` on a thread of its own. The observer is
    /// called from that thread and must not block.
    ///
    /// # Errors
    /// [`LazyError::System`] if the thread cannot be started.
    pub fn serve(
        self,
        plan: LazyPlan,
        source: Arc<dyn PageSource>,
        options: LazyOptions,
        observer: impl FnMut(LazyEvent) + Send + 'static,
    ) -> Result<LazyHandle, LazyError> {
        let stats = Arc::new(Mutex::new(LazyStats::new()));
        let left_open = Arc::new(Mutex::new(Vec::new()));
        let book = Book::new(&plan, source, options, Box::new(observer), stats.clone());
        let keepsakes = Keepsakes::default();
        let (mailbox, kept) = (self.mailbox.clone(), keepsakes.clone());
        let serving = Serving::new(plan, book, mailbox, &self.listener, kept)?;
        let open = left_open.clone();
        let thread = std::thread::Builder::new()
            .name("blip-lazy".into())
            .spawn(move || serving.serve_all(self.listener, &open))
            .map_err(|error| LazyError::System { what: "start its thread", error })?;
        Ok(LazyHandle { mailbox: self.mailbox, thread, stats, left_open, keepsakes })
    }
}

/// The owner's end of a serving [`LazyServer`]. Dropping it changes nothing:
/// the server goes on until all is in place.
pub struct LazyHandle {
    mailbox: Arc<Mailbox>,
    thread: JoinHandle<Result<(), Arc<LazyError>>>,
    stats: Arc<Mutex<LazyStats>>,
    left_open: Arc<Mutex<Vec<Uffd>>>,
    keepsakes: Keepsakes,
}

impl LazyHandle {
    /// The userfaultfds that are being served, once more each. While somebody
    /// holds these, a missing page makes a thread wait even if this whole
    /// process dies.
    ///
    /// # Errors
    /// What copying a descriptor reports.
    pub fn keepsakes(&self) -> io::Result<Vec<OwnedFd>> {
        lock(&self.keepsakes).values().map(OwnedFd::try_clone).collect()
    }

    /// Waits until everything is in place or the server has failed. After a
    /// failure the descriptors stay open for good, so that no process reads
    /// zeros for memory it never got; use [`LazyHandle::abort`] instead once
    /// the processes are dead.
    ///
    /// # Errors
    /// Why the server ended early.
    pub fn wait(self) -> Result<LazyStats, Arc<LazyError>> {
        self.thread.join().map_err(|_| Arc::new(LazyError::Panicked))??;
        Ok(lock(&self.stats).clone())
    }

    /// Whether the server has ended, one way or the other.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// What has been measured so far.
    pub fn stats(&self) -> LazyStats {
        lock(&self.stats).clone()
    }

    /// The source host has sent all it sends unasked: what is still missing is
    /// asked for from now on.
    pub fn ask_for_all(&self) {
        self.mailbox.post(Mail::AskForAll);
    }

    /// A look at what is done, for another thread.
    pub fn meter(&self) -> LazyMeter {
        LazyMeter(self.stats.clone())
    }

    /// Fills these pages of a task (by their address now) before all others
    /// that nobody waits for.
    pub fn fill_first(&self, space: SpaceId, runs: Vec<PageRun>) {
        self.mailbox.post(Mail::First(space, runs));
    }

    /// Ends the server and closes every descriptor. Missing memory reads as
    /// zeros from then on: call this only when the restored processes have been
    /// killed, which is possible only before the grant.
    pub fn abort(self) {
        self.mailbox.post(Mail::Abort);
        // A panic has been reported to whoever looks at stderr; what counts
        // here is that nothing stays open.
        let _ = self.thread.join();
        lock(&self.keepsakes).clear();
        for uffd in lock(&self.left_open).drain(..) {
            uffd.release();
        }
    }
}

/// Counts of a server at work. Clones see the same.
#[derive(Clone)]
pub struct LazyMeter(Arc<Mutex<LazyStats>>);

impl LazyMeter {
    /// Faults reported so far, pages put in place, and pages the source host
    /// was asked for and answered.
    pub fn read(&self) -> (u64, u64, u64) {
        let stats = lock(&self.0);
        let placed = stats.prefilled + stats.from_store + stats.from_source + stats.zero;
        (stats.faults, placed, stats.from_source)
    }
}

/// What others tell the server.
pub(super) enum Mail {
    Answer(PageAt, RemoteAnswer),
    Stored(SpaceId, PageRun),
    SourceLost(String),
    First(SpaceId, Vec<PageRun>),
    AskForAll,
    Abort,
}

/// Where they put it.
pub(super) struct Mailbox {
    queue: Mutex<Vec<Mail>>,
    pub(super) bell: EventFd,
}

impl Mailbox {
    fn new() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self { queue: Mutex::new(Vec::new()), bell: EventFd::from_flags(flags)? })
    }

    /// Takes everything out.
    pub(super) fn empty(&self) -> Vec<Mail> {
        // Fails only if another look has emptied the counter.
        let _ = self.bell.read();
        std::mem::take(&mut *lock(&self.queue))
    }

    fn post(&self, mail: Mail) {
        lock(&self.queue).push(mail);
        // Fails only if the counter is full, and then the bell rings already.
        let _ = self.bell.write(1);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
