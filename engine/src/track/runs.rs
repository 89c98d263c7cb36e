//! Sets of pages as sorted runs, and their algebra.

use blip_transport::page::{PageIndex, PageRun};
use blip_transport::units::{PAGE_SIZE, PageCount};

/// A set of pages of one address space.
///
/// **Invariant**: runs are sorted, not empty, and neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(Vec<PageRun>);

impl Runs {
    /// Adds the pages `start .. end`; `start` must not lie before the start of
    /// the last run added.
    pub fn push(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        match self.0.last_mut() {
            Some(last) if start <= last.end() => {
                debug_assert!(start >= last.start.0, "runs are pushed in order");
                last.count = PageCount(last.end().max(end) - last.start.0);
            }
            _ => self.0.push(PageRun::new(start, end - start)),
        }
    }

    /// The number of pages.
    pub fn pages(&self) -> PageCount {
        PageCount(self.0.iter().map(|run| run.count.0).sum())
    }

    /// Whether there is no page.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `page` is in the set.
    pub fn contains(&self, page: PageIndex) -> bool {
        let after = self.0.partition_point(|run| run.start <= page);
        after > 0 && page.0 < self.0[after - 1].end()
    }

    /// The runs, in order.
    pub fn as_slice(&self) -> &[PageRun] {
        &self.0
    }

    /// Gives up the set for its runs.
    pub fn into_vec(self) -> Vec<PageRun> {
        self.0
    }

    /// The set in stretches of at most `most` pages each, in order.
    pub fn stretches(&self, most: u64) -> impl Iterator<Item = Self> + '_ {
        let mut runs = self.0.iter().copied();
        let mut rest: Option<PageRun> = None;
        std::iter::from_fn(move || {
            let mut stretch = Self::default();
            let mut room = most.max(1);
            while room > 0 {
                let Some(run) = rest.take().or_else(|| runs.next()) else { break };
                let count = run.count.0.min(room);
                stretch.push(run.start.0, run.start.0 + count);
                room -= count;
                if count < run.count.0 {
                    rest = Some(PageRun::new(run.start.0 + count, run.count.0 - count));
                }
            }
            (!stretch.is_empty()).then_some(stretch)
        })
    }

    /// The pages of this set from `start` up to, but not including, `end`.
    pub fn between(&self, start: u64, end: u64) -> Self {
        let first = self.0.partition_point(|run| run.end() <= start);
        let inside = self.0[first..].iter().take_while(|run| run.start.0 < end);
        inside.fold(Self::default(), |mut set, run| {
            set.push(run.start.0.max(start), run.end().min(end));
            set
        })
    }

    /// All pages of either set.
    pub fn union(&self, other: &Self) -> Self {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut result = Self::default();
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x.start <= y.start => a.next(),
                (_, Some(_)) => b.next(),
                (Some(_), None) => a.next(),
                (None, None) => return result,
            };
            if let Some(run) = next {
                result.push(run.start.0, run.end());
            }
        }
    }

    /// The pages of both sets.
    pub fn intersect(&self, other: &Self) -> Self {
        let mut result = Self::default();
        let (mut i, mut j) = (0, 0);
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            result.push(a.start.0.max(b.start.0), a.end().min(b.end()));
            if a.end() <= b.end() { i += 1 } else { j += 1 }
        }
        result
    }

    /// The pages of this set that are not in the other.
    pub fn subtract(&self, other: &Self) -> Self {
        let mut result = Self::default();
        let mut j = 0;
        for run in &self.0 {
            let mut at = run.start.0;
            while j > 0 && other.0.get(j - 1).is_some_and(|cut| cut.end() > at) {
                j -= 1;
            }
            while let Some(cut) = other.0.get(j).filter(|cut| cut.start.0 < run.end()) {
                result.push(at, cut.start.0.min(run.end()).max(at));
                at = at.max(cut.end());
                j += 1;
            }
            result.push(at.min(run.end()), run.end());
        }
        result
    }
}

/// First byte of a run and first byte after it.
pub(super) fn byte_range(run: PageRun) -> (u64, u64) {
    (run.start.address(), run.end() * PAGE_SIZE as u64)
}

impl From<&[PageRun]> for Runs {
    /// From runs in any order.
    fn from(runs: &[PageRun]) -> Self {
        let mut sorted = runs.to_vec();
        sorted.sort_unstable();
        sorted.into_iter().fold(Self::default(), |mut set, run| {
            set.push(run.start.0, run.end());
            set
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    type Model = BTreeSet<u64>;

    fn model(set: &Runs) -> Model {
        set.as_slice().iter().flat_map(|run| run.start.0..run.end()).collect()
    }

    fn sound(set: &Runs) -> bool {
        set.as_slice().iter().all(|run| run.count.0 > 0)
            && set.as_slice().windows(2).all(|pair| pair[0].end() < pair[1].start.0)
    }

    fn runs() -> impl Strategy<Value = Runs> {
        let run = (0_u64..200, 1_u64..12).prop_map(|(start, count)| PageRun::new(start, count));
        prop::collection::vec(run, 0..20).prop_map(|all| Runs::from(all.as_slice()))
    }

    proptest! {
        #[test]
        fn stretches_are_the_set_in_order(set in runs(), most in 1_u64..20) {
            let parts: Vec<_> = set.stretches(most).collect();
            let together: Vec<u64> = parts.iter().flat_map(model).collect();
            prop_assert_eq!(together, model(&set).into_iter().collect::<Vec<_>>());
            let (last, full) = parts.split_last().map_or((None, &[][..]), |(l, f)| (Some(l), f));
            prop_assert!(full.iter().all(|part| part.pages().0 == most));
            prop_assert!(last.is_none_or(|part| sound(part) && part.pages().0 <= most));
        }

        #[test]
        fn the_algebra_is_that_of_sets(a in runs(), b in runs()) {
            let (x, y) = (model(&a), model(&b));
            for (set, expected) in [
                (a.union(&b), &x | &y),
                (a.intersect(&b), &x & &y),
                (a.subtract(&b), &x - &y),
            ] {
                prop_assert!(sound(&set), "{set:?}");
                prop_assert_eq!(set.pages().0, expected.len() as u64);
                prop_assert_eq!(model(&set), expected);
            }
            let (from, to) = (b.pages().0, b.pages().0 + 40);
            let inside: Model = x.iter().copied().filter(|page| (from..to).contains(page)).collect();
            prop_assert!(sound(&a.between(from, to)));
            prop_assert_eq!(model(&a.between(from, to)), inside);
            for page in 0..220 {
                prop_assert_eq!(a.contains(PageIndex(page)), x.contains(&page));
            }
        }
    }
}
