//! What the policy decides, rehearsed on writers of known habits.

use crate::plan::model::Rest;
use crate::plan::rehearsal::{Outcome, Speed, Writer, rehearse_writer};
use crate::plan::{Costs, Decision, Goal, LinkFacts, Method, OnMiss, Planner, ThrottleLimit};
use blip_transport::units::{Bandwidth, PageCount};
use proptest::prelude::*;
use std::time::Duration;

const GIB: PageCount = PageCount(262_144);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// 1 GiB over 1 Gbit/s, writing at `rate` bytes a second to `working_set` MiB.
fn writer(working_set: f64, rate: f64) -> Writer {
    let pages = working_set * 256.0;
    Writer {
        resident: GIB,
        working_set: pages,
        tau: pages * 4096.0 / rate.max(1.0),
        stream: 0.0,
        all: Speed { pace: Bandwidth(117e6), squeeze: 1.0 },
        dirty: Speed { pace: Bandwidth(117e6), squeeze: 1.0 },
        overhead: ms(8),
    }
}

fn run(goal: Goal, writer: Writer) -> Outcome {
    let link = LinkFacts { rtt: Duration::ZERO, bandwidth: None };
    rehearse_writer(goal, Costs::default(), link, writer, Duration::ZERO)
}

fn last_words(outcome: &Outcome) -> &str {
    outcome.decisions.last().map_or("", |(_, decision)| decision.why())
}

#[test]
fn an_idle_container_is_frozen_after_a_second_look() {
    let outcome = run(Goal::default(), writer(0.1, 1e4));
    assert_eq!(outcome.how, Some(Rest::Shipped));
    assert!(outcome.rounds <= 3, "{outcome:#?}");
}

#[test]
fn one_that_writes_nothing_is_frozen_after_one_round_that_was_watched() {
    let outcome = run(Goal::default(), writer(0.02, 1e4));
    assert_eq!((outcome.how, outcome.rounds), (Some(Rest::Shipped), 1), "{outcome:#?}");
}

#[test]
fn a_target_that_holds_is_met_without_leaving_pages_behind() {
    // 16 MiB hot at 20 MB/s converge easily on 117 MB/s.
    let goal = Goal { downtime: Some(ms(200)), ..Goal::default() };
    let outcome = run(goal, writer(16.0, 20e6));
    assert_eq!(outcome.how, Some(Rest::Shipped), "{outcome:#?}");
    assert!(outcome.downtime <= ms(200), "{outcome:#?}");
}

#[test]
fn a_writer_faster_than_the_link_is_left_behind_by_auto() {
    let goal = Goal { downtime: Some(ms(250)), ..Goal::default() };
    let outcome = run(goal, writer(512.0, 400e6));
    assert_eq!(outcome.how, Some(Rest::Left));
    assert!(outcome.downtime <= ms(250));
    assert!(last_words(&outcome).contains("rounds no longer shrink"), "{}", last_words(&outcome));
}

#[test]
fn pre_copy_that_cannot_converge_gives_up_and_says_so() {
    let goal = Goal { downtime: Some(ms(1_500)), method: Method::PreCopy, ..Goal::default() };
    let outcome = run(goal, writer(512.0, 400e6));
    assert_eq!(outcome.how, None);
    let words = last_words(&outcome);
    assert!(words.contains("no longer shrink") && words.contains("cannot leave"), "{words}");
    let proceeds = Goal { on_miss: OnMiss::Proceed, ..goal };
    let outcome = run(proceeds, writer(512.0, 400e6));
    assert_eq!(outcome.how, Some(Rest::Shipped));
    assert!(outcome.downtime > ms(1_500));
}

#[test]
fn throttling_comes_before_leaving_pages_if_it_is_enough() {
    let goal = Goal { downtime: Some(ms(250)), throttle: ThrottleLimit::Auto, ..Goal::default() };
    let outcome = run(goal, writer(512.0, 200e6));
    assert_eq!(outcome.how, Some(Rest::Shipped), "{outcome:#?}");
    assert!(outcome.throttled >= 40 && outcome.throttled <= 90, "{}", outcome.throttled);
    assert!(outcome.downtime <= ms(250));
    // Not if no throttling is enough.
    let outcome = run(goal, writer(512.0, 4e9));
    assert_eq!((outcome.how, outcome.throttled), (Some(Rest::Left), 0), "{outcome:#?}");
    // Nor beyond its limit.
    let limited = Goal { throttle: ThrottleLimit::Percent(30), ..goal };
    assert!(run(limited, writer(512.0, 200e6)).throttled <= 30);
}

#[test]
fn throttling_does_not_wait_if_the_hot_pages_alone_miss_the_target() {
    let goal = Goal {
        downtime: Some(ms(300)),
        method: Method::PreCopy,
        throttle: ThrottleLimit::Percent(60),
        ..Goal::default()
    };
    // Half of 96 MiB over 200 Mbit/s. Round by round a little less is left, of
    // what is not the matter.
    let slow = Speed { pace: Bandwidth(24e6), squeeze: 1.0 };
    let writer =
        Writer { resident: PageCount(24_576), all: slow, dirty: slow, ..writer(48.0, 60e6) };
    let outcome = run(goal, writer);
    let slows = |decision: &Decision| matches!(decision, Decision::Throttle { .. });
    let first = outcome.decisions.iter().position(|(_, decision)| slows(decision));
    assert_eq!(first, Some(2), "{outcome:#?}");
    let why = outcome.decisions[2].1.why();
    assert!(why.contains("again and again, which alone take"), "{why}");
}

#[test]
fn a_fixed_cost_beyond_the_target_is_named() {
    let base = Goal { downtime: Some(ms(20)), ..Goal::default() };
    let outcome = run(base, writer(16.0, 20e6));
    assert_eq!(outcome.how, Some(Rest::Left));
    let words = last_words(&outcome);
    assert!(words.contains("the fixed cost alone is 93 ms"), "{words}");
    let outcome = run(Goal { on_miss: OnMiss::Proceed, ..base }, writer(16.0, 20e6));
    assert_eq!(outcome.how, Some(Rest::Shipped));
    // Nothing is copied for nothing.
    let outcome = run(Goal { on_miss: OnMiss::Abort, ..base }, writer(16.0, 20e6));
    assert_eq!((outcome.how, outcome.rounds), (None, 0));
}

#[test]
fn hot_pages_are_not_sent_again_and_again() {
    let hold = Goal { method: Method::Hybrid, ..Goal::default() };
    let send = Goal { hold_back: false, ..hold };
    // 64 MiB hot, and half of all memory written faster than the link carries.
    for (working_set, rate) in [(64.0, 200e6), (512.0, 400e6)] {
        let [held, sent] = [hold, send].map(|goal| run(goal, writer(working_set, rate)));
        let again = |outcome: &Outcome| outcome.wire.0.saturating_sub(GIB.bytes().0) as f64;
        assert!(again(&held) <= 0.6 * again(&sent), "{held:#?} {sent:#?}");
        // Hardly a hot page more than once more.
        assert!(again(&held) <= 1.25 * working_set * 1024.0 * 1024.0, "{held:#?}");
        assert!(held.downtime <= sent.downtime && held.finished < sent.finished);
    }
}

#[test]
fn a_rest_that_must_be_shipped_is_as_small_with_holding_back() {
    let hold = Goal { method: Method::PreCopy, ..Goal::default() };
    let send = Goal { hold_back: false, ..hold };
    let [held, sent] = [hold, send].map(|goal| run(goal, writer(64.0, 200e6)));
    assert!(held.downtime <= sent.downtime, "{held:#?} {sent:#?}");
    assert!(held.wire < sent.wire, "{held:#?} {sent:#?}");
}

#[test]
fn pages_that_would_clear_are_not_held_back() {
    let goal = Goal { downtime: Some(ms(160)), ..Goal::default() };
    let outcome = run(goal, writer(64.0, 10e6));
    let held =
        |decision: &Decision| matches!(decision, Decision::CopyAgain { hold_back: true, .. });
    // But in the first round, which sees what clears.
    assert!(!outcome.decisions[1..].iter().any(|(_, decision)| held(decision)), "{outcome:#?}");
    assert_eq!(outcome.how, Some(Rest::Shipped));
}

#[test]
fn the_deadline_holds_in_the_middle_of_a_long_round() {
    // 1 GiB takes 9 s.
    let goal = Goal { deadline: Some(ms(5_000)), ..Goal::default() };
    let outcome = run(goal, writer(64.0, 200e6));
    assert_eq!(outcome.how, Some(Rest::Left));
    assert!(outcome.finished <= ms(5_000) && outcome.finished >= ms(4_000), "{outcome:#?}");
    let abort = Goal { method: Method::PreCopy, on_miss: OnMiss::Abort, ..goal };
    let outcome = run(abort, writer(64.0, 200e6));
    assert_eq!(outcome.how, None);
    assert!(outcome.finished <= ms(5_000));
}

#[test]
fn what_copies_nothing_ahead_is_settled_at_once() {
    for (method, how) in [(Method::StopAndCopy, Rest::Shipped), (Method::PostCopy, Rest::Left)] {
        let outcome = run(Goal { method, ..Goal::default() }, writer(64.0, 200e6));
        assert_eq!((outcome.how, outcome.rounds), (Some(how), 0));
        let forecast = outcome.forecast.unwrap();
        assert_eq!(forecast.method, method);
        assert_eq!(forecast.met, None);
    }
    let goal = Goal { method: Method::StopAndCopy, downtime: Some(ms(500)), ..Goal::default() };
    assert_eq!(run(goal, writer(64.0, 200e6)).how, None);
}

#[test]
fn a_rest_that_grew_unseen_is_left_behind_by_auto_only() {
    let planned = |method, target| {
        let goal = Goal { method, downtime: target, ..Goal::default() };
        let mut planner = Planner::new(goal, Costs::default(), LinkFacts::default());
        planner.begin(GIB, Duration::ZERO);
        planner
    };
    let little = PageCount(500);
    let much = PageCount(60_000);
    let auto = planned(Method::Auto, None);
    assert_eq!(auto.when_frozen(little, ms(1)), None);
    assert!(matches!(auto.when_frozen(much, ms(1)), Some(Decision::GoLazy { .. })));
    assert_eq!(planned(Method::PreCopy, None).when_frozen(much, ms(1)), None);
    // Nor if the target allows it.
    assert_eq!(planned(Method::Auto, Some(ms(5_000))).when_frozen(much, ms(1)), None);
}

#[test]
fn the_limit_of_rounds_is_kept() {
    for max_rounds in 0..4 {
        let goal = Goal { max_rounds, ..Goal::default() };
        assert!(run(goal, writer(512.0, 400e6)).rounds <= max_rounds);
    }
}

fn any_goal() -> impl Strategy<Value = Goal> {
    let method = prop_oneof![
        Just(Method::Auto),
        Just(Method::PreCopy),
        Just(Method::Hybrid),
        Just(Method::StopAndCopy),
        Just(Method::PostCopy),
    ];
    let on_miss = prop_oneof![Just(OnMiss::PostCopy), Just(OnMiss::Proceed), Just(OnMiss::Abort)];
    let throttle = prop_oneof![
        Just(ThrottleLimit::Off),
        Just(ThrottleLimit::Auto),
        (1..=99u8).prop_map(ThrottleLimit::Percent),
    ];
    let downtime = proptest::option::of((1..3_000u64).prop_map(ms));
    let deadline = proptest::option::of((200..60_000u64).prop_map(ms));
    (method, on_miss, throttle, downtime, deadline, 0..40u32, any::<bool>()).prop_map(
        |(method, on_miss, throttle, downtime, deadline, max_rounds, hold_back)| Goal {
            method,
            on_miss,
            throttle,
            downtime,
            deadline,
            max_rounds,
            hold_back,
            rounds: None,
            bandwidth: None,
        },
    )
}

fn any_writer() -> impl Strategy<Value = Writer> {
    let size = (8..20u32).prop_map(|bits| 1u64 << bits);
    (size, 0.001..1.0f64, 1e-3..100.0f64, 0.0..50_000.0f64, 1e7..3e9f64, 1..200u64).prop_map(
        |(resident, share, tau, stream, pace, overhead)| Writer {
            resident: PageCount(resident),
            working_set: resident as f64 * share,
            tau,
            stream,
            all: Speed { pace: Bandwidth(pace), squeeze: 0.7 },
            dirty: Speed { pace: Bandwidth(pace), squeeze: 0.7 },
            overhead: ms(overhead),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_hold_whatever_happens(goal in any_goal(), writer in any_writer()) {
        let outcome = run(goal, writer);
        prop_assert!(outcome.rounds <= goal.max_rounds);
        prop_assert!(outcome.throttled <= goal.throttle.percent());
        prop_assert!(outcome.decisions.iter().all(|(_, decision)| !decision.why().is_empty()));
        // The method is kept.
        match outcome.how {
            Some(Rest::Left) => prop_assert!(goal.method.may_leave_pages()),
            Some(Rest::Shipped) => {
                prop_assert!(!matches!(goal.method, Method::PostCopy | Method::Hybrid));
            }
            None => {}
        }
        if !goal.method.copies_ahead() {
            prop_assert_eq!(outcome.rounds, 0);
        }
        // Never frozen with a miss foreseen, unless the user said so.
        let misses = outcome.forecast.as_ref().is_some_and(|forecast| forecast.met == Some(false));
        match goal.on_miss {
            OnMiss::Abort => prop_assert!(!misses),
            OnMiss::PostCopy => prop_assert!(!(misses && outcome.how == Some(Rest::Shipped))),
            OnMiss::Proceed => prop_assert!(outcome.how.is_some()),
        }
        // Given up within the deadline and a second.
        if let (None, Some(deadline)) = (outcome.how, goal.deadline) {
            prop_assert!(outcome.finished <= deadline + ms(1_000), "{:?}", outcome.finished);
        }
        // Whoever may leave pages behind is there in time, if it is possible at all.
        let fixed = Costs::default().fixed(writer.resident) + ms(300);
        if let (true, Some(deadline)) = (goal.method.may_leave_pages(), goal.deadline)
            && outcome.how.is_some() && deadline > fixed + ms(300)
        {
            let limit = deadline + Costs::default().spread() + writer.overhead;
            prop_assert!(outcome.finished <= limit, "{:?}", outcome.finished);
        }
    }
}
