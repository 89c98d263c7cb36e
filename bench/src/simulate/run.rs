//! One case, one policy, one result.

use super::workload::{Container, Habit, MEMORY, unit};
use blip_engine::plan::model::Rest;
use blip_engine::plan::policy::{DirtyThreshold, FixedRounds, OnlyPostCopy, Policy, TargetDriven};
use blip_engine::plan::rehearsal::{Outcome, Truth, rehearse};
use blip_engine::plan::{Costs, Goal, LinkFacts, Method, OnMiss, Planner, ThrottleLimit};
use blip_transport::units::{Bandwidth, ByteSize, PageCount};
use serde::Serialize;
use std::time::Duration;

/// Links, in bits a second.
pub const LINKS: [(&str, f64); 4] =
    [("100 Mbit/s", 1e8), ("1 Gbit/s", 1e9), ("10 Gbit/s", 1e10), ("25 Gbit/s", 2.5e10)];
/// Round-trip times.
pub const TRIPS: [(&str, Duration); 4] = [
    ("0.1 ms", Duration::from_micros(100)),
    ("1 ms", Duration::from_millis(1)),
    ("10 ms", Duration::from_millis(10)),
    ("100 ms", Duration::from_millis(100)),
];
/// How far the true costs are from what the planner takes them for.
const COST_ERROR: f64 = 0.1;

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The shortest downtime.
    Shortest,
    /// The fixed cost and 60 ms.
    Target,
    /// The same, and the container may be slowed down.
    TargetThrottled,
    /// To be there within 30 s.
    Deadline,
}

impl Wish {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Shortest, Self::Target, Self::TargetThrottled, Self::Deadline];

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shortest => "shortest",
            Self::Target => "target",
            Self::TargetThrottled => "target, throttle",
            Self::Deadline => "deadline",
        }
    }

    /// The goal, if it is wanted over a link with this round-trip time.
    pub fn goal(self, rtt: Duration) -> Goal {
        let fixed = Costs::default().at(rtt).fixed(MEMORY);
        let target = Some(fixed + Duration::from_millis(60));
        match self {
            Self::Shortest => Goal::default(),
            Self::Target => Goal { downtime: target, ..Goal::default() },
            Self::TargetThrottled => {
                Goal { downtime: target, throttle: ThrottleLimit::Auto, ..Goal::default() }
            }
            Self::Deadline => Goal { deadline: Some(Duration::from_secs(30)), ..Goal::default() },
        }
    }
}

/// A container, a link, and what chance makes of them.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What the container does.
    pub habit: Habit,
    /// The link, as in [`LINKS`].
    pub link: (&'static str, f64),
    /// Its round-trip time, as in [`TRIPS`].
    pub rtt: (&'static str, Duration),
    /// What is wanted.
    pub wish: Wish,
    /// Chance.
    pub seed: u64,
}

impl Case {
    /// The world it happens in.
    pub fn world(&self) -> Container {
        Container::new(self.habit, Bandwidth(self.link.1 / 8.0), self.rtt.1, self.seed)
    }

    /// What handovers really cost here. The planner takes them for the default.
    pub fn truth(&self) -> Truth {
        let mut costs = Costs::default();
        let parts = [
            &mut costs.freeze,
            &mut costs.dump,
            &mut costs.ship,
            &mut costs.restore,
            &mut costs.grant,
        ];
        for (i, part) in parts.into_iter().enumerate() {
            part.ms *= 1.0 + COST_ERROR * unit(self.seed ^ (i as u64 + 1) << 48);
        }
        Truth { costs, rtt: self.rtt.1 }
    }
}

/// What came of it, before it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// How the rest was moved; `None`: given up.
    pub how: Option<Rest>,
    /// Frozen until running.
    pub downtime: Duration,
    /// The downtime that the planner expected.
    pub predicted: Option<f64>,
    /// The start until running on the target.
    pub finished: Duration,
    /// Resume until the last page.
    pub brownout: Duration,
    /// The part of it in which pages are missing that only the source has.
    pub remote: Duration,
    /// Rounds before the freeze.
    pub rounds: u32,
    /// Bytes over the link.
    pub wire: ByteSize,
    /// Most CPU time taken, in percent.
    pub throttled: u8,
}

/// One row of the results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Result {
    /// What the container did.
    pub workload: &'static str,
    /// The link.
    pub link: &'static str,
    /// Its round-trip time.
    pub rtt: &'static str,
    /// What was wanted.
    pub wish: &'static str,
    /// Who decided.
    pub policy: &'static str,
    /// Whether the wish came true.
    pub met: bool,
    /// Whether the rest was left on the source.
    pub left: bool,
    /// Whether it was given up.
    pub gave_up: bool,
    /// Frozen until running, in milliseconds.
    pub downtime_ms: f64,
    /// The same as it was expected, in milliseconds.
    pub predicted_ms: Option<f64>,
    /// The start until running on the target, in milliseconds.
    pub finished_ms: f64,
    /// Resume until the last page, in milliseconds.
    pub brownout_ms: f64,
    /// The part of it with pages on the source, in milliseconds.
    pub remote_ms: f64,
    /// Rounds before the freeze.
    pub rounds: u32,
    /// Bytes over the link.
    pub wire: ByteSize,
    /// Most CPU time taken, in percent.
    pub throttled_percent: u8,
    /// What it costs more than the oracle's choice, in milliseconds of downtime.
    pub regret_ms: f64,
}

impl Result {
    /// Judges what came of a case.
    pub fn of(case: &Case, goal: &Goal, policy: &'static str, measured: Measured) -> Self {
        let in_time = goal.deadline.is_none_or(|deadline| measured.finished <= deadline);
        let short = goal.downtime.is_none_or(|target| measured.downtime <= target);
        let ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
        Self {
            workload: case.habit.name(),
            link: case.link.0,
            rtt: case.rtt.0,
            wish: case.wish.name(),
            policy,
            met: measured.how.is_some() && in_time && short,
            left: measured.how == Some(Rest::Left),
            gave_up: measured.how.is_none(),
            downtime_ms: ms(measured.downtime),
            predicted_ms: measured.predicted,
            finished_ms: ms(measured.finished),
            brownout_ms: ms(measured.brownout),
            remote_ms: ms(measured.remote),
            rounds: measured.rounds,
            wire: measured.wire,
            throttled_percent: measured.throttled,
            regret_ms: 0.0,
        }
    }
}

/// What a result costs, in milliseconds of downtime: a second until it is over
/// costs 1 ms, leaving pages behind 20 ms, and a second in which they are
/// missing 5 ms.
pub fn price(result: &Result) -> f64 {
    let behind = if result.left { 20.0 + result.remote_ms * 5e-3 } else { 0.0 };
    result.downtime_ms + behind + (result.finished_ms + result.brownout_ms) * 1e-3
}

/// Makes a policy, since each remembers.
pub type Make = fn() -> Box<dyn Policy>;

/// Until fewer than 1 000 pages are dirty, or 30 rounds.
const MONITOR: DirtyThreshold = DirtyThreshold { pages: PageCount(1_000), rounds: 30 };

/// The policies compared.
pub const POLICIES: [(&str, Make); 5] = [
    ("blip", || Box::new(TargetDriven::default())),
    ("3 rounds", || Box::new(FixedRounds(3))),
    ("10 rounds", || Box::new(FixedRounds(10))),
    ("dirty < 1000", || Box::new(MONITOR)),
    ("post-copy", || Box::new(OnlyPostCopy)),
];

/// What a policy makes of a case.
pub fn rehearsed(case: &Case, name: &'static str, policy: Box<dyn Policy>) -> (Result, Outcome) {
    // The others know nothing of hot pages, and look at none.
    let goal = Goal { hold_back: name == POLICIES[0].0, ..case.wish.goal(case.rtt.1) };
    let link = LinkFacts { rtt: case.rtt.1, bandwidth: None };
    let planner = Planner::with_policy(goal, Costs::default(), link, policy);
    let mut world = case.world();
    let outcome = rehearse(planner, &mut world, &case.truth(), Duration::ZERO);
    let remote = match outcome.how {
        Some(Rest::Left) => {
            outcome.brownout.saturating_sub(Costs::default().prefill_time(MEMORY) + case.rtt.1)
        }
        _ => Duration::ZERO,
    };
    let measured = Measured {
        how: outcome.how,
        downtime: outcome.downtime,
        predicted: outcome.forecast.as_ref().map(|forecast| forecast.downtime_ms),
        finished: outcome.finished,
        brownout: outcome.brownout,
        remote,
        rounds: outcome.rounds,
        wire: outcome.wire,
        throttled: outcome.throttled,
    };
    (Result::of(case, &goal, name, measured), outcome)
}

/// What holding hot pages back comes to: the same case as the rule of most
/// virtual-machine monitors moves it, and as blip does without and with it,
/// whatever the downtime.
pub fn ways_of_holding(case: &Case, method: Method) -> [Outcome; 3] {
    let link = LinkFacts { rtt: case.rtt.1, bandwidth: None };
    let goal = Goal { method, hold_back: false, on_miss: OnMiss::Proceed, ..Goal::default() };
    let classic = Goal { method: Method::PreCopy, ..goal };
    let holding = Goal { hold_back: true, ..goal };
    let planners = [
        Planner::with_policy(classic, Costs::default(), link, Box::new(MONITOR)),
        Planner::new(goal, Costs::default(), link),
        Planner::new(holding, Costs::default(), link),
    ];
    planners.map(|planner| rehearse(planner, &mut case.world(), &case.truth(), Duration::ZERO))
}

/// Everybody's results of a case, the oracle's last, with their regrets.
pub fn compare(case: &Case) -> Vec<Result> {
    let goal = case.wish.goal(case.rtt.1);
    let oracle = super::oracle::best(case, &goal);
    // Only blip throttles; the oracle does without, too.
    let several = case.wish != Wish::TargetThrottled;
    let policies = POLICIES.iter().take(if several { POLICIES.len() } else { 1 });
    let mut results: Vec<Result> =
        policies.map(|(name, make)| rehearsed(case, name, make()).0).collect();
    for result in &mut results {
        result.regret_ms = ((price(result) - price(&oracle)) * 100.0).round() / 100.0;
    }
    results.push(oracle);
    results
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for wish in Wish::ALL {
        // The same chance for every wish.
        let mut seed = 0;
        for habit in Habit::ALL {
            for link in LINKS {
                for rtt in TRIPS {
                    seed += 1;
                    cases.push(Case { habit, link, rtt, wish, seed });
                }
            }
        }
    }
    cases
}
