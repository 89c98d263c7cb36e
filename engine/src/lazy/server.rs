//! The server's thread, and the ends others hold of it.

use super::book::Book;
use super::client::{Client, SOCKET, Said, bind_in};
use super::error::LazyError;
use super::plan::LazyPlan;
use super::space::Space;
use super::{LazyEvent, LazyOptions, LazyStats, PageSource, RemoteAnswer};
use crate::sys::uffd_copy::Uffd;
use blip_transport::page::{PageAt, PageRun, SpaceId};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LISTENER: u64 = 0;
const MAIL: u64 = 1;
const CLIENT: u64 = 2;
/// Numbers of address spaces begin here.
const SPACES: u64 = 16;
/// Fruitless looks at a held-up address space before pausing between them.
const PATIENCE: u32 = 64;
/// That pause.
const PAUSE: Duration = Duration::from_millis(1);

enum Mail {
    Answer(PageAt, RemoteAnswer),
    Stored(SpaceId, PageRun),
    SourceLost(String),
    First(SpaceId, Vec<PageRun>),
    Abort,
}

struct Mailbox {
    queue: Mutex<Vec<Mail>>,
    bell: EventFd,
}

impl Mailbox {
    fn post(&self, mail: Mail) {
        lock(&self.queue).push(mail);
        // Fails only if the counter is full, and then the bell rings already.
        let _ = self.bell.write(1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

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
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_flags(flags).map_err(LazyError::system("make an eventfd"))?;
        let mailbox = Arc::new(Mailbox { queue: Mutex::new(Vec::new()), bell });
        Ok(Self { listener, mailbox })
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
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(LazyError::system("make an epoll"))?;
        let serving = Serving {
            epoll,
            book: Book::new(&plan, source, options, Box::new(observer), stats.clone()),
            plan,
            mailbox: self.mailbox.clone(),
            client: None,
            spaces: BTreeMap::new(),
            arrived: BTreeSet::new(),
            next_space: SPACES,
            turn: 0,
            fruitless: 0,
            faulting: false,
            aborted: false,
        };
        serving.watch(&self.listener, LISTENER)?;
        serving.watch(&self.mailbox.bell, MAIL)?;
        let open = left_open.clone();
        let thread = std::thread::Builder::new()
            .name("blip-lazy".into())
            .spawn(move || serving.serve_all(self.listener, &open))
            .map_err(|error| LazyError::System { what: "start its thread", error })?;
        Ok(LazyHandle { mailbox: self.mailbox, thread, stats, left_open })
    }
}

/// The owner's end of a serving [`LazyServer`]. Dropping it changes nothing:
/// the server goes on until all is in place.
pub struct LazyHandle {
    mailbox: Arc<Mailbox>,
    thread: JoinHandle<Result<(), Arc<LazyError>>>,
    stats: Arc<Mutex<LazyStats>>,
    left_open: Arc<Mutex<Vec<Uffd>>>,
}

impl LazyHandle {
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
        for uffd in lock(&self.left_open).drain(..) {
            uffd.release();
        }
    }
}

/// The state of the server's thread.
struct Serving {
    epoll: Epoll,
    plan: LazyPlan,
    book: Book,
    mailbox: Arc<Mailbox>,
    client: Option<Client>,
    spaces: BTreeMap<u64, Space>,
    /// Tasks the restorer has handed over.
    arrived: BTreeSet<SpaceId>,
    next_space: u64,
    /// The space whose turn it was to be filled.
    turn: u64,
    /// Looks at held-up spaces that have moved nothing.
    fruitless: u32,
    /// A fault has come in since the last chunk.
    faulting: bool,
    aborted: bool,
}

impl Serving {
    fn serve_all(
        mut self,
        listener: UnixListener,
        left_open: &Mutex<Vec<Uffd>>,
    ) -> Result<(), Arc<LazyError>> {
        let mut listener = Some(listener);
        let result = self.run(&mut listener).map_err(Arc::new);
        let spaces = std::mem::take(&mut self.spaces).into_values();
        match &result {
            Ok(()) => {
                self.book.stats().finished = Some(self.book.started.elapsed());
                self.book.tell(LazyEvent::Drained);
            }
            Err(error) => {
                lock(left_open).extend(spaces.map(|space| space.uffd));
                self.book.tell(LazyEvent::Failed(error.clone()));
            }
        }
        result
    }

    fn run(&mut self, listener: &mut Option<UnixListener>) -> Result<(), LazyError> {
        loop {
            self.hear(listener)?;
            if self.aborted {
                return Err(LazyError::Aborted);
            }
            let now = Instant::now();
            for space in self.spaces.values_mut() {
                space.retry(&mut self.book, now);
            }
            self.fill_a_chunk();
            // After the filling, which finds what is absent: nothing may be left
            // undone when `hear` goes to sleep.
            for space in self.spaces.values_mut() {
                space.request_absent(&mut self.book);
            }
            self.settle();
            self.part_with_the_done();
            if self.book.finished {
                if self.spaces.is_empty() {
                    return Ok(());
                }
                self.despair()?;
            }
        }
    }

    /// Waits for something to happen, no longer than there is nothing to do,
    /// and takes in all that has.
    fn hear(&mut self, listener: &mut Option<UnixListener>) -> Result<(), LazyError> {
        let mut ready = [EpollEvent::empty(); 64];
        let timeout = self.timeout();
        let n = match self.epoll.wait(&mut ready, timeout) {
            Ok(n) => n,
            Err(nix::Error::EINTR) => 0,
            Err(e) => return Err(LazyError::system("wait for events")(e)),
        };
        self.fruitless = if n > 0 { 0 } else { self.fruitless.saturating_add(1) };
        for event in &ready[..n] {
            match event.data() {
                LISTENER => self.admit(listener)?,
                MAIL => self.open_mail(),
                CLIENT => self.hear_client()?,
                space => self.hear_space(space)?,
            }
        }
        Ok(())
    }

    /// For `epoll_wait`, in ms: 0 while there is work, -1 for as long as it takes.
    fn timeout(&self) -> nix::sys::epoll::EpollTimeout {
        use nix::sys::epoll::EpollTimeout;
        let now = Instant::now();
        let mut least: Option<Duration> = None;
        for space in self.spaces.values() {
            let wait = match space.rests_until() {
                Some(until) if until > now => until - now,
                _ if space.is_held_up() && self.fruitless > PATIENCE => PAUSE,
                _ if space.is_held_up() => {
                    // The kernel needs a moment to let go of a thread we have
                    // just answered; it may need this very core for it.
                    std::thread::yield_now();
                    Duration::ZERO
                }
                _ if self.may_fill() && space.has_unseen() => Duration::ZERO,
                _ => continue,
            };
            least = Some(least.map_or(wait, |l| l.min(wait)));
        }
        match least {
            None => EpollTimeout::NONE,
            Some(Duration::ZERO) => EpollTimeout::ZERO,
            Some(wait) => EpollTimeout::from(wait.as_millis().clamp(1, 1000) as u16),
        }
    }

    fn may_fill(&self) -> bool {
        self.book.finished || self.book.options.early
    }

    fn watch(&self, fd: impl AsFd, number: u64) -> Result<(), LazyError> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, number))
            .map_err(LazyError::system("watch a descriptor"))
    }

    fn admit(&mut self, listener: &mut Option<UnixListener>) -> Result<(), LazyError> {
        let Some(listening) = listener else { return Ok(()) };
        let stream = match listening.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(LazyError::System { what: "accept the restorer", error }),
        };
        let Some(client) = Client::accept(stream) else {
            tracing::warn!("refused a stranger on the lazy-pages socket");
            return Ok(());
        };
        self.watch(&client, CLIENT)?;
        self.client = Some(client);
        // One restorer speaks for the whole container.
        *listener = None;
        Ok(())
    }

    fn hear_client(&mut self) -> Result<(), LazyError> {
        while let Some(client) = &mut self.client {
            match client.listen()? {
                Said::Nothing => break,
                Said::Dead => {}
                Said::Task(space, uffd) => self.take_on(space, uffd)?,
                Said::Closed => return Err(LazyError::RestorerLeft),
                Said::Finished => {
                    self.client = None;
                    self.restore_finished()?;
                }
            }
        }
        Ok(())
    }

    fn take_on(&mut self, space: SpaceId, uffd: Uffd) -> Result<(), LazyError> {
        let refusal = match self.plan.task(space) {
            Some(_) if !self.arrived.insert(space) => "was handed over twice",
            None => "is not in the dump",
            Some(task) => {
                let hot = self.book.options.hot.iter().filter(|(s, _)| *s == space);
                let hot: Vec<PageRun> = hot.flat_map(|(_, runs)| runs).copied().collect();
                let keepsake = uffd
                    .keepsake()
                    .map_err(|error| LazyError::System { what: "copy a userfaultfd", error })?;
                self.add(Space::restored(space, uffd, task, &hot))?;
                self.book.tell(LazyEvent::TaskArrived { space, keepsake: Arc::new(keepsake) });
                return Ok(());
            }
        };
        // Nothing of ours is behind it.
        uffd.release();
        Err(LazyError::protocol(format!("process {} {refusal}", space.0)))
    }

    fn add(&mut self, space: Space) -> Result<(), LazyError> {
        let number = self.next_space;
        self.next_space += 1;
        let watched = self.watch(&space.uffd, number);
        self.spaces.insert(number, space);
        watched
    }

    fn restore_finished(&mut self) -> Result<(), LazyError> {
        for (space, task) in self.plan.tasks() {
            if !self.arrived.contains(&space) && !task.missing.is_empty() {
                return Err(LazyError::NotHandedOver { space });
            }
        }
        self.book.finished = true;
        self.book.stats().restored = Some(self.book.started.elapsed());
        self.book.tell(LazyEvent::RestoreFinished);
        Ok(())
    }

    fn hear_space(&mut self, number: u64) -> Result<(), LazyError> {
        let Some(space) = self.spaces.get_mut(&number) else { return Ok(()) };
        let mut children = Vec::new();
        let heard = space.hear(&mut self.book, &mut children);
        self.faulting = true;
        for child in children {
            self.add(child)?;
        }
        heard.map(|_| ()).map_err(|error| LazyError::System { what: "read a userfaultfd", error })
    }

    fn open_mail(&mut self) {
        // Fails only if another look has emptied the counter.
        let _ = self.mailbox.bell.read();
        let mail = std::mem::take(&mut *lock(&self.mailbox.queue));
        for letter in mail {
            match letter {
                Mail::Abort => self.aborted = true,
                Mail::Answer(at, answer) => {
                    self.book.answered(at, answer);
                    let run = PageRun { start: at.index, count: one() };
                    self.try_again(at.space, run);
                    let owed = |s: &Space| s.origin == at.space && s.owed.owes_any(run);
                    if !self.spaces.values().any(owed) {
                        self.book.forget(at);
                    }
                }
                Mail::Stored(space, run) => self.try_again(space, run),
                Mail::SourceLost(why) => {
                    for at in self.book.source_lost(why) {
                        self.try_again(at.space, PageRun { start: at.index, count: one() });
                    }
                }
                Mail::First(space, runs) => {
                    for member in self.spaces.values_mut().filter(|s| s.origin == space) {
                        member.fill_first(&runs);
                    }
                }
            }
        }
    }

    fn try_again(&mut self, space: SpaceId, run: PageRun) {
        for member in self.spaces.values_mut().filter(|s| s.origin == space) {
            member.try_again(run.pages());
        }
    }

    /// Fills the next chunk of the next address space that misses something.
    fn fill_a_chunk(&mut self) {
        if !self.may_fill() {
            return;
        }
        let options = &self.book.options;
        let calm = !std::mem::take(&mut self.faulting);
        let budget = if calm { options.chunk.0 } else { options.chunk_under_faults.0 };
        let now = Instant::now();
        let able = |s: &Space| {
            s.has_unseen() && !s.is_held_up() && s.rests_until().is_none_or(|until| until <= now)
        };
        let after = self.spaces.range(self.turn + 1..).find(|(_, s)| able(s));
        let next = after.or_else(|| self.spaces.iter().find(|(_, s)| able(s)));
        let Some(number) = next.map(|(&number, _)| number) else { return };
        self.turn = number;
        if let Some(space) = self.spaces.get_mut(&number) {
            space.prefill(&mut self.book, budget.max(1));
        }
    }

    /// Tells the source about pages that no address space misses any more.
    fn settle(&mut self) {
        for (space, piece) in std::mem::take(&mut self.book.taken) {
            let family = || self.spaces.values().filter(|s| s.origin == space && !s.gone);
            if !family().any(|s| s.owed.owes_any(piece.dumped())) {
                self.book.settle(space, piece);
                continue;
            }
            for page in (0..piece.count).map(|i| piece.page(i)) {
                if !family().any(|s| s.owed.owes_any(page.dumped())) {
                    self.book.settle(space, page);
                }
            }
        }
    }

    /// Closes what is filled or dead.
    fn part_with_the_done(&mut self) {
        let finished = self.book.finished;
        let done = |s: &Space| s.gone || finished && s.is_drained() && s.lost.is_none();
        while let Some((&number, _)) = self.spaces.iter().find(|(_, s)| done(s)) {
            let Some(space) = self.spaces.remove(&number) else { return };
            let owed: Vec<_> = space.owed.all().map(|piece| (space.origin, piece)).collect();
            self.book.taken.extend(owed);
            space.uffd.release();
            self.settle();
        }
    }

    /// Ends the server when all that is left are tasks that cannot go on.
    fn despair(&self) -> Result<(), LazyError> {
        if self.spaces.values().any(|s| s.lost.is_none()) {
            return Ok(());
        }
        match self.spaces.values().find_map(|s| Some((s.origin, s.lost.clone()?))) {
            None => Ok(()),
            Some((space, (page, why))) => Err(LazyError::PagesLost { space, page, why }),
        }
    }
}

fn one() -> blip_transport::units::PageCount {
    blip_transport::units::PageCount(1)
}
