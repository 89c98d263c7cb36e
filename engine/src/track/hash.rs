//! The tracker that works everywhere: it reads every page each round and
//! compares BLAKE3 hashes. Nothing is injected, nothing is armed, nothing
//! stops. It costs about half a second of one core per GiB and round, spread
//! over all cores ([`super::compare`]), and as much inside the freeze: there is no
//! other way to know what changed.
//!
//! **Why it compares with what was *sent***, not with what it saw last: a page
//! may change between the scan that hashed it and the read that ships it, and
//! back again before the next scan. Equal hashes of two scans prove nothing
//! about the copy in between. So a page is clean only if it is now what
//! [`Sent`] says the target was sent, all 256 bits of it. A page that changes
//! and changes back is clean, and rightly so: the target has it.
//!
//! It remembers nothing of its own: what was sent is known to the encoder
//! already, so that this tracker needs no memory that grows with the
//! container's.

use super::compare;
use super::identity::{Identity, is_gone};
use super::maps::Mappings;
use super::read::{ReadError, Reader};
use super::resident::resident;
use super::runs::Runs;
use super::{
    Scan, ScanCost, Sent, SpaceScan, Stop, Task, TrackError, TrackStats, Tracker, TrackerKind,
};
use blip_transport::page::{ContentHash, PageAt, PageRun, SpaceId};
use std::collections::BTreeMap;
use std::time::Instant;

/// Tracks by comparing hashes.
#[derive(Debug, Default)]
pub struct Hash {
    spaces: BTreeMap<SpaceId, Space>,
    stats: TrackStats,
}

/// What is remembered of one address space.
#[derive(Debug)]
struct Space {
    pid: i32,
    identity: Identity,
    /// Reported, but not delivered: dirty in the next scan.
    debt: Runs,
}

impl Hash {
    /// A tracker that knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Scans one process; `None` if it has no memory (any more).
    fn visit(
        &mut self,
        task: Task,
        stop: Stop,
        sent: &dyn Sent,
    ) -> Result<Option<SpaceScan>, TrackError> {
        let look = |what| move |source| TrackError::Look { what, pid: task.pid, source };
        let identity = match Identity::read(task.pid).map_err(look("read the state"))? {
            Some(identity) => identity,
            None => return Ok(None),
        };
        let (ours, resident) = match resident_of_ours(task.pid) {
            Ok(found) => found,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(source) => return Err(look("list the pages")(source)),
        };
        let known = self.spaces.get(&task.space);
        let restarted = known.is_none_or(|s| s.pid != task.pid || s.identity != identity);
        let dirty = if restarted {
            // What the target was sent is of another program.
            resident.clone()
        } else {
            let debt = known.map(|space| space.debt.intersect(&resident)).unwrap_or_default();
            match compare::changed(task.space, &resident, stop, sent, || Memory::of(task, stop)) {
                Ok(changed) => changed.union(&debt),
                Err(ReadError::Gone { .. }) => return Ok(None),
                Err(error) => return Err(look("read the memory")(std::io::Error::other(error))),
            }
        };
        // Only now: a scan that fails forgets nothing.
        let space = Space { pid: task.pid, identity, debt: Runs::default() };
        self.spaces.insert(task.space, space);
        Ok(Some(SpaceScan::of(task, restarted, &ours, resident, dirty)))
    }
}

/// The memory of a process.
pub(super) struct Memory {
    pid: i32,
    stop: Stop,
    reader: Reader,
}

impl Memory {
    pub(super) fn of(task: Task, stop: Stop) -> Self {
        Self { pid: task.pid, stop, reader: Reader::new() }
    }
}

impl compare::Source for Memory {
    type Error = ReadError;

    fn each(
        &mut self,
        runs: &[PageRun],
        take: &mut dyn FnMut(PageRun, &[u8]),
    ) -> Result<(), ReadError> {
        self.reader.each(self.pid, runs, self.stop, take).map(drop)
    }
}

fn resident_of_ours(pid: i32) -> std::io::Result<(Runs, Runs)> {
    // All flags: next to reading all memory they cost little.
    let ours = Mappings::read_with_flags(pid)?.pages();
    let resident = resident(pid, &ours)?;
    Ok((ours, resident))
}

/// A target that was sent nothing.
struct Nothing;

impl Sent for Nothing {
    fn content(&self, _: PageAt) -> Option<ContentHash> {
        None
    }
}

impl Tracker for Hash {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Hash
    }

    /// Without a word on what was sent, all is dirty.
    fn scan(&mut self, tasks: &[Task], stop: Stop) -> Result<Scan, TrackError> {
        self.scan_against(tasks, stop, &Nothing)
    }

    fn scan_against(
        &mut self,
        tasks: &[Task],
        stop: Stop,
        sent: &dyn Sent,
    ) -> Result<Scan, TrackError> {
        let begin = Instant::now();
        let mut scan = Scan::default();
        for &task in tasks {
            match self.visit(task, stop, sent) {
                Ok(found) => scan.spaces.extend(found),
                Err(error) => {
                    for found in scan.spaces {
                        self.unreport(&found);
                    }
                    return Err(error);
                }
            }
        }
        scan.miss(&mut self.spaces);
        scan.took = begin.elapsed();
        self.stats.add(ScanCost { took: scan.took, ..ScanCost::default() });
        Ok(scan)
    }

    fn give_back(&mut self, space: SpaceId, runs: &[PageRun]) {
        if let Some(space) = self.spaces.get_mut(&space) {
            space.debt = space.debt.union(&Runs::from(runs));
        }
    }

    fn disarm(&mut self) {
        self.spaces.clear();
    }

    fn stats(&self) -> TrackStats {
        self.stats
    }
}

impl Hash {
    /// Makes a report that was never delivered undone.
    fn unreport(&mut self, found: &SpaceScan) {
        if found.restarted {
            self.spaces.remove(&found.space);
        } else {
            self.give_back(found.space, &found.dirty);
        }
    }
}
