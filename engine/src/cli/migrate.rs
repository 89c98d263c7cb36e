//! `blip migrate`.

use super::{Places, exit, show};
use crate::event::Events;
use crate::handover::Outcome;
use crate::plan::Goal;
use crate::source::{MigrateError, Order, migrate};
use crate::track::TrackerChoice;
use clap::{Args, ValueEnum};
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::watch;

/// What to move, where to, and how.
#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    /// The running container, by name or ID
    container: String,
    /// The target, where `blip agent` runs
    #[arg(long, value_name = "HOST[:PORT]")]
    to: String,
    /// Rounds of copying ahead, at most
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: u32,
    /// How to tell which memory changes between rounds
    #[arg(long, value_enum, default_value_t = TrackerChoice::Auto)]
    tracker: TrackerChoice,
    /// Remove the container here once it has moved (default: keep it, stopped
    /// and renamed NAME.moved-TICKET)
    #[arg(long)]
    remove_source: bool,
    /// Print events as JSON, one object a line, the report last
    #[arg(long)]
    json: bool,
    /// How to show what happens
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Progress {
    /// Plain lines, unless --json is given
    Auto,
    /// One line per event
    Plain,
    /// Only the report
    None,
}

/// Time that the last pages may add to the downtime.
const BUDGET: Duration = Duration::from_millis(4);

pub(super) async fn run(args: MigrateArgs, places: Places) -> anyhow::Result<ExitCode> {
    let (stop, interrupt) = watch::channel(false);
    tokio::spawn(listen_for_interrupts(stop));
    let order = Order {
        container: args.container,
        target: args.to,
        goal: Goal { max_rounds: args.max_rounds, ..Goal::default() },
        budget: BUDGET,
        tracker: args.tracker,
        remove_source: args.remove_source,
        identity: places.identity,
        state: places.state,
        interrupt,
    };
    let (events, listener) = Events::channel();
    let lines = args.progress == Progress::Plain || args.progress == Progress::Auto && !args.json;
    let shown = tokio::spawn(show::show(listener, args.json, lines));
    let result = migrate(order, events).await;
    shown.await?;
    match result {
        Ok(report) => Ok(ExitCode::from(match report.outcome {
            Outcome::Moved => exit::DONE,
            Outcome::Kept { why } if why == "interrupted" => exit::INTERRUPTED,
            Outcome::Kept { .. } => exit::KEPT,
            Outcome::InDoubt { .. } => exit::IN_DOUBT,
        })),
        Err(error) => Ok(refuse(&error)),
    }
}

/// What prevents a migration from beginning has a code of its own: scripts
/// tell by it that nothing was touched.
fn refuse(error: &MigrateError) -> ExitCode {
    for line in error.to_string().lines() {
        eprintln!("blip: {line}");
    }
    ExitCode::from(match error {
        MigrateError::Blocked(_)
        | MigrateError::Docker(_)
        | MigrateError::Subject(_)
        | MigrateError::Peer(_) => exit::BLOCKED,
        MigrateError::Interrupted => exit::INTERRUPTED,
        _ => exit::KEPT,
    })
}

async fn listen_for_interrupts(stop: watch::Sender<bool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("blip: stopping: the container stays here, unless the target owns it already");
    let _ = stop.send(true);
    // Kept until the end: a dropped sender would read as another interrupt.
    std::future::pending::<()>().await;
}
