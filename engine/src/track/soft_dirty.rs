//! The tracker that CRIU is: a chain of its pre-dumps, on kernels that keep
//! soft-dirty bits ([`crate::criu::predump`]).
//!
//! **A live scan** is one pre-dump. Its pagemaps say which pages were written
//! since the one before; their bytes are in its images, from where they are
//! sent ([`Tracker::copy`]), and not read from the process again.
//!
//! **The frozen scan** reads the kernel's bits itself, while CRIU dumps: they
//! say what was written since the last pre-dump.
//!
//! **Why it is sound.** A page is clean only if the kernel kept its bit clear
//! since the last pre-dump, *and* the scan before reported it in this same
//! program: CRIU's opinion of what it saw counts only for pages that we have
//! seen, too. Whatever appears after a pre-dump is dirty now and in the next
//! scan. A pre-dump that fails may have cleared bits of pages it never
//! delivered: then all bits are cleared again, all pages are dirty, and a new
//! chain begins.

use super::direct_io::DirectIo;
use super::huge;
use super::identity::{Identity, is_gone};
use super::maps::Mappings;
use super::resident::{not_soft_dirty, resident};
use super::runs::Runs;
use super::{Scan, ScanCost, SpaceScan, Stop, Task, TrackError, TrackStats, Tracker, TrackerKind};
use crate::criu::predump::{Chain, Mode, PreDumpSpec, Taken};
use blip_transport::page::{PageRun, SpaceId};
use blip_transport::units::ByteSize;
use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

/// Tracks by CRIU's pre-dumps.
#[derive(Debug)]
pub struct SoftDirty {
    chain: Chain,
    /// How pre-dumps take the bytes, but for the one after a failure.
    mode: Mode,
    spaces: BTreeMap<SpaceId, Space>,
    /// The last pre-dump, as long as its bytes are wanted.
    taken: Option<Taken>,
    /// Huge pages can be split here.
    splits: bool,
    stats: TrackStats,
}

/// What is remembered of one address space.
#[derive(Debug)]
struct Space {
    pid: i32,
    identity: Identity,
    /// Reported by the last live scan: their bits mean something.
    seen: Runs,
    /// Reported, but not delivered: dirty in the next scan.
    debt: Runs,
    /// Devices have been seen to write into it whenever they like, past every
    /// bit: in the end all is dirty.
    by_devices: bool,
}

impl SoftDirty {
    /// A tracker that has not looked at anything yet.
    /// Its pre-dumps read the bytes when the processes run again.
    pub fn new(spec: PreDumpSpec) -> Self {
        Self::by(Mode::Read, spec)
    }

    /// The same, with a say in how the bytes are taken.
    pub fn by(mode: Mode, spec: PreDumpSpec) -> Self {
        Self {
            chain: Chain::new(spec),
            mode,
            spaces: BTreeMap::new(),
            taken: None,
            splits: huge::can_be_split(),
            stats: TrackStats::default(),
        }
    }

    /// The most that the images of pre-dumps ever took.
    pub fn peak(&self) -> ByteSize {
        self.chain.peak()
    }

    /// The next pre-dump; if there is none, all pages count as written.
    fn pre_dump(&mut self, tasks: &[Task], cost: &mut ScanCost) -> Result<(), TrackError> {
        self.forget_bytes();
        self.split_huge_pages(tasks);
        let expected = ByteSize(tasks.iter().map(|task| memory_of(task.pid)).sum());
        let taken = self.chain.pre_dump(self.mode, expected).or_else(|error| {
            tracing::warn!("a pre-dump failed, the next takes all pages: {error}");
            self.lose_track();
            self.stats.fell_back += 1;
            // Reading stops the tree for less time, but it fails in more ways.
            self.chain.pre_dump(Mode::Splice, expected)
        });
        match taken {
            Ok(taken) => {
                cost.stopped(taken.stopped);
                self.taken = Some(taken);
            }
            Err(error) => {
                tracing::warn!("no pre-dump this round, all pages are read: {error}");
                for task in tasks {
                    clear_bits(task.pid)?;
                }
            }
        }
        Ok(())
    }

    /// So that each page has a bit of its own.
    fn split_huge_pages(&self, tasks: &[Task]) {
        if !self.splits {
            return;
        }
        for task in tasks {
            if let Err(error) = huge::split(task.pid)
                && !is_gone(&error)
            {
                tracing::debug!("huge pages of process {} stay whole: {error}", task.pid);
            }
        }
    }

    /// The bits of what was seen mean nothing any more.
    fn lose_track(&mut self) {
        self.chain.begin_anew();
        for space in self.spaces.values_mut() {
            space.seen = Runs::default();
        }
    }

    fn forget_bytes(&mut self) {
        if let Some(taken) = self.taken.take() {
            taken.spent();
        }
    }

    /// What is to be said of one process; `None` if it has no memory (any more).
    fn visit(
        &mut self,
        task: Task,
        stop: Stop,
        before: Option<Identity>,
    ) -> Result<Option<SpaceScan>, TrackError> {
        let look = |what| move |source| TrackError::Look { what, pid: task.pid, source };
        let looked = looked(task.pid, stop).map_err(look("look at the pages"))?;
        let Some(looked) = looked else { return Ok(None) };
        let Looked { identity, ours, resident, unwritten, by_devices } = looked;
        let known = self.spaces.get(&task.space);
        let restarted = known.is_none_or(|s| s.pid != task.pid || s.identity != identity);
        let nothing = Runs::default();
        let by_devices = by_devices || known.is_some_and(|s| !restarted && s.by_devices);
        let mut clean = match known {
            Some(space) if !restarted => {
                let clean = match stop {
                    Stop::Frozen if by_devices => &nothing,
                    Stop::Frozen => &unwritten,
                    Stop::Live => {
                        let found = self.taken.as_ref().and_then(|t| t.spaces.get(&task.space));
                        found.map_or(&nothing, |found| &found.clean)
                    }
                };
                clean.intersect(&space.seen).subtract(&space.debt)
            }
            _ => Runs::default(),
        };
        if stop == Stop::Live && before != Some(identity) {
            // The pre-dump may be of the program before this one.
            clean = Runs::default();
            if let Some(taken) = &mut self.taken {
                taken.spaces.remove(&task.space);
            }
        }
        let dirty = resident.subtract(&clean);
        if stop == Stop::Live {
            // The bits of a process that the pre-dump passed over mean nothing.
            let covered =
                self.taken.as_ref().is_none_or(|taken| taken.spaces.contains_key(&task.space));
            let seen = if covered { resident.clone() } else { Runs::default() };
            let pid = task.pid;
            let space = Space { pid, identity, seen, debt: nothing, by_devices };
            self.spaces.insert(task.space, space);
        }
        Ok(Some(SpaceScan::of(task, restarted, &ours, resident, dirty)))
    }
}

/// One look at one process.
struct Looked {
    identity: Identity,
    ours: Runs,
    resident: Runs,
    /// Those whose bit is clear; read only when it stands still.
    unwritten: Runs,
    /// There is asynchronous direct I/O.
    by_devices: bool,
}

fn looked(pid: i32, stop: Stop) -> io::Result<Option<Looked>> {
    let look = || {
        let Some(identity) = Identity::read(pid)? else { return Ok(None) };
        let mappings = Mappings::read_with_flags(pid)?;
        let ours = mappings.pages();
        let by_devices = DirectIo::of(pid, mappings.aio)? == DirectIo::Asynchronous;
        let resident = resident(pid, &ours)?;
        let unwritten =
            if stop == Stop::Frozen { not_soft_dirty(pid, &resident)? } else { Runs::default() };
        Ok(Some(Looked { identity, ours, resident, unwritten, by_devices }))
    };
    match look() {
        Err(error) if is_gone(&error) => Ok(None),
        other => other,
    }
}

/// Memory of a process that a pre-dump may take, in bytes.
fn memory_of(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let fields = ["RssAnon:", "RssShmem:", "VmSwap:"];
    let kib = |field| status.lines().find_map(|line| line.strip_prefix(field));
    let kib = |field| kib(field)?.split_whitespace().next()?.parse::<u64>().ok();
    fields.into_iter().filter_map(kib).sum::<u64>() * 1024
}

/// Clears the soft-dirty bits of a process.
fn clear_bits(pid: i32) -> Result<(), TrackError> {
    match std::fs::write(format!("/proc/{pid}/clear_refs"), "4") {
        Err(source) if !is_gone(&source) => {
            Err(TrackError::Look { what: "clear the soft-dirty bits", pid, source })
        }
        _ => Ok(()),
    }
}

impl Tracker for SoftDirty {
    fn kind(&self) -> TrackerKind {
        TrackerKind::SoftDirty
    }

    fn scan(&mut self, tasks: &[Task], stop: Stop) -> Result<Scan, TrackError> {
        let begin = Instant::now();
        let mut cost = ScanCost::default();
        let before: Vec<Option<Identity>> =
            tasks.iter().map(|task| Identity::read(task.pid).ok().flatten()).collect();
        if stop == Stop::Live {
            self.pre_dump(tasks, &mut cost)?;
        }
        let mut scan = Scan::default();
        for (&task, before) in tasks.iter().zip(before) {
            match self.visit(task, stop, before) {
                Ok(found) => scan.spaces.extend(found),
                Err(error) => {
                    self.lose_track();
                    return Err(error);
                }
            }
        }
        scan.miss(&mut self.spaces);
        scan.took = begin.elapsed();
        cost.took = scan.took;
        self.stats.add(cost);
        self.stats.peak = self.chain.peak();
        Ok(scan)
    }

    fn give_back(&mut self, space: SpaceId, runs: &[PageRun]) {
        if let Some(space) = self.spaces.get_mut(&space) {
            space.debt = space.debt.union(&Runs::from(runs));
        }
    }

    fn copy(
        &mut self,
        space: SpaceId,
        runs: &[PageRun],
        take: &mut dyn FnMut(PageRun, &[u8]),
    ) -> io::Result<Runs> {
        match self.taken.as_ref().and_then(|taken| taken.spaces.get(&space)) {
            Some(found) => found.each(runs, take),
            None => Ok(Runs::from(runs)),
        }
    }

    fn copied(&mut self) {
        self.forget_bytes();
    }

    fn disarm(&mut self) {
        self.forget_bytes();
        self.lose_track();
        self.spaces.clear();
    }

    fn stats(&self) -> TrackStats {
        self.stats
    }
}
