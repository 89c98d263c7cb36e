//! Stand-in until the planner is merged.
#![allow(missing_docs)]
mod goal;
use crate::event::Forecast;
use blip_transport::units::{Bandwidth, ByteSize, PageCount, Round};
pub use goal::{Goal, Method, OnMiss, ThrottleLimit};
use std::time::Duration;
#[derive(Clone, Copy, Debug)]
pub struct RoundFacts {
    pub round: Round,
    pub took: Duration,
    pub elapsed: Duration,
    pub resident: PageCount,
    pub dirty: PageCount,
    pub hot: PageCount,
    pub held_back: PageCount,
    pub wire: ByteSize,
    pub throttle: u8,
}
#[derive(Clone, Copy, Debug)]
pub struct RoundSoFar {
    pub took: Duration,
    pub elapsed: Duration,
    pub done: PageCount,
    pub dirty: PageCount,
    pub wire: ByteSize,
}
#[derive(Clone, Copy, Debug)]
pub struct LinkFacts {
    pub rtt: Duration,
    pub bandwidth: Option<Bandwidth>,
}
#[derive(Clone, Debug, Default)]
pub struct Costs;
#[derive(Clone, Debug)]
pub enum Decision {
    CopyAgain { hold_back: bool, why: String },
    Freeze { why: String, forecast: Forecast },
    GoLazy { why: String, forecast: Forecast },
    Throttle { percent: u8, why: String },
    GiveUp { why: String },
}
pub struct Planner(Goal, u32);
fn cast(m: Method) -> Forecast {
    Forecast {
        method: m,
        rounds: 0,
        bytes: ByteSize(0),
        total_ms: 0.0,
        downtime_ms: 0.0,
        downtime: vec![],
        brownout_ms: 0.0,
        met: None,
        confidence: 0.0,
    }
}
impl Planner {
    pub fn new(goal: Goal, _: Costs, _: LinkFacts) -> Self {
        Self(goal, 0)
    }
    pub fn begin(&mut self, _: PageCount, _: Duration) -> Decision {
        match self.0.method {
            Method::StopAndCopy => {
                Decision::Freeze { why: "m".into(), forecast: cast(Method::StopAndCopy) }
            }
            Method::PostCopy => {
                Decision::GoLazy { why: "m".into(), forecast: cast(Method::PostCopy) }
            }
            _ => Decision::CopyAgain { hold_back: false, why: "x".into() },
        }
    }
    pub fn after_round(&mut self, r: &RoundFacts) -> Decision {
        self.1 += 1;
        if self.1 < 3 {
            return Decision::CopyAgain {
                hold_back: self.0.hold_back,
                why: format!("{} dirty", r.dirty.0),
            };
        }
        match self.0.method {
            Method::Hybrid => Decision::GoLazy { why: "m".into(), forecast: cast(Method::Hybrid) },
            Method::PreCopy => {
                Decision::Freeze { why: "m".into(), forecast: cast(Method::PreCopy) }
            }
            _ => Decision::Freeze { why: "m".into(), forecast: cast(Method::Auto) },
        }
    }
    pub fn during_round(&mut self, _: &RoundSoFar) -> Option<Decision> {
        None
    }
    pub fn forecast(&self) -> Option<Forecast> {
        None
    }
}
