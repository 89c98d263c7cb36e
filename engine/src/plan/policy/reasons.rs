//! The reasons of our policy, and what they are about: the ways that a method
//! leaves open and the times they come to.

use crate::plan::model::{Model, Rest};
use crate::plan::{Goal, Method, words};
use blip_transport::units::PageCount;
use std::time::Duration;

/// Whether the method may ship the rest inside the freeze, and leave it behind.
pub(super) fn ways(goal: &Goal) -> (bool, bool) {
    let ships = !matches!(goal.method, Method::PostCopy | Method::Hybrid);
    (ships, goal.method.may_leave_pages())
}

/// The downtime of the fastest way.
pub(super) fn least_downtime(model: &Model) -> Duration {
    let how = if model.goal().method.may_leave_pages() { Rest::Left } else { Rest::Shipped };
    model.downtime(PageCount(0), how).max(model.fixed())
}

pub(super) fn passes_deadline(model: &Model, finish: Duration) -> bool {
    model.goal().deadline.is_some_and(|deadline| finish > deadline)
}

/// `12 480 pages (48.8 MiB) would take 391 ms at 125 MB/s`.
pub(super) fn would_take(model: &Model, rest: PageCount) -> String {
    format!(
        "{} would take {} at {}",
        words::pages(rest),
        words::time(model.time_for(rest)),
        words::rate(model.rate())
    )
}

/// `6 694 pages (26.1 MiB) are written again and again, which alone take 1.1 s`.
pub(super) fn hot_would_take(model: &Model) -> String {
    let hot = model.hot();
    format!(
        "{} are written again and again, which alone take {}",
        words::pages(hot),
        words::time(model.time_for(hot))
    )
}

pub(in crate::plan) fn more_than_expected(model: &Model, found: PageCount) -> String {
    let would_take = would_take(model, found);
    format!("{would_take}, more than was expected: they follow after the resume")
}

pub(super) fn fixed_misses(model: &Model, target: Duration) -> String {
    let fixed = words::time(model.fixed());
    let what = match model.prefill() {
        Duration::ZERO => String::new(),
        prefill => format!(", {} of it to put all memory in place", words::time(prefill)),
    };
    format!("the fixed cost alone is {fixed}{what}; the target is {}", words::time(target))
}

pub(super) fn describe(model: &Model, rest: PageCount, reason: &str) -> String {
    let sends = would_take(model, rest);
    let goal = model.goal();
    let target = match goal.downtime {
        None => String::new(),
        Some(target) if model.fixed() > target => format!(", and {}", fixed_misses(model, target)),
        Some(target) if ways(goal).0 => {
            let room = model.costs().room(target - model.fixed(), model.memory());
            let (target, room) = (words::time(target), words::time(room));
            format!(", the target of {target} leaves {room}")
        }
        Some(target) => {
            let (fixed, target) = (words::time(model.fixed()), words::time(target));
            format!(" after a downtime of {fixed}, the target is {target}")
        }
    };
    let late = match goal.deadline {
        Some(deadline) if passes_deadline(model, model.elapsed() + least_downtime(model)) => {
            let least = words::time(model.elapsed() + least_downtime(model));
            format!(", and the end comes at {least}, the deadline at {}", words::time(deadline))
        }
        _ => String::new(),
    };
    format!("{sends}{target}{late}: {reason}")
}
