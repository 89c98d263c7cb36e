//! From samples to what people read: tables, pictures, one page.
//!
//! | file | what |
//! |---|---|
//! | `summary.md` | the tables |
//! | `plots/*.svg` | the pictures |
//! | `report.html` | both, in one file that needs nothing else |
//!
//! **Invariants**: every number comes from `samples.jsonl` and the traces
//! beside it; the same folder always gives the same report; runs that failed
//! are counted and shown, and enter no median; nothing is subtracted from
//! anything.

mod command;
mod html;
mod pictures;
mod table;
mod tables;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::run::environment::Environment;
use crate::run::plan::NOTHING;
use crate::run::record;
use crate::run::sample::{Ended, Sample};

pub use command::ReportCommand;

/// All there is of a bench, sorted.
pub struct Bench {
    /// Where and with what, one for each session.
    pub environments: Vec<Environment>,
    /// What each scenario is, by name.
    pub scenarios: BTreeMap<String, String>,
    /// Bytes each scenario holds, by name, as far as the plan says.
    pub groups: Vec<Group>,
    /// Number of samples, failures included.
    pub samples: usize,
}

/// All runs of one scenario over one link.
pub struct Group {
    /// The scenario's name.
    pub scenario: String,
    /// The link's name.
    pub link: String,
    /// Its arms, in the order of the plan.
    pub arms: Vec<ArmRuns>,
}

/// All runs of an arm.
pub struct ArmRuns {
    /// The arm's name.
    pub name: String,
    /// Every sample, also of runs that failed.
    pub samples: Vec<Sample>,
}

impl Bench {
    /// Reads a folder.
    ///
    /// # Errors
    /// When it has no samples, or they cannot be read.
    pub fn read(dir: &Path) -> Result<Bench> {
        let samples = record::samples(dir)?;
        ensure!(!samples.is_empty(), "{} holds no samples", dir.display());
        let plan = record::plan(dir).unwrap_or_default();
        Ok(Bench {
            environments: record::environments(dir)?,
            scenarios: described(&plan),
            samples: samples.len(),
            groups: grouped(samples),
        })
    }
}

impl Group {
    /// `scenario over link`.
    pub fn title(&self) -> String {
        format!("{}, {}", self.scenario, self.link)
    }

    /// The arms in which something was to be moved.
    pub fn movers(&self) -> impl Iterator<Item = &ArmRuns> {
        self.arms.iter().filter(|a| a.name != NOTHING)
    }

    /// The runs in which nothing was moved: the bench's own noise.
    pub fn own(&self) -> Option<&ArmRuns> {
        self.arms.iter().find(|a| a.name == NOTHING)
    }

    /// The mover with the shortest median client gap.
    pub fn best(&self) -> Option<&ArmRuns> {
        let gap = |arm: &&ArmRuns| crate::stats::median(&arm.gaps());
        let with_gaps = self.movers().filter(|arm| gap(arm).is_some());
        with_gaps.min_by(|a, b| gap(a).unwrap_or(f64::MAX).total_cmp(&gap(b).unwrap_or(f64::MAX)))
    }
}

impl ArmRuns {
    /// Runs whose numbers count: the workload moved (or was to stay, and did)
    /// and every proof held.
    pub fn good(&self) -> impl Iterator<Item = &Sample> {
        let counts = |s: &&Sample| s.verified && matches!(s.ended, Ended::Moved | Ended::Nothing);
        self.samples.iter().filter(counts)
    }

    /// A value of each good run that has it.
    pub fn values(&self, value: impl Fn(&Sample) -> Option<f64>) -> Vec<f64> {
        self.good().filter_map(value).filter(|v| v.is_finite()).collect()
    }

    /// Client gaps in milliseconds.
    pub fn gaps(&self) -> Vec<f64> {
        self.values(|s| Some(s.client.gap_ms))
    }

    /// Downtimes in milliseconds, as blip tells them.
    pub fn downtimes(&self) -> Vec<f64> {
        self.values(|s| Some(s.migration.as_ref()?.downtime_ms))
    }

    /// Why there is nothing to show, in a line.
    pub fn excuse(&self) -> String {
        let bad = self.samples.iter().rev().find(|s| s.ended != Ended::Moved || !s.verified);
        let Some(bad) = bad else { return "no runs".to_owned() };
        let why = bad.why.clone().or_else(|| bad.objections.first().cloned()).unwrap_or_default();
        let line = why.lines().next().unwrap_or_default();
        let mut line: String = line.chars().take(90).collect();
        if line.len() < why.len() {
            line.push('…');
        }
        match bad.ended {
            Ended::Kept => format!("stayed: {line}"),
            Ended::Impossible => format!("cannot: {line}"),
            Ended::InDoubt => format!("in doubt: {line}"),
            Ended::Failed => format!("failed: {line}"),
            Ended::Moved | Ended::Nothing => format!("not verified: {line}"),
        }
    }
}

/// Sorts samples by scenario and link and arm, in the order in which these
/// first appear.
fn grouped(samples: Vec<Sample>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for sample in samples {
        let cell = sample.cell.clone();
        let same = |g: &Group| g.scenario == cell.scenario && g.link == cell.link;
        let group = match groups.iter().position(same) {
            Some(at) => &mut groups[at],
            None => {
                let (scenario, link) = (cell.scenario.clone(), cell.link.clone());
                groups.push(Group { scenario, link, arms: Vec::new() });
                let last = groups.len() - 1;
                &mut groups[last]
            }
        };
        match group.arms.iter_mut().find(|a| a.name == cell.arm) {
            Some(arm) => arm.samples.push(sample),
            None => group.arms.push(ArmRuns { name: cell.arm, samples: vec![sample] }),
        }
    }
    groups
}

/// What the plan says of each scenario, in a few words.
fn described(plan: &Value) -> BTreeMap<String, String> {
    let all = plan["scenarios"].as_array().cloned().unwrap_or_default();
    let line = |s: &Value| {
        let name = s["name"].as_str()?.to_owned();
        let redis = s["redis"].as_str().map(|size| format!("Redis with {size} of data"));
        let writer = s["writer"].as_str().map(|words| format!("memory writer `{words}`"));
        Some((name, redis.or(writer)?))
    };
    all.iter().filter_map(line).collect()
}
