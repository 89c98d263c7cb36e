//! When to stop copying ahead and freeze. Pure: a planner is told what each
//! round did and says what to do next, with its reason.

mod goal;

use blip_transport::units::{Bandwidth, PageCount};
pub use goal::{Goal, Method, OnMiss, ThrottleLimit};
use std::time::Duration;

/// What the planner is told of a finished round.
#[derive(Clone, Copy, Debug)]
pub struct RoundFacts {
    /// Pages that had to be read.
    pub dirty: PageCount,
    /// Rate at which pages went out, raw bytes a second.
    pub rate: Bandwidth,
}

/// What to do next, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// One more round.
    CopyAgain {
        /// In words and numbers.
        why: String,
    },
    /// Freeze now.
    Freeze {
        /// In words and numbers.
        why: String,
    },
}

/// Freezes when the rest is small or no longer shrinks.
#[derive(Clone, Debug)]
pub struct Planner {
    /// Time the last pages may take inside the freeze.
    budget: Duration,
    /// Rounds at most.
    max_rounds: u32,
    rounds: u32,
    previous: Option<PageCount>,
    stalled: u32,
}

impl Planner {
    /// `budget`: time that sending the last pages may add to the downtime.
    pub fn new(budget: Duration, max_rounds: u32) -> Self {
        Self { budget, max_rounds, rounds: 0, previous: None, stalled: 0 }
    }

    /// Takes in a round. The pages dirtied during it are what a freeze now
    /// would have to send: about as many as it found, scaled by its length.
    pub fn after_round(&mut self, round: &RoundFacts) -> Decision {
        self.rounds += 1;
        let shrinking = self.previous.is_none_or(|p| round.dirty.0 * 10 < p.0 * 9);
        self.stalled = if shrinking { 0 } else { self.stalled + 1 };
        self.previous = Some(round.dirty);
        // The first round reads everything: it says nothing of the rate.
        if self.rounds == 1 {
            return Decision::CopyAgain { why: "the first round copies all memory".into() };
        }
        let rest = Duration::from_secs_f64(round.dirty.bytes().0 as f64 / round.rate.0.max(1.0));
        let sends = format!("{} pages would take about {rest:.1?}", round.dirty.0);
        if rest <= self.budget {
            let why = format!("{sends}, within the {:?} allowed", self.budget);
            return Decision::Freeze { why };
        }
        if self.stalled >= 2 {
            let why = format!("{sends}, and two rounds in a row found no fewer");
            return Decision::Freeze { why };
        }
        if self.rounds >= self.max_rounds {
            let why = format!("{sends}; the limit of {} rounds is reached", self.max_rounds);
            return Decision::Freeze { why };
        }
        Decision::CopyAgain { why: format!("{sends}, and the rounds still shrink") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(dirty: u64) -> RoundFacts {
        RoundFacts { dirty: PageCount(dirty), rate: Bandwidth(400e6) }
    }

    #[test]
    fn the_first_round_never_freezes() {
        let mut planner = Planner::new(Duration::from_millis(5), 10);
        assert!(matches!(planner.after_round(&round(1)), Decision::CopyAgain { .. }));
        assert!(matches!(planner.after_round(&round(1)), Decision::Freeze { .. }));
    }

    #[test]
    fn a_writer_that_never_gets_slower_is_not_chased_for_ever() {
        let mut planner = Planner::new(Duration::from_millis(5), 30);
        let decisions: Vec<_> = (0..4).map(|_| planner.after_round(&round(50_000))).collect();
        assert!(matches!(decisions[2], Decision::Freeze { .. }), "{decisions:?}");
    }

    #[test]
    fn shrinking_rounds_go_on_up_to_the_limit() {
        let mut planner = Planner::new(Duration::from_nanos(1), 4);
        for dirty in [80_000, 40_000, 20_000] {
            assert!(matches!(planner.after_round(&round(dirty)), Decision::CopyAgain { .. }));
        }
        assert!(matches!(planner.after_round(&round(10_000)), Decision::Freeze { .. }));
    }
}
