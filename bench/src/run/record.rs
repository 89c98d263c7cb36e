//! The folder a bench writes to, and reads again to go on.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::environment::Environment;
use super::plan::{Cell, Plan};
use super::sample::{Ended, Sample, Trace};

/// An open folder.
pub struct Record {
    dir: PathBuf,
    samples: File,
    done: BTreeSet<Cell>,
}

impl Record {
    /// Makes the folder, or goes on in one that was begun with a plan that
    /// does not contradict this one: what has the same name must be the same.
    ///
    /// # Errors
    /// When it cannot be written, or holds something else.
    pub fn open(dir: &Path, plan: &Plan, environment: &Environment) -> Result<Record> {
        fs::create_dir_all(dir.join("traces"))
            .with_context(|| format!("making the folder {}", dir.display()))?;
        remember_plan(dir, plan)?;
        let mut sessions = environments(dir)?;
        sessions.push(environment.clone());
        save(&dir.join("environment.json"), &sessions)?;
        let before = samples(dir)?;
        // What failed is tried again; the failure stays on record.
        let done = before.into_iter().filter(|s| s.ended != Ended::Failed).map(|s| s.cell);
        let path = dir.join("samples.jsonl");
        let mut samples = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        // A bench that died in mid line left half of one.
        if fs::read(&path).is_ok_and(|text| !text.is_empty() && !text.ends_with(b"\n")) {
            samples.write_all(b"\n")?;
        }
        Ok(Record { dir: dir.to_owned(), done: done.collect(), samples })
    }

    /// Whether this run has been made.
    pub fn has(&self, cell: &Cell) -> bool {
        self.done.contains(cell)
    }

    /// Adds a run: on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, sample: &Sample, trace: &Trace) -> Result<()> {
        let name = format!("traces/{}.json", sample.cell.file_name());
        let path = self.dir.join(name);
        let text = serde_json::to_vec(trace).context("encoding a trace")?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        let mut line = serde_json::to_vec(sample).context("encoding a sample")?;
        line.push(b'\n');
        self.samples.write_all(&line).context("writing a sample")?;
        self.samples.sync_data().context("writing a sample")?;
        self.done.insert(sample.cell.clone());
        Ok(())
    }
}

/// All samples of a folder, in the order of the runs; none if it has none.
///
/// # Errors
/// When the file cannot be read, or a line but the last is no sample.
pub fn samples(dir: &Path) -> Result<Vec<Sample>> {
    let path = dir.join("samples.jsonl");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
    };
    let mut all = Vec::new();
    let lines: Vec<_> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    for (number, line) in (1..).zip(&lines) {
        match serde_json::from_str(line) {
            Ok(sample) => all.push(sample),
            // Half a line is what a bench leaves that dies while it writes.
            Err(e) if e.is_eof() => {}
            Err(e) => bail!("{}, line {number}: {e}", path.display()),
        }
    }
    Ok(all)
}

/// The trace of a run.
///
/// # Errors
/// When it cannot be read.
pub fn trace(dir: &Path, cell: &Cell) -> Result<Trace> {
    let path = dir.join(format!("traces/{}.json", cell.file_name()));
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
}

/// The sessions a folder has seen.
///
/// # Errors
/// When they cannot be read.
pub fn environments(dir: &Path) -> Result<Vec<Environment>> {
    let path = dir.join("environment.json");
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| path.display().to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

/// The plan of a folder, as plain data.
///
/// # Errors
/// When it cannot be read.
pub fn plan(dir: &Path) -> Result<Value> {
    let path = dir.join("plan.json");
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
}

/// Writes the plan down, joined with what was written before.
fn remember_plan(dir: &Path, plan: &Plan) -> Result<()> {
    let mut new = serde_json::to_value(plan).context("encoding the plan")?;
    if dir.join("plan.json").exists() {
        let old = self::plan(dir)?;
        join(&old, &mut new).with_context(|| {
            format!("{} was begun with another plan: name another --out", dir.display())
        })?;
    }
    save(&dir.join("plan.json"), &new)
}

/// Takes over from `old` what `new` does not have.
fn join(old: &Value, new: &mut Value) -> Result<()> {
    for field in ["probe_rate", "fresh_rate", "margin_ms", "onward", "suite", "cgroup"] {
        if old[field] != new[field] {
            bail!("its {field} was {}, not {}", old[field], new[field]);
        }
    }
    for list in ["scenarios", "arms", "links"] {
        let was = old[list].as_array().cloned().unwrap_or_default();
        let Some(is) = new[list].as_array_mut() else { continue };
        let name = |item: &Value| item.get("name").unwrap_or(item).clone();
        for item in was {
            match is.iter().find(|other| name(other) == name(&item)) {
                Some(same) if *same == item => {}
                Some(other) => bail!("{} was {item}, not {other}", name(&item)),
                None => is.push(item),
            }
        }
    }
    Ok(())
}

fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).context("encoding")?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(text: &str) -> Plan {
        Plan::parse(text).expect(text)
    }

    fn sample(cell: &Cell, ended: Ended) -> Sample {
        Sample { cell: cell.clone(), ended, ..Sample::default() }
    }

    #[test]
    fn a_bench_goes_on_where_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let plan = plan_of("scenarios = ['tiny']\nrepeats = 2");
        let cells = plan.cells();
        let here = Environment::default();
        let mut record = Record::open(dir.path(), &plan, &here).expect("new");
        record.add(&sample(&cells[0], Ended::Nothing), &Trace::default()).expect("added");
        record.add(&sample(&cells[1], Ended::Failed), &Trace::default()).expect("added");
        // Killed in mid line.
        record.samples.write_all(b"{\"scenario\":\"ti").expect("written");

        let more = plan_of("scenarios = ['tiny', 'idle-1g']\nrepeats = 3");
        let mut record = Record::open(dir.path(), &more, &here).expect("goes on");
        assert!(record.has(&cells[0]) && !record.has(&cells[1]) && !record.has(&cells[2]));
        record.add(&sample(&cells[2], Ended::Moved), &Trace::default()).expect("added");
        assert_eq!(samples(dir.path()).expect("readable").len(), 3);
        assert_eq!(environments(dir.path()).expect("readable").len(), 2);
        assert_eq!(trace(dir.path(), &cells[2]).expect("a trace").cell, Cell::default());
    }

    #[test]
    fn another_plan_is_not_mixed_in() {
        let dir = tempfile::tempdir().expect("a folder");
        let arm = |flags: &str| {
            plan_of(&format!("scenarios = ['tiny']\n[[arm]]\nname = 'x'\nflags = ['{flags}']"))
        };
        let here = Environment::default();
        Record::open(dir.path(), &arm("--a"), &here).expect("new");
        Record::open(dir.path(), &arm("--a"), &here).expect("the same");
        let why = Record::open(dir.path(), &arm("--b"), &here).err().expect("refused");
        assert!(format!("{why:#}").contains("--out"), "{why:#}");
    }
}
