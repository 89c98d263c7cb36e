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
use crate::run::scenario::Scenario;

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

    /// Downtimes in milliseconds: as blip tells them; of peers, which tell
    /// none, from the bench's word that the workload is about to stand still to
    /// the word that it runs.
    pub fn downtimes(&self) -> Vec<f64> {
        self.values(|s| match s.peer {
            None => Some(s.migration.as_ref()?.downtime_ms).filter(|ms| *ms > 0.0),
            Some(_) => {
                let part = s.client.parts.iter().find(|p| p.name == "downtime")?;
                Some(part.to_ms - part.from_ms)
            }
        })
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
        let scenario: Scenario = serde_json::from_value(s.clone()).ok()?;
        Some((scenario.name.clone(), scenario.describe()))
    };
    all.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::report::{Forecast, MigrateReport};
    use crate::run::plan::Cell;
    use crate::run::sample::ClientSide;

    fn sample(arm: &str, repeat: u32, gap_ms: f64, ended: Ended) -> Sample {
        let (scenario, link) = ("tiny".to_owned(), "1gbit".to_owned());
        let predicted = Some(Forecast { downtime_ms: gap_ms * 1.2, ..Forecast::default() });
        let report = MigrateReport {
            downtime_ms: gap_ms,
            predicted,
            method: arm.to_owned(),
            ..Default::default()
        };
        Sample {
            cell: Cell { scenario, link, arm: arm.to_owned(), repeat },
            ended,
            why: (ended == Ended::Failed).then(|| "it <broke>\nin two lines".to_owned()),
            verified: ended != Ended::Failed,
            client: ClientSide { gap_ms, ..ClientSide::default() },
            migration: (arm != NOTHING).then_some(report),
            ..Sample::default()
        }
    }

    fn bench() -> Bench {
        let mut samples = Vec::new();
        for repeat in 1..=5 {
            let ms = f64::from(repeat);
            samples.push(sample(NOTHING, repeat, 2.0, Ended::Nothing));
            samples.push(sample("pre-copy", repeat, 200.0 + ms, Ended::Moved));
            samples.push(sample("hybrid", repeat, 100.0 + ms, Ended::Moved));
            samples.push(sample("broken", repeat, 1.0, Ended::Failed));
        }
        Bench {
            environments: Vec::new(),
            scenarios: BTreeMap::new(),
            samples: samples.len(),
            groups: grouped(samples),
        }
    }

    #[test]
    fn failed_runs_are_shown_and_enter_no_number() {
        let bench = bench();
        let group = &bench.groups[0];
        assert_eq!(group.best().map(|a| a.name.as_str()), Some("hybrid"));
        let broken = group.movers().find(|a| a.name == "broken").expect("it is there");
        assert!(broken.gaps().is_empty());
        assert_eq!(broken.excuse(), "failed: it <broke>…");
        let text: String = tables::all(&bench).iter().map(table::Table::markdown).collect();
        assert!(text.contains("| hybrid | 1× | **103 ms** [101 – 105 ms] |"), "{text}");
        assert!(text.contains("| broken | – | failed: it <broke>… |"), "{text}");
    }

    #[test]
    fn claims_and_predictions_are_what_the_samples_say() {
        let text: String = tables::all(&bench()).iter().map(table::Table::markdown).collect();
        let claim =
            "| tiny, 1gbit: hybrid against pre-copy | 1.97× | 1.93 – 2.01 | 5 / 5 | 0.0040 |";
        assert!(text.contains(claim), "{text}");
        assert!(text.contains("Over all 10 runs the median error is 20 %"), "{text}");
        assert!(text.contains("| tiny, 1gbit | **2 ms** [2 – 2 ms] | 2 ms |"), "{text}");
    }

    #[test]
    fn pictures_and_page_are_made_of_what_there_is() {
        let bench = bench();
        let nowhere = tempfile::tempdir().expect("a folder");
        let pictures = pictures::all(&bench, nowhere.path());
        let names: Vec<_> = pictures.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["client-gap", "downtime", "prediction"], "no traces, no parts");
        let page = html::page("a < b", &[], &pictures, &tables::all(&bench));
        assert!(page.contains("a &lt; b") && page.matches("<svg").count() == 3);
        assert!(!page.contains("<broke>") && !page.contains("http://www.w3.org/1999"));
    }
}
