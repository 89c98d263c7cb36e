//! The whole report, as a user reads it.

use super::summary::summary;
use crate::event::{
    Forecast, GoalReport, LazyReport, Phase, PhaseTime, Report, RoundReport, TrackingReport,
    Versions,
};
use crate::handover::Outcome;
use crate::plan::{Goal, Method};
use crate::text::WIDTH;
use blip_transport::units::ByteSize;
use std::time::Duration;

fn parts(ms: [f64; 5]) -> Vec<PhaseTime> {
    use Phase::{Dump, Freeze, Grant, Restore, Ship};
    let phases = [Freeze, Dump, Ship, Restore, Grant];
    phases.into_iter().zip(ms).map(|(phase, ms)| PhaseTime { phase, ms }).collect()
}

pub(super) fn report() -> Report {
    let goal = Goal { downtime: Some(Duration::from_millis(100)), ..Goal::default() };
    let downtime = parts([4.1, 33.02, 10.2, 25.0, 7.1]);
    Report {
        outcome: Outcome::Moved,
        container: "web".into(),
        target_id: Some("0123456789ab".into()),
        downtime_ms: downtime.iter().map(|part| part.ms).sum(),
        downtime,
        total_ms: 3412.0,
        rounds: vec![RoundReport::default(); 5],
        files: Default::default(),
        bytes_sent: ByteSize(367 << 20),
        bytes_received: ByteSize(0),
        memory_bytes: ByteSize(1 << 30),
        lazy: LazyReport {
            faults: 1532,
            from_store: 260_000,
            from_source: 2144,
            p50_us: 85,
            p99_us: 1410,
            drain_ms: 210.0,
            samples: Vec::new(),
        },
        goal: GoalReport::from(&goal),
        method: Method::Hybrid,
        predicted: Some(Forecast {
            method: Method::Hybrid,
            rounds: 5,
            bytes: ByteSize(380 << 20),
            total_ms: 3300.0,
            downtime_ms: 83.0,
            downtime: parts([4.0, 32.0, 12.0, 25.0, 10.0]),
            brownout_ms: 200.0,
            met: Some(true),
            confidence: 0.8,
        }),
        met: Some(true),
        throttled_percent: 40,
        unknowns: vec![
            "what clients saw: the longest time without an answer is theirs to measure".into(),
        ],
        tracker: "write-protect: the kernel has PAGEMAP_SCAN and asynchronous write protection"
            .into(),
        tracking: TrackingReport::default(),
        versions: Versions::default(),
        notes: vec!["the target's Docker is older".into()],
    }
}

#[test]
fn target_prediction_and_observation_stand_side_by_side() {
    let why = "12.0 MiB are left, of which 8.4 MiB follow after the resume; two rounds in a row \
               found no fewer";
    let text = summary(&report(), Some(why));
    let expected = "\
web moved in 3.41 s

  method     hybrid: 12.0 MiB are left, of which 8.4 MiB follow after the
             resume; two rounds in a row found no fewer

               freeze    dump    ship restore   grant      downtime
  target                                                   100.0 ms
  predicted       4.0    32.0    12.0    25.0    10.0       83.0 ms
  observed        4.1    33.0    10.2    25.0     7.1       79.4 ms
             observed / predicted = 0.96; the prediction was 80 % sure; the
             target is met

  brownout   210.0 ms until the last page was in place; 1532 faults had to wait,
             half of them at most 85 µs, 99 % at most 1.4 ms
  memory     1.0 GiB in 5 rounds; 367.0 MiB over the link in all, 8.4 MiB after
             the freeze
  throttle   at most 40 % of the CPU time was taken, and all given back
  tracker    write-protect: the kernel has PAGEMAP_SCAN and asynchronous write
             protection
  note       the target's Docker is older
  not known  what clients saw: the longest time without an answer is theirs to
             measure
";
    assert_eq!(text, expected);
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
}

#[test]
fn what_tracking_took_is_said_beside_the_tracker() {
    let mut report = report();
    report.tracker = "soft-dirty: asked for".into();
    report.tracking = TrackingReport { peak_bytes: ByteSize(64 << 20), fell_back: 1 };
    let text = summary(&report, None);
    let expected = "  tracker    soft-dirty: asked for; at most 64.0 MiB for pages on their way;\n\
                    \x20            1 round took all pages, as a pre-dump failed\n";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn one_that_stayed_says_why_and_what_was_wanted() {
    let mut report = report();
    report.outcome = Outcome::Kept {
        why: "the downtime would be 2.41 s, 24 times the target; --on-miss abort".into(),
    };
    report.downtime = Vec::new();
    report.predicted = None;
    report.met = None;
    report.throttled_percent = 0;
    report.notes = Vec::new();
    report.unknowns = Vec::new();
    let expected = "\
web stays here: the downtime would be 2.41 s, 24 times the target; --on-miss
abort

  method     hybrid

                   downtime
  target           100.0 ms
  observed     never frozen

  memory     1.0 GiB in 5 rounds; 367.0 MiB over the link in all, 8.4 MiB after
             the freeze
  tracker    write-protect: the kernel has PAGEMAP_SCAN and asynchronous write
             protection
";
    assert_eq!(summary(&report, None), expected);
}

#[test]
fn without_a_target_or_a_prediction_there_is_the_observation() {
    let mut report = report();
    report.goal.downtime_ms = None;
    report.predicted = None;
    report.met = None;
    let text = summary(&report, None);
    let table: Vec<_> = text.lines().skip(4).take(2).collect();
    assert_eq!(
        table,
        [
            "               freeze    dump    ship restore   grant      downtime",
            "  observed        4.1    33.0    10.2    25.0     7.1       79.4 ms",
        ]
    );
}

#[test]
fn a_missed_target_is_said_aloud() {
    let report = Report { met: Some(false), ..report() };
    let text = summary(&report, None);
    assert!(text.split_whitespace().collect::<Vec<_>>().join(" ").contains("the target is MISSED"));
}

#[test]
fn every_phase_of_the_downtime_has_room() {
    let mut report = report();
    report.downtime =
        Phase::DOWNTIME.into_iter().map(|phase| PhaseTime { phase, ms: 12_345.6 }).collect();
    report.downtime_ms = 100_000.0;
    let text = summary(&report, None);
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
}
