//! Migrations that never were, as events: one for everything a picture must be
//! able to show.

use crate::event::{
    Event, Forecast, GoalReport, LazyReport, LazySample, Phase, PhaseTime, Progress, Report,
    RoundReport, Timed, TrackingReport, Versions,
};
use crate::handover::Outcome;
use crate::plan::{Goal, Method};
use blip_transport::units::{Bandwidth, ByteSize, PageCount, Round};
use std::time::Duration;

/// Writes down what happens while time passes.
pub(super) struct Stage {
    now: f64,
    pub(super) events: Vec<Timed>,
    rounds: Vec<RoundReport>,
    downtime: Vec<PhaseTime>,
    sent: u64,
}

impl Stage {
    pub(super) fn new() -> Self {
        Self { now: 0.0, events: vec![], rounds: vec![], downtime: vec![], sent: 0 }
    }

    fn say(&mut self, event: Event) {
        self.events.push(Timed { at_ms: self.now, event });
    }

    fn begin(&mut self, phase: Phase) {
        self.say(Event::Begin { phase });
    }

    fn phase(&mut self, phase: Phase, ms: f64) {
        self.begin(phase);
        self.now += ms;
        self.say(Event::End { phase, ms });
    }

    fn decide(&mut self, what: &str, why: &str) {
        self.say(Event::Decision { what: what.into(), why: why.into() });
    }

    fn throttle(&mut self, percent: u8) {
        self.say(Event::Throttle { percent });
    }

    /// A round of so many MiB over a link of so many MiB a second, with a word
    /// on it every 200 ms.
    fn round(&mut self, mib: f64, link: f64, writes: f64) {
        let ms = mib / link * 1e3;
        let (began, pages) = (self.now, (mib * 256.0) as u64);
        let number = Round(self.rounds.len() as u32);
        while self.now + 200.0 < began + ms {
            self.now += 200.0;
            let part = (self.now - began) / ms;
            let wobble = 1.0 + 0.1 * (self.now / 130.0).sin();
            self.say(Event::Progress(Progress {
                round: number,
                done: PageCount((pages as f64 * part) as u64),
                dirty: PageCount(pages),
                bytes_wire: ByteSize(self.sent + (mib * part * 1048576.0) as u64),
                throughput: Bandwidth(link * wobble * 1048576.0),
                dirty_rate: Some(Bandwidth(writes / wobble * 1048576.0)),
                predicted_downtime_ms: Some(40.0 + writes * ms / link),
            }));
        }
        self.now = began + ms;
        self.report(number, false, mib, ms);
    }

    fn report(&mut self, round: Round, frozen: bool, mib: f64, ms: f64) {
        let wire = (mib * 0.7 * 1048576.0) as u64;
        self.sent += wire;
        let report = RoundReport {
            round,
            frozen,
            dirty: PageCount((mib * 256.0) as u64),
            bytes_raw: ByteSize((mib * 1048576.0) as u64),
            bytes_wire: ByteSize(wire),
            ms,
            ..RoundReport::default()
        };
        self.rounds.push(report.clone());
        self.say(Event::Round(report));
    }

    fn stop(&mut self, phase: Phase, ms: f64) {
        self.now += ms;
        self.downtime.push(PhaseTime { phase, ms });
        self.say(Event::End { phase, ms });
    }

    /// The whole downtime, with the last round in it.
    fn hand_over(&mut self, mib: f64) {
        self.begin(Phase::Freeze);
        self.stop(Phase::Freeze, 4.1);
        let number = Round(self.rounds.len() as u32);
        self.report(number, true, mib, 9.0);
        self.stop(Phase::Dump, 33.0);
        self.stop(Phase::Ship, 10.2 + mib / 4.0);
        self.stop(Phase::Restore, 25.4);
        self.stop(Phase::Grant, 7.1);
        self.begin(Phase::Drain);
    }

    fn finish(
        mut self,
        method: Method,
        target: Option<u64>,
        outcome: Outcome,
        lazy: LazyReport,
    ) -> Vec<Timed> {
        let moved = outcome == Outcome::Moved;
        if moved {
            self.now += lazy.drain_ms + 3.0;
            self.phase(Phase::Retire, 41.0);
        }
        let goal = Goal { downtime: target.map(Duration::from_millis), ..Goal::default() };
        let observed: f64 = self.downtime.iter().map(|part| part.ms).sum();
        let predicted = (observed > 0.0).then(|| Forecast {
            method,
            rounds: self.rounds.len() as u32,
            bytes: ByteSize(self.sent),
            total_ms: self.now,
            downtime_ms: observed * 0.93,
            downtime: Vec::new(),
            brownout_ms: lazy.drain_ms,
            met: None,
            confidence: 0.8,
        });
        let report = Report {
            outcome,
            container: "cache-7".into(),
            target_id: None,
            downtime_ms: observed,
            downtime: self.downtime.clone(),
            total_ms: self.now,
            rounds: self.rounds.clone(),
            files: Default::default(),
            bytes_sent: ByteSize(self.sent),
            bytes_received: ByteSize(0),
            memory_bytes: ByteSize(1 << 30),
            lazy,
            goal: GoalReport::from(&goal),
            method,
            predicted,
            met: target.filter(|_| moved).map(|ms| observed <= ms as f64),
            throttled_percent: 0,
            unknowns: Vec::new(),
            tracker: "write-protect".into(),
            tracking: TrackingReport::default(),
            versions: Versions::default(),
            notes: Vec::new(),
        };
        self.say(Event::Finished(Box::new(report)));
        self.events
    }

    fn ahead(&mut self) {
        self.phase(Phase::Preflight, 120.0);
        self.phase(Phase::Stage, 910.0);
        self.begin(Phase::PreCopy);
        self.decide(
            "track by write-protect",
            "the kernel has PAGEMAP_SCAN and UFFD_FEATURE_WP_ASYNC",
        );
    }

    fn ahead_done(&mut self, since: f64) {
        self.say(Event::End { phase: Phase::PreCopy, ms: self.now - since });
    }
}

/// Faults that become fewer, over so many milliseconds.
fn brownout(drain_ms: f64, faults: u64, remote: bool) -> LazyReport {
    let steps = 60;
    let mut samples = Vec::new();
    for step in 0..steps {
        let at_ms = -8.0 + (drain_ms + 8.0) * f64::from(step + 1) / f64::from(steps);
        let fading = (-f64::from(step) / 14.0).exp();
        let waited = if at_ms < 0.0 { 0.0 } else { faults as f64 * fading / 14.0 };
        let pages = 900 + (400.0 * fading) as u64;
        let from_source = if remote { pages * 4 / 5 } else { pages / 30 };
        samples.push(LazySample { at_ms, faults: waited as u64, pages, from_source });
    }
    LazyReport {
        faults,
        from_store: 40_000,
        from_source: 9000,
        p50_us: 88,
        p99_us: 1430,
        drain_ms,
        samples,
    }
}

pub(super) fn hybrid() -> Vec<Timed> {
    let mut stage = Stage::new();
    stage.ahead();
    let since = stage.now;
    for mib in [256.0, 61.0, 18.0, 6.0] {
        stage.round(mib, 112.0, 24.0);
        stage.decide(
            "copy again",
            &format!("{mib} MiB more would take too long, and the rounds still shrink"),
        );
    }
    stage.decide(
        "freeze",
        "1490 pages would take about 51 ms of 100 ms, and two rounds in a row found no fewer",
    );
    stage.ahead_done(since);
    stage.hand_over(5.8);
    stage.finish(Method::Hybrid, Some(100), Outcome::Moved, brownout(180.0, 420, false))
}

pub(super) fn no_round() -> Vec<Timed> {
    let mut stage = Stage::new();
    stage.phase(Phase::Preflight, 80.0);
    stage.phase(Phase::Stage, 640.0);
    stage.decide("stop and copy", "asked for");
    stage.hand_over(900.0);
    let lazy = LazyReport { from_store: 262_144, ..LazyReport::default() };
    stage.finish(Method::StopAndCopy, None, Outcome::Moved, lazy)
}

pub(super) fn thirty_rounds() -> Vec<Timed> {
    let mut stage = Stage::new();
    stage.ahead();
    let since = stage.now;
    for round in 0..30 {
        let mib = if round == 0 { 1024.0 } else { 70.0 + 9.0 * f64::from(round % 4) };
        stage.round(mib, 118.0, 96.0);
        let what = if round % 2 == 0 { "copy again" } else { "hold pages back" };
        stage.decide(what, "2304 pages were dirtied in each of the last four rounds; without them the rest would take 83 ms, which is within the 100 ms wanted if the link stays as it is");
    }
    stage.decide("freeze", "the limit of 30 rounds is reached");
    stage.ahead_done(since);
    stage.hand_over(97.0);
    stage.finish(Method::PreCopy, Some(50), Outcome::Moved, LazyReport::default())
}

pub(super) fn post_copy() -> Vec<Timed> {
    let mut stage = Stage::new();
    stage.phase(Phase::Preflight, 130.0);
    stage.phase(Phase::Stage, 1210.0);
    stage.decide("go lazy", "the container writes 310 MiB/s and the link carries 112 MiB/s: no number of rounds would do");
    stage.hand_over(0.0);
    stage.finish(Method::PostCopy, Some(1000), Outcome::Moved, brownout(9400.0, 18_211, true))
}

pub(super) fn aborted() -> Vec<Timed> {
    let mut stage = Stage::new();
    stage.ahead();
    let since = stage.now;
    for mib in [512.0, 480.0, 490.0] {
        stage.round(mib, 112.0, 320.0);
        stage.decide("copy again", "the rounds still shrink");
    }
    stage.decide(
        "give up",
        "the deadline of 15 s comes in 1.1 s, and a freeze now would last 4.4 s; --on-miss abort",
    );
    stage.ahead_done(since);
    let why = "the downtime would have been 4.4 s, 44 times the target".to_owned();
    stage.finish(Method::PreCopy, Some(100), Outcome::Kept { why }, LazyReport::default())
}

/// Frozen, and thawed again: the target failed.
pub(super) fn failed() -> Vec<Timed> {
    let mut stage = Stage::new();
    stage.ahead();
    let since = stage.now;
    stage.round(256.0, 112.0, 4.0);
    stage.decide("freeze", "310 pages would take about 3 ms");
    stage.ahead_done(since);
    stage.begin(Phase::Freeze);
    stage.stop(Phase::Freeze, 3.9);
    stage.stop(Phase::Dump, 29.0);
    stage.stop(Phase::Ship, 8.0);
    stage.begin(Phase::Restore);
    stage.now += 61.0;
    let why = "the target gave up: criu: Can't open file descriptor 17 of process 1".to_owned();
    stage.finish(Method::Hybrid, Some(100), Outcome::Kept { why }, LazyReport::default())
}

pub(super) fn throttled() -> Vec<Timed> {
    let mut stage = Stage::new();
    stage.ahead();
    let since = stage.now;
    let mut writes = 160.0;
    let mut mib: f64 = 1024.0;
    for percent in [0, 0, 20, 40, 60, 70, 80, 80, 80] {
        if percent > 0 {
            stage.decide(
                &format!("throttle by {percent} %"),
                "the container writes faster than the link carries",
            );
            stage.throttle(percent);
        } else {
            stage.decide("copy again", "the first rounds tell how fast it writes");
        }
        writes = 160.0 * f64::from(100 - percent) / 100.0;
        let took = mib / 112.0;
        stage.round(mib, 112.0, writes);
        mib = (writes * took).clamp(2.0, 1024.0);
    }
    let _ = writes;
    stage.decide("freeze", "1100 pages would take about 38 ms of 100 ms");
    stage.ahead_done(since);
    stage.throttle(0);
    stage.hand_over(4.3);
    stage.finish(Method::PreCopy, Some(100), Outcome::Moved, LazyReport::default())
}

/// Cut off in the middle, by whoever wrote the file.
pub(super) fn torn() -> Vec<Timed> {
    let mut events = hybrid();
    events.truncate(events.len() / 2);
    events
}

pub(super) fn called_off() -> Vec<Timed> {
    let mut stage = Stage::new();
    stage.ahead();
    stage.round(128.0, 112.0, 4.0);
    stage.say(Event::CalledOff { why: "interrupted".into() });
    stage.events
}
