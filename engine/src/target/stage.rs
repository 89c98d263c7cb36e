//! Staging: everything of the container but its processes.
//!
//! Docker creates and "starts" the container under blip's runtime, which stands
//! still in front of CRIU's first image. What is done here is undone by
//! [`Staged::discard`], in reverse.

use super::intake::{Intake, Places};
use super::mounts::{self, MakeError};
use super::recall::{self, RecallError};
use crate::docker::{Copy, Docker, DockerError, Inspection};
use crate::forward;
use crate::lazy::{LazyError, LazyServer};
use crate::ledger::{Departed, Made};
use crate::mounts::Tmpfs;
use crate::network::{NetworkError, Silence, parse_mac};
use crate::protocol::StageRequest;
use crate::runtime::stage::{
    CgroupMode, HolderUp, Report, RestoreSpec, STAGE_ROOT, StageDir, StageError, StageEvent,
    StageServer, TcpMode, TmpfsPlace,
};
use crate::source::files::LAYER;
use blip_transport::files::{ApplyOptions, Exclude, Manifest, Room};
use blip_transport::units::TreeId;
use bollard::models::RestartPolicy;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Where arrivals keep their images, in memory.
const ARRIVALS: &str = "/run/blip/arrivals";
/// How long Docker may take to bring a container to the stage.
const STAGE_LIMIT: Duration = Duration::from_secs(60);

/// Why a container could not be staged.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// Docker.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// Places for its files.
    #[error(transparent)]
    Place(#[from] MakeError),
    /// The silence.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The stage directory or socket.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The lazy-pages socket.
    #[error(transparent)]
    Lazy(#[from] LazyError),
    /// What was left here.
    #[error(transparent)]
    Recall(#[from] RecallError),
    /// A directory or file.
    #[error("cannot prepare {path:?}: {source}")]
    Prepare {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The runtime gave up.
    #[error("Docker could not stage the container: {0}")]
    Failed(String),
    /// Nothing happened.
    #[error("Docker did not bring the container to the stage within {STAGE_LIMIT:?}")]
    Slow,
}

/// An address that moves with the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moving {
    /// MAC address.
    pub mac: [u8; 6],
    /// IP addresses.
    pub addresses: Vec<IpAddr>,
}

/// A container that lacks nothing but its processes.
pub struct Staged {
    docker: Docker,
    /// Docker's ID of it.
    pub id: String,
    /// The holder in its place.
    pub holder: HolderUp,
    /// The runtime's end.
    pub server: StageServer,
    /// Listens for CRIU.
    pub lazy: Option<LazyServer>,
    /// `docker start`, which ends when the container runs or never will.
    pub starting: JoinHandle<Result<(), DockerError>>,
    /// Directory of CRIU's images.
    pub images: PathBuf,
    /// Addresses that move.
    pub moving: Vec<Moving>,
    /// What keeps them silent.
    pub silences: Vec<Silence>,
    directory: StageDir,
    arrivals: PathBuf,
    /// What was made for its files.
    pub made: Made,
    /// What its trees of files hold already.
    pub trees: BTreeMap<TreeId, Manifest>,
    /// The restart policy it has to get once it is here.
    policy: Option<RestartPolicy>,
}

impl Staged {
    /// Stages what `request` describes. `recorded` hears of everything made,
    /// and Docker's ID of the container, at once, so that it is on record
    /// before anything else happens.
    pub async fn prepare(
        docker: &Docker,
        request: &StageRequest,
        departed: Option<Departed>,
        intake: &Intake,
        mut recorded: impl FnMut(Option<&str>, &Made),
    ) -> Result<Self, StagingError> {
        let original = Inspection::from_json(&request.container)?;
        let mut copy = Copy::staged(&original, request.keep_addresses)?;
        // A name may mean another image here.
        if docker.image_id(&original.image_name()).await?.as_deref() != Some(&original.image) {
            copy.body.image = Some(original.image.clone());
        }
        forward::make_way(&original);
        let mut made = Made::default();
        let placed = mounts::make(docker, &request.mounts, &mut made).await;
        recorded(None, &made);
        let created = match placed {
            Ok(()) => docker.create(copy).await.map_err(StagingError::from),
            Err(error) => Err(error.into()),
        };
        let id = match created {
            Ok(id) => id,
            Err(error) => {
                mounts::undo(docker, &made).await;
                return Err(error);
            }
        };
        recorded(Some(&id), &made);
        match Self::build(docker, request, departed, intake, &original, &id).await {
            Ok(staged) => Ok(Self { made, ..staged }),
            Err(error) => {
                let _ = docker.discard(&id).await;
                mounts::undo(docker, &made).await;
                remove_all(&arrivals(request));
                Err(error)
            }
        }
    }

    async fn build(
        docker: &Docker,
        request: &StageRequest,
        departed: Option<Departed>,
        intake: &Intake,
        original: &Inspection,
        id: &str,
    ) -> Result<Self, StagingError> {
        // Docker does not answer for a container that it is starting.
        let mut trees = mounts::places(&docker.inspect(id).await?, &request.mounts)?;
        let moving = if request.keep_addresses { moving(original) } else { Vec::new() };
        let name = &request.ticket.to_string()[..12];
        let silences = silence(docker, original, &moving, name).await?;
        let directory = StageDir::make(Path::new(STAGE_ROOT), id)?;
        let mut server = StageServer::listen(&directory)?;
        let mut starting = start(docker.clone(), id.to_owned());
        let holder = match wait_for_start(&mut server, &mut starting).await {
            Ok(holder) => holder,
            Err(error) => {
                clear_the_stage(server, starting, directory, &silences, &error).await;
                return Err(error);
            }
        };
        let arrivals = arrivals(request);
        let furnished = async {
            let images = make_images(&arrivals, request)?;
            let lazy = LazyServer::listen(&images)?;
            trees.insert(LAYER, holder.rootfs.clone());
            let mounted = &holder.bind_mounts;
            let here = recall::trees(request, departed.as_ref(), &trees, mounted).await?;
            let spec = restore_spec(request, &arrivals, &images)?;
            let restoring = order_restore(&mut server, spec.clone()).await?;
            for (tmpfs, place) in request.tmpfs.iter().zip(&spec.tmpfs) {
                // In the mount namespace of the restore, which only it has.
                let seen = format!("/proc/{restoring}/root{}", place.path.display());
                trees.extend(tmpfs.tree.map(|tree| (tree, seen.into())));
            }
            intake.place(places(docker, original, id, &holder, &images, trees).await?);
            Ok::<_, StagingError>((images, lazy, here))
        };
        let (images, lazy, here) = match furnished.await {
            Ok(furnished) => furnished,
            Err(error) => {
                clear_the_stage(server, starting, directory, &silences, &error).await;
                return Err(error);
            }
        };
        let policy = original.all.host_config.as_ref().and_then(|host| host.restart_policy.clone());
        Ok(Self {
            docker: docker.clone(),
            id: id.to_owned(),
            holder,
            server,
            lazy: Some(lazy),
            starting,
            images,
            moving,
            silences,
            directory,
            arrivals,
            made: Made::default(),
            trees: here,
            policy,
        })
    }

    /// Undoes the staging: what is held is killed before it runs.
    pub async fn discard(self, why: &str) {
        self.server.die(why).await;
        self.remove().await;
    }

    async fn remove(self) {
        // Docker removes nothing that it is still starting.
        let _ = tokio::time::timeout(Duration::from_secs(10), self.starting).await;
        if let Err(error) = self.docker.discard(&self.id).await {
            tracing::warn!("the staged container stays: {error}");
        }
        mounts::undo(&self.docker, &self.made).await;
        end_silences(&self.silences).await;
        let _ = self.directory.remove();
        remove_all(&self.arrivals);
    }

    /// Hands the running container over to Docker: restart policy back, and
    /// nothing of the move left.
    pub async fn settle(self) -> Result<(), StagingError> {
        let started = self.starting.await;
        if let Ok(Err(error)) = started {
            tracing::warn!("docker start: {error}");
        }
        if let Some(policy) = self.policy {
            self.docker.set_restart_policy(&self.id, policy).await?;
        }
        end_silences(&self.silences).await;
        let _ = self.directory.remove();
        remove_all(&self.arrivals);
        Ok(())
    }
}

/// Undoes a staging that did not come to its end.
async fn clear_the_stage(
    server: StageServer,
    starting: JoinHandle<Result<(), DockerError>>,
    directory: StageDir,
    silences: &[Silence],
    error: &StagingError,
) {
    server.die(&error.to_string()).await;
    if !starting.is_finished() {
        let _ = starting.await;
    }
    let _ = directory.remove();
    end_silences(silences).await;
}

/// Removes what an agent that died left of a container that never ran.
pub async fn remove_leftover(docker: &Docker, id: &str) {
    if let Err(error) = docker.discard(id).await {
        tracing::warn!("cannot remove the staged container {id}: {error}");
    }
    if let Some(directory) = StageDir::at(Path::new(STAGE_ROOT), id) {
        let _ = directory.remove();
    }
}

/// Removes all arrivals' files. Only for an agent that has just started.
pub fn remove_leftover_files() {
    remove_all(Path::new(ARRIVALS));
}

fn start(docker: Docker, id: String) -> JoinHandle<Result<(), DockerError>> {
    tokio::spawn(async move { docker.start(&id).await })
}

async fn wait_for_start(
    server: &mut StageServer,
    starting: &mut JoinHandle<Result<(), DockerError>>,
) -> Result<HolderUp, StagingError> {
    let mut holder = None;
    let until = tokio::time::Instant::now() + STAGE_LIMIT;
    loop {
        let event = tokio::select! {
            event = server.next() => event,
            ended = &mut *starting => {
                let why = match ended {
                    Ok(Err(error)) => error.to_string(),
                    _ => "it was started without blip's runtime".to_owned(),
                };
                return Err(StagingError::Failed(why));
            }
            () = tokio::time::sleep_until(until) => return Err(StagingError::Slow),
        };
        match event {
            Some(StageEvent::Said(Report::HolderUp(up))) => holder = Some(up),
            Some(StageEvent::Said(Report::StartAsked)) => {
                return holder.ok_or_else(|| StagingError::Failed("no holder came up".into()));
            }
            Some(StageEvent::Said(Report::Failed { why, log_tail })) => {
                // Docker's own words, if it has any, say more.
                let docker = tokio::time::timeout(Duration::from_secs(5), &mut *starting).await;
                let why = match docker {
                    Ok(Ok(Err(error))) => format!("{why} {log_tail} ({error})"),
                    _ => format!("{why} {log_tail}"),
                };
                return Err(StagingError::Failed(why));
            }
            other => return Err(StagingError::Failed(format!("unexpected on stage: {other:?}"))),
        }
    }
}

fn arrivals(request: &StageRequest) -> PathBuf {
    Path::new(ARRIVALS).join(request.ticket.to_string())
}

fn make_images(arrivals: &Path, request: &StageRequest) -> Result<PathBuf, StagingError> {
    let images = arrivals.join("images");
    let prepare = |source| StagingError::Prepare { path: images.clone(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&images).map_err(prepare)?;
    let names = serde_json::to_vec(&request.descriptors).map_err(io::Error::from);
    names.and_then(|names| fs::write(images.join("descriptors.json"), names)).map_err(prepare)?;
    StageDir::park_inventory(&images)?;
    Ok(images)
}

/// Starts the restore; answers who does it, as this host numbers it.
async fn order_restore(server: &mut StageServer, spec: RestoreSpec) -> Result<i32, StagingError> {
    let ordered = server.restore(spec).await;
    ordered
        .map_err(|e| StagingError::Failed(format!("the holder does not take the order: {e}")))?;
    match tokio::time::timeout(STAGE_LIMIT, server.next()).await {
        Ok(Some(StageEvent::Said(Report::Restoring { pid }))) => Ok(pid),
        Ok(Some(StageEvent::Said(Report::Failed { why, log_tail }))) => {
            Err(StagingError::Failed(format!("{why} {log_tail}").trim().to_owned()))
        }
        Ok(other) => Err(StagingError::Failed(format!("unexpected on stage: {other:?}"))),
        Err(_) => Err(StagingError::Slow),
    }
}

fn restore_spec(
    request: &StageRequest,
    arrivals: &Path,
    images: &Path,
) -> Result<RestoreSpec, StagingError> {
    let tcp = if request.keep_connections { TcpMode::Established } else { TcpMode::Close };
    let place = |tmpfs: &Tmpfs| {
        let path = arrivals.join("tmpfs").join(tmpfs.number.to_string());
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        let place =
            TmpfsPlace { key: tmpfs.key(), path: path.clone(), options: tmpfs.options.clone() };
        made.map(|()| place).map_err(|source| StagingError::Prepare { path, source })
    };
    Ok(RestoreSpec {
        tmpfs: request.tmpfs.iter().map(place).collect::<Result<_, _>>()?,
        images: images.to_owned(),
        work: images.to_owned(),
        lazy: true,
        tcp,
        cgroups: CgroupMode::Soft,
        criu_options: vec!["ghost-limit 64M".into(), "link-remap".into()],
    })
}

async fn places(
    docker: &Docker,
    original: &Inspection,
    id: &str,
    holder: &HolderUp,
    images: &Path,
    trees: BTreeMap<TreeId, PathBuf>,
) -> Result<Places, StagingError> {
    let options = |tree: TreeId| ApplyOptions {
        allow_devices: true,
        room: Room::UNLIMITED,
        keep: if tree == LAYER { docker_own(&holder.bind_mounts) } else { Exclude::default() },
    };
    let trees = trees.into_iter().map(|(tree, root)| (tree, (root, options(tree)))).collect();
    let log = log_file(original, &docker.root().await?, id);
    Ok(Places { images: images.to_owned(), trees, log })
}

/// Where Docker keeps the log of container `id`: as on the source, below this
/// host's root. (Docker does not answer for a container that it is starting.)
pub(crate) fn log_file(original: &Inspection, root: &Path, id: &str) -> Option<PathBuf> {
    let there = original.all.log_path.as_deref().filter(|path| !path.is_empty())?;
    let (_, below) = there.split_once("/containers/")?;
    Some(root.join("containers").join(below.replace(&original.id, id)))
}

/// Paths that each host's Docker makes for itself in a writable layer.
pub fn docker_own(mounts: &[PathBuf]) -> Exclude {
    let always = [
        "/dev",
        "/proc",
        "/sys",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/etc/mtab",
        "/.dockerenv",
    ];
    let always = always.iter().map(|path| path.as_bytes().to_vec());
    let mounts = mounts.iter().map(|path| path.as_os_str().as_encoded_bytes().to_vec());
    Exclude::new(always.chain(mounts)).unwrap_or_default()
}

/// The addresses of `original` that move with it.
fn moving(original: &Inspection) -> Vec<Moving> {
    let parse = |at: &bollard::models::EndpointSettings| {
        let mac = parse_mac(at.mac_address.as_deref()?)?;
        let texts = [at.ip_address.as_deref(), at.global_ipv6_address.as_deref()];
        let addresses = texts.into_iter().flatten().filter_map(|text| text.parse().ok()).collect();
        Some(Moving { mac, addresses })
    };
    original.networks().values().filter_map(parse).collect()
}

/// Keeps the moving addresses silent on every interface they sit on.
async fn silence(
    docker: &Docker,
    original: &Inspection,
    moving: &[Moving],
    name: &str,
) -> Result<Vec<Silence>, StagingError> {
    let mut silences = Vec::new();
    if moving.is_empty() {
        return Ok(silences);
    }
    let macs: Vec<String> =
        moving.iter().map(|m| m.mac.map(|byte| format!("{byte:02x}")).join(":")).collect();
    for (number, network) in original.networks().keys().enumerate() {
        let Some(segment) = docker.segment(network).await? else { continue };
        let Some(place) = segment.place() else { continue };
        let name = format!("{name}_{number}");
        match Silence::impose(&name, &place, &macs).await {
            Ok(silence) => silences.push(silence),
            Err(error) => {
                end_silences(&silences).await;
                return Err(error.into());
            }
        }
    }
    Ok(silences)
}

async fn end_silences(silences: &[Silence]) {
    for silence in silences {
        if let Err(error) = silence.remove().await {
            tracing::warn!("{error}");
        }
    }
}

fn remove_all(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {path:?}: {e}");
        }
        _ => {}
    }
}
