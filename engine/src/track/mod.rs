//! Which pages of a running container changed since we last looked.
//!
//! A [`Tracker`] is asked once per round. It answers, for every process, which
//! pages have content and which of those must be read; [`read::Reader`] then
//! reads them, but for those whose bytes the tracker has already.
//!
//! **The rules of this room** (each one was paid for with lost data)
//! * Scan first, then read the bytes. Never the other way round.
//! * A scan forgets what it reports. What a failed round did not deliver goes
//!   back by [`Tracker::give_back`].
//! * When in doubt, a page is dirty. Whatever is not known to be tracked is.
//! * A page that is not in [`SpaceScan::resident`] has no content: a copy of it
//!   is to be dropped, not kept.
//!
//! **Architecture Invariant**: a tracker never changes what a process can see
//! of itself, and whatever it set up ends with it, also if blip is killed.

pub mod choice;
mod compare;
mod direct_io;
mod hash;
pub mod hide;
mod huge;
mod identity;
mod maps;
pub mod probe;
pub mod read;
mod resident;
pub mod runs;
pub mod shared;
mod soft_dirty;
mod write_protect;

use crate::sys::inject::InjectError;
use blip_transport::encode::Encoder;
use blip_transport::page::{ContentHash, PageAt, PageRun, SpaceId};
use blip_transport::units::{ByteSize, PageCount};
pub use choice::{TrackerChoice, capabilities, choose, for_watching, kind_for};
pub use hash::Hash;
use probe::Missing;
use runs::Runs;
pub use soft_dirty::SoftDirty;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;
pub use write_protect::WriteProtect;

/// One process of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Host process ID of the thread group's leader.
    pub pid: i32,
    /// Its process ID inside the container, naming its address space.
    pub space: SpaceId,
}

impl Task {
    /// The task of a process, which its innermost process ID names; `None` if it
    /// has ended.
    pub fn of(pid: i32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        let inner = line.split_whitespace().last()?.parse().ok()?;
        Some(Self { pid, space: SpaceId(inner) })
    }
}

/// What the tracked processes do during a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// They run. The scan takes its time and lets them.
    Live,
    /// They all stand still, in a frozen cgroup or held by CRIU, until the
    /// pages are read. Nothing is injected, and nothing is forgotten: until the
    /// next live scan every scan reports the same.
    Frozen,
}

/// The ways to track.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrackerKind {
    /// Asynchronous write protection by userfaultfd.
    WriteProtect,
    /// The kernel's soft-dirty bits, through CRIU's pre-dump.
    SoftDirty,
    /// Comparing BLAKE3 hashes of all pages.
    Hash,
}

impl fmt::Display for TrackerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteProtect => "write-protect",
            Self::SoftDirty => "soft-dirty",
            Self::Hash => "hash",
        })
    }
}

/// Tells which pages of a set of processes changed.
pub trait Tracker: Send {
    /// Which tracker this is.
    fn kind(&self) -> TrackerKind;

    /// Scans every process of `tasks` once. What a live scan reports dirty it
    /// will not report again unless it is written again. If it fails, nothing
    /// is forgotten.
    ///
    /// A process it meets for the first time (also after `execve`) is entirely
    /// dirty, and so is a new mapping. Processes it knew and that are not in
    /// `tasks`, or have ended, are reported [`gone`](Scan::gone).
    fn scan(&mut self, tasks: &[Task], stop: Stop) -> Result<Scan, TrackError>;

    /// Takes back pages that were reported dirty but did not reach the target:
    /// the next scan reports them again.
    fn give_back(&mut self, space: SpaceId, runs: &[PageRun]);

    /// The same, told what the target was sent. Only the hash tracker asks: to
    /// it a page is dirty unless it is what was sent.
    fn scan_against(
        &mut self,
        tasks: &[Task],
        stop: Stop,
        sent: &dyn Sent,
    ) -> Result<Scan, TrackError> {
        let _ = sent;
        self.scan(tasks, stop)
    }

    /// Whether it can tell in the middle of a round what is being written.
    fn glances(&self) -> bool {
        false
    }

    /// Which pages of a live space were written since the last scan or glance.
    /// They are forgotten, as by a scan, and so they are the caller's debt: each
    /// is read after this, or given back. `None` if that cannot be told now;
    /// nothing was forgotten then.
    fn glance(&mut self, space: SpaceId) -> Result<Option<Runs>, TrackError> {
        let _ = space;
        Ok(None)
    }

    /// Hands over those of `runs`, which the last scan reported, whose bytes
    /// the tracker has already; answers those to be read from the process.
    fn copy(
        &mut self,
        space: SpaceId,
        runs: &[PageRun],
        take: &mut dyn FnMut(PageRun, &[u8]),
    ) -> io::Result<Runs> {
        let _ = (space, take);
        Ok(Runs::from(runs))
    }

    /// Nobody will ask for the last scan's bytes any more.
    fn copied(&mut self) {}

    /// Undoes everything in the tracked processes and forgets them, as after a
    /// cancelled migration. Dropping the tracker does so too, but leaves it to
    /// the kernel to form huge pages again.
    fn disarm(&mut self);

    /// What the scans so far cost.
    fn stats(&self) -> TrackStats;
}

/// Knows what the target was sent.
pub trait Sent: Sync {
    /// The content of a page as it was last sent; `None` if the target has
    /// nothing of it that could be relied on.
    fn content(&self, at: PageAt) -> Option<ContentHash>;
}

impl Sent for Encoder {
    fn content(&self, at: PageAt) -> Option<ContentHash> {
        self.content(at)
    }
}

/// What one scan of all processes found.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Every process that has memory, in the order of the tasks.
    pub spaces: Vec<SpaceScan>,
    /// Known before, and no more: all of their pages are to be dropped.
    pub gone: Vec<SpaceId>,
    /// How long the scan took.
    pub took: Duration,
}

/// What one scan found in one address space.
#[derive(Clone, Debug)]
pub struct SpaceScan {
    /// The address space.
    pub space: SpaceId,
    /// Host process ID of its owner.
    pub pid: i32,
    /// It is new, or runs another program: everything known of it is void.
    pub restarted: bool,
    /// Every page that has content and is ours to ship; sorted, disjoint.
    pub resident: Vec<PageRun>,
    /// Those of them that must be read (again); sorted, disjoint.
    pub dirty: Vec<PageRun>,
    /// The pages of all mappings looked at, with or without content.
    pub scanned: PageCount,
}

impl Scan {
    /// Of the `known` address spaces those that were not found are gone, and
    /// forgotten.
    fn miss<T>(&mut self, known: &mut BTreeMap<SpaceId, T>) {
        let present = |id: &SpaceId| self.spaces.iter().any(|found| found.space == *id);
        self.gone = known.keys().copied().filter(|id| !present(id)).collect();
        known.retain(|id, _| present(id));
    }
}

impl SpaceScan {
    /// What was found of `task` among the pages looked at, `ours`.
    fn of(task: Task, restarted: bool, ours: &Runs, resident: Runs, dirty: Runs) -> Self {
        Self {
            space: task.space,
            pid: task.pid,
            restarted,
            scanned: ours.pages(),
            resident: resident.into_vec(),
            dirty: dirty.into_vec(),
        }
    }
}

/// What tracking cost the tracked processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackStats {
    /// Scans made.
    pub scans: u64,
    /// The last scan.
    pub last: ScanCost,
    /// Each value's maximum over all scans.
    pub worst: ScanCost,
    /// The most bytes of memory or disk that tracking took at any time for
    /// pages on their way.
    pub peak: ByteSize,
    /// Scans that lost track of what was clean, so that all pages were taken:
    /// a pre-dump of CRIU's failed.
    pub fell_back: u32,
}

/// What one scan cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanCost {
    /// Wall-clock time of the scan.
    pub took: Duration,
    /// The longest time any one process stood still for it.
    pub stop_max: Duration,
    /// The sum of all processes' standing still.
    pub stop_sum: Duration,
    /// Processes a system call was injected into.
    pub injected: u32,
    /// Processes that could not be stopped in time and were therefore reported
    /// dirty as a whole.
    pub untracked: u32,
}

impl TrackStats {
    fn add(&mut self, cost: ScanCost) {
        self.scans += 1;
        self.last = cost;
        let worst = &mut self.worst;
        worst.took = worst.took.max(cost.took);
        worst.stop_max = worst.stop_max.max(cost.stop_max);
        worst.stop_sum = worst.stop_sum.max(cost.stop_sum);
        worst.injected = worst.injected.max(cost.injected);
        worst.untracked = worst.untracked.max(cost.untracked);
    }
}

impl ScanCost {
    fn stopped(&mut self, time: Duration) {
        self.stop_max = self.stop_max.max(time);
        self.stop_sum += time;
    }
}

/// Why processes could not be tracked. The processes run on as before.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The kernel lacks what the tracker that was asked for needs.
    #[error("cannot track by {asked}: {missing}; {}", alternative(*.instead))]
    Lacks {
        /// What was asked for.
        asked: TrackerKind,
        /// What it needs and is not there.
        missing: Missing,
        /// The best that works here.
        instead: TrackerKind,
    },
    /// A process could not be armed.
    #[error("cannot arm write protection: {0}; `--tracker hash` needs none")]
    Arm(#[source] InjectError),
    /// The kernel refused a look at a process.
    #[error("cannot {what} of process {pid}: {source}")]
    Look {
        /// What was tried.
        what: &'static str,
        /// Host process ID.
        pid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A process executed one program after another during the scan.
    #[error("process {pid} changed its program {tries} times during one scan; try again")]
    Restless {
        /// Host process ID.
        pid: i32,
        /// How often a scan was tried.
        tries: u32,
    },
}

fn alternative(kind: TrackerKind) -> String {
    match kind {
        TrackerKind::Hash => "`--tracker hash` works everywhere".into(),
        other => format!("`--tracker {other}` works here, and `--tracker hash` everywhere"),
    }
}
