//! One dump, held at its end.
//!
//! CRIU is loaded before the freeze and waits at its `pre-dump` point; it is
//! released when the container stands still; it writes its images and waits
//! again at `post-dump`, with every task stopped and every TCP socket in
//! repair mode. There blip decides: [`Held::abandon`] undoes the dump,
//! [`Held::release_dead`] lets go of a tree that has been killed meanwhile.
//!
//! The types follow the order: [`Loaded`] → [`Held`] → gone.
//!
//! **Invariant**: whatever becomes of CRIU, the container's cgroup is frozen by
//! us, so no task runs because CRIU let it go.

use super::preload::{Hidden, Preload};
use super::rpc::{self, Environment, Opts, RpcError, Said, Worker};
use crate::cgroup::Freezer;
use crate::track::shared::Inode;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long CRIU may take to undo a dump before it is killed. Its tasks are
/// let go by either way.
const ABANDON_LIMIT: Duration = Duration::from_secs(3);

/// An address that no host has (RFC 5737), given to CRIU as that of its own
/// page server: blip serves the pages, so that server must never come up.
const NO_PAGE_SERVER: &str = "address 192.0.2.1\nport 9\n";

/// What is dumped, and how.
#[derive(Clone, Debug)]
pub struct DumpSpec {
    /// Init of the container, as this host numbers it.
    pub pid: i32,
    /// Root of its file system, as this host sees it.
    pub rootfs: PathBuf,
    /// The cgroup that holds all of it.
    pub freezer: Freezer,
    /// Directory for images and log; made here, mode 0700.
    pub images: PathBuf,
    /// What CRIU must leave to others: `mnt[…]:…`, `net[…]:…`.
    pub external: Vec<String>,
    /// Names of the container's stdio, for `runc restore`.
    pub descriptors: Vec<String>,
    /// Whether the container has a terminal.
    pub terminal: bool,
    /// TCP connections stay behind: they are dumped as closed ones.
    pub close_connections: bool,
    /// Leave out connections that nobody has accepted, instead of refusing.
    pub skip_in_flight: bool,
}

/// What went wrong with a dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// CRIU.
    #[error(transparent)]
    Criu(#[from] RpcError),
    /// A file of ours.
    #[error("cannot prepare {path:?} for the dump: {source}")]
    Prepare {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// CRIU is loaded and touches nothing yet.
#[derive(Debug)]
pub struct Loaded {
    worker: Worker,
    preload: Option<Preload>,
}

/// The images are written and CRIU holds every task.
#[derive(Debug)]
pub struct Held {
    worker: Worker,
    /// Its files stay open for as long as CRIU works.
    _preload: Option<Preload>,
}

impl Loaded {
    /// Starts CRIU and brings it to the point just before the dump.
    pub async fn start(spec: &DumpSpec) -> Result<Self, DumpError> {
        let directory = prepare(spec)?;
        match Preload::new() {
            Ok(preload) => match load(spec, &directory, preload.environment()).await {
                Ok(worker) => return Ok(Self { worker, preload: Some(preload) }),
                Err(error) => tracing::warn!("trying criu again, without blip's library: {error}"),
            },
            Err(error) => {
                tracing::warn!("criu's dump will take longer the more memory there is: {error}");
            }
        }
        let worker = load(spec, &directory, Environment::new()).await?;
        Ok(Self { worker, preload: None })
    }

    /// Process ID of CRIU.
    pub fn pid(&self) -> Option<u32> {
        self.worker.pid()
    }

    /// Dumps the frozen container. Returns when every image is on disk. Pages
    /// that are `hidden` may or may not be named in them as left out; shared
    /// `objects` may or may not be in them.
    pub async fn dump(mut self, hidden: &[Hidden], objects: &[Inode]) -> Result<Held, DumpError> {
        let hide = |preload: &Preload| preload.hide(hidden, objects);
        if let Some(Err(error)) = self.preload.as_ref().map(hide) {
            tracing::warn!("criu looks at all memory: {error}");
        }
        self.worker.answer(true).await?;
        wait_for(&mut self.worker, "post-dump").await?;
        Ok(Held { worker: self.worker, _preload: self.preload })
    }

    /// Ends CRIU before it has touched anything.
    pub async fn cancel(self) {
        self.worker.kill().await;
    }
}

impl Held {
    /// Undoes the dump: CRIU takes its traces out of the tasks and the sockets
    /// and lets them go. They stay where the cgroup holds them.
    pub async fn abandon(mut self) {
        let undone = async {
            self.worker.answer(false).await?;
            // Told to fail, it answers with an error: that is the good end.
            while let Said::At(_) = self.worker.next().await? {
                self.worker.answer(true).await?;
            }
            Ok::<(), RpcError>(())
        };
        if tokio::time::timeout(ABANDON_LIMIT, undone).await.is_err() {
            tracing::warn!("criu did not undo its dump in {ABANDON_LIMIT:?}; killing it");
        }
        self.worker.kill().await;
    }

    /// blip ends while nobody knows who owns the container: CRIU notices the
    /// end of its socket and undoes its dump; the cgroup holds the tasks.
    pub fn forsake(self) {
        self.worker.detach();
    }

    /// Lets go of a tree that is dead already.
    pub async fn release_dead(self) {
        self.worker.kill().await;
    }
}

/// A worker at the point just before the dump.
async fn load(
    spec: &DumpSpec,
    directory: &File,
    environment: Environment,
) -> Result<Worker, DumpError> {
    let mut worker = Worker::start(Some(&spec.images.join("dump.log")), environment)?;
    worker.dump(options(spec, directory)).await?;
    wait_for(&mut worker, "pre-dump").await?;
    Ok(worker)
}

/// Lets the worker pass every point up to the named one, where it stays.
async fn wait_for(worker: &mut Worker, point: &str) -> Result<(), RpcError> {
    loop {
        match worker.next().await? {
            Said::At(name) if name == point => return Ok(()),
            Said::At(_) => worker.answer(true).await?,
            Said::Done => {
                return Err(RpcError::Protocol(format!("done before the {point} point")));
            }
        }
    }
}

fn prepare(spec: &DumpSpec) -> Result<File, DumpError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| DumpError::Prepare { path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&spec.images)
        .map_err(at(&spec.images))?;
    let config = spec.images.join("criu.conf");
    fs::write(&config, NO_PAGE_SERVER).map_err(at(&config))?;
    let names = spec.images.join("descriptors.json");
    let json =
        serde_json::to_vec(&spec.descriptors).map_err(io::Error::from).map_err(at(&names))?;
    fs::write(&names, json).map_err(at(&names))?;
    File::open(&spec.images).map_err(at(&spec.images))
}

fn options(spec: &DumpSpec, directory: &File) -> Opts {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Opts {
        images_dir_fd: directory.as_raw_fd(),
        work_dir_fd: Some(directory.as_raw_fd()),
        pid: Some(spec.pid),
        log_level: Some(
            std::env::var("BLIP_CRIU_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(2),
        ),
        log_file: Some("dump.log".into()),
        root: Some(text(&spec.rootfs)),
        external: spec.external.clone(),
        freeze_cgroup: Some(text(&spec.freezer.path)),
        manage_cgroups: Some(true),
        manage_cgroups_mode: Some(rpc::CGROUP_MODE_SOFT),
        network_lock: Some(rpc::NETWORK_LOCK_SKIP),
        notify_scripts: Some(true),
        lazy_pages: Some(true),
        tcp_established: (!spec.close_connections).then_some(true),
        tcp_close: spec.close_connections.then_some(true),
        ext_unix_sk: Some(true),
        file_locks: Some(true),
        link_remap: Some(true),
        ghost_limit: Some(64 << 20),
        tcp_skip_in_flight: spec.skip_in_flight.then_some(true),
        orphan_pts_master: spec.terminal.then_some(true),
        shell_job: None,
        config_file: Some(text(&spec.images.join("criu.conf"))),
        ..Opts::default()
    }
}
