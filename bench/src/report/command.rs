//! `blip-bench report`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use blip_transport::units::ByteSize;
use clap::Args;

use super::{Bench, html, pictures, tables};
use crate::run::environment::Environment;

/// Makes tables, pictures and one self-contained page of what a bench measured.
#[derive(Args, Debug)]
pub struct ReportCommand {
    /// The folder `blip-bench run` wrote to
    dir: PathBuf,
    /// Where to put the report; by default beside the samples
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Title of the report
    #[arg(long, default_value = "blip, measured")]
    title: String,
}

impl ReportCommand {
    /// Writes the report and prints its tables.
    ///
    /// # Errors
    /// When there are no samples, or files cannot be read or written.
    pub fn run(self) -> Result<ExitCode> {
        let bench = Bench::read(&self.dir)?;
        let out = self.out.as_ref().unwrap_or(&self.dir);
        let (pictures, tables) = (pictures::all(&bench, &self.dir), tables::all(&bench));
        let facts = facts(&bench);
        let plots = out.join("plots");
        fs::create_dir_all(&plots).with_context(|| format!("making {}", plots.display()))?;
        for picture in &pictures {
            write(&plots.join(format!("{}.svg", picture.name)), &picture.svg)?;
        }
        let mut markdown = format!("# {}\n\n", self.title);
        facts.iter().for_each(|fact| markdown += &format!("- {fact}\n"));
        markdown.push('\n');
        tables.iter().for_each(|table| markdown += &table.markdown());
        write(&out.join("summary.md"), &markdown)?;
        write(&out.join("report.html"), &html::page(&self.title, &facts, &pictures, &tables))?;
        let mut stdout = std::io::stdout();
        stdout.write_all(markdown.as_bytes()).context("printing")?;
        let page = out.join("report.html");
        writeln!(stdout, "All of it, with pictures: {}", page.display()).context("printing")?;
        Ok(ExitCode::SUCCESS)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Where and with what, in lines.
fn facts(bench: &Bench) -> Vec<String> {
    let mut facts = vec![format!("{} runs", bench.samples)];
    if let Some(here) = bench.environments.last() {
        let machine = &here.machine;
        facts.push(format!(
            "{} × {}, {} of memory, Linux {}; all hosts and clients on this one machine",
            machine.cores,
            if machine.processor.is_empty() { "processor" } else { &machine.processor },
            ByteSize(machine.memory_bytes),
            machine.kernel
        ));
        facts.push(format!("blip-bench {} ({})", here.version, revision(here)));
    }
    facts.extend(versions(bench));
    let warnings: BTreeSet<String> =
        bench.environments.iter().flat_map(Environment::warnings).collect();
    facts.extend(warnings.into_iter().map(|w| format!("**Warning:** {w}")));
    facts
}

fn revision(here: &Environment) -> &str {
    if here.revision.is_empty() { "no git" } else { &here.revision }
}

/// What took part, once each.
fn versions(bench: &Bench) -> Option<String> {
    let reports = bench.groups.iter().flat_map(|g| &g.arms).flat_map(|a| &a.samples);
    let versions = reports.filter_map(|s| Some(&s.migration.as_ref()?.versions)).next_back()?;
    Some(format!(
        "blip {}, Docker {}, CRIU {}, runc {}",
        versions.blip, versions.docker, versions.criu, versions.runc
    ))
}
