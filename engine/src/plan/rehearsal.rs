//! A migration under virtual time: what a planner would do with a container and
//! a link that are only described. `blip plan` forecasts with it, the bench
//! compares policies with it, and the planner's tests are written in it.

use super::model::Rest;
use super::{Costs, Decision, Goal, LinkFacts, Planner, RoundFacts, RoundSoFar};
use crate::event::Forecast;
use blip_transport::units::{Bandwidth, ByteSize, PageCount, Round};
use std::time::Duration;

/// How often a round under way is looked at.
const TICK: Duration = Duration::from_millis(250);
/// A planner that goes on beyond this is not going to stop.
const ROUNDS: u32 = 2_000;

/// A container and how its pages travel.
pub trait World {
    /// Pages it has.
    fn resident(&self) -> PageCount;

    /// Lets it run for `time` with `throttle` percent of its CPU taken.
    fn run(&mut self, time: Duration, throttle: u8);

    /// What a scan finds dirty now. It is clean afterwards, but for what is held
    /// back: if so wanted, the pages that the scan before had found, too. The
    /// very first scan finds everything dirty and nothing hot.
    fn scan(&mut self, hold_back: bool) -> Found;

    /// How fast pages go out at present, in bytes of memory a second.
    fn pace(&self) -> Bandwidth;

    /// Bytes on the link for a byte of memory.
    fn squeeze(&self) -> f64 {
        1.0
    }

    /// What a round takes besides its pages.
    fn overhead(&self) -> Duration;
}

/// What a scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Dirty pages.
    pub dirty: PageCount,
    /// Those that were dirty in the scan before, too.
    pub hot: PageCount,
    /// Those that stay dirty because they are held back.
    pub held_back: PageCount,
}

/// How a rehearsal ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How the rest was moved; `None`: given up.
    pub how: Option<Rest>,
    /// What the planner expected when it ended the copying.
    pub forecast: Option<Forecast>,
    /// From the freeze to the container running on the target.
    pub downtime: Duration,
    /// From the start to the container running on the target; to the end, if
    /// given up.
    pub finished: Duration,
    /// From the resume until the last page is in place.
    pub brownout: Duration,
    /// Pages that were left at the freeze.
    pub rest: PageCount,
    /// Rounds before the freeze.
    pub rounds: u32,
    /// Bytes over the link, the rest included.
    pub wire: ByteSize,
    /// Most CPU time taken, in percent.
    pub throttled: u8,
    /// Everything that was decided, and when.
    pub decisions: Vec<(Duration, Decision)>,
}

/// What the planner is not told: it sees only rounds.
#[derive(Clone, Copy, Debug)]
pub struct Truth {
    /// What a handover really costs.
    pub costs: Costs,
    /// The round-trip time.
    pub rtt: Duration,
}

impl Truth {
    /// The downtime that `rest` comes to.
    pub fn downtime(&self, goal: &Goal, memory: PageCount, send: Duration, how: Rest) -> Duration {
        let costs = self.costs.at(self.rtt);
        let fixed = costs.fixed(memory);
        match how {
            Rest::Left => fixed,
            Rest::Shipped => {
                let fill = match goal.method.may_leave_pages() {
                    true => Duration::ZERO,
                    false => costs.prefill_time(memory),
                };
                fixed + fill + send.saturating_sub(costs.beside(memory))
            }
        }
    }

    /// From the resume until the last page is in place.
    pub fn brownout(&self, goal: &Goal, memory: PageCount, send: Duration, how: Rest) -> Duration {
        let fill = match goal.method.may_leave_pages() {
            true => self.costs.prefill_time(memory),
            false => Duration::ZERO,
        };
        match how {
            Rest::Left => fill + send + self.rtt,
            Rest::Shipped => fill,
        }
    }
}

/// Rehearses a migration that begins at `begun` after the command.
pub fn rehearse(
    mut planner: Planner,
    world: &mut dyn World,
    truth: &Truth,
    begun: Duration,
) -> Outcome {
    let mut stage = Stage {
        goal: *planner.model().goal(),
        world,
        truth,
        now: begun,
        throttle: 0,
        throttled: 0,
        rounds: 0,
        wire: ByteSize(0),
        undone: PageCount(0),
        decisions: Vec::new(),
    };
    let mut decision = planner.begin(stage.world.resident(), begun);
    loop {
        stage.decisions.push((stage.now, decision.clone()));
        decision = match decision {
            Decision::CopyAgain { hold_back, .. } => stage.round(&mut planner, hold_back),
            Decision::Throttle { percent, .. } => {
                stage.throttle = percent;
                stage.throttled = stage.throttled.max(percent);
                stage.round(&mut planner, false)
            }
            Decision::Freeze { forecast, .. } => return stage.freeze(Rest::Shipped, forecast),
            Decision::GoLazy { forecast, .. } => return stage.freeze(Rest::Left, forecast),
            Decision::GiveUp { .. } => return stage.give_up(),
        };
        if stage.rounds >= ROUNDS {
            return stage.give_up();
        }
    }
}

struct Stage<'a> {
    goal: Goal,
    world: &'a mut dyn World,
    truth: &'a Truth,
    now: Duration,
    throttle: u8,
    throttled: u8,
    rounds: u32,
    wire: ByteSize,
    /// Of a round that was cut short.
    undone: PageCount,
    decisions: Vec<(Duration, Decision)>,
}

impl Stage<'_> {
    /// One round, unless it is cut short.
    fn round(&mut self, planner: &mut Planner, hold_back: bool) -> Decision {
        let found = self.world.scan(hold_back);
        let read = PageCount(found.dirty.0 - found.held_back.0);
        let overhead = self.world.overhead();
        self.advance(overhead / 2);
        let (mut took, mut sent) = (overhead / 2, 0.0);
        let mut wire = 0.0;
        while sent < read.0 as f64 {
            let pages_a_second = self.world.pace().0 / PageCount(1).bytes().0 as f64;
            let left = Duration::from_secs_f64((read.0 as f64 - sent) / pages_a_second);
            let step = left.min(TICK);
            let pages = if step == left {
                read.0 as f64 - sent
            } else {
                pages_a_second * step.as_secs_f64()
            };
            self.advance(step);
            took += step;
            sent += pages;
            wire += pages * PageCount(1).bytes().0 as f64 * self.world.squeeze();
            let so_far = RoundSoFar {
                took,
                elapsed: self.now,
                done: PageCount(sent as u64),
                dirty: found.dirty,
                wire: ByteSize(wire as u64),
            };
            if let Some(decision) = planner.during_round(&so_far) {
                self.undone = PageCount(read.0.saturating_sub(sent as u64));
                self.wire += so_far.wire;
                return decision;
            }
        }
        self.advance(overhead / 2);
        self.rounds += 1;
        self.wire += ByteSize(wire as u64);
        let resident = self.world.resident();
        planner.after_round(&RoundFacts {
            round: Round(self.rounds - 1),
            took: took + overhead / 2,
            elapsed: self.now,
            resident,
            dirty: found.dirty,
            hot: found.hot,
            held_back: found.held_back,
            wire: ByteSize(wire as u64),
            throttle: self.throttle,
        })
    }

    fn advance(&mut self, time: Duration) {
        self.world.run(time, self.throttle);
        self.now += time;
    }

    fn freeze(mut self, how: Rest, forecast: Forecast) -> Outcome {
        let found = self.world.scan(false).dirty;
        let memory = self.world.resident();
        let rest = PageCount((found.0 + self.undone.0).min(memory.0));
        let send = Duration::from_secs_f64(rest.bytes().0 as f64 / self.world.pace().0);
        let downtime = self.truth.downtime(&self.goal, memory, send, how);
        self.wire += ByteSize((rest.bytes().0 as f64 * self.world.squeeze()) as u64);
        Outcome {
            how: Some(how),
            forecast: Some(forecast),
            downtime,
            finished: self.now + downtime,
            brownout: self.truth.brownout(&self.goal, memory, send, how),
            rest,
            rounds: self.rounds,
            wire: self.wire,
            throttled: self.throttled,
            decisions: self.decisions,
        }
    }

    fn give_up(self) -> Outcome {
        Outcome {
            how: None,
            forecast: None,
            downtime: Duration::ZERO,
            finished: self.now,
            brownout: Duration::ZERO,
            rest: PageCount(0),
            rounds: self.rounds,
            wire: self.wire,
            throttled: self.throttled,
            decisions: self.decisions,
        }
    }
}

/// A container that writes at random to a working set and walks over the rest,
/// in expectation: no page has a name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Writer {
    /// All its pages.
    pub resident: PageCount,
    /// Pages it writes to again and again.
    pub working_set: f64,
    /// In this many seconds it has written to 63 % of them.
    pub tau: f64,
    /// Pages a second it writes to once.
    pub stream: f64,
    /// How its memory goes out in the first round.
    pub all: Speed,
    /// How pages go out that are dirty again.
    pub dirty: Speed,
    /// What a round takes besides its pages.
    pub overhead: Duration,
}

/// How pages go out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Bytes of memory a second.
    pub pace: Bandwidth,
    /// Bytes on the link for a byte of memory.
    pub squeeze: f64,
}

/// A [`Writer`] at work.
#[derive(Clone, Copy, Debug)]
pub struct Writing {
    writer: Writer,
    scans: u32,
    /// CPU seconds since the last scan.
    time: f64,
    /// Share of the working set that the last scan found dirty.
    before: f64,
    held: f64,
}

impl Writer {
    /// Sets to work.
    pub fn begin(self) -> Writing {
        Writing { writer: self, scans: 0, time: 0.0, before: 0.0, held: 0.0 }
    }
}

impl Writing {
    fn speed(&self) -> Speed {
        if self.scans <= 1 { self.writer.all } else { self.writer.dirty }
    }
}

impl World for Writing {
    fn resident(&self) -> PageCount {
        self.writer.resident
    }

    fn run(&mut self, time: Duration, throttle: u8) {
        self.time += time.as_secs_f64() * f64::from(100 - throttle.min(100)) / 100.0;
    }

    fn scan(&mut self, hold_back: bool) -> Found {
        self.scans += 1;
        let share = -(-self.time / self.writer.tau).exp_m1();
        let open = (self.writer.working_set - self.held).max(0.0);
        let fresh = open * share;
        let streamed = self.writer.stream * self.time;
        let all = self.writer.resident.0 as f64;
        let dirty = if self.scans == 1 { all } else { (self.held + fresh + streamed).min(all) };
        // In the scan before, a page of the working set was dirty by chance.
        let hot = if self.scans <= 2 { 0.0 } else { (self.held + fresh * self.before).min(dirty) };
        self.held = if hold_back { hot } else { 0.0 };
        (self.before, self.time) = (share, 0.0);
        let count = |pages: f64| PageCount(pages.round() as u64);
        Found { dirty: count(dirty), hot: count(hot), held_back: count(self.held) }
    }

    fn pace(&self) -> Bandwidth {
        self.speed().pace
    }

    fn squeeze(&self) -> f64 {
        self.speed().squeeze
    }

    fn overhead(&self) -> Duration {
        self.writer.overhead
    }
}

/// Rehearses our policy on a writer. The copying begins at `begun` after the
/// command.
pub fn rehearse_writer(
    goal: Goal,
    costs: Costs,
    link: LinkFacts,
    writer: Writer,
    begun: Duration,
) -> Outcome {
    let truth = Truth { costs, rtt: link.rtt };
    // Whoever knows the writer knows this, too.
    let known = Costs { pace: Some(writer.all.pace), squeeze: Some(writer.all.squeeze), ..costs };
    let planner = Planner::new(goal, known, link);
    rehearse(planner, &mut writer.begin(), &truth, begun)
}
