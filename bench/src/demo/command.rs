//! `blip-bench demo`.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use blip_engine::external::Restore;
use blip_transport::units::ByteSize;
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::lab_stage::LabStage;
use super::render::{Palette, render_in, render_series};
use super::report::{DemoReport, Series};
use super::script::{self, Options, Step};
use crate::interrupt;
use crate::lab::{CgroupMode, LabSpec, Suite};
use crate::rig;

/// Moves a busy Redis between two Docker hosts and proves that nothing is lost.
#[derive(Debug, Args)]
pub struct DemoCommand {
    /// Write the report here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How much data Redis holds
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = crate::quantity::size)]
    memory: u64,
    /// Acknowledged writes a second
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    rate: u32,
    /// How many counters the writes go round
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    counters: u32,
    /// How many migrations, each of a new Redis; prints their medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    repeat: u16,
    /// Leave the lab up afterwards
    #[arg(long)]
    keep: bool,
    /// Name of the lab; one that is up already is used and left up
    #[arg(long, value_name = "NAME", default_value = "demo")]
    name: String,
    /// Who restores Redis on the target
    #[arg(long, value_enum, default_value_t)]
    restore: Restore,
    /// Debian suite of the hosts: forky has Docker 28.5, trixie 26.1, which alone
    /// can restore by itself [default: forky; trixie with --restore docker]
    #[arg(long)]
    suite: Option<Suite>,
    /// Cgroup version the hosts see
    #[arg(long, default_value = "v2")]
    cgroup: CgroupMode,
    /// The `blip` to put on the hosts; by default the one built with this
    #[arg(long, value_name = "PROGRAM")]
    blip: Option<PathBuf>,
}

impl DemoCommand {
    /// Plays the demo and prints what it found. Succeeds only if every
    /// migration moved the container and every proof held.
    ///
    /// # Errors
    /// When the demo itself could not be played.
    pub fn run(self) -> Result<ExitCode> {
        let blip = rig::blip(self.blip.as_deref())?;
        let spec = LabSpec {
            name: self.name.clone(),
            suite: self.suite.unwrap_or(match self.restore {
                Restore::Staged => Suite::Forky,
                Restore::Docker => Suite::Trixie,
            }),
            cgroup: self.cgroup,
            ..LabSpec::default()
        };
        let began = Instant::now();
        let _doomed = interrupt::doom(&self.name, self.keep);
        let mut stage = LabStage::start(&spec, &blip, self.restore)?;
        let up_ms = began.elapsed().as_millis() as u64;
        let played = self.play(&mut stage, up_ms);
        let ended = stage.end(self.keep);
        let series = played?;
        ended.context("taking the lab down")?;
        let good = series.runs.iter().all(DemoReport::succeeded);
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn play(&self, stage: &mut LabStage, up_ms: u64) -> Result<Series> {
        let options = Options {
            memory: self.memory,
            rate: self.rate,
            counters: self.counters,
            ..Options::default()
        };
        let palette = palette();
        let mut runs = Vec::new();
        for number in 1..=self.repeat {
            let mut report = script::run(stage, &options, &mut |step| tell(step, &options))
                .with_context(|| format!("migration {number} of {}", self.repeat))?;
            report.setting.up_ms = up_ms;
            print(&format!("\n{}", render_in(&report, &palette)))?;
            runs.push(report);
            // After every run, so that the next one can fail without loss.
            self.write(&runs)?;
        }
        let series = Series::of(runs);
        if self.repeat > 1 {
            print(&render_series(&series, &palette))?;
        }
        Ok(series)
    }

    fn write(&self, runs: &[DemoReport]) -> Result<()> {
        match (&self.json, runs) {
            (None, _) => Ok(()),
            (Some(path), [one]) if self.repeat == 1 => save(path, one),
            (Some(path), _) => save(path, &Series::of(runs.to_vec())),
        }
    }
}

fn save(path: &Path, report: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(report).context("encoding the report")?;
    fs::write(path, json).with_context(|| format!("writing the report to {}", path.display()))
}

fn palette() -> Palette {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    if std::io::stdout().is_terminal() && !plain { Palette::COLOUR } else { Palette::PLAIN }
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("printing")
}

/// Says on standard error what is going on.
fn tell(step: Step<'_>, options: &Options) {
    let text = match step {
        Step::Filling => format!("redis: filling with {}", ByteSize(options.memory)),
        Step::WarmingUp => format!("client: {} writes a second", options.rate),
        Step::Migrating(line) => match spoken(line) {
            Some(text) => format!("blip: {text}"),
            None => return,
        },
        Step::Verifying => "client: reading everything back".to_owned(),
    };
    // Nobody reads along; the report comes all the same.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What an event of `blip migrate --json` says to a person.
fn spoken(line: &str) -> Option<String> {
    let Ok(event) = serde_json::from_str::<Value>(line) else {
        return Some(line.to_owned());
    };
    let text = |field: &str| event.get(field).and_then(Value::as_str);
    match text("event")? {
        "begin" => Some(text("phase")?.to_owned()),
        "decision" => Some(format!("{}: {}", text("what")?, text("why")?)),
        "note" => Some(text("text")?.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_in_words_and_rounds_are_left_to_the_table() {
        let begin = r#"{"event":"begin","phase":"freeze"}"#;
        assert_eq!(spoken(begin).as_deref(), Some("freeze"));
        let why = r#"{"event":"decision","what":"stop copying","why":"small enough"}"#;
        assert_eq!(spoken(why).as_deref(), Some("stop copying: small enough"));
        assert_eq!(spoken(r#"{"event":"round","dirty":3}"#), None);
        assert_eq!(spoken("warning: slow"), Some("warning: slow".to_owned()));
    }
}
