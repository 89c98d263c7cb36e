//! What was dropped lately, so that late data does not bring it back.
//!
//! Batches may be applied in any order. When a drop of round 5 comes before
//! data of round 4 for the same pages, the data must not win. So each space
//! keeps, per run of pages, the newest batch that dropped it.
//!
//! Bounded: sealing a round (all its batches were applied) forgets its drops,
//! and every drop adds at most two runs.

use crate::page::{PageIndex, PageRun};
use crate::units::Round;
use crate::wire::BatchId;
use std::collections::BTreeMap;

/// Dropped runs of one space; see the module's header.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    /// Disjoint runs by their first page: end and newest drop.
    runs: BTreeMap<u64, (u64, BatchId)>,
}

impl Tombstones {
    /// Bytes one run takes.
    pub(super) const RUN_BYTES: u64 = 48;

    /// Records that `batch` dropped `run`.
    pub(super) fn cover(&mut self, run: PageRun, batch: BatchId) {
        let (from, to) = (run.start.0, run.end());
        if from >= to {
            return;
        }
        let first = self.runs.range(..from).next_back().filter(|(_, (end, _))| *end > from);
        let first = first.map_or(from, |(start, _)| *start);
        let touched: Vec<_> =
            self.runs.range(first..to).map(|(start, (end, by))| (*start, *end, *by)).collect();
        let mut rebuilt = Vec::with_capacity(2 * touched.len() + 1);
        let mut at = from;
        for (start, end, by) in touched {
            self.runs.remove(&start);
            if start < from {
                rebuilt.push((start, from, by));
            }
            let (inner, outer) = (start.max(from), end.min(to));
            if at < inner {
                rebuilt.push((at, inner, batch));
            }
            rebuilt.push((inner, outer, by.max(batch)));
            at = outer;
            if end > to {
                rebuilt.push((to, end, by));
            }
        }
        if at < to {
            rebuilt.push((at, to, batch));
        }
        rebuilt.sort_unstable();
        for (start, end, by) in rebuilt {
            self.append(start, end, by);
        }
    }

    /// The newest batch that dropped a page.
    pub(super) fn newest(&self, index: PageIndex) -> Option<BatchId> {
        let (_, (end, by)) = self.runs.range(..=index.0).next_back()?;
        (index.0 < *end).then_some(*by)
    }

    /// Forgets the drops of `round` and of those before.
    pub(super) fn seal(&mut self, round: Round) {
        self.runs.retain(|_, (_, by)| by.round > round);
    }

    /// Runs remembered.
    pub(super) fn len(&self) -> u64 {
        self.runs.len() as u64
    }

    /// Inserts a run, joined with the one that ends where it starts.
    fn append(&mut self, start: u64, end: u64, by: BatchId) {
        if let Some((_, last)) = self.runs.range_mut(..start).next_back()
            && *last == (start, by)
        {
            last.0 = end;
            return;
        }
        self.runs.insert(start, (end, by));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_page_knows_its_newest_drop(
            drops in proptest::collection::vec((0u64..60, 0u64..30, 0u32..5, 0u32..3), 0..30),
            sealed in proptest::option::of(0u32..5),
        ) {
            let mut tombstones = Tombstones::default();
            let mut model = vec![None; 100];
            for (start, count, round, number) in &drops {
                let batch = BatchId { round: Round(*round), number: *number };
                tombstones.cover(PageRun::new(*start, *count), batch);
                for page in &mut model[*start as usize..(start + count) as usize] {
                    *page = (*page).max(Some(batch));
                }
            }
            prop_assert!(tombstones.len() <= 2 * drops.len() as u64);
            if let Some(round) = sealed {
                tombstones.seal(Round(round));
                for page in &mut model {
                    *page = page.filter(|by: &BatchId| by.round.0 > round);
                }
            }
            for (index, newest) in model.into_iter().enumerate() {
                prop_assert_eq!(tombstones.newest(PageIndex(index as u64)), newest);
            }
        }
    }
}
