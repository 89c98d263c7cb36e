//! What others do, to compare with: none of these knows a target.

use super::Policy;
use crate::plan::model::{Model, Rest};
use crate::plan::{Decision, words};
use blip_transport::units::PageCount;

/// Copies a fixed number of rounds, then freezes.
#[derive(Clone, Copy, Debug)]
pub struct FixedRounds(pub u32);

impl Policy for FixedRounds {
    fn name(&self) -> &'static str {
        "fixed rounds"
    }

    fn begin(&mut self, model: &Model) -> Decision {
        if self.0 == 0 {
            return freeze(model, "no round was wanted".into());
        }
        again("the first round copies all memory")
    }

    fn after_round(&mut self, model: &Model) -> Decision {
        if model.rounds() >= self.0 {
            return freeze(model, format!("{} rounds were wanted", self.0));
        }
        again("more rounds were wanted")
    }
}

/// Freezes when few pages are dirty, or after so many rounds: the rule of most
/// virtual-machine monitors.
#[derive(Clone, Copy, Debug)]
pub struct DirtyThreshold {
    /// Few enough.
    pub pages: PageCount,
    /// Rounds at most.
    pub rounds: u32,
}

impl Policy for DirtyThreshold {
    fn name(&self) -> &'static str {
        "dirty threshold"
    }

    fn begin(&mut self, _: &Model) -> Decision {
        again("the first round copies all memory")
    }

    fn after_round(&mut self, model: &Model) -> Decision {
        let found = model.last().map_or(PageCount(0), |round| round.dirty);
        if model.rounds() > 1 && found <= self.pages {
            return freeze(model, format!("only {} were dirty", words::pages(found)));
        }
        if model.rounds() >= self.rounds {
            return freeze(model, format!("{} rounds are the limit", self.rounds));
        }
        again("too many pages are dirty")
    }
}

/// Copies nothing ahead.
#[derive(Clone, Copy, Debug)]
pub struct OnlyPostCopy;

impl Policy for OnlyPostCopy {
    fn name(&self) -> &'static str {
        "post-copy"
    }

    fn begin(&mut self, model: &Model) -> Decision {
        let forecast = model.forecast(model.memory(), Rest::Left, model.elapsed());
        Decision::GoLazy { why: "nothing is copied ahead".into(), forecast }
    }

    fn after_round(&mut self, model: &Model) -> Decision {
        let forecast = model.forecast(model.rest(), Rest::Left, model.elapsed());
        Decision::GoLazy { why: "nothing more is copied ahead".into(), forecast }
    }
}

fn again(why: &str) -> Decision {
    Decision::CopyAgain { hold_back: false, why: why.into() }
}

fn freeze(model: &Model, why: String) -> Decision {
    let forecast = model.forecast(model.rest(), Rest::Shipped, model.elapsed());
    Decision::Freeze { why, forecast }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Costs, Goal, LinkFacts, Planner, RoundFacts, Watched};
    use blip_transport::units::Round;
    use std::time::Duration;

    fn rounds_until_frozen(policy: impl Policy + 'static, dirty: &[u64]) -> usize {
        let (goal, costs) = (Goal::default(), Costs::default());
        let mut planner = Planner::with_policy(goal, costs, LinkFacts::default(), Box::new(policy));
        if planner.begin(PageCount(10_000), Duration::ZERO).forecast().is_some() {
            return 0;
        }
        for (n, &dirty) in dirty.iter().enumerate() {
            let facts = RoundFacts {
                round: Round(n as u32),
                took: Duration::from_millis(100),
                elapsed: Duration::from_millis(100 * (n as u64 + 1)),
                resident: PageCount(10_000),
                dirty: PageCount(dirty),
                hot: PageCount(0),
                held_back: PageCount(0),
                wire: PageCount(dirty).bytes(),
                throttle: 0,
                watched: Watched::default(),
            };
            if let Decision::Freeze { .. } = planner.after_round(&facts) {
                return n + 1;
            }
        }
        usize::MAX
    }

    #[test]
    fn each_stops_where_its_rule_says() {
        let dirty = [10_000, 5_000, 600, 90, 80, 70];
        assert_eq!(rounds_until_frozen(FixedRounds(0), &dirty), 0);
        assert_eq!(rounds_until_frozen(FixedRounds(3), &dirty), 3);
        let threshold = |pages, rounds| DirtyThreshold { pages: PageCount(pages), rounds };
        assert_eq!(rounds_until_frozen(threshold(100, 30), &dirty), 4);
        assert_eq!(rounds_until_frozen(threshold(1, 5), &dirty), 5);
        assert_eq!(rounds_until_frozen(OnlyPostCopy, &dirty), 0);
    }
}
