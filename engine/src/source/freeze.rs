//! The container stands still: freezing it, dumping it, and the ways out.
//!
//! [`Ready`] has everything started that can be started while the container
//! runs. [`Ready::freeze`] stops it; from then on there are two ways out of
//! [`Frozen`]: [`Frozen::thaw`], after which it runs on as if nothing had
//! happened, and [`Frozen::retire`], after which it is gone. After the grant
//! only a verdict of the target may lead to `thaw`.

use super::subject::Subject;
use crate::cgroup::{CgroupError, Freezer, Version};
use crate::connections;
use crate::criu::dump::{DumpError, DumpSpec, Held, Loaded};
use crate::criu::preload::Hidden;
use crate::guard::{Charge, Guard};
use crate::network::{Applied, Cut, InFlight, NetworkError, Passage};
use crate::track::runs::Runs;
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
    /// The guard.
    #[error("cannot start the guard that thaws the container if blip dies: {0}")]
    Guard(io::Error),
}

/// Everything is loaded; the container runs.
pub struct Ready {
    loaded: Loaded,
    cut: Cut,
    in_flight: InFlight,
    guard: Guard,
    freezer: Freezer,
    init: i32,
    images: PathBuf,
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
}

impl Ready {
    /// Loads CRIU, nft and the guard. `directory` is for the images.
    pub async fn load(subject: &Subject, directory: &Path) -> Result<Self, FreezeError> {
        let init = subject.init();
        let images = directory.join("images");
        let spec = DumpSpec {
            pid: init,
            rootfs: subject.bundle.rootfs.clone(),
            freezer: subject.freezer.clone(),
            images: images.clone(),
            external: subject.bundle.external.clone(),
            descriptors: subject.bundle.descriptors.clone(),
            terminal: subject.bundle.terminal,
            close_connections: !subject.keep_connections,
        };
        let loaded = Loaded::start(&spec).await?;
        let passage = if subject.closes_here() { Passage::Resets } else { Passage::Nothing };
        let cut = Cut::prime(init, passage)?;
        let in_flight = InFlight::tap(init)?;
        let freezer = subject.freezer.clone();
        let charge = Charge::Source {
            freezer: freezer.path.clone(),
            unified: freezer.version == Version::V2,
            init,
            criu: loaded.pid(),
            images: directory.to_owned(),
        };
        let guard = Guard::start(&charge, &[]).map_err(FreezeError::Guard)?;
        Ok(Self { loaded, cut, in_flight, guard, freezer, init, images })
    }

    /// Stops every task, then cuts the network. In this order nothing the
    /// container has said is lost: it says nothing more when the cut comes.
    pub async fn freeze(self) -> Result<Still, FreezeError> {
        let freezer = self.freezer.clone();
        let freezing = tokio::task::spawn_blocking(move || freezer.freeze(FREEZE_LIMIT));
        let frozen = freezing.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        // What comes between here and the cut is received and sent on: twice
        // is harmless, never is not.
        self.in_flight.reset();
        let cut = match frozen {
            Ok(()) => self.cut.apply().await.map_err(FreezeError::from),
            Err(error) => Err(error.into()),
        };
        match cut {
            Ok(cut) => {
                let (freezer, init) = (self.freezer, self.init);
                let in_flight = self.in_flight;
                let stop = Stop { freezer, cut, in_flight, guard: Some(self.guard), init };
                Ok(Still { loaded: self.loaded, stop, images: self.images })
            }
            Err(error) => {
                self.loaded.cancel().await;
                let thawed = self.freezer.thaw();
                let _ = self.guard.dismiss();
                thawed?;
                Err(error)
            }
        }
    }

    /// The container was not frozen: lets go of everything.
    pub async fn cancel(self) {
        self.loaded.cancel().await;
        let _ = self.guard.dismiss();
    }
}

impl Still {
    /// Dumps it. If CRIU fails it has undone what it did, and the container
    /// runs again.
    pub async fn dump(self, tasks: &[Task]) -> Result<Frozen, FreezeError> {
        let hidden: Vec<(SpaceId, Hidden)> = tasks.iter().filter_map(hidden).collect();
        let list: Vec<Hidden> = hidden.iter().map(|(_, hidden)| hidden.clone()).collect();
        match self.loaded.dump(&list).await {
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
    async fn end(self) {
        if let Err(error) = self.cut.join().await {
            tracing::error!("{error}");
        }
        if let Err(error) = self.freezer.thaw() {
            tracing::error!("{error}");
        }
        if let Some(guard) = self.guard {
            let _ = guard.dismiss();
        }
    }
}
