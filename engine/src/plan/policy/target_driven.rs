//! Our way: forecast what a freeze comes to, and go on copying only while that
//! helps the user's target.
//!
//! * With a target: freeze as soon as it is met even if things go rather badly;
//!   one more round only if it is nearly free and halves the rest.
//! * Without one, or if the fixed cost alone misses it: copy until the rest is
//!   negligible.
//! * If rounds no longer shrink: throttle, if that was allowed and is expected to
//!   reach the target; else leave the rest behind, if the method may; else what
//!   `--on-miss` says. Throttling comes first because whoever allows it says that
//!   a slow container now is better than one that waits for its pages later. It
//!   does not wait for that if the hot pages alone miss the target: what rounds
//!   still save then is not what stands in the way.
//! * Hot pages are held back unless sending them leads to the goal: where the rest
//!   may follow later that saves sending them twice; where it must be shipped, if
//!   a round without them leaves no more behind than a round with them.

use super::Policy;
use super::reasons::{
    describe, fixed_misses, hot_would_take, least_downtime, passes_deadline, ways, would_take,
};
use crate::plan::model::{Model, Rest};
use crate::plan::{Decision, Method, OnMiss, RoundSoFar, words};
use blip_transport::units::PageCount;
use std::time::Duration;

/// A rest that takes no longer than this is not worth another round …
const NEGLIGIBLE: Duration = Duration::from_millis(4);
/// … nor one of this share of the fixed cost.
const NEGLIGIBLE_SHARE: f64 = 0.03;
/// A rest that needs no second round, however wrong its rate may be.
const NEXT_TO_NOTHING: Duration = Duration::from_millis(1);
/// Downtime that is worth a brownout.
const WORTH_A_BROWNOUT: Duration = Duration::from_millis(20);
/// A round must leave this share of the rest or less to be worth it.
const SHRINKS: f64 = 0.9;
/// The same of a round this long, if the rest can be sent after the resume.
const SHRINKS_LONG: f64 = 0.7;
const LONG: Duration = Duration::from_secs(5);
/// Rounds in a row that are expected not to shrink before it is believed.
const PATIENCE: u32 = 2;
/// Rounds in a row that did not, whatever was expected.
const DISAPPOINTMENTS: u32 = 4;
/// Sending the dirty pages takes long enough to try how many are hot.
const LONG_ENOUGH: Duration = Duration::from_millis(50);
/// Fewer hot pages than this are not worth the trouble.
const FEW: u64 = 64;
/// CPU time taken, in percent, one step after the other.
const STEPS: [u8; 5] = [20, 40, 60, 80, 90];
/// The engine asks a few times a second whether a round is to be cut short.
const TICK: Duration = Duration::from_millis(250);

/// The policy that blip uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct TargetDriven {
    throttle: u8,
    holding: bool,
    /// Decisions in a row at which no shrinking was expected.
    stalled: u32,
    /// The fewest dirty pages of a round, and rounds since.
    least: Option<(u64, u32)>,
    /// Rounds in a row whose hot pages alone miss the target.
    too_hot: u32,
}

/// What another round would come to.
#[derive(Clone, Copy, Debug)]
struct Next {
    hold_back: bool,
    held: PageCount,
    rest: PageCount,
    time: Duration,
}

impl Policy for TargetDriven {
    fn name(&self) -> &'static str {
        "blip"
    }

    fn begin(&mut self, model: &Model) -> Decision {
        let goal = model.goal();
        if !goal.method.copies_ahead() {
            return settle(model, model.memory(), &format!("{} copies nothing ahead", goal.method));
        }
        if goal.max_rounds == 0 {
            return settle(model, model.memory(), "no rounds are allowed");
        }
        if passes_deadline(model, model.elapsed() + least_downtime(model)) {
            return settle(model, model.memory(), "the deadline leaves no time for a round");
        }
        if let Some(why) = hopeless(model) {
            return Decision::GiveUp { why };
        }
        self.holding = goal.hold_back;
        let why = match goal.hold_back {
            true => "the first round copies all memory, but for pages it sees written all the time",
            false => "the first round copies all memory",
        };
        Decision::CopyAgain { hold_back: goal.hold_back, why: why.into() }
    }

    fn after_round(&mut self, model: &Model) -> Decision {
        let rest = model.rest();
        self.take_in(model);
        if model.rounds() >= model.goal().max_rounds {
            let limit = format!("the limit of {} rounds is reached", model.goal().max_rounds);
            return settle(model, rest, &limit);
        }
        let next = self.next(model);
        if passes_deadline(model, model.elapsed() + next.time + least_downtime(model)) {
            let time = words::time(next.time);
            return settle(
                model,
                rest,
                &format!("another round of {time} would pass the deadline"),
            );
        }
        if model.intervals() == 0 {
            return self.again(next, "one round says nothing of how much is dirtied".into());
        }
        if model.rounds() == 1 && model.time_for(rest) > NEXT_TO_NOTHING {
            let why = "one round of all memory says little of how fast dirty pages go out";
            return self.again(next, why.into());
        }
        if let Some(reason) = enough(model, rest) {
            return match worthwhile(model, rest, next) {
                Some(why) => self.again(next, why),
                None => settle(model, rest, &reason),
            };
        }
        self.go_on(model, rest, next)
    }

    fn during_round(&mut self, model: &Model, round: &RoundSoFar) -> Option<Decision> {
        let deadline = model.goal().deadline?;
        let now = model.within(round);
        let rest = now.rest_within(round);
        let margin = TICK + now.costs().spread();
        let last_call = round.elapsed + least_downtime(&now) + margin >= deadline;
        let reason = format!("the deadline of {} is near", words::time(deadline));
        if last_call {
            return Some(settle(&now, rest, &reason));
        }
        if now.goal().method.may_leave_pages() {
            return None;
        }
        // Everything must be sent before the deadline: is the end of the round
        // too late, and now just early enough?
        let undone = PageCount(round.dirty.0.saturating_sub(round.done.0));
        let more = now.time_for(undone);
        let at_end = now.dirtied(round.took + more, self.throttle);
        let finish = |rest, begun| begun + now.downtime(rest, Rest::Shipped);
        if finish(at_end, round.elapsed + more) <= deadline {
            return None;
        }
        let now_is_the_time = finish(rest, round.elapsed) <= deadline
            && finish(rest, round.elapsed) + margin >= deadline
            && now.goal().downtime.is_none_or(|t| now.downtime(rest, Rest::Shipped) <= t);
        now_is_the_time.then(|| settle(&now, rest, &reason))
    }

    fn most_shipped(&self, model: &Model) -> Option<PageCount> {
        let goal = model.goal();
        let spare = goal.downtime.map_or(Duration::ZERO, |t| t.saturating_sub(model.fixed()));
        let room = model.costs().room(spare.max(WORTH_A_BROWNOUT), model.memory());
        (goal.method == Method::Auto).then(|| model.pages_in(room))
    }

    fn throttle(&self) -> u8 {
        self.throttle
    }

    fn holds_back(&self) -> bool {
        self.holding
    }
}

impl TargetDriven {
    fn take_in(&mut self, model: &Model) {
        let Some(round) = model.last() else { return };
        // A first scan finds everything dirty.
        if model.intervals() == 0 {
            return;
        }
        let found = round.dirty.0;
        self.least = match self.least {
            Some((least, since)) if found as f64 >= SHRINKS * least as f64 => {
                Some((least.min(found), since + 1))
            }
            _ => Some((found, 0)),
        };
        self.too_hot = if hot_alone_misses(model) { self.too_hot + 1 } else { 0 };
    }

    /// What another round comes to, with or without the hot pages.
    fn next(&self, model: &Model) -> Next {
        let (rest, time) = model.after_sending(self.throttle);
        let sending = Next { hold_back: false, held: PageCount(0), rest, time };
        if !model.goal().hold_back {
            return sending;
        }
        if model.intervals() == 1 && reachable(model).is_none() {
            // Two scans cannot tell what is hot. If it is nothing, holding it
            // back costs nothing; if it is all, sending it again is for nothing.
            let found = model.last().map_or(PageCount(0), |round| round.dirty);
            return Next { hold_back: model.time_for(found) >= LONG_ENOUGH, ..sending };
        }
        if model.hot().0 < FEW {
            return sending;
        }
        // What is held back is a rest that does not shrink: not on the way to a
        // goal that sending reaches.
        let lazy = model.goal().method.may_leave_pages();
        if (lazy || reachable(model).is_some()) && converges(model, self.throttle) {
            return sending;
        }
        let (left, held, time) = model.after_holding(self.throttle);
        // What follows after the resume costs no downtime, and is sent once.
        let pays = lazy || left.0 as f64 <= 1.05 * rest.0 as f64;
        if pays { Next { hold_back: true, held, rest: left, time } } else { sending }
    }

    fn again(&mut self, next: Next, mut why: String) -> Decision {
        if next.hold_back {
            let held = match next.held {
                PageCount(0) => "pages that it finds dirty once more".into(),
                held => words::pages(held),
            };
            why = format!("{why}; {held} wait for the end");
        }
        self.holding = next.hold_back;
        Decision::CopyAgain { hold_back: next.hold_back, why }
    }

    /// The rest is too much: copies again while that helps.
    fn go_on(&mut self, model: &Model, rest: PageCount, next: Next) -> Decision {
        if self.too_hot >= PATIENCE
            && let Some(decision) = self.slow_down(model, rest, &hot_would_take(model))
        {
            return decision;
        }
        // A long round that saves little: sending it later costs no more.
        let long = next.time >= LONG && model.goal().method.may_leave_pages();
        let (share, patience) = if long { (SHRINKS_LONG, 1) } else { (SHRINKS, PATIENCE) };
        let shrinks = next.rest.0 as f64 <= share * rest.0 as f64;
        let disappointed = self.least.is_some_and(|(_, since)| since >= DISAPPOINTMENTS);
        self.stalled = if shrinks { 0 } else { self.stalled + 1 };
        let (sends, expects) = (would_take(model, rest), words::pages(next.rest));
        if self.stalled < patience && !disappointed {
            let why = match shrinks {
                true => format!("{sends}; another round should leave {expects}"),
                false => format!("{sends}; another round may not leave less, but it tells"),
            };
            return self.again(next, why);
        }
        let time = model.time_for(rest);
        let reason = format!(
            "rounds no longer shrink, {} are dirtied in {}",
            words::pages(model.dirtied(time, self.throttle)),
            words::time(time),
        );
        if let Some(decision) = self.slow_down(model, rest, &reason) {
            return decision;
        }
        settle(model, rest, &reason)
    }

    /// The next step of throttling, if it is allowed and helps.
    fn slow_down(&mut self, model: &Model, rest: PageCount, reason: &str) -> Option<Decision> {
        let goal = model.goal();
        let limit = goal.throttle.percent();
        // Without a target in reach, only who must ship everything gains.
        let wanted = match reachable(model) {
            Some(_) => goal.method != Method::Hybrid,
            None => {
                let goes_on = goal.downtime.is_none() || goal.on_miss == OnMiss::Proceed;
                let gains = model.extra(rest) > WORTH_A_BROWNOUT;
                goal.method == Method::PreCopy && goes_on && gains
            }
        };
        if !wanted || self.throttle >= limit {
            return None;
        }
        let above = self.throttle;
        let steps = STEPS.into_iter().filter(|&step| step < limit).chain([limit]);
        let mut steps = steps.filter(|&step| step > above);
        let helps = steps.clone().find(|&step| converges(model, step));
        let lazy_meets = goal.method.may_leave_pages();
        let percent = match helps {
            Some(step) => step,
            // No throttling is expected to do: the container need not suffer.
            None if lazy_meets => return None,
            None => steps.next()?,
        };
        let expects = match helps {
            Some(_) => "which should do",
            None => "the next step",
        };
        *self = Self { throttle: percent, ..Self::default() };
        let why = format!("{reason}; {percent} % of its CPU time are taken from it, {expects}");
        Some(Decision::Throttle { percent, why })
    }
}

/// Whether rounds with this throttle come to what is wanted.
fn converges(model: &Model, throttle: u8) -> bool {
    let mut rest = model.rest();
    (0..16).any(|_| {
        rest = model.dirtied(model.round_time(rest), throttle);
        match reachable(model) {
            Some(target) => model.downtime_at_worst(rest, Rest::Shipped) <= target,
            None => model.extra(rest) <= WORTH_A_BROWNOUT,
        }
    })
}

/// Whether a target in reach is missed by the pages that are written again and
/// again, were they all that is left. No round makes them fewer.
fn hot_alone_misses(model: &Model) -> bool {
    reachable(model).is_some_and(|target| model.downtime(model.hot(), Rest::Shipped) > target)
}

/// The target, unless the fixed cost alone misses it.
fn reachable(model: &Model) -> Option<Duration> {
    model.goal().downtime.filter(|&target| model.fixed() <= target)
}

/// Whether the rest is small enough, and why.
fn enough(model: &Model, rest: PageCount) -> Option<String> {
    let goal = model.goal();
    match reachable(model) {
        Some(target) if goal.method != Method::Hybrid => {
            let worst = model.downtime_at_worst(rest, Rest::Shipped);
            (worst <= target).then(|| "that is enough".into())
        }
        _ => {
            let limit = NEGLIGIBLE.max(model.fixed().mul_f64(NEGLIGIBLE_SHARE));
            (model.time_for(rest) <= limit)
                .then(|| "less would hardly shorten the downtime".to_string())
        }
    }
}

/// A round that is nearly free and halves the rest makes a met target surer.
fn worthwhile(model: &Model, rest: PageCount, next: Next) -> Option<String> {
    let cheap = next.time * 20 <= model.elapsed();
    let halves = next.rest.0 * 2 <= rest.0;
    (cheap && halves && model.time_for(rest) > NEGLIGIBLE).then(|| {
        format!(
            "{}; that is enough, but {} more leave {}",
            would_take(model, rest),
            words::time(next.time),
            words::pages(next.rest)
        )
    })
}

/// Copying ahead is over: chooses how to move the rest.
fn settle(model: &Model, rest: PageCount, reason: &str) -> Decision {
    let goal = model.goal();
    let (ships, leaves) = ways(goal);
    let meets = |how| {
        let downtime = model.downtime(rest, how);
        goal.downtime.is_none_or(|target| downtime <= target)
            && !passes_deadline(model, model.elapsed() + downtime)
    };
    let surely = model.extra(rest) <= WORTH_A_BROWNOUT
        || goal.downtime.is_some_and(|t| model.downtime_at_worst(rest, Rest::Shipped) <= t);
    let why = describe(model, rest, reason);
    if ships && meets(Rest::Shipped) && (surely || !leaves || !meets(Rest::Left)) {
        return end(model, rest, Rest::Shipped, why);
    }
    if leaves && meets(Rest::Left) {
        let why = match ships {
            true => format!("{why}: they follow after the resume"),
            false => why,
        };
        return end(model, rest, Rest::Left, why);
    }
    miss(model, rest, &why)
}

/// No way meets what the user wants.
fn miss(model: &Model, rest: PageCount, why: &str) -> Decision {
    let (ships, leaves) = ways(model.goal());
    let soon = model.extra(rest) <= WORTH_A_BROWNOUT;
    match model.goal().on_miss {
        OnMiss::PostCopy if leaves => {
            end(model, rest, Rest::Left, format!("{why}; --on-miss post-copy leaves them behind"))
        }
        OnMiss::PostCopy => {
            let method = model.goal().method;
            let why = format!(
                "{why}; {method} cannot leave pages behind: \
                 use --method auto, or --on-miss proceed to freeze all the same"
            );
            Decision::GiveUp { why }
        }
        OnMiss::Proceed => {
            let how = if leaves && !(ships && soon) { Rest::Left } else { Rest::Shipped };
            end(model, rest, how, format!("{why}; --on-miss proceed"))
        }
        OnMiss::Abort => Decision::GiveUp { why: format!("{why}; --on-miss abort") },
    }
}

fn end(model: &Model, rest: PageCount, how: Rest, why: String) -> Decision {
    let forecast = model.forecast(rest, how, model.elapsed());
    match how {
        Rest::Shipped => Decision::Freeze { why, forecast },
        Rest::Left => Decision::GoLazy { why, forecast },
    }
}

/// Before any round: the target is out of reach for certain, and a miss would
/// end in giving up.
fn hopeless(model: &Model) -> Option<String> {
    let goal = model.goal();
    let target = goal.downtime?;
    let gives_up = match goal.on_miss {
        OnMiss::Abort => true,
        OnMiss::PostCopy => !goal.method.may_leave_pages(),
        OnMiss::Proceed => false,
    };
    let doubt = model.costs().doubt(model.memory());
    let at_best = model.fixed().saturating_sub(doubt * 2);
    (gives_up && at_best > target).then(|| {
        format!(
            "{}, however little is left to copy; nothing was copied",
            fixed_misses(model, target)
        )
    })
}

#[cfg(test)]
mod tests;
