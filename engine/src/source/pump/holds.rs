//! What the target holds of the container, and what it lacks.

use super::Pump;
use crate::track::runs::Runs;
use blip_transport::page::{PageAt, PageRun, SpaceId};
use blip_transport::units::{ByteSize, PageCount};
use std::collections::BTreeMap;

impl Pump {
    /// Every page of the container that is ours to bring, as of the last scan.
    pub fn resident(&self) -> &BTreeMap<SpaceId, Vec<PageRun>> {
        &self.books.resident
    }

    /// The memory that is ours to bring.
    pub fn memory(&self) -> ByteSize {
        let runs = self.books.resident.values().flatten();
        PageCount(runs.map(|run| run.count.0).sum()).bytes()
    }

    /// Pages of a space that were written of late, those written again and again
    /// first.
    pub fn hot(&self, space: SpaceId) -> Vec<PageRun> {
        let Some(heat) = self.books.heat(space) else { return Vec::new() };
        let once = heat.warm.subtract(&heat.hot);
        [heat.hot.as_slice(), once.as_slice()].concat()
    }

    /// Notes which resident pages the target holds, so that the same question
    /// inside the freeze is about the few others only. What is written later is
    /// offered again and is held then, too.
    pub fn confirm(&mut self) {
        for (&space, runs) in &self.books.resident {
            self.confirmed.insert(space, self.held_of(space, runs));
        }
    }

    /// Those of `runs` that the target does not hold as they are now.
    pub fn absent(&self, space: SpaceId, runs: &[PageRun]) -> Vec<PageAt> {
        let asked = Runs::from(runs);
        let left = match self.confirmed.get(&space) {
            Some(confirmed) => asked.subtract(confirmed),
            None => asked,
        };
        let pages = left.as_slice().iter().flat_map(|run| run.pages());
        pages.map(|index| PageAt { space, index }).filter(|&at| !self.encoder.holds(at)).collect()
    }

    /// Resident pages that the target does not hold, in the order in which to
    /// bring them: what the container wrote last it will need first.
    pub(super) fn owed(&self) -> Vec<(SpaceId, Runs)> {
        let mut first = Vec::new();
        let mut then = Vec::new();
        for (&space, runs) in &self.books.resident {
            let owed = Runs::from(runs.as_slice()).subtract(&self.held_of(space, runs));
            let hot = Runs::from(self.hot(space).as_slice()).intersect(&owed);
            then.push((space, owed.subtract(&hot)));
            first.push((space, hot));
        }
        first.append(&mut then);
        first
    }

    fn held_of(&self, space: SpaceId, runs: &[PageRun]) -> Runs {
        let mut held = Runs::default();
        for index in runs.iter().flat_map(|run| run.pages()) {
            if self.encoder.holds(PageAt { space, index }) {
                held.push(index.0, index.0 + 1);
            }
        }
        held
    }
}
