//! A migration under virtual time: what a planner would do with a container and
//! a link that are only described. `blip plan` forecasts with it, the bench
//! compares policies with it, and the planner's tests are written in it.

mod band;
mod reading;

use super::model::{APPROACH, Rest};
use super::{Costs, Decision, Goal, LinkFacts, Planner, RoundFacts, RoundSoFar};
use crate::event::Forecast;
pub use band::Band;
use blip_transport::units::{Bandwidth, ByteSize, PageCount, Round};
pub use reading::Reading;
use std::time::Duration;

/// A planner that goes on beyond this is not going to stop.
const ROUNDS: u32 = 2_000;

/// A container and how its pages travel.
pub trait World {
    /// Pages it has.
    fn resident(&self) -> PageCount;

    /// Lets it run for `time` with `throttle` percent of its CPU taken.
    fn run(&mut self, time: Duration, throttle: u8);

    /// Its pages, by what it does to them.
    fn bands(&mut self) -> &mut [Band];

    /// Told what a scan at `now` has found dirty.
    fn scanned(&mut self, now: Duration, dirty: PageCount) {
        let _ = (now, dirty);
    }

    /// What a scan finds dirty now. It is clean afterwards, but for what is held
    /// back: if so wanted, the pages that are written again and again. The very
    /// first scan finds everything dirty and nothing hot.
    fn scan(&mut self, now: Duration, hold_back: bool) -> Found {
        let (mut dirty, mut hot, mut held) = (0.0, 0.0, 0.0);
        for seen in self.bands().iter_mut().map(|band| band.scan(now, hold_back)) {
            (dirty, hot, held) = (dirty + seen.dirty, hot + seen.hot, held + seen.held);
        }
        let dirty = count(dirty);
        self.scanned(now, dirty);
        Found { dirty, hot: count(hot).min(dirty), held_back: count(held).min(dirty) }
    }

    /// Pages that are held back.
    fn held(&mut self) -> PageCount {
        count(self.bands().iter().map(Band::held).sum())
    }

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
    /// Those of the first round.
    pub first: ByteSize,
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
                fixed + fill + costs.beyond(send, memory)
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
        first: None,
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
            end @ (Decision::Freeze { .. } | Decision::GoLazy { .. }) => {
                return stage.freeze(&planner, end);
            }
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
    first: Option<ByteSize>,
    /// Of a round that was cut short.
    undone: PageCount,
    decisions: Vec<(Duration, Decision)>,
}

impl Stage<'_> {
    /// One round, unless it is cut short.
    fn round(&mut self, planner: &mut Planner, hold_back: bool) -> Decision {
        let begun = self.now;
        let found = self.world.scan(self.now, hold_back);
        let overhead = self.world.overhead();
        self.advance(overhead / 2);
        let mut reading = Reading::begin(self.now, hold_back, self.goal.hold_back);
        while reading.go_on(self.world, &mut self.now, self.throttle) {
            let so_far = RoundSoFar {
                took: self.now - begun,
                elapsed: self.now,
                done: count(reading.sent),
                dirty: found.dirty,
                wire: ByteSize(reading.wire as u64),
            };
            if let Some(decision) = planner.during_round(&so_far) {
                self.undone = reading.end(self.world, self.now);
                self.wire += so_far.wire;
                return decision;
            }
        }
        reading.end(self.world, self.now);
        self.advance(overhead / 2);
        self.rounds += 1;
        let wire = ByteSize(reading.wire as u64);
        self.wire += wire;
        self.first.get_or_insert(wire);
        let watched = reading.watched(self.world, self.now);
        let resident = self.world.resident();
        planner.after_round(&RoundFacts {
            round: Round(self.rounds - 1),
            took: self.now - begun,
            elapsed: self.now,
            resident,
            dirty: found.dirty,
            hot: found.hot,
            held_back: self.world.held(),
            wire,
            throttle: self.throttle,
            watched,
        })
    }

    fn advance(&mut self, time: Duration) {
        self.world.run(time, self.throttle);
        self.now += time;
    }

    /// Freezes as was decided, unless the last scan finds far more than that was
    /// about.
    fn freeze(mut self, planner: &Planner, decided: Decision) -> Outcome {
        self.advance(APPROACH);
        let found = self.world.scan(self.now, false).dirty;
        let memory = self.world.resident();
        let rest = PageCount((found.0 + self.undone.0).min(memory.0));
        let ships = |decision: &Decision| matches!(decision, Decision::Freeze { .. });
        let mut end = decided;
        if ships(&end)
            && let Some(after_all) = planner.when_frozen(rest, self.now)
        {
            self.decisions.push((self.now, after_all.clone()));
            end = after_all;
        }
        let how = if ships(&end) { Rest::Shipped } else { Rest::Left };
        let send = Duration::from_secs_f64(rest.bytes().0 as f64 / self.world.pace().0);
        let downtime = self.truth.downtime(&self.goal, memory, send, how);
        self.wire += ByteSize((rest.bytes().0 as f64 * self.world.squeeze()) as u64);
        Outcome {
            how: Some(how),
            forecast: end.forecast().cloned(),
            downtime,
            finished: self.now + downtime,
            brownout: self.truth.brownout(&self.goal, memory, send, how),
            rest,
            rounds: self.rounds,
            wire: self.wire,
            first: self.first.unwrap_or_default(),
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
            first: self.first.unwrap_or_default(),
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
#[derive(Clone, Debug)]
pub struct Writing {
    writer: Writer,
    bands: [Band; 2],
    scans: u32,
}

impl Writer {
    /// Sets to work.
    pub fn begin(self) -> Writing {
        let others = (self.resident.0 as f64 - self.working_set).max(0.0);
        let bands = [
            Band::random(self.working_set, self.working_set / self.tau.max(1e-6)),
            Band::walk(others, self.stream.min(others * 1e3)),
        ];
        Writing { writer: self, bands, scans: 0 }
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
        let seconds = time.as_secs_f64() * f64::from(100 - throttle.min(100)) / 100.0;
        self.bands.iter_mut().for_each(|band| band.run(seconds));
    }

    fn bands(&mut self) -> &mut [Band] {
        &mut self.bands
    }

    fn scanned(&mut self, _: Duration, _: PageCount) {
        self.scans += 1;
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

fn count(pages: f64) -> PageCount {
    PageCount(pages.round() as u64)
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
