//! The best choice in hindsight: every moment at which the container could have
//! been frozen, with and without holding hot pages back, with the rest shipped
//! or left, all tried, in the very world that the planner saw.

use super::run::{Case, Result, price};
use super::workload::Container;
use blip_engine::plan::Goal;
use blip_engine::plan::model::{APPROACH, Rest};
use blip_engine::plan::rehearsal::{Reading, Truth, World};
use blip_transport::units::{ByteSize, PageCount};
use std::time::Duration;

/// Rounds tried.
const ROUNDS: u32 = 40;

/// The best result there is.
pub(super) fn best(case: &Case, goal: &Goal) -> Result {
    let tries = [false, true].into_iter().flat_map(|hold| Search::new(case, goal).run(hold));
    let better = |a: &Result, b: &Result| (a.met, -price(a)) > (b.met, -price(b));
    let first = Search::new(case, goal).freeze(PageCount(0), Rest::Left);
    tries.fold(first, |best, next| if better(&next, &best) { next } else { best })
}

#[derive(Clone)]
struct Search<'a> {
    case: &'a Case,
    goal: &'a Goal,
    truth: Truth,
    world: Container,
    now: Duration,
    rounds: u32,
    wire: f64,
}

impl<'a> Search<'a> {
    fn new(case: &'a Case, goal: &'a Goal) -> Self {
        let (truth, world) = (case.truth(), case.world());
        Self { case, goal, truth, world, now: Duration::ZERO, rounds: 0, wire: 0.0 }
    }

    fn run(mut self, hold: bool) -> Vec<Result> {
        let mut found = Vec::new();
        self.try_now(PageCount(0), &mut found);
        while self.rounds < ROUNDS {
            self.world.scan(self.now, hold);
            let overhead = self.world.overhead();
            self.advance(overhead / 2);
            let mut reading = Reading::begin(self.now, hold, hold);
            while reading.go_on(&mut self.world, &mut self.now, 0) {
                // Here and now, the round broken off.
                let mut now = self.clone();
                let undone = reading.end(&mut now.world, self.now);
                now.wire += reading.wire;
                now.try_now(undone, &mut found);
            }
            reading.end(&mut self.world, self.now);
            self.wire += reading.wire;
            self.advance(overhead / 2);
            self.rounds += 1;
            self.try_now(PageCount(0), &mut found);
        }
        found
    }

    fn advance(&mut self, time: Duration) {
        self.world.run(time, 0);
        self.now += time;
    }

    fn try_now(&self, undone: PageCount, found: &mut Vec<Result>) {
        found.extend([Rest::Shipped, Rest::Left].map(|how| self.freeze(undone, how)));
    }

    fn freeze(&self, undone: PageCount, how: Rest) -> Result {
        let mut world = self.world.clone();
        world.run(APPROACH, 0);
        let now = self.now + APPROACH;
        let memory = world.resident();
        let rest = PageCount((world.scan(now, false).dirty.0 + undone.0).min(memory.0));
        let send = Duration::from_secs_f64(rest.bytes().0 as f64 / world.pace().0);
        let downtime = self.truth.downtime(self.goal, memory, send, how);
        let wire = self.wire + rest.bytes().0 as f64 * world.squeeze();
        let brownout = self.truth.brownout(self.goal, memory, send, how);
        let outcome = super::run::Measured {
            how: Some(how),
            downtime,
            predicted: None,
            finished: now + downtime,
            brownout,
            remote: if how == Rest::Left { send } else { Duration::ZERO },
            rounds: self.rounds,
            wire: ByteSize(wire as u64),
            throttled: 0,
        };
        Result::of(self.case, self.goal, "oracle", outcome)
    }
}
