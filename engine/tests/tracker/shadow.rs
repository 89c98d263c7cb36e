//! What a target would hold: a copy of all pages, kept up as scans say.

use crate::oracle;
use blip_engine::track::read::{ReadError, Reader};
use blip_engine::track::runs::Runs;
use blip_engine::track::{Scan, Sent, Stop, Task, Tracker};
use blip_transport::page::{ContentHash, PageAt, PageRun, SpaceId};
use std::collections::{BTreeMap, HashMap};

/// The copy of every space.
#[derive(Default)]
pub(crate) struct Shadow {
    pub(crate) spaces: BTreeMap<SpaceId, HashMap<u64, Vec<u8>>>,
    /// What it believes to hold.
    hashes: BTreeMap<SpaceId, HashMap<u64, ContentHash>>,
    reader: Reader,
    /// Pages copied so far.
    pub(crate) copied: u64,
}

impl Sent for Shadow {
    fn content(&self, at: PageAt) -> Option<ContentHash> {
        self.hashes.get(&at.space)?.get(&at.index.0).copied()
    }
}

impl Shadow {
    /// Does what a scan says.
    pub(crate) fn apply(&mut self, scan: &Scan, stop: Stop) {
        self.apply_from(None, scan, stop, |_, _, _| false);
    }

    /// The same, with the bytes that the tracker has from there. Forgets to copy
    /// the pages `skip` picks, and believes to have done so; it is told of each
    /// whether an older copy would be replaced by another.
    pub(crate) fn apply_from(
        &mut self,
        mut tracker: Option<&mut dyn Tracker>,
        scan: &Scan,
        stop: Stop,
        mut skip: impl FnMut(SpaceId, u64, bool) -> bool,
    ) {
        for gone in &scan.gone {
            self.spaces.remove(gone);
            self.hashes.remove(gone);
        }
        for found in &scan.spaces {
            let pages = self.spaces.entry(found.space).or_default();
            let hashes = self.hashes.entry(found.space).or_default();
            if found.restarted {
                pages.clear();
                hashes.clear();
            }
            let mut resident = found.resident.iter().peekable();
            let mut stays = std::collections::HashSet::new();
            while let Some(run) = resident.next() {
                stays.extend(run.start.0..run.end());
                assert!(resident.peek().is_none_or(|next| run.end() < next.start.0), "unsorted");
            }
            pages.retain(|page, _| stays.contains(page));
            hashes.retain(|page, _| stays.contains(page));
            let dirty: u64 = found.dirty.iter().map(|run| run.count.0).sum();
            for run in &found.dirty {
                assert!(run.pages().all(|page| stays.contains(&page.0)), "dirty, not resident");
            }
            let mut take = |run: PageRun, bytes: &[u8]| {
                for (page, bytes) in run.pages().zip(bytes.chunks_exact(oracle::PAGE)) {
                    hashes.insert(page.0, ContentHash::of(bytes.try_into().unwrap()));
                    let replaces = pages.get(&page.0).is_some_and(|copy| copy != bytes);
                    if !skip(found.space, page.0, replaces) {
                        pages.insert(page.0, bytes.to_vec());
                    }
                }
            };
            let rest = match &mut tracker {
                Some(tracker) => tracker.copy(found.space, &found.dirty, &mut take).unwrap(),
                None => Runs::from(found.dirty.as_slice()),
            };
            let result = self.reader.each(found.pid, rest.as_slice(), stop, take);
            match result {
                Ok(missing) => missing.iter().for_each(|page| {
                    pages.remove(&page.0);
                    hashes.remove(&page.0);
                }),
                Err(ReadError::Gone { .. }) if stop == Stop::Live => {}
                Err(error) => panic!("{error}"),
            }
            self.copied += dirty;
        }
        if let Some(tracker) = tracker {
            tracker.copied();
        }
    }

    /// Believes to hold something else of a page than there is.
    pub(crate) fn distort(&mut self, space: SpaceId, page: u64) {
        let hashes = self.hashes.entry(space).or_default();
        hashes.insert(page, ContentHash([7; 32]));
    }

    /// Compares with the truth; says what is wrong.
    pub(crate) fn verify(&self, tasks: &[Task]) -> Result<u64, String> {
        let (mut compared, mut faults) = (0, Vec::new());
        for task in tasks {
            let truth = oracle::truth(task.pid);
            let empty = HashMap::new();
            let shadow = self.spaces.get(&task.space).unwrap_or(&empty);
            for (page, bytes) in &truth {
                match shadow.get(page) {
                    None if oracle::formed_later(task.pid, *page, bytes) => {}
                    None => faults.push(format!("{} {page:#x}: not copied", task.pid)),
                    Some(copy) if copy != bytes => {
                        faults.push(format!("{} {page:#x}: stale copy", task.pid));
                    }
                    Some(_) => compared += 1,
                }
            }
            for page in shadow.keys().filter(|page| !truth.contains_key(page)) {
                faults.push(format!("{} {page:#x}: copy of a hole", task.pid));
            }
        }
        let known: Vec<_> = tasks.iter().map(|task| task.space).collect();
        for space in self.spaces.keys().filter(|space| !known.contains(space)) {
            faults.push(format!("{space:?} is gone, and was kept"));
        }
        if faults.is_empty() {
            return Ok(compared);
        }
        faults.truncate(20);
        Err(format!("{} right, wrong: {}", compared, faults.join("; ")))
    }
}
