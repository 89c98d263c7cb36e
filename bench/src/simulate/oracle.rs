//! The best choice in hindsight: every moment at which the container could have
//! been frozen, with and without holding hot pages back, with the rest shipped
//! or left, all tried, in the very world that the planner saw.

use super::run::{Case, Result, price};
use super::workload::Container;
use blip_engine::plan::Goal;
use blip_engine::plan::model::Rest;
use blip_engine::plan::rehearsal::{Truth, World};
use blip_transport::units::{ByteSize, PageCount};
use std::time::Duration;

/// How close two moments are.
const STEP: Duration = Duration::from_millis(250);
/// Rounds tried.
const ROUNDS: u32 = 40;

/// The best result there is.
pub(super) fn best(case: &Case, goal: &Goal) -> Result {
    let tries = [false, true].into_iter().flat_map(|hold| Search::new(case, goal).run(hold));
    let better = |a: &Result, b: &Result| (a.met, -price(a)) > (b.met, -price(b));
    let first = Search::new(case, goal).freeze(PageCount(0), Rest::Left);
    tries.fold(first, |best, next| if better(&next, &best) { next } else { best })
}

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
            let scan = self.world.scan(hold);
            let overhead = self.world.overhead();
            self.advance(overhead / 2);
            let mut left = (scan.dirty.0 - scan.held_back.0) as f64;
            while left > 0.0 {
                let pages_a_second = self.world.pace().0 / PageCount(1).bytes().0 as f64;
                let step = Duration::from_secs_f64(left / pages_a_second).min(STEP);
                let sent = (pages_a_second * step.as_secs_f64()).min(left);
                self.advance(step);
                left = if step < STEP { 0.0 } else { left - sent };
                self.wire += sent * PageCount(1).bytes().0 as f64 * self.world.squeeze();
                if left > 0.0 {
                    self.try_now(PageCount(left as u64), &mut found);
                }
            }
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
        let memory = world.resident();
        let rest = PageCount((world.scan(false).dirty.0 + undone.0).min(memory.0));
        let send = Duration::from_secs_f64(rest.bytes().0 as f64 / world.pace().0);
        let downtime = self.truth.downtime(self.goal, memory, send, how);
        let wire = self.wire + rest.bytes().0 as f64 * world.squeeze();
        let brownout = self.truth.brownout(self.goal, memory, send, how);
        let outcome = super::run::Measured {
            how: Some(how),
            downtime,
            predicted: None,
            finished: self.now + downtime,
            brownout,
            remote: if how == Rest::Left { send } else { Duration::ZERO },
            rounds: self.rounds,
            wire: ByteSize(wire as u64),
            throttled: 0,
        };
        Result::of(self.case, self.goal, "oracle", outcome)
    }
}
