//! When to stop copying ahead, and how to move what is left. Pure: a planner is
//! told what each round did and says what to do next, with its reason; time is
//! an argument.
//!
//! [`Model`] turns rounds into expectations: how much is dirtied in a given
//! time, how fast pages go out, what a handover costs at least. A [`Policy`]
//! turns expectations into decisions; [`Planner`] joins the two.
//!
//! **Invariant**: our policy never freezes when it predicts that a target is
//! missed, unless the user said so with `--on-miss proceed`.

pub mod costs;
pub mod dirtying;
pub mod glances;
mod goal;
pub mod model;
pub mod policy;
pub mod rehearsal;
pub mod words;

use crate::event::Forecast;
use blip_transport::units::{Bandwidth, ByteSize, PageCount, Round};
pub use costs::{Cost, Costs};
pub use goal::{Goal, Method, OnMiss, ThrottleLimit};
use model::{Model, Rest};
use policy::{FixedRounds, Policy, TargetDriven};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the planner is told of a finished round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundFacts {
    /// Its number.
    pub round: Round,
    /// From its scan until the target had applied it.
    pub took: Duration,
    /// Since the command began, at the round's end.
    pub elapsed: Duration,
    /// Pages that are ours to move.
    pub resident: PageCount,
    /// Pages the scan found dirty, held-back ones included.
    pub dirty: PageCount,
    /// Those of them that are written again and again.
    pub hot: PageCount,
    /// Those of them that were not read.
    pub held_back: PageCount,
    /// Over the link for those that were read.
    pub wire: ByteSize,
    /// CPU time taken from the container during the round, in percent.
    pub throttle: u8,
    /// What was seen while it was made.
    pub watched: Watched,
}

/// What was seen in the middle of a round. Empty, if nobody looked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// The looks, or the latest of them.
    pub looks: Vec<Look>,
    /// Pages that were found written after they had been read.
    pub again: PageCount,
    /// Of those and of the held-back ones, how many are written again and again.
    pub hot: PageCount,
    /// From the last look to the end of the round.
    pub since: Duration,
}

/// A look at a running container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Since the look or the scan before.
    pub time: Duration,
    /// Pages written in that time.
    pub written: PageCount,
    /// Those of them that are not held back now.
    pub outside: PageCount,
}

/// What the planner is told of a round under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundSoFar {
    /// Since its scan.
    pub took: Duration,
    /// Since the command began.
    pub elapsed: Duration,
    /// Pages that have been read and sent.
    pub done: PageCount,
    /// Pages the scan found dirty.
    pub dirty: PageCount,
    /// Over the link for those that were read.
    pub wire: ByteSize,
}

/// What is known of the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkFacts {
    /// Round-trip time.
    pub rtt: Duration,
    /// What it carries, measured or known from experience.
    pub bandwidth: Option<Bandwidth>,
}

/// What to do next, and why.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// One more round.
    CopyAgain {
        /// Do not read pages that were dirty in the scan before, too.
        hold_back: bool,
        /// In words and numbers.
        why: String,
    },
    /// Freeze now; what is left is sent before the container resumes.
    Freeze {
        /// In words and numbers.
        why: String,
        /// What comes of it.
        forecast: Forecast,
    },
    /// Freeze now; what is left stays on the source until it is needed.
    GoLazy {
        /// In words and numbers.
        why: String,
        /// What comes of it.
        forecast: Forecast,
    },
    /// Take this much CPU time from the container and copy another round.
    Throttle {
        /// In percent.
        percent: u8,
        /// In words and numbers.
        why: String,
    },
    /// Leave the container where it is.
    GiveUp {
        /// In words and numbers.
        why: String,
    },
}

impl Decision {
    /// What is decided, in two words.
    pub fn what(&self) -> String {
        match self {
            Self::CopyAgain { hold_back: false, .. } => "copy again".into(),
            Self::CopyAgain { hold_back: true, .. } => "copy again, hold hot pages back".into(),
            Self::Freeze { .. } => "freeze".into(),
            Self::GoLazy { .. } => "freeze, the rest follows".into(),
            Self::Throttle { percent, .. } => format!("slow down by {percent} %"),
            Self::GiveUp { .. } => "give up".into(),
        }
    }

    /// The reason, in words and numbers.
    pub fn why(&self) -> &str {
        match self {
            Self::CopyAgain { why, .. }
            | Self::Freeze { why, .. }
            | Self::GoLazy { why, .. }
            | Self::Throttle { why, .. }
            | Self::GiveUp { why } => why,
        }
    }

    /// What it comes to, if it ends the copying.
    pub fn forecast(&self) -> Option<&Forecast> {
        match self {
            Self::Freeze { forecast, .. } | Self::GoLazy { forecast, .. } => Some(forecast),
            _ => None,
        }
    }
}

/// Plans one migration.
#[derive(Debug)]
pub struct Planner {
    model: Model,
    policy: Box<dyn Policy>,
}

impl Planner {
    /// A planner that knows what the user wants and what experience says.
    pub fn new(goal: Goal, costs: Costs, link: LinkFacts) -> Self {
        let policy: Box<dyn Policy> = match goal.rounds {
            Some(rounds) => Box::new(FixedRounds(rounds)),
            None => Box::new(TargetDriven::default()),
        };
        Self::with_policy(goal, costs, link, policy)
    }

    /// A planner that decides by `policy`.
    pub fn with_policy(goal: Goal, costs: Costs, link: LinkFacts, policy: Box<dyn Policy>) -> Self {
        Self { model: Model::new(goal, costs, link), policy }
    }

    /// Before any round; `memory` is what must be moved, `elapsed` the time
    /// since the command began.
    pub fn begin(&mut self, memory: PageCount, elapsed: Duration) -> Decision {
        self.model.begin(memory, elapsed);
        self.policy.begin(&self.model)
    }

    /// After a round. The pages dirtied during it are what a freeze now has to
    /// send.
    pub fn after_round(&mut self, round: &RoundFacts) -> Decision {
        self.model.learn(round);
        self.policy.after_round(&self.model)
    }

    /// In the middle of a round: `Some` cuts it short. What it has not sent is
    /// then part of the rest. To be asked a few times a second.
    pub fn during_round(&mut self, round: &RoundSoFar) -> Option<Decision> {
        self.policy.during_round(&self.model, round)
    }

    /// After a [`Decision::Freeze`]: the most pages that are shipped inside the
    /// freeze. Of more than that, none. `None`: however many they are.
    pub fn most_shipped(&self) -> Option<PageCount> {
        self.policy.most_shipped(&self.model)
    }

    /// The last scan, which the container stands still for, has found so many:
    /// `Some` is a [`Decision::GoLazy`] if those are too many. Only
    /// [`Method::Auto`] changes its mind.
    pub fn when_frozen(&self, found: PageCount, elapsed: Duration) -> Option<Decision> {
        let most = self.most_shipped()?;
        (found > most).then(|| Decision::GoLazy {
            why: policy::more_than_expected(&self.model, found),
            forecast: self.model.forecast(found, Rest::Left, elapsed),
        })
    }

    /// What comes of freezing at the end of the round under way, by the method
    /// in use. `None` before the first round has ended.
    pub fn forecast(&self) -> Option<Forecast> {
        self.model.last()?;
        let (rest, time) = match self.policy.holds_back() {
            false => self.model.after_sending(self.policy.throttle()),
            true => {
                let (rest, _, time) = self.model.after_holding(self.policy.throttle());
                (rest, time)
            }
        };
        let how = match self.model.goal().method {
            Method::PostCopy | Method::Hybrid => Rest::Left,
            _ => Rest::Shipped,
        };
        Some(self.model.forecast(rest, how, self.model.elapsed() + time))
    }

    /// What is known so far.
    pub fn model(&self) -> &Model {
        &self.model
    }
}
