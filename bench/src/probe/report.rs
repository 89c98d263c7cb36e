//! What a probe tells when it is done.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Spec;
use super::client::Finished;
use super::fresh::Strangers;
use super::ledger::{Fault, Ledger};
use super::record::{Bucket, Gap, Latency, Recorded};
use super::stall::Stall;

/// A named moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Its name, for example `migrate`.
    pub label: String,
    /// When it was, in milliseconds since the first write was due.
    pub at_ms: f64,
}

/// A connection the client had, and how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// To whom.
    pub to: SocketAddr,
    /// When it was open, in milliseconds since the first write was due.
    pub opened_ms: f64,
    /// When it was lost; `None` for the last one.
    pub lost_ms: Option<f64>,
    /// Why it was lost.
    pub why: Option<String>,
}

/// What the client saw. All times are milliseconds since the first write was
/// due unless their names say otherwise.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbeReport {
    /// Wall-clock time of the first write, in microseconds since 1970, to lay
    /// the timeline beside other logs.
    pub began_unix_us: u64,
    /// From the first write due to the end of the schedule.
    pub duration_ms: f64,
    /// Writes per second that were due.
    pub rate: u32,
    /// Writes that came due.
    pub scheduled: u64,
    /// Writes that were acknowledged.
    pub acked: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Writes that were sent but whose connection broke before the answer.
    pub unanswered: u64,
    /// Writes the server answered with an error.
    pub refused: u64,
    /// Writes that came due but found no connection until the end.
    pub unsent: u64,
    /// Connections lost.
    pub reconnects: u64,
    /// All connections, in order (at most the first 64).
    pub connections: Vec<Connection>,
    /// The longest time without an acknowledgement: the client gap.
    pub longest_gap: Gap,
    /// The longest gaps, longest first.
    pub gaps: Vec<Gap>,
    /// From the scheduled time to the acknowledgement.
    pub latency: Latency,
    /// The harness' own longest stall, subtracted from nothing.
    pub stall: Stall,
    /// Named moments.
    pub marks: Vec<Mark>,
    /// The first answers that prove a lost or repeated write.
    pub faults: Vec<Fault>,
    /// How many such answers there were.
    pub fault_count: u64,
    /// 10 ms buckets.
    pub timeline: Vec<Bucket>,
    /// What came of requests over new connections, if there were any.
    pub fresh: Option<Strangers>,
    /// Everything that was recorded, every single write included.
    #[serde(skip)]
    pub recorded: Recorded,
    /// What the server owes.
    #[serde(skip)]
    pub ledger: Ledger,
    /// What the probe was asked to do.
    #[serde(skip)]
    pub spec: Spec,
}

impl ProbeReport {
    pub(super) fn new(
        spec: Spec,
        began: SystemTime,
        finished: Finished,
        stall: Stall,
        marks: Vec<Mark>,
    ) -> ProbeReport {
        let Finished { ledger, recorded, .. } = finished;
        let (faults, fault_count) = ledger.faults();
        let unix = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        ProbeReport {
            began_unix_us: unix.as_micros() as u64,
            duration_ms: finished.duration_ms,
            rate: spec.rate,
            scheduled: finished.scheduled,
            acked: ledger.acked(),
            reads: ledger.reads(),
            unanswered: ledger.unanswered_writes(),
            refused: ledger.refused_writes(),
            unsent: finished.unsent,
            reconnects: finished.reconnects,
            connections: finished.connections,
            longest_gap: recorded.gaps.first().copied().unwrap_or_default(),
            gaps: recorded.gaps.clone(),
            latency: recorded.latency,
            stall,
            marks,
            faults: faults.to_vec(),
            fault_count,
            timeline: recorded.timeline.clone(),
            fresh: None,
            recorded,
            ledger,
            spec,
        }
    }

    /// The longest gap that ended after `from_ms`; one that had not ended when
    /// the probe gave up counts up to there.
    pub fn gap_since(&self, from_ms: f64) -> Gap {
        let within = self.recorded.gap_between(from_ms, f64::INFINITY);
        let later = self.gaps.iter().find(|g| g.to_ms >= from_ms).copied();
        later.filter(|g| g.ms > within.ms).unwrap_or(within)
    }

    /// When the first mark of this name was set.
    pub fn marked_ms(&self, label: &str) -> Option<f64> {
        let mark = self.marks.iter().find(|m| m.label == label)?;
        Some(mark.at_ms)
    }
}
