//! What one run leaves behind.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::Cell;
use crate::demo::report::MigrateReport;
use crate::probe::record::{Bucket, Gap, Latency, Recorded};
use crate::probe::stall::Stall;
use crate::probe::{Mark, ProbeReport};
use crate::relay::Counts;

/// One run, in a line.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Which run it was.
    #[serde(flatten)]
    pub cell: Cell,
    /// When it began, in seconds since 1970.
    pub began_unix_s: u64,
    /// From which host to which, as `a→b`.
    pub direction: String,
    /// How it ended.
    pub ended: Ended,
    /// Why, if it is not as it should be.
    pub why: Option<String>,
    /// Whether every proof held.
    pub verified: bool,
    /// The proofs that did not hold, in words.
    pub objections: Vec<String>,
    /// What the client saw.
    pub client: ClientSide,
    /// What the workload did.
    pub workload: WorkloadSide,
    /// Bytes that left the source host, whoever sent them: the client's answers
    /// and acknowledgements included.
    pub host_bytes: u64,
    /// What became of the mover's datagrams, where a relay stood in their way.
    pub road: Option<Counts>,
    /// The mover's own account. Of a peer only what the bench timed and
    /// counted from outside: the rest is empty.
    pub migration: Option<MigrateReport>,
    /// The program at work and its version, where it was not blip.
    pub peer: Option<String>,
    /// What disturbed it.
    pub noise: Noise,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Nothing was to be moved, and nothing was.
    Nothing,
    /// The target runs the workload.
    Moved,
    /// The source runs it.
    Kept,
    /// Nobody knows, or nobody runs it.
    InDoubt,
    /// The bench could not do it; no number in the sample means anything.
    #[default]
    Failed,
    /// This arm cannot do this scenario.
    Impossible,
}

/// What the client saw. Times are milliseconds since its first request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientSide {
    /// Requests a second that were due.
    pub rate: u32,
    /// The longest time without an answer, from the order to migrate on.
    pub gap_ms: f64,
    /// When that was.
    pub gap: Gap,
    /// The longest such time before: what is usual here.
    pub usual_gap_ms: f64,
    /// Requests that came due from the order on and were never answered well.
    pub failed: u64,
    /// Connections lost.
    pub reconnects: u64,
    /// From the end of the longest gap until answers were as quick as before;
    /// `None`: not while the client asked.
    pub recovery_ms: Option<f64>,
    /// From the end of the longest gap until 95 % of the earlier throughput,
    /// answers in time alone counted; `None`: not while the client asked.
    pub recovery_95_ms: Option<f64>,
    /// What strangers saw: requests that each had a connection of their own.
    pub fresh: Option<FreshSide>,
    /// Latencies in each part of the run.
    pub parts: Vec<Part>,
    /// The longest time the bench itself did not run.
    pub stall: Stall,
}

/// What requests over new connections met.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FreshSide {
    /// Requests a second that were due.
    pub rate: u32,
    /// Requests that came due from the order on, and failed.
    pub failed: u64,
    /// Requests that came due before it, and failed.
    pub failed_before: u64,
    /// Why, the first few.
    pub reasons: Vec<String>,
    /// The longest time without an answer to any of them, from the order on.
    pub gap_ms: f64,
    /// Latencies in each part of the run, handshakes included.
    pub parts: Vec<Part>,
}

/// A part of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// `before`, `pre-copy`, `downtime`, `brownout` or `after`.
    pub name: String,
    /// Its beginning.
    pub from_ms: f64,
    /// Its end.
    pub to_ms: f64,
    /// Of requests due in it.
    pub latency: Latency,
}

/// What the workload did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkloadSide {
    /// Memory written before the migration, in bytes a second, if it is a
    /// writer.
    pub rate_before: Option<f64>,
    /// From the order to migrate until a moment after its end, the downtime
    /// included.
    pub rate_during: Option<f64>,
}

/// What disturbed a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Noise {
    /// Mean number of running processes in the minute before.
    pub load: f64,
    /// Share of the processors' time that a hypervisor gave to others, in
    /// percent.
    pub steal_percent: f64,
    /// What a reader of the numbers should know, in words.
    pub warnings: Vec<String>,
}

/// The long part of a run, kept apart from its sample.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Trace {
    /// Which run it was.
    #[serde(flatten)]
    pub cell: Cell,
    /// Named moments, in milliseconds since the client's first request.
    pub marks: Vec<Mark>,
    /// The client's timeline.
    pub timeline: Vec<Bucket>,
    /// The lines of `blip migrate --json`, the report excepted.
    pub events: Vec<Value>,
}

impl ClientSide {
    /// What a finished probe says of a run whose order was given at the mark
    /// `migrate`.
    pub fn of(probe: &ProbeReport) -> ClientSide {
        let order = probe.marked_ms("migrate").unwrap_or_default();
        let gap = probe.gap_since(order);
        let cuts = cuts(probe, order);
        let parts = parts(&probe.recorded, &cuts);
        let usual = parts.first().map(|p| p.latency).unwrap_or_default();
        ClientSide {
            rate: probe.rate,
            gap_ms: gap.ms,
            gap,
            usual_gap_ms: probe.recorded.gap_between(0.0, order).ms,
            failed: probe.unanswered + probe.refused + probe.unsent,
            reconnects: probe.reconnects,
            recovery_ms: recovery(&probe.recorded, &gap, usual),
            recovery_95_ms: throughput_back(&probe.recorded, &gap, usual, (0.0, order)),
            fresh: probe.fresh.as_ref().map(|fresh| FreshSide {
                rate: fresh.rate,
                failed: fresh.failed_ms.iter().filter(|ms| **ms >= order).count() as u64,
                failed_before: fresh.failed_ms.iter().filter(|ms| **ms < order).count() as u64,
                reasons: fresh.reasons.clone(),
                gap_ms: fresh.recorded.gap_between(order, f64::INFINITY).ms,
                parts: self::parts(&fresh.recorded, &cuts),
            }),
            parts,
            stall: probe.stall,
        }
    }
}

/// A part's name, its beginning and its end.
type Cut = (&'static str, f64, f64);

/// Cuts the run at its marks. A part that was not told is left out.
fn cuts(probe: &ProbeReport, order: f64) -> Vec<Cut> {
    let end = probe.duration_ms;
    let done = probe.marked_ms("migrated").unwrap_or(end);
    let frozen = probe.marked_ms("freeze");
    let resumed = frozen.map(|_| probe.marked_ms("drain").unwrap_or(done));
    let cuts = [
        ("before", Some(0.0), Some(order)),
        ("pre-copy", frozen.map(|_| order), frozen),
        ("downtime", frozen, resumed),
        ("brownout", resumed, Some(done)),
        ("after", Some(done), Some(end)),
    ];
    cuts.into_iter().filter_map(|(name, from, to)| Some((name, from?, to?))).collect()
}

fn parts(recorded: &Recorded, cuts: &[Cut]) -> Vec<Part> {
    let part = |&(name, from_ms, to_ms): &Cut| {
        let latency = recorded.latency_between(from_ms, to_ms);
        Part { name: name.to_owned(), from_ms, to_ms, latency }
    };
    cuts.iter().map(part).collect()
}

/// Latencies up to this are usual, in microseconds: twice the usual 99th
/// percentile, or a millisecond above it.
fn usual_us(usual: Latency) -> u64 {
    (2 * usual.p99_us).max(usual.p99_us + 1_000)
}

/// From the end of a gap until a tenth of a second had 95 % of the answers in
/// time that such a stretch had in the time `before`. What had piled up does
/// not count: its answers are not in time.
fn throughput_back(
    recorded: &Recorded,
    gap: &Gap,
    usual: Latency,
    before: (f64, f64),
) -> Option<f64> {
    const STRETCH: f64 = 100.0;
    let in_time = |s: &&crate::probe::record::Sample| u64::from(s.latency_us) <= usual_us(usual);
    let mut at: Vec<f64> =
        recorded.samples.iter().filter(in_time).map(|s| s.answered_ms()).collect();
    at.sort_by(f64::total_cmp);
    let within = |from: f64, to: f64| {
        at.partition_point(|ms| *ms < to) - at.partition_point(|ms| *ms < from)
    };
    let span = before.1 - before.0;
    let earlier = within(before.0, before.1) as f64 / span * STRETCH;
    let last = recorded.samples.iter().map(|s| s.answered_ms()).fold(0.0, f64::max);
    let starts = (0..).map(|n| gap.to_ms + f64::from(n) * 5.0);
    let mut starts = starts.take_while(|from| from + STRETCH <= last);
    let back = starts.find(|from| within(*from, from + STRETCH) as f64 >= 0.95 * earlier)?;
    Some(back - gap.to_ms)
}

/// How long latencies stayed unusual after a gap: until a tenth of a second in
/// which no bucket's 99th percentile was above twice the usual one, or above
/// it by less than a millisecond.
fn recovery(recorded: &Recorded, gap: &Gap, usual: Latency) -> Option<f64> {
    const CALM: usize = 10;
    let most = usual_us(usual);
    let after: Vec<_> = recorded.timeline.iter().filter(|b| b.at_ms as f64 >= gap.to_ms).collect();
    let calm = |buckets: &[&Bucket]| buckets.iter().all(|b| u64::from(b.p99_us) <= most);
    let first = after.windows(CALM).find(|buckets| calm(buckets))?.first()?.at_ms as f64;
    Some((first - gap.to_ms).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::record::Record;

    /// A request a millisecond for a second, silent from 300 to 350 ms, and
    /// slow for a tenth of a second after that.
    fn probed() -> ProbeReport {
        let mut record = Record::default();
        for due in (0..1_000_000).step_by(1_000) {
            let wait = if (350_000..450_000).contains(&due) { 9_000 } else { 100 };
            let answered = due + wait;
            let silent = (300_000..350_000).contains(&answered);
            record.acknowledged(due, if silent { 350_000 } else { answered });
        }
        let mark = |label: &str, at_ms| Mark { label: label.to_owned(), at_ms };
        let recorded = record.finish(1_000_000);
        ProbeReport {
            duration_ms: 1_000.0,
            timeline: recorded.timeline.clone(),
            gaps: recorded.gaps.clone(),
            recorded,
            marks: vec![
                mark("migrate", 200.0),
                mark("freeze", 299.0),
                mark("drain", 349.0),
                mark("migrated", 500.0),
            ],
            ..ProbeReport::default()
        }
    }

    #[test]
    fn a_run_is_cut_at_its_marks() {
        let client = ClientSide::of(&probed());
        let names: Vec<_> = client.parts.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["before", "pre-copy", "downtime", "brownout", "after"]);
        assert_eq!(client.parts.iter().map(|p| p.latency.count).sum::<u64>(), 1_000);
        assert!(client.parts[2].latency.p50_us > 20_000);
        assert!(client.parts[3].latency.p50_us >= 8_990);
        assert!(client.parts[4].latency.max_us <= 101);
        assert!((50.0..60.0).contains(&client.gap_ms), "{}", client.gap_ms);
        assert!(client.usual_gap_ms <= 1.1);
    }

    #[test]
    fn recovery_ends_when_answers_are_as_quick_as_before() {
        let recovery = ClientSide::of(&probed()).recovery_ms.expect("it recovers");
        assert!((80.0..120.0).contains(&recovery), "{recovery}");
        let mut never = probed();
        never.recorded.timeline.retain(|b| b.at_ms < 440);
        assert_eq!(ClientSide::of(&never).recovery_ms, None);
    }

    #[test]
    fn a_run_without_a_freeze_has_a_before_and_an_after() {
        let mut probe = probed();
        probe.marks.retain(|m| m.label.starts_with("migrate"));
        let names: Vec<_> = ClientSide::of(&probe).parts.into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["before", "after"]);
    }
}
