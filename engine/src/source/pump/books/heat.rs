//! Which pages are written again and again: what the latest looks say. Pure.

use super::Pages;
use crate::plan::glances::{ALWAYS, COOLS, KEPT};
use crate::track::runs::Runs;
use blip_transport::page::SpaceId;
use blip_transport::units::PageCount;
use std::collections::VecDeque;
use std::time::Duration;

/// How often pages were written of late.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Heat {
    /// Found written by at least one look.
    pub warm: Runs,
    /// By two or more: sent now, they would be dirty again.
    pub hot: Runs,
}

/// What was written from one look to the next.
#[derive(Debug)]
struct Look {
    at: Duration,
    took: Duration,
    written: Pages,
}

/// The latest looks.
#[derive(Debug, Default)]
pub(super) struct Looks(VecDeque<Look>);

impl Looks {
    /// A look at `now` has found so much written since the one before. The first
    /// one has none before it, and tells nothing.
    pub(super) fn add(&mut self, now: Duration, written: Pages) {
        let took = self.0.back().map_or(Duration::ZERO, |last| now.saturating_sub(last.at));
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(Look { at: now, took, written });
    }

    /// When the last one was.
    pub(super) fn last(&self) -> Option<Duration> {
        self.0.back().map(|look| look.at)
    }

    /// Another program runs there now.
    pub(super) fn forget(&mut self, space: SpaceId) {
        for look in &mut self.0 {
            look.written.remove(&space);
        }
    }

    /// How often pages of a space were written of late.
    pub(super) fn heat(&self, space: SpaceId) -> Heat {
        let mut heat = Heat::default();
        let Some(last) = self.0.back() else { return heat };
        let counts = |(age, look): &(usize, &Look)| *age < ALWAYS || look.at + COOLS >= last.at;
        for (_, look) in self.0.iter().rev().enumerate().take_while(counts) {
            let Some(written) = look.written.get(&space) else { continue };
            heat.hot = heat.hot.union(&heat.warm.intersect(written));
            heat.warm = heat.warm.union(written);
        }
        heat
    }

    /// Of the looks after `since`: the time since the one before, pages written
    /// in it, and pages of those that are not in `held`.
    pub(super) fn seen(
        &self,
        since: Duration,
        held: &Pages,
    ) -> Vec<(Duration, PageCount, PageCount)> {
        let mut seen = Vec::new();
        for look in self.0.iter().filter(|look| look.at > since) {
            let (mut all, mut outside) = (0, 0);
            for (space, written) in &look.written {
                all += written.pages().0;
                let apart =
                    held.get(space).map_or_else(|| written.clone(), |h| written.subtract(h));
                outside += apart.pages().0;
            }
            seen.push((look.took, PageCount(all), PageCount(outside)));
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip_transport::page::PageRun;

    const SPACE: SpaceId = SpaceId(1);

    fn runs(of: &[(u64, u64)]) -> Runs {
        let runs: Vec<_> = of.iter().map(|&(start, count)| PageRun::new(start, count)).collect();
        Runs::from(runs.as_slice())
    }

    fn looks(of: &[(u64, &[(u64, u64)])]) -> Looks {
        let mut looks = Looks::default();
        for &(at, written) in of {
            looks.add(Duration::from_millis(at), Pages::from([(SPACE, runs(written))]));
        }
        looks
    }

    #[test]
    fn what_is_written_twice_within_three_seconds_is_hot() {
        let looks = looks(&[(0, &[(9, 3)]), (1_000, &[(0, 10)]), (3_500, &[(5, 10)])]);
        let heat = looks.heat(SPACE);
        assert_eq!((heat.warm, heat.hot), (runs(&[(0, 15)]), runs(&[(5, 5)])));
        assert_eq!(looks.heat(SpaceId(2)), Heat::default());
    }

    #[test]
    fn two_looks_count_however_far_apart() {
        let looks = looks(&[(0, &[(0, 9)]), (20_000, &[(0, 10)]), (60_000, &[(4, 10)])]);
        assert_eq!(looks.heat(SPACE).hot, runs(&[(4, 6)]));
    }

    #[test]
    fn looks_tell_what_was_written_beside_the_held_pages() {
        let looks = looks(&[(0, &[]), (100, &[(0, 10)]), (300, &[(5, 10)])]);
        let held = Pages::from([(SPACE, runs(&[(0, 8)]))]);
        let ms = Duration::from_millis;
        assert_eq!(
            looks.seen(Duration::ZERO, &held),
            [(ms(100), PageCount(10), PageCount(2)), (ms(200), PageCount(10), PageCount(7))]
        );
        assert_eq!(looks.seen(ms(100), &held).len(), 1);
    }
}
