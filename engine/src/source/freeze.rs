//! The container stands still: freezing it, dumping it, and the ways out.
//!
//! [`Standby`] has what is started while pages are copied ahead; [`Ready`] has all
//! that can be started while the container runs, and waits for a good moment
//! ([`newcomers`]).
//! [`Ready::freeze`] stops it; from then on there are two ways out of
//! [`Frozen`]: [`Frozen::thaw`], after which it runs on as if nothing had
//! happened, and [`Frozen::retire`], after which it is gone. After the grant
//! only a verdict of the target may lead to `thaw`.

use super::newcomers::{self, Newcomers, Unaccepted};
use super::subject::Subject;
use crate::cgroup::{CgroupError, Freezer, Version};
use crate::connections;
use crate::criu::dump::{DumpError, DumpSpec, Held, Loaded};
use crate::criu::preload::Hidden;
use crate::guard::{Charge, Guard};
use crate::network::{Applied, Cut, InFlight, NetworkError, Passage, Place};
use crate::track::runs::Runs;
use crate::track::shared::Inode;
use crate::track::{Task, hide};
use blip_transport::page::SpaceId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the tasks of a container may take to stand still.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);

/// What went wrong around the freeze. The container runs.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The dump.
    #[error("the container cannot be dumped: {0}")]
    Dump(#[from] DumpError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The freezer.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Connections that nobody accepts.
    #[error(transparent)]
    Unaccepted(#[from] super::newcomers::UnacceptedError),
    /// Connections from within the container.
    #[error(
        "each of {attempts} times that the container was frozen, a connection to it had just been \
         made that nobody had accepted yet, from within or over a slow handshake; move it when it \
         is less busy, or give such connections up with --unaccepted reset"
    )]
    Restless {
        /// How often it was tried.
        attempts: u32,
    },
    /// The guard.
    #[error("cannot start the guard that thaws the container if blip dies: {0}")]
    Guard(io::Error),
}

/// What takes as long to start as a short downtime does, and is started while
/// rounds are made. Nothing of the container is touched.
pub struct Standby {
    loaded: Loaded,
    cut: Cut,
    guard: Guard,
    images: PathBuf,
}

/// Everything is loaded; the container runs.
pub struct Ready {
    loaded: Loaded,
    pub(super) cut: Cut,
    pub(super) in_flight: InFlight,
    pub(super) newcomers: Newcomers,
    guard: Guard,
    freezer: Freezer,
    init: i32,
    images: PathBuf,
    /// Where its one interface is.
    place: Option<Place>,
}

/// What came of an attempt to freeze.
pub enum Attempt {
    /// It stands still.
    Still(Box<Still>),
    /// Somebody came in between, whom nobody has accepted yet: it runs on.
    Again(Box<Ready>),
}

/// The container stands still and is cut off; CRIU is about to dump it.
pub struct Still {
    loaded: Loaded,
    stop: Stop,
    images: PathBuf,
}

/// The container stands still and is dumped.
pub struct Frozen {
    held: Held,
    stop: Stop,
    /// Where CRIU's images are.
    pub images: PathBuf,
    /// Where the images need not name the pages that they leave out.
    pub hidden: Vec<(SpaceId, Runs)>,
}

/// What keeps the container still.
struct Stop {
    freezer: Freezer,
    cut: Applied,
    in_flight: InFlight,
    guard: Option<Guard>,
    init: i32,
    place: Option<Place>,
}

impl Standby {
    /// Loads CRIU and nft and starts the guard. `directory` is for the images;
    /// `unaccepted` says what becomes of connections nobody has accepted.
    pub async fn load(
        subject: &Subject,
        directory: &Path,
        unaccepted: Unaccepted,
    ) -> Result<Self, FreezeError> {
        let images = directory.join("images");
        let spec = DumpSpec {
            pid: subject.init(),
            rootfs: subject.bundle.rootfs.clone(),
            freezer: subject.freezer.clone(),
            images: images.clone(),
            external: subject.bundle.external.clone(),
            descriptors: subject.bundle.descriptors.clone(),
            terminal: subject.bundle.terminal,
            close_connections: !subject.keep_connections,
            skip_in_flight: newcomers::are_left_behind(subject.keep_connections, unaccepted),
        };
        let loaded = Loaded::start(&spec).await?;
        let passage = if subject.closes_here() { Passage::Resets } else { Passage::Nothing };
        let cut = Cut::prime(subject.init(), passage)?;
        let charge = Charge::Source {
            freezer: subject.freezer.path.clone(),
            unified: subject.freezer.version == Version::V2,
            init: subject.init(),
            criu: loaded.pid(),
            images: directory.to_owned(),
        };
        let guard = Guard::start(&charge, &[]).map_err(FreezeError::Guard)?;
        Ok(Self { loaded, cut, guard, images })
    }

    /// Looks at the container's network as it is now.
    pub fn prepare(self, subject: &Subject, unaccepted: Unaccepted) -> Result<Ready, FreezeError> {
        let init = subject.init();
        let newcomers = Newcomers::of(subject, unaccepted)?;
        let Self { loaded, mut cut, guard, images } = self;
        cut.look_again()?;
        let in_flight = InFlight::tap(init)?;
        let (freezer, place) = (subject.freezer.clone(), subject.addresses.place());
        Ok(Ready { loaded, cut, in_flight, newcomers, guard, freezer, init, images, place })
    }

    /// There will be no freeze: lets go of everything.
    pub async fn cancel(self) {
        let_go(self.loaded, self.guard).await;
    }
}

/// CRIU goes, and then who would end it.
async fn let_go(loaded: Loaded, guard: Guard) {
    loaded.cancel().await;
    let _ = guard.dismiss();
}

impl Ready {
    /// Stops every task, then cuts the network. In this order nothing the
    /// container has said is lost: it says nothing more when the cut comes.
    pub async fn freeze(mut self) -> Result<Attempt, FreezeError> {
        let freezer = self.freezer.clone();
        let freezing = tokio::task::spawn_blocking(move || freezer.freeze(FREEZE_LIMIT));
        let frozen = freezing.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        if let Err(error) = frozen {
            return Err(self.undo(error.into()).await);
        }
        // What comes between here and the cut is received and sent on: twice
        // is harmless, never is not.
        self.in_flight.sift();
        let cut = match self.cut.apply().await {
            Ok(cut) => cut,
            Err(error) => {
                self.cut = Cut::of_unknown_state(self.init);
                return Err(self.undo(error.into()).await);
            }
        };
        // A handshake that began before they were held may have ended since.
        if self.newcomers.are_in_the_way() {
            self.cut = match cut.loosen().await {
                Ok(cut) => cut,
                Err(error) => {
                    self.cut = Cut::of_unknown_state(self.init);
                    return Err(self.undo(error.into()).await);
                }
            };
            return self.again().await;
        }
        if let (Some(backlog), Ok(pids)) = (self.newcomers.backlog(), self.freezer.processes()) {
            self.in_flight.take_unread(backlog, &pids);
        }
        let Self { loaded, in_flight, guard, freezer, init, images, place, .. } = self;
        let stop = Stop { freezer, cut, in_flight, guard: Some(guard), init, place };
        Ok(Attempt::Still(Box::new(Still { loaded, stop, images })))
    }

    async fn again(self) -> Result<Attempt, FreezeError> {
        match self.freezer.thaw() {
            Ok(()) => Ok(Attempt::Again(Box::new(self))),
            Err(error) => Err(self.undo(error.into()).await),
        }
    }

    /// Everything as it was; `error` is why.
    async fn undo(mut self, error: FreezeError) -> FreezeError {
        // Network first: what the container says when it runs must get out.
        self.open_up().await;
        let thawed = self.freezer.thaw();
        self.in_flight.give_back(self.place.take()).await;
        self.cancel().await;
        thawed.err().map_or(error, FreezeError::from)
    }

    /// Nobody is held back any more, and who was gets in.
    pub(super) async fn let_newcomers_in(&mut self) {
        if self.cut.is_holding() {
            self.open_up().await;
            self.in_flight.give_back(self.place.clone()).await;
        }
    }

    async fn open_up(&mut self) {
        if let Err(error) = self.cut.release().await {
            tracing::error!("{error}");
        }
        self.in_flight.sift();
    }

    pub(super) fn freezer(&self) -> &Freezer {
        &self.freezer
    }

    /// The container was not frozen: lets go of everything.
    pub async fn cancel(mut self) {
        self.let_newcomers_in().await;
        let_go(self.loaded, self.guard).await;
    }
}

impl Still {
    /// Dumps it, but for shared `objects` that others bring. If CRIU fails it has
    /// undone what it did, and the container runs again.
    pub async fn dump(self, tasks: &[Task], objects: &[Inode]) -> Result<Frozen, FreezeError> {
        let hidden: Vec<(SpaceId, Hidden)> = tasks.iter().filter_map(hidden).collect();
        let list: Vec<Hidden> = hidden.iter().map(|(_, hidden)| hidden.clone()).collect();
        match self.loaded.dump(&list, objects).await {
            Ok(held) => {
                // CRIU thaws the cgroup to work on the tasks, which it holds by
                // ptrace. Should it die, they must not run.
                self.stop.freezer.order()?;
                let hidden =
                    hidden.into_iter().map(|(space, hidden)| (space, hidden.pages)).collect();
                Ok(Frozen { held, stop: self.stop, images: self.images, hidden })
            }
            Err(error) => {
                self.stop.end().await;
                Err(error.into())
            }
        }
    }
}

impl Frozen {
    /// Nothing happened: the container runs on.
    pub async fn thaw(self) {
        self.held.abandon().await;
        self.stop.end().await;
    }

    /// The grant is about to be sent: if blip dies now, the container stays
    /// frozen until somebody knows better.
    pub fn dismiss_guard(&mut self) -> io::Result<()> {
        self.stop.guard.take().map_or(Ok(()), Guard::send_away)
    }

    /// What came for the container meanwhile goes after it, from interface
    /// `parent` of this host.
    pub fn forward_in_flight(&self, parent: &str) -> io::Result<usize> {
        self.stop.in_flight.forward(parent)
    }

    /// The target runs it: everything here is killed, silently on the network.
    /// `close`: after its connections have been reset.
    pub async fn retire(self, close: bool) {
        if close {
            connections::reset(self.stop.freezer.processes().unwrap_or_default()).await;
        }
        // CRIU still holds the sockets in repair mode and the interfaces are
        // cut: no reset leaves.
        let _ = kill(Pid::from_raw(self.stop.init), Signal::SIGKILL);
        self.held.release_dead().await;
        // A v1 freezer holds back even SIGKILL.
        let _ = self.stop.freezer.thaw();
        drop(self.stop.guard);
    }

    /// blip ends and leaves it frozen, in doubt.
    pub fn leave(self) {
        self.held.forsake();
    }
}

/// What of a task CRIU need not look at.
fn hidden(task: &Task) -> Option<(SpaceId, Hidden)> {
    match hide::hideable(task.pid) {
        Ok(pages) => (!pages.is_empty()).then_some((task.space, Hidden { pid: task.pid, pages })),
        Err(error) => {
            tracing::debug!("criu looks at all memory of process {}: {error}", task.pid);
            None
        }
    }
}

impl Stop {
    /// Network first: what the container says when it runs must get out.
    async fn end(mut self) {
        if let Err(error) = self.cut.join().await {
            tracing::error!("{error}");
        }
        if let Err(error) = self.freezer.thaw() {
            tracing::error!("{error}");
        }
        self.in_flight.give_back(self.place).await;
        if let Some(guard) = self.guard {
            let _ = guard.dismiss();
        }
    }
}
