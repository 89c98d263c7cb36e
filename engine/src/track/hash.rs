//! The tracker that works everywhere: it reads every page each round and
//! compares BLAKE3 hashes. Nothing is injected, nothing is armed, nothing
//! stops; it costs a core about half a second per GiB and round.
//!
//! **Why it compares with what was *shipped***, not with what it saw last: a
//! page may change between the scan that hashed it and the read that ships it,
//! and back again before the next scan. Equal hashes of two scans prove nothing
//! about the copy in between. So a page is dirty until [`Tracker::shipped`] has
//! said that the target holds exactly what is in it now.

use super::identity::{Identity, is_gone};
use super::maps::Mappings;
use super::read::{ReadError, Reader};
use super::resident::resident;
use super::runs::Runs;
use super::{Scan, ScanCost, SpaceScan, Stop, Task, TrackError, TrackStats, Tracker, TrackerKind};
use blip_transport::page::{ContentHash, PageAt, PageIndex, PageRun, SpaceId};
use blip_transport::units::PAGE_SIZE;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// Tracks by comparing hashes.
#[derive(Debug, Default)]
pub struct Hash {
    spaces: BTreeMap<SpaceId, Space>,
    reader: Reader,
    stats: TrackStats,
}

/// What the target holds of one address space.
#[derive(Debug)]
struct Space {
    pid: i32,
    identity: Identity,
    shipped: HashMap<PageIndex, ContentHash>,
}

impl Hash {
    /// A tracker that knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Scans one process; `None` if it has no memory (any more).
    fn visit(&mut self, task: Task, stop: Stop) -> Result<Option<SpaceScan>, TrackError> {
        let look = |what| move |source| TrackError::Look { what, pid: task.pid, source };
        let identity = match Identity::read(task.pid).map_err(look("read the state"))? {
            Some(identity) => identity,
            None => return Ok(None),
        };
        let known = self.spaces.get(&task.space);
        let restarted = known.is_none_or(|s| s.pid != task.pid || s.identity != identity);
        if restarted {
            let shipped = HashMap::new();
            self.spaces.insert(task.space, Space { pid: task.pid, identity, shipped });
        }
        let (ours, resident) = match resident_of_ours(task.pid) {
            Ok(found) => found,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(source) => return Err(look("list the pages")(source)),
        };
        let Some(space) = self.spaces.get_mut(&task.space) else { return Ok(None) };
        space.shipped.retain(|page, _| resident.contains(*page));

        let mut dirty = Runs::default();
        let compared = self.reader.each(task.pid, resident.as_slice(), stop, |run, bytes| {
            for (page, bytes) in run.pages().zip(bytes.chunks_exact(PAGE_SIZE)) {
                let now = bytes.try_into().ok().map(ContentHash::of);
                if space.shipped.get(&page) != now.as_ref() {
                    dirty.push(page.0, page.0 + 1);
                }
            }
        });
        match compared {
            Ok(_) => {}
            Err(ReadError::Gone { .. }) => return Ok(None),
            Err(error) => {
                let source = std::io::Error::other(error);
                return Err(look("read the memory")(source));
            }
        }
        Ok(Some(SpaceScan {
            space: task.space,
            pid: task.pid,
            restarted,
            scanned: ours.pages(),
            resident: resident.into_vec(),
            dirty: dirty.into_vec(),
        }))
    }
}

fn resident_of_ours(pid: i32) -> std::io::Result<(Runs, Runs)> {
    // All flags: next to reading all memory they cost little.
    let ours = Mappings::read_with_flags(pid)?.pages();
    let resident = resident(pid, &ours)?;
    Ok((ours, resident))
}

impl Tracker for Hash {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Hash
    }

    fn scan(&mut self, tasks: &[Task], stop: Stop) -> Result<Scan, TrackError> {
        let begin = Instant::now();
        let mut scan = Scan::default();
        for &task in tasks {
            scan.spaces.extend(self.visit(task, stop)?);
        }
        let present = |id: &SpaceId| scan.spaces.iter().any(|found| found.space == *id);
        scan.gone = self.spaces.keys().copied().filter(|id| !present(id)).collect();
        self.spaces.retain(|id, _| present(id));
        scan.took = begin.elapsed();
        self.stats.add(ScanCost { took: scan.took, ..ScanCost::default() });
        Ok(scan)
    }

    fn give_back(&mut self, space: SpaceId, runs: &[PageRun]) {
        if let Some(space) = self.spaces.get_mut(&space) {
            for page in runs.iter().flat_map(|run| run.pages()) {
                space.shipped.remove(&page);
            }
        }
    }

    fn shipped(&mut self, page: PageAt, hash: ContentHash) {
        if let Some(space) = self.spaces.get_mut(&page.space) {
            space.shipped.insert(page.index, hash);
        }
    }

    fn disarm(&mut self) {
        self.spaces.clear();
    }

    fn stats(&self) -> TrackStats {
        self.stats
    }
}
