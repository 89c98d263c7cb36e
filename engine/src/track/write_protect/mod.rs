//! The tracker that never stops a process to copy: asynchronous write protection
//! ([`crate::sys::wp`]) and `PAGEMAP_SCAN` ([`crate::sys::pagemap`]).
//!
//! Per process: one system call is injected, once ([`crate::sys::inject`]; tens
//! of microseconds). From then on everything is done from outside. See
//! [`space`] for a scan of one address space and why it is sound.

mod space;
mod walk;

use super::probe::{Missing, probe};
use super::resident::Content;
use super::runs::Runs;
use super::{Scan, ScanCost, Stop, Task, TrackError, TrackStats, Tracker, TrackerKind};
use blip_transport::page::{PageRun, SpaceId};
use space::{Space, Visit, Visited};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long a process may take to stop before we let it be for this round. All
/// its other threads wait meanwhile.
const STOP_LIMIT: Duration = Duration::from_millis(30);

/// Tracks by asynchronous write protection.
#[derive(Debug)]
pub struct WriteProtect {
    content: Content,
    spaces: BTreeMap<SpaceId, Space>,
    stats: TrackStats,
}

impl WriteProtect {
    /// A tracker that tracks nothing yet; fails if the kernel cannot.
    pub fn new() -> Result<Self, Missing> {
        let content = Content::new(probe()?.guard_pages);
        Ok(Self { content, spaces: BTreeMap::new(), stats: TrackStats::default() })
    }

    /// Scans one process.
    fn visit(
        &mut self,
        task: Task,
        stop: Stop,
        cost: &mut ScanCost,
    ) -> Result<Visited, TrackError> {
        let armed_elsewhere: Vec<i32> = self
            .spaces
            .iter()
            .filter(|(space, other)| **space != task.space && other.is_armed())
            .map(|(_, other)| other.pid())
            .collect();
        let space = self.spaces.entry(task.space).or_default();
        let mut visit = Visit { content: self.content, armed_elsewhere: &armed_elsewhere, cost };
        space.scan(task, stop, &mut visit)
    }
}

impl Tracker for WriteProtect {
    fn kind(&self) -> TrackerKind {
        TrackerKind::WriteProtect
    }

    fn scan(&mut self, tasks: &[Task], stop: Stop) -> Result<Scan, TrackError> {
        let begin = Instant::now();
        let mut cost = ScanCost::default();
        let mut scan = Scan::default();
        let mut present = BTreeSet::new();
        for &task in tasks {
            match self.visit(task, stop, &mut cost) {
                Ok(Visited::Found(found)) => {
                    present.insert(task.space);
                    scan.spaces.push(found);
                }
                Ok(Visited::Later) => {
                    present.insert(task.space);
                }
                Ok(Visited::Gone) => {}
                Err(error) => {
                    // What this scan has cleared so far must not be lost.
                    for found in scan.spaces {
                        if let Some(space) = self.spaces.get_mut(&found.space) {
                            space.unreport(&found);
                        }
                    }
                    return Err(error);
                }
            }
        }
        self.spaces.retain(|id, space| {
            let stays = present.contains(id);
            if !stays && space.known() {
                scan.gone.push(*id);
            }
            stays
        });
        scan.took = begin.elapsed();
        cost.took = scan.took;
        self.stats.add(cost);
        Ok(scan)
    }

    fn give_back(&mut self, space: SpaceId, runs: &[PageRun]) {
        if let Some(space) = self.spaces.get_mut(&space) {
            space.give_back(runs);
        }
    }

    fn glances(&self) -> bool {
        true
    }

    fn glance(&mut self, space: SpaceId) -> Result<Option<Runs>, TrackError> {
        self.spaces.get_mut(&space).map_or(Ok(None), |space| space.glance(self.content))
    }

    fn disarm(&mut self) {
        for (_, space) in std::mem::take(&mut self.spaces) {
            space.disarm();
        }
    }

    fn stats(&self) -> TrackStats {
        self.stats
    }
}
