//! `blip resolve` and `blip check`; `blip status` is in [`list`].

pub(super) mod list;

use super::{Places, exit};
use crate::docker::Docker;
use crate::handover::{Ticket, Verdict};
use crate::ledger::{Ledger, SourceRecord};
use crate::source::resolve as resolution;
use crate::target::check as host;
use anyhow::Context as _;
use clap::Args;
use std::io::{self, Write};
use std::process::ExitCode;

/// Which handover.
#[derive(Debug, Args)]
pub(super) struct ResolveArgs {
    /// The ticket, as `blip status` lists it; all in doubt by default
    ticket: Option<Ticket>,
    /// If the target has lost the container: let the older state here run. What
    /// it did on the target is lost
    #[arg(long, requires = "ticket")]
    run_here: bool,
}

pub(super) async fn resolve(args: &ResolveArgs, places: &Places) -> anyhow::Result<ExitCode> {
    let ledger = departures(places)?;
    let docker = Docker::connect().await?;
    let mut code = exit::DONE;
    for record in ledger.all::<SourceRecord>()? {
        if args.ticket.is_some_and(|ticket| ticket != record.ticket) {
            continue;
        }
        let asked = resolution::ask(&record.target, &places.identity, record.ticket).await;
        let verdict = asked.with_context(|| format!("asking {}", record.target))?;
        let said = match verdict {
            Some(Verdict::Ran) => "runs there; it is ended here",
            Some(Verdict::NeverRan) => "never ran there; it runs on here",
            Some(Verdict::Lost) if args.run_here => {
                resolution::settle(&docker, &ledger, &record, Verdict::NeverRan).await?;
                eprintln!("blip: {}: the state of the freeze runs on here", record.name);
                continue;
            }
            Some(Verdict::Lost) => {
                "ran there and died there; `--run-here` runs the state of the freeze"
            }
            None => "is not decided yet; ask again",
        };
        eprintln!("blip: {}: {said}", record.name);
        match verdict {
            Some(verdict @ (Verdict::Ran | Verdict::NeverRan)) => {
                resolution::settle(&docker, &ledger, &record, verdict).await?;
            }
            Some(Verdict::Lost) | None => code = exit::IN_DOUBT,
        }
    }
    Ok(ExitCode::from(code))
}

pub(super) async fn check() -> anyhow::Result<ExitCode> {
    let docker = Docker::connect().await?;
    let facts = host::facts(&docker).await?;
    let mut out = io::stdout();
    writeln!(out, "blip    {}", facts.blip)?;
    writeln!(out, "docker  {}", facts.docker)?;
    writeln!(out, "criu    {}", facts.criu)?;
    writeln!(out, "runc    {}", facts.runc)?;
    writeln!(out, "kernel  {}, cgroup v{}", facts.kernel, facts.cgroup)?;
    for ability in crate::track::capabilities() {
        writeln!(out, "tracker {ability}")?;
    }
    let findings = host::equipment(&facts, "host");
    for finding in &findings {
        writeln!(out, "{}: {}", finding.what, finding.remedy)?;
    }
    let blocked = findings.iter().any(|finding| finding.blocks);
    Ok(ExitCode::from(if blocked { exit::BLOCKED } else { exit::DONE }))
}

pub(super) fn departures(places: &Places) -> anyhow::Result<Ledger> {
    let path = places.state.join("departures");
    Ledger::open(&path).with_context(|| format!("opening {path:?}; are you root?"))
}
