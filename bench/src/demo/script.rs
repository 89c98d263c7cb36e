//! The demo's script, from an empty stage to the report.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::machine::Machine;
use super::report::{DemoReport, MigrateReport, Series, Setting};
use crate::probe::verify::Expected;
use crate::probe::{Place, Probe, ProbeReport, Spec, within};
use crate::workload::dataset::Dataset;
use crate::workload::redis::{Filled, Redis};

/// How long a new Redis may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to move, and under which load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of data to put into Redis.
    pub memory: u64,
    /// Acknowledged writes a second.
    pub rate: u32,
    /// How many counters they go round.
    pub counters: u32,
    /// How long the client writes before the migration begins, and after it
    /// has ended.
    pub margin: Duration,
    /// Seed of the data.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            memory: 256 << 20,
            rate: 5_000,
            counters: 1_000,
            margin: Duration::from_secs(2),
            seed: 1,
        }
    }
}

/// What the script needs of the two hosts.
pub trait Stage {
    /// Where clients are.
    fn place(&self) -> &dyn Place;

    /// Starts an empty Redis on the source and says where clients find it.
    /// A Redis of an earlier run is removed first.
    ///
    /// # Errors
    /// When it does not start.
    fn start_redis(&mut self) -> Result<SocketAddr>;

    /// Addresses under which Redis may answer while it moves, the present one
    /// first. Just that one, unless the address changes and is known before.
    fn addresses(&self, now: SocketAddr) -> Vec<SocketAddr> {
        vec![now]
    }

    /// Runs `blip migrate` to its end, and hands over each line it prints
    /// at the moment it is printed.
    ///
    /// # Errors
    /// When the command could not be run at all. A migration that did not
    /// happen is no error: its report says so.
    fn migrate(&mut self, line: &mut dyn FnMut(&str)) -> Result<()>;

    /// Where clients find Redis after the migration.
    ///
    /// # Errors
    /// When it is nowhere.
    fn redis_now(&mut self) -> Result<SocketAddr>;

    /// What the hosts are, in a few words.
    fn describe(&self) -> String;
}

/// What the script is doing, for whoever waits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step<'a> {
    /// Redis is being filled.
    Filling,
    /// The client writes, nothing moves yet.
    WarmingUp,
    /// A line of `blip migrate`.
    Migrating(&'a str),
    /// Everything is being read back.
    Verifying,
}

/// Plays the script once.
///
/// # Errors
/// When the stage fails, or the engine ends without a report. Whatever the
/// engine did to the container is not an error but in the report.
pub fn run(
    stage: &mut dyn Stage,
    options: &Options,
    tell: &mut dyn FnMut(Step<'_>),
) -> Result<DemoReport> {
    let addr = stage.start_redis().context("starting Redis on the source")?;
    tell(Step::Filling);
    let (filled, expected) = fill(stage.place(), addr, options)?;
    tell(Step::WarmingUp);
    let spec = Spec {
        targets: stage.addresses(addr),
        rate: options.rate,
        counters: options.counters,
        ..Spec::new(addr)
    };
    let probe = Probe::start(spec, stage.place())?;
    std::thread::sleep(options.margin);
    let migration = migrate(stage, &probe, tell)?;
    let now = stage.redis_now();
    if let Ok(addr) = now {
        probe.set_target(addr);
    }
    std::thread::sleep(options.margin);
    let probe = probe.stop()?;
    tell(Step::Verifying);
    let setting = Setting {
        data_bytes: filled.digest.bytes,
        redis: expected.identity.version.clone(),
        hosts: stage.describe(),
        machine: Machine::here(),
        up_ms: 0,
        fill_ms: filled.ms,
    };
    Ok(judge(stage.place(), migration, probe, now, &expected, setting))
}

/// Plays the script several times, each with a new Redis. Each finished run is
/// handed over before the next begins.
///
/// # Errors
/// As [`run`]; runs that finished before are lost with the series, but were
/// handed over.
pub fn series(
    stage: &mut dyn Stage,
    options: &Options,
    repeat: usize,
    tell: &mut dyn FnMut(Step<'_>),
    finished: &mut dyn FnMut(&DemoReport),
) -> Result<Series> {
    let mut runs = Vec::new();
    for number in 1..=repeat {
        let report =
            run(stage, options, tell).with_context(|| format!("migration {number} of {repeat}"))?;
        finished(&report);
        runs.push(report);
    }
    Ok(Series::of(runs))
}

fn fill(place: &dyn Place, addr: SocketAddr, options: &Options) -> Result<(Filled, Expected)> {
    let dataset = Dataset { bytes: options.memory, seed: options.seed };
    let (filled, expected) = within(place, "fill", move || -> Result<_> {
        let redis = Redis::at(addr);
        redis.wait_ready(PATIENCE)?;
        Ok((redis.fill(dataset)?, Expected::ask(&redis)?))
    })??;
    anyhow::ensure!(
        filled.digest == expected.digest,
        "Redis does not hold what was written to it, before anything moved: {:?} became {:?}",
        filled.digest,
        expected.digest
    );
    Ok((filled, expected))
}

/// Runs the migration, marking the engine's phases in the probe's timeline as
/// they are told.
fn migrate(
    stage: &mut dyn Stage,
    probe: &Probe,
    tell: &mut dyn FnMut(Step<'_>),
) -> Result<MigrateReport> {
    let mut report = None;
    let mut unreadable = None;
    probe.mark("migrate");
    stage.migrate(&mut |line| {
        if let Some(phase) = phase_begun(line) {
            probe.mark(&phase);
        }
        match MigrateReport::from_line(line) {
            Ok(Some(found)) => report = Some(found),
            Ok(None) => tell(Step::Migrating(line)),
            Err(why) => unreadable = Some(why),
        }
    })?;
    probe.mark("migrated");
    match (report, unreadable) {
        (Some(report), _) => Ok(report),
        (None, Some(why)) => Err(why),
        (None, None) => anyhow::bail!("`blip migrate` ended without a report"),
    }
}

/// The phase whose beginning this line of `--json` output tells.
fn phase_begun(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    let begins = event.get("event")? == "begin";
    let phase = event.get("phase")?.as_str()?;
    begins.then(|| phase.to_owned())
}

/// Asks the server, and puts what it says beside what the engine said.
fn judge(
    place: &dyn Place,
    migration: MigrateReport,
    probe: ProbeReport,
    now: Result<SocketAddr>,
    expected: &Expected,
    setting: Setting,
) -> DemoReport {
    let asked = now.and_then(|addr| Ok(probe.verify(place, addr, expected)?));
    let (proof, mut objections) = match asked {
        Ok(verdict) => {
            let objections = verdict.objections();
            (Some(verdict), objections)
        }
        Err(why) => (None, vec![format!("{why:#}")]),
    };
    let unanswered = probe.unsent + probe.refused;
    if unanswered > 0 {
        objections.push(format!("{unanswered} writes were refused or found no server"));
    }
    let began = probe.marked_ms("migrate").unwrap_or_default();
    let client_gap = probe.gap_since(began);
    DemoReport {
        client_gap_ms: client_gap.ms,
        client_gap,
        usual_gap_ms: probe.recorded.gap_between(0.0, began).ms,
        verified: objections.is_empty(),
        migration,
        objections,
        proof,
        setting,
        probe,
    }
}
