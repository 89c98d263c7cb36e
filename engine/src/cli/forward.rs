//! `blip forward`: the forwarders of this host.

use super::{Places, exit};
use crate::forward::{self, Forward, Protocol};
use crate::history::now;
use crate::text::brief_time;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use std::io::{self, Write};
use std::process::ExitCode;

/// What to do with them.
#[derive(Debug, Args)]
pub(super) struct ForwardArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List what is forwarded from this host, and for how long
    List,
    /// End a forwarder; connections that go through it are closed
    Stop {
        /// The container that moved, or the beginning of the migration's ticket
        #[arg(required_unless_present = "all")]
        which: Option<String>,
        /// End all of them
        #[arg(long)]
        all: bool,
    },
    /// Be one (called by blip)
    #[command(hide = true)]
    Run {
        /// What is forwarded, as JSON
        forward: String,
    },
}

pub(super) async fn run(args: ForwardArgs, _places: &Places) -> anyhow::Result<ExitCode> {
    match args.what {
        What::List => list(),
        What::Stop { which, .. } => stop(which.as_deref()),
        What::Run { forward } => {
            forward::run(serde_json::from_str(&forward)?).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list() -> anyhow::Result<ExitCode> {
    let mut out = io::stdout();
    let all = forward::all().context("reading the forwarders' records; are you root?")?;
    for forward in &all {
        writeln!(out, "{}", line(forward, now()))?;
    }
    if all.is_empty() {
        writeln!(out, "Nothing is forwarded from this host.")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `None`: all.
fn stop(which: Option<&str>) -> anyhow::Result<ExitCode> {
    let all = forward::all().context("reading the forwarders' records; are you root?")?;
    let meant = |forward: &&Forward| {
        which.is_none_or(|which| {
            forward.container == which || forward.ticket.to_string().starts_with(which)
        })
    };
    let meant: Vec<_> = all.iter().filter(meant).collect();
    for forward in &meant {
        forward.stop().with_context(|| format!("ending forwarder {}", forward.ticket))?;
    }
    if let Some(which) = which.filter(|_| meant.is_empty()) {
        eprintln!("blip: no forwarder '{which}' here; `blip forward list` lists them");
        return Ok(ExitCode::from(exit::BLOCKED));
    }
    Ok(ExitCode::SUCCESS)
}

/// One forwarder in a line.
pub(super) fn line(forward: &Forward, now: u64) -> String {
    let port = |port: &forward::Port| match port.protocol {
        Protocol::Tcp => port.listen.to_string(),
        Protocol::Udp => format!("{}/udp", port.listen),
    };
    let ports: Vec<_> = forward.ports.iter().map(port).collect();
    let left = brief_time(forward.until.saturating_sub(now) as f64 * 1e3);
    let (container, target, ports) = (&forward.container, forward.target, ports.join(", "));
    format!("  {left:<7} {:.8} {container} to {target}: {ports}", forward.ticket.to_string())
}
