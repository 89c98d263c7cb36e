//! The server's thread: one loop that listens, answers, fills, and lets go.

use super::LazyEvent;
use super::book::Book;
use super::client::{Client, Said};
use super::error::LazyError;
use super::plan::LazyPlan;
use super::server::{Mail, Mailbox, lock};
use super::space::Space;
use crate::sys::uffd_copy::Uffd;
use blip_transport::page::{PageRun, SpaceId};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
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

/// A second descriptor of every userfaultfd that is being served, by the number
/// of its address space.
pub(super) type Keepsakes = Arc<Mutex<BTreeMap<u64, OwnedFd>>>;

/// The state of the server's thread.
pub(super) struct Serving {
    epoll: Epoll,
    plan: LazyPlan,
    book: Book,
    mailbox: Arc<Mailbox>,
    client: Option<Client>,
    spaces: BTreeMap<u64, Space>,
    keepsakes: Keepsakes,
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
    /// A thread's state that listens to all who may speak.
    pub(super) fn new(
        plan: LazyPlan,
        book: Book,
        mailbox: Arc<Mailbox>,
        listener: &UnixListener,
        keepsakes: Keepsakes,
    ) -> Result<Self, LazyError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(LazyError::system("make an epoll"))?;
        let serving = Self {
            epoll,
            plan,
            book,
            mailbox,
            client: None,
            spaces: BTreeMap::new(),
            keepsakes,
            arrived: BTreeSet::new(),
            next_space: SPACES,
            turn: 0,
            fruitless: 0,
            faulting: false,
            aborted: false,
        };
        serving.watch(listener, LISTENER)?;
        serving.watch(&serving.mailbox.bell, MAIL)?;
        Ok(serving)
    }

    /// Serves until nothing is missing any more. After a failure, the
    /// descriptors of what is still missing something are in `left_open`.
    pub(super) fn serve_all(
        mut self,
        listener: UnixListener,
        left_open: &Mutex<Vec<Uffd>>,
    ) -> Result<(), Arc<LazyError>> {
        let mut listener = Some(listener);
        // A panic, be it of the page source or of the observer, must not leave
        // anybody waiting without the owner knowing.
        let ran = catch_unwind(AssertUnwindSafe(|| self.run(&mut listener)));
        let result = ran.unwrap_or(Err(LazyError::Panicked)).map_err(Arc::new);
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
                self.add(Space::restored(space, uffd, task, &hot))?;
                self.book.tell(LazyEvent::TaskArrived { space });
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
        let keepsake = space
            .uffd
            .keepsake()
            .map_err(|error| LazyError::System { what: "copy a userfaultfd", error });
        let watched = self.watch(&space.uffd, number);
        self.spaces.insert(number, space);
        lock(&self.keepsakes).insert(number, keepsake?);
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
        for letter in self.mailbox.empty() {
            match letter {
                Mail::Abort => self.aborted = true,
                Mail::AskForAll => self.book.options.wait_for_push = false,
                Mail::Answer(at, answer) => {
                    self.book.answered(at, answer);
                    let run = PageRun { start: at.index, count: one() };
                    self.try_again(at.space, run);
                    let owed = |s: &Space| s.origin == at.space && s.owed.owes_any(run);
                    if !self.spaces.values().any(owed) {
                        self.book.forget(at);
                    }
                }
                Mail::Stored(space, run) => {
                    for member in self.spaces.values_mut().filter(|s| s.origin == space) {
                        member.stored(run.pages());
                    }
                }
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
            // Both, or the kernel goes on waiting for somebody to serve it.
            lock(&self.keepsakes).remove(&number);
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
