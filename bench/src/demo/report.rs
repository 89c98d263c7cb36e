//! What the demo reports: the engine's own account beside what a client saw.
//!
//! [`MigrateReport`] reads what `blip migrate --json` prints. It is a reader of
//! its own and not the engine's type, so that it takes reports of other
//! versions: unknown fields are skipped, absent ones are empty.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::machine::Machine;
use crate::probe::ProbeReport;
use crate::probe::record::Gap;
use crate::probe::verify::Verdict;

/// How a migration ended, in the engine's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The target runs the container.
    Moved,
    /// The source runs it as if nothing had happened.
    #[default]
    Kept,
    /// Nobody runs it until `blip resolve` has asked.
    InDoubt,
}

impl Outcome {
    /// As JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Moved => "moved",
            Outcome::Kept => "kept",
            Outcome::InDoubt => "in_doubt",
        }
    }
}

/// One pre-copy round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoundReport {
    /// Its number, from 0.
    pub round: u32,
    /// Whether the container was frozen: the final one.
    pub frozen: bool,
    /// Pages looked at.
    pub scanned: u64,
    /// Pages that had to be read.
    pub dirty: u64,
    /// Pages whose bytes were sent.
    pub sent: u64,
    /// Pages of zeros.
    pub zero: u64,
    /// Pages rewritten with what they held before.
    pub unchanged: u64,
    /// Pages whose content the target had already.
    pub deduplicated: u64,
    /// Dirty pages that were not read, to be sent later.
    pub held_back: u64,
    /// Bytes of the dirty pages.
    pub bytes_raw: u64,
    /// Bytes that went over the link.
    pub bytes_wire: u64,
    /// Length in milliseconds.
    pub ms: f64,
    /// The longest time a thread was stopped for tracking, in milliseconds.
    pub stall_ms: f64,
}

/// One part of the downtime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PhaseTime {
    /// Which.
    pub phase: String,
    /// Length in milliseconds.
    pub ms: f64,
}

/// How memory came into the restored container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LazyReport {
    /// Page faults that had to wait for the server.
    pub faults: u64,
    /// Pages out of the target's store.
    pub from_store: u64,
    /// Pages fetched from the frozen source.
    pub from_source: u64,
    /// Median time to serve a fault, in µs.
    pub p50_us: u64,
    /// 99th percentile, in µs.
    pub p99_us: u64,
    /// From resume to the last page in place, in milliseconds.
    pub drain_ms: f64,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GoalReport {
    /// Longest downtime wanted, in milliseconds.
    pub downtime_ms: Option<f64>,
    /// When the container was to run on the target, in milliseconds after the
    /// start.
    pub deadline_ms: Option<f64>,
    /// The method asked for.
    pub method: String,
}

/// What blip expected when it froze the container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Forecast {
    /// The method.
    pub method: String,
    /// Rounds, the frozen one included.
    pub rounds: u32,
    /// Bytes over the link.
    pub bytes: u64,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
    /// Downtime in milliseconds.
    pub downtime_ms: f64,
    /// Its parts, in milliseconds.
    pub downtime: Vec<PhaseTime>,
    /// From resume to the last page in place, in milliseconds.
    pub brownout_ms: f64,
    /// How sure it is, 0 to 1.
    pub confidence: f64,
}

/// A version that is one, or one on each side (source, target).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Version {
    /// The same everywhere.
    One(String),
    /// On the source and on the target.
    Two([String; 2]),
}

impl Default for Version {
    fn default() -> Self {
        Version::One(String::new())
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Version::One(one) => f.write_str(one),
            Version::Two([source, target]) if source == target => f.write_str(source),
            Version::Two([source, target]) => write!(f, "{source} → {target}"),
        }
    }
}

/// What took part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Versions {
    /// blip.
    pub blip: Version,
    /// Docker's daemon.
    pub docker: Version,
    /// CRIU.
    pub criu: Version,
    /// runc.
    pub runc: Version,
    /// The kernel's release.
    pub kernel: Version,
}

/// What `blip migrate --json` says at its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MigrateReport {
    /// Who runs the container.
    pub outcome: Outcome,
    /// Why it did not move, where it did not.
    pub why: Option<String>,
    /// The container's ID on the target.
    pub target_id: Option<String>,
    /// Frozen on the source → running on the target, in milliseconds.
    pub downtime_ms: f64,
    /// Its parts, in order.
    pub downtime: Vec<PhaseTime>,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
    /// The rounds, in order; the frozen one last.
    pub rounds: Vec<RoundReport>,
    /// Bytes that left the source.
    pub bytes_sent: u64,
    /// Memory that was to be moved.
    pub memory_bytes: u64,
    /// How memory came into the container.
    pub lazy: LazyReport,
    /// What was asked for.
    pub goal: GoalReport,
    /// The method that was used in the end.
    pub method: String,
    /// What blip expected when it froze the container.
    pub predicted: Option<Forecast>,
    /// Whether the downtime met the target; `None` without a target.
    pub met: Option<bool>,
    /// The most CPU time that was taken from the container, in percent.
    pub throttled_percent: u8,
    /// Which tracker was used, and why.
    pub tracker: String,
    /// What took part.
    pub versions: Versions,
    /// What blip found worth saying.
    pub notes: Vec<String>,
}

impl MigrateReport {
    /// Reads the report out of one line of `--json` output, if it is there:
    /// the line of the event `finished`, or a bare report.
    ///
    /// # Errors
    /// When the line is a report but does not have a report's shape.
    pub fn from_line(line: &str) -> Result<Option<MigrateReport>> {
        let Ok(Value::Object(fields)) = serde_json::from_str(line) else { return Ok(None) };
        let finished = match fields.get("event") {
            Some(event) => event == "finished",
            None => fields.contains_key("outcome"),
        };
        if !finished {
            return Ok(None);
        }
        let report = serde_json::from_value(Value::Object(fields));
        report.map(Some).context("reading the report of `blip migrate`")
    }
}

/// One migration, as blip tells it and as the client saw it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DemoReport {
    /// The longest time without an answer, from the command on.
    pub client_gap_ms: f64,
    /// When that was, in milliseconds since the probe's first write.
    pub client_gap: Gap,
    /// The longest such time before the command: what is usual here.
    pub usual_gap_ms: f64,
    /// The engine's own account; its fields stand beside these in JSON.
    #[serde(flatten)]
    pub migration: MigrateReport,
    /// Whether every proof held, whoever runs the container now.
    pub verified: bool,
    /// The proofs that did not hold, in words.
    pub objections: Vec<String>,
    /// What was compared. `None` when the server could not be asked.
    pub proof: Option<Verdict>,
    /// What ran and where.
    pub setting: Setting,
    /// The client's own account.
    pub probe: ProbeReport,
}

impl DemoReport {
    /// The container moved and every proof held.
    pub fn succeeded(&self) -> bool {
        self.verified && self.migration.outcome == Outcome::Moved
    }
}

/// What was moved, under which load, and where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setting {
    /// Bytes of keys and values in Redis.
    pub data_bytes: u64,
    /// Redis' version.
    pub redis: String,
    /// How the two hosts were made, in a few words.
    pub hosts: String,
    /// The machine under them.
    pub machine: Machine,
    /// How long it took to bring the hosts up, in milliseconds.
    pub up_ms: u64,
    /// How long it took to fill Redis, in milliseconds.
    pub fill_ms: u64,
}

/// Several migrations. The names at the top mean what they mean in a
/// [`DemoReport`], as medians, so that a reader of one reads the other.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Series {
    /// `moved` if all did, else the first other one.
    pub outcome: Outcome,
    /// Median.
    pub client_gap_ms: f64,
    /// Median.
    pub downtime_ms: f64,
    /// Median.
    pub total_ms: f64,
    /// Median.
    pub bytes_sent: f64,
    /// Whether all were.
    pub verified: bool,
    /// Each of them.
    pub runs: Vec<DemoReport>,
}

impl Series {
    /// Sums up at least one migration.
    pub fn of(runs: Vec<DemoReport>) -> Series {
        let outcomes = runs.iter().map(|r| r.migration.outcome);
        let other = outcomes.clone().find(|o| *o != Outcome::Moved);
        Series {
            outcome: other.or(outcomes.clone().next()).unwrap_or_default(),
            client_gap_ms: median(runs.iter().map(|r| r.client_gap_ms)),
            downtime_ms: median(runs.iter().map(|r| r.migration.downtime_ms)),
            total_ms: median(runs.iter().map(|r| r.migration.total_ms)),
            bytes_sent: median(runs.iter().map(|r| r.migration.bytes_sent as f64)),
            verified: !runs.is_empty() && runs.iter().all(|r| r.verified),
            runs,
        }
    }
}

/// The middle value, or the mean of the two middle ones; zero of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_found_among_events_and_by_itself() {
        let lines = [
            "a line of log",
            r#"{"event":"begin","phase":"freeze"}"#,
            r#"{"event":"note","text":"outcome"}"#,
        ];
        for line in lines {
            assert_eq!(MigrateReport::from_line(line).expect("no report, no error"), None);
        }
        let finished = r#"{"event":"finished","outcome":"kept","why":"no room","new":{"x":1},
            "versions":{"docker":["28.5.2","26.1.5"],"kernel":"6.18"}}"#;
        let report = MigrateReport::from_line(finished).expect("well-formed").expect("a report");
        assert_eq!((report.outcome, report.why.as_deref()), (Outcome::Kept, Some("no room")));
        assert_eq!(report.versions.docker.to_string(), "28.5.2 → 26.1.5");
        assert_eq!(report.versions.kernel.to_string(), "6.18");
        let bare = r#"{"outcome":"in_doubt","downtime_ms":3}"#;
        let report = MigrateReport::from_line(bare).expect("well-formed").expect("a report");
        assert_eq!((report.outcome, report.downtime_ms), (Outcome::InDoubt, 3.0));
        assert!(MigrateReport::from_line(r#"{"outcome":"perhaps"}"#).is_err());
    }

    #[test]
    fn json_of_the_demo_has_the_names_that_were_promised() {
        let json = serde_json::to_value(DemoReport::default()).expect("plain data");
        for name in [
            "outcome",
            "client_gap_ms",
            "downtime_ms",
            "downtime",
            "total_ms",
            "rounds",
            "bytes_sent",
            "memory_bytes",
            "lazy",
            "verified",
            "versions",
            "probe",
        ] {
            assert!(json.get(name).is_some(), "{name}");
        }
        let back: DemoReport = serde_json::from_value(json).expect("it comes back");
        assert!(!back.succeeded());
    }

    #[test]
    fn a_series_is_as_good_as_its_worst_and_told_by_its_median() {
        let run = |gap, outcome, verified| DemoReport {
            client_gap_ms: gap,
            verified,
            migration: MigrateReport { outcome, ..MigrateReport::default() },
            ..DemoReport::default()
        };
        let good = || vec![run(30.0, Outcome::Moved, true), run(90.0, Outcome::Moved, true)];
        let series = Series::of(good());
        assert_eq!((series.client_gap_ms, series.verified), (60.0, true));
        assert_eq!(series.outcome, Outcome::Moved);
        let mut mixed = good();
        mixed.push(run(40.0, Outcome::InDoubt, false));
        let series = Series::of(mixed);
        assert_eq!((series.client_gap_ms, series.verified), (40.0, false));
        assert_eq!(series.outcome, Outcome::InDoubt);
        assert!(!Series::of(Vec::new()).verified, "nothing proves nothing");
    }
}
