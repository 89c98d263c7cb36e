//! The container stands still: freezing it, dumping it, and the ways out.
//!
//! [`Ready`] has everything started that can be started while the container
//! runs. [`Ready::freeze`] stops it; from then on there are two ways out of
//! [`Frozen`]: [`Frozen::thaw`], after which it runs on as if nothing had
//! happened, and [`Frozen::retire`], after which it is gone. After the grant
//! only a verdict of the target may lead to `thaw`.

use super::subject::Subject;
use crate::cgroup::{CgroupError, Freezer, Version};
use crate::criu::dump::{DumpError, DumpSpec, Held, Loaded};
use crate::guard::{Charge, Guard};
use crate::network::{Applied, Cut, NetworkError};
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
}

/// What keeps the container still.
struct Stop {
    freezer: Freezer,
    cut: Applied,
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
        };
        let loaded = Loaded::start(&spec).await?;
        let cut = Cut::prime(init)?;
        let freezer = subject.freezer.clone();
        let charge = Charge::Source {
            freezer: freezer.path.clone(),
            unified: freezer.version == Version::V2,
            init,
            criu: loaded.pid(),
            images: directory.to_owned(),
        };
        let guard = Guard::start(&charge, &[]).map_err(FreezeError::Guard)?;
        Ok(Self { loaded, cut, guard, freezer, init, images })
    }

    /// Stops every task and cuts the network.
    pub async fn freeze(self) -> Result<Still, FreezeError> {
        let freezer = self.freezer.clone();
        let freezing = tokio::task::spawn_blocking(move || freezer.freeze(FREEZE_LIMIT));
        let (frozen, cut) = tokio::join!(freezing, self.cut.apply());
        let frozen = frozen.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let failed = match (frozen, cut) {
            (Ok(()), Ok(cut)) => {
                let (freezer, init) = (self.freezer, self.init);
                let stop = Stop { freezer, cut, guard: Some(self.guard), init };
                return Ok(Still { loaded: self.loaded, stop, images: self.images });
            }
            (Err(error), cut) => {
                if let Ok(cut) = cut {
                    let _ = cut.join().await;
                }
                FreezeError::from(error)
            }
            (Ok(()), Err(error)) => FreezeError::from(error),
        };
        self.loaded.cancel().await;
        let thawed = self.freezer.thaw();
        let _ = self.guard.dismiss();
        thawed?;
        Err(failed)
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
    pub async fn dump(self) -> Result<Frozen, FreezeError> {
        match self.loaded.dump().await {
            Ok(held) => {
                // CRIU thaws the cgroup to work on the tasks, which it holds by
                // ptrace. Should it die, they must not run.
                self.stop.freezer.order()?;
                Ok(Frozen { held, stop: self.stop, images: self.images })
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
        self.stop.guard.take().map_or(Ok(()), Guard::dismiss)
    }

    /// The target runs it: everything here is killed, silently on the network.
    pub async fn retire(self) {
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
