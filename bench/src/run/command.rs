//! `blip-bench run`.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use super::environment::Environment;
use super::plan::{Cell, Plan, Written};
use super::record::Record;
use super::runner::Runner;
use super::sample::{Ended, Sample};
use crate::baseline;
use crate::interrupt;
use crate::lab::{CgroupMode, LabSpec, Suite};
use crate::report::ReportCommand;
use crate::rig::{self, Rig};

/// Moves workloads by each method over each link, again and again, and keeps
/// every sample. Started again on the same folder, it goes on.
#[derive(Args, Debug)]
pub struct RunCommand {
    /// The folder for samples
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Read the plan from a TOML file; what is named here is added to it
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// What to move, for example redis-256m, idle-1g, hot-64m-in-1g, fast-1g
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// How: stop-and-copy, pre-copy, post-copy, hybrid, auto, or default
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<String>,
    /// Over what: unshaped, a rate as 100mbit or 1gbit, and what a relay adds:
    /// 1gbit+20ms+1%, unshaped+cut-500ms-after-2s
    #[arg(long = "link", value_name = "RATE")]
    links: Vec<String>,
    /// How often each [default: 5]
    #[arg(long, value_name = "N")]
    repeats: Option<u32>,
    /// Requests a second of the client [default: 1000]
    #[arg(long, value_name = "N")]
    probe_rate: Option<u32>,
    /// Requests a second over new connections, one each [default: 20]
    #[arg(long, value_name = "N")]
    fresh_rate: Option<u32>,
    /// Move workloads back and forth instead of starting a new one each time
    #[arg(long)]
    onward: bool,
    /// Debian suite of the hosts: forky has Docker 28.5, trixie 26.1
    #[arg(long)]
    suite: Option<Suite>,
    /// Cgroup version the hosts see
    #[arg(long)]
    cgroup: Option<CgroupMode>,
    /// Leave the lab up afterwards
    #[arg(long)]
    keep: bool,
    /// Name of the lab; one that is up already is used and left up
    #[arg(long, value_name = "NAME", default_value = "bench")]
    name: String,
    /// The `blip` to put on the hosts; by default the one built with this
    #[arg(long, value_name = "PROGRAM")]
    blip: Option<PathBuf>,
    /// Only print the runs in their order
    #[arg(long)]
    dry_run: bool,
}

/// Moves the same workload by each of blip's methods and by each peer, in
/// turns, and writes the report.
#[derive(Args, Debug)]
pub struct CompareCommand {
    /// The folder for samples and report
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What to move
    #[arg(long = "scenario", value_name = "NAME", default_value = "redis-1g")]
    scenarios: Vec<String>,
    /// Over what: unshaped, or a rate as 1gbit
    #[arg(long = "link", value_name = "RATE", default_value = "unshaped")]
    links: Vec<String>,
    /// How often each
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: u32,
    /// Only these arms: blip's methods and peers
    #[arg(long = "arm", value_name = "NAME")]
    arms: Vec<String>,
    /// Debian suite of the hosts; only trixie has a Docker (26.1) that can
    /// restore its own checkpoints
    #[arg(long, default_value = "trixie")]
    suite: Suite,
    /// Leave the lab up afterwards
    #[arg(long)]
    keep: bool,
    /// Name of the lab; one that is up already is used and left up
    #[arg(long, value_name = "NAME", default_value = "compare")]
    name: String,
    /// The `blip` to put on the hosts; by default the one built with this
    #[arg(long, value_name = "PROGRAM")]
    blip: Option<PathBuf>,
}

impl CompareCommand {
    /// Runs and reports. Succeeds if every run was made and verified.
    ///
    /// # Errors
    /// As [`RunCommand::run`]; or when the report cannot be written.
    pub fn run(self) -> Result<ExitCode> {
        let mut arms = self.arms;
        if arms.is_empty() {
            arms.extend(super::plan::METHODS.iter().map(|m| (*m).to_owned()));
            arms.extend(baseline::all().iter().map(|peer| peer.name().to_owned()));
        }
        let run = RunCommand {
            out: self.out.clone(),
            plan: None,
            scenarios: self.scenarios,
            methods: arms,
            links: self.links,
            repeats: Some(self.repeats),
            probe_rate: None,
            fresh_rate: None,
            onward: false,
            suite: Some(self.suite),
            cgroup: None,
            keep: self.keep,
            name: self.name,
            blip: self.blip,
            dry_run: false,
        };
        let ran = run.run()?;
        ReportCommand::of(self.out, "blip and its peers").run()?;
        Ok(ran)
    }
}

impl RunCommand {
    /// Runs the plan. Succeeds if every run was made and verified.
    ///
    /// # Errors
    /// When the plan makes no sense, the lab does not come up, or samples
    /// cannot be written.
    pub fn run(self) -> Result<ExitCode> {
        let plan = self.understood()?;
        if self.dry_run {
            plan.cells().iter().for_each(|cell| say(&cell.to_string()));
            return Ok(ExitCode::SUCCESS);
        }
        let environment = Environment::here();
        environment.warnings().iter().for_each(|w| say(&format!("warning: {w}")));
        let mut record = Record::open(&self.out, &plan, &environment)?;
        let blip = rig::blip(self.blip.as_deref())?;
        let program = std::env::current_exe().context("finding this program's own path")?;
        let spec = LabSpec {
            name: self.name.clone(),
            suite: plan.suite,
            cgroup: plan.cgroup,
            peers: plan.needs_peers(),
            ..LabSpec::default()
        };
        let _doomed = interrupt::doom(&self.name, self.keep);
        let rig = Rig::start(&spec, &blip, &["a", "b"])?;
        let mut runner = Runner::new(&rig, &plan, &program);
        let mut tally = Tally { all: plan.cells().len(), ..Tally::default() };
        tally.seen = plan.cells().iter().filter(|cell| record.has(cell)).count();
        let ran = runner.run(&mut record, &mut |cell, sample| tally.tell(cell, sample));
        let cleaned = runner.clean();
        drop(runner);
        let ended = rig.end(self.keep);
        ran?;
        cleaned?;
        ended.context("taking the lab down")?;
        say(&tally.last_words(&self.out));
        Ok(if tally.bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The plan of the file, with what the command line adds and overrides.
    fn understood(&self) -> Result<Plan> {
        let mut written = match &self.plan {
            None => Written::default(),
            Some(path) => {
                let text = fs::read_to_string(path)
                    .with_context(|| format!("reading the plan {}", path.display()))?;
                toml::from_str(&text)
                    .with_context(|| format!("the plan {} makes no sense", path.display()))?
            }
        };
        written.scenarios.extend(self.scenarios.iter().cloned());
        written.methods.extend(self.methods.iter().cloned());
        written.links.extend(self.links.iter().cloned());
        written.repeats = self.repeats.or(written.repeats);
        written.probe_rate = self.probe_rate.or(written.probe_rate);
        written.fresh_rate = self.fresh_rate.or(written.fresh_rate);
        written.onward |= self.onward;
        written.suite = self.suite.or(written.suite);
        written.cgroup = self.cgroup.or(written.cgroup);
        written.meant()
    }
}

/// How far it is.
#[derive(Default)]
struct Tally {
    all: usize,
    seen: usize,
    bad: usize,
    /// The longest gaps with nothing moved, in milliseconds.
    own: Vec<f64>,
}

impl Tally {
    fn tell(&mut self, cell: &Cell, sample: Option<&Sample>) {
        let Some(sample) = sample else {
            say(&format!("[{}/{}] {cell}", self.seen + 1, self.all));
            return;
        };
        self.seen += 1;
        let sound = matches!(sample.ended, Ended::Nothing | Ended::Moved | Ended::Kept);
        self.bad += usize::from(!sound || !sample.verified);
        let gap = sample.client.gap_ms;
        let mut line = match sample.ended {
            Ended::Nothing => {
                self.own.push(gap);
                format!("nothing moved: the bench's own longest gap is {gap:.1} ms")
            }
            Ended::Moved => {
                let report = sample.migration.clone().unwrap_or_default();
                let predicted = report
                    .predicted
                    .map_or(String::new(), |p| format!(" (predicted {:.0} ms)", p.downtime_ms));
                let (downtime, total) = (report.downtime_ms, report.total_ms / 1e3);
                let downtime = match sample.peer {
                    None => format!(", downtime {downtime:.0} ms{predicted}"),
                    Some(_) => String::new(),
                };
                format!("gap {gap:.0} ms{downtime}, total {total:.1} s")
            }
            Ended::Kept => "kept on the source".to_owned(),
            Ended::InDoubt => "IN DOUBT".to_owned(),
            Ended::Failed => "FAILED".to_owned(),
            Ended::Impossible => "cannot".to_owned(),
        };
        if let Some(why) = &sample.why {
            line += &format!(": {why}");
        }
        line += if sample.verified { ", verified" } else { ", NOT VERIFIED" };
        for more in sample.objections.iter().chain(&sample.noise.warnings) {
            line += &format!("\n         {more}");
        }
        say(&format!("         {line}"));
    }

    fn last_words(&self, out: &std::path::Path) -> String {
        let own = self.own.iter().copied().fold(0.0, f64::max);
        let own = if self.own.is_empty() {
            String::new()
        } else {
            format!(
                "with nothing moved the client's longest gap was {own:.1} ms; it is subtracted \
                 nowhere\n"
            )
        };
        let out = out.display();
        format!(
            "{own}{} of {} runs, {} not as they should be; `blip-bench report {out}` shows them",
            self.seen, self.all, self.bad
        )
    }
}

/// Standard error is for people; results are in files.
fn say(text: &str) {
    // Nobody reads along; the samples come all the same.
    let _ = writeln!(std::io::stderr(), "{text}");
}
