//! What the two hosts say to each other on the control stream.
//!
//! The source asks and orders ([`ToTarget`]), the target answers and reports
//! ([`ToSource`]). Pages, files and images travel on bulk streams beside it;
//! missing pages are fetched on an urgent stream ([`PageRequest`]).

use crate::event::LazyReport;
use crate::handover::{Ticket, Verdict};
use crate::image::{Held, ImageOrder};
use crate::mounts::{Mount, Tmpfs};
use crate::network::Neighbour;
use blip_transport::page::{PageAt, PageRun, SpaceId};
use blip_transport::units::{ByteSize, PageCount, Round};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Something found before anything was touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What is the matter, on what.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// Whether the migration cannot go on.
    pub blocks: bool,
}

impl Finding {
    /// A reason not to start.
    pub fn blocker(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), blocks: true }
    }

    /// Something to know.
    pub fn note(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), blocks: false }
    }
}

/// What one host is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// blip.
    pub blip: String,
    /// Docker Engine.
    pub docker: String,
    /// CRIU.
    pub criu: String,
    /// runc.
    pub runc: String,
    /// Kernel release.
    pub kernel: String,
    /// CPU features, as `/proc/cpuinfo` lists them.
    pub cpu: Vec<String>,
    /// Whether its experimental features are on.
    #[serde(default)]
    pub docker_experimental: bool,
    /// 1 or 2: the cgroup generation of Docker's containers.
    pub cgroup: u8,
}

/// What the target is asked to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// The source's own facts.
    pub source: HostFacts,
    /// The container's name.
    pub name: String,
    /// Digest ID of its image.
    pub image: String,
    /// The image's name, for messages.
    pub image_name: String,
    /// Its layers, lowest first.
    pub layers: Vec<String>,
    /// Whether the source keeps images in containerd's store.
    pub containerd_images: bool,
    /// Networks it is attached to.
    pub networks: Vec<String>,
    /// Addresses that are to move with it.
    #[serde(default)]
    pub wanted: Vec<Wanted>,
    /// Containers it is linked with, by name.
    pub links: Vec<String>,
    /// Memory it has now.
    pub memory: ByteSize,
    /// What its writable layer takes on disk.
    pub layer: ByteSize,
    /// What is mounted into it.
    pub mounts: Vec<Mount>,
    /// The AppArmor profile that confines it; empty where there is no AppArmor.
    #[serde(default)]
    pub apparmor: String,
}

/// What a network of the target must offer, for addresses to move there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The network.
    pub network: String,
    /// Its driver on the source.
    pub driver: String,
    /// Its subnets there.
    pub subnets: Vec<String>,
    /// The container's IP addresses on it.
    pub addresses: Vec<IpAddr>,
    /// The container's MAC address on it.
    pub mac: Option<String>,
}

/// What the target is asked to prepare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRequest {
    /// Names the handover.
    pub ticket: Ticket,
    /// What Docker must create, as JSON: the source's inspection.
    pub container: String,
    /// The container keeps its addresses.
    pub keep_addresses: bool,
    /// It keeps its open TCP connections.
    pub keep_connections: bool,
    /// Names of its stdio, for `runc restore`.
    pub descriptors: Vec<String>,
    /// Memory it has now.
    pub memory: ByteSize,
    /// What is mounted into it.
    pub mounts: Vec<Mount>,
    /// Its own file systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// The handover by which it came to the source: perhaps from here.
    pub came_by: Option<Ticket>,
}

/// What the target says next that it holds of the container, by the names of
/// contents: so many streams follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its memory, as it was: one stream.
    pub pages: bool,
    /// So many trees of its files: a stream for each.
    pub trees: u32,
}

/// Which pages of a task come lazily.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingPages {
    /// The task.
    pub space: SpaceId,
    /// Ascending, none twice.
    pub missing: Vec<PageRun>,
    /// Where a forked child sees zeros.
    pub wiped_on_fork: Vec<PageRun>,
    /// Those to bring first: dirtied last.
    pub hot: Vec<PageRun>,
}

/// What the target needs to begin the restore, besides images and pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreOrder {
    /// How many images have been sent.
    pub images: u32,
    /// Images whose bytes are in the store.
    pub stored: Vec<StoredImage>,
}

/// How memory comes into the restored processes. Said when all of it that the
/// store is to hold has been sent; the restore is under way by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// The memory that is not in the images.
    pub tasks: Vec<MissingPages>,
    /// Shared memory that CRIU restores empty.
    pub shared: Vec<SharedObject>,
    /// All memory must be in the processes before the hold is told.
    pub resident: bool,
    /// The source sends the pages that the store lacks without being asked, in
    /// one more round.
    pub pushed: bool,
}

/// An image of CRIU's that travelled as pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredImage {
    /// The number in its name, `pages-<number>.img`.
    pub number: u32,
    /// Where its pages are in the store, from page 0 on.
    pub space: SpaceId,
    /// How many there are.
    pub pages: PageCount,
}

/// Memory that processes share, and whose content blip brings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedObject {
    /// Where its pages are in the store, by their place in the object.
    pub space: SpaceId,
    /// A task that has it mapped, …
    pub task: SpaceId,
    /// … and an address in that mapping.
    pub address: u64,
    /// Its pages that have content; all others are zero.
    pub pages: Vec<PageRun>,
}

/// From source to target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToTarget {
    /// Would it work?
    Check(Box<CheckRequest>),
    /// The image comes on the next stream.
    Image(ImageOrder),
    /// Prepare everything but the processes.
    Stage(Box<StageRequest>),
    /// Create the container; Docker itself is to start it from a checkpoint.
    Create(Box<StageRequest>),
    /// All batches of a round have been sent.
    RoundEnd {
        /// The round.
        round: Round,
        /// How many batches it had.
        batches: u32,
    },
    /// So many streams of files have been sent since the begin.
    FilesEnd {
        /// How many.
        streams: u32,
    },
    /// Whom the container's kernel knows on its segment.
    Neighbours(Vec<Neighbour>),
    /// Restore, and hold.
    Restore(RestoreOrder),
    /// The store is complete: put memory in.
    Memory(MemoryPlan),
    /// From now on only the target may run the container.
    Grant(Ticket),
    /// It stays with the source: forget it.
    Abort {
        /// Why.
        why: String,
    },
    /// The source is ended; the connection can be closed.
    Retired,
    /// What became of this ticket?
    Ask(Ticket),
    /// A stream follows that is to be timed and thrown away.
    Probe,
}

/// From target to source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToSource {
    /// What was found.
    Checked {
        /// Blockers and notes.
        findings: Vec<Finding>,
        /// This host's facts.
        target: HostFacts,
        /// What this host has of the image.
        image: Held,
    },
    /// The image is here.
    ImageLoaded,
    /// Everything but the processes is there.
    Staged {
        /// Docker's ID of the container here.
        container: String,
        /// What this host has of it already.
        remembered: Remembered,
    },
    /// All pages of a round are in the store.
    RoundApplied {
        /// The round.
        round: Round,
        /// Those that refer to content that is not here: send them whole.
        missing: Vec<PageAt>,
    },
    /// The files of so many streams are in place.
    FilesApplied {
        /// How many.
        streams: u32,
    },
    /// The processes are there; their memory is being put in before the hold.
    Filling,
    /// The restore is complete; nothing has run.
    Held,
    /// The container runs here.
    Resumed,
    /// Every page is in place.
    Drained(LazyReport),
    /// It does not run here and will not.
    Failed {
        /// Why.
        why: String,
    },
    /// The answer to [`ToTarget::Ask`]; `None`: not known yet, ask again.
    Answer(Option<Verdict>),
    /// What came on the stream of a [`ToTarget::Probe`].
    Probed(ProbeReport),
}

/// How a probe arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Time since the first frame in microseconds, and bytes that had come by
    /// then; ascending, at most [`ProbeReport::LIMIT`].
    pub steps: Vec<(u64, ByteSize)>,
}

impl ProbeReport {
    /// Most steps.
    pub const LIMIT: usize = 512;
}

/// Pages wanted from the frozen source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRequest {
    /// At most [`PageRequest::LIMIT`].
    pub pages: Vec<PageAt>,
}

impl PageRequest {
    /// Most pages asked for at once.
    pub const LIMIT: usize = 64;
}
