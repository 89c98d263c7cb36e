//! `blip migrate`.

use super::goal::GoalArgs;
use super::values::keep;
use super::{Places, exit, show, values};
use crate::connections;
use crate::event::Events;
use crate::external::Restore;
use crate::handover::Outcome;
use crate::kept::KeepLimit;
use crate::source::newcomers::Unaccepted;
use crate::source::volumes::Choice;
use crate::source::{MigrateError, Order, migrate};
use crate::timeline;
use crate::track::TrackerChoice;
use clap::Args;
use std::path::PathBuf;
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
    /// How to tell which memory changes between rounds
    #[arg(long, value_enum, default_value_t = TrackerChoice::Auto)]
    tracker: TrackerChoice,
    /// What becomes of a bind mount, or of a volume of a foreign driver:
    /// copy its files, know that both hosts see the same ones, or let the
    /// target have its own; PATH is where it is in the container
    #[arg(long = "bind", value_name = "copy|shared|exclude=PATH")]
    binds: Vec<Choice>,
    /// Who restores the container on the target
    #[arg(long, value_enum, default_value_t)]
    restore: Restore,
    /// What becomes of established TCP connections
    #[arg(long, value_enum, default_value_t)]
    tcp: connections::Choice,
    /// Keep accepting connections to the container's published ports here, and
    /// relay them to the target, for a while (10m without a DURATION). The
    /// container sees this host as its client
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "10m",
          value_parser = values::forward)]
    forward: Option<Duration>,
    /// The container's name on the target
    #[arg(long, value_name = "NAME")]
    rename: Option<String>,
    /// Keep IP and MAC address on bridge networks too, and connections with them:
    /// the bridges of both hosts must be on one segment, each with the interface
    /// that leads there (macvlan networks need no flag)
    #[arg(long)]
    keep_address: bool,
    /// What becomes of connections that no program of the container has accepted
    /// yet: wait for that, and give up if it does not come; or go on then, and
    /// have their clients get a reset
    #[arg(long, value_enum, value_name = "WHAT", default_value_t, hide_possible_values = true)]
    unaccepted: Unaccepted,
    /// Keep the container here once it has moved: stopped, renamed
    /// NAME.moved-TICKET, and never restarted (the default)
    #[arg(long, conflicts_with = "remove_source")]
    keep_source: bool,
    /// Remove the container here once it has moved; its volumes stay
    #[arg(long)]
    remove_source: bool,
    /// How much of its memory is kept here for an hour, so that it need not be
    /// sent again should the container come back: auto (a quarter of what is
    /// free), off, or a size such as 2GiB
    #[arg(long, value_name = "auto|off|SIZE", value_parser = keep, default_value = "auto")]
    keep_memory: KeepLimit,
    /// Print events as JSON, one object a line, the report last; `blip help
    /// events` describes them
    #[arg(long)]
    json: bool,
    /// How to show what happens
    #[arg(long, value_enum, default_value_t)]
    progress: show::Progress,
    /// Draw what happened as a picture into this file (SVG)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    goal: GoalArgs,
}

pub(super) async fn run(args: MigrateArgs, places: Places) -> anyhow::Result<ExitCode> {
    let goal = match args.goal.goal_or_code() {
        Ok(goal) => goal,
        Err(code) => return Ok(code),
    };
    let (stop, interrupt) = watch::channel(false);
    tokio::spawn(listen_for_interrupts(stop));
    let order = Order {
        container: args.container,
        target: args.to,
        goal,
        rename: args.rename,
        tracker: args.tracker,
        binds: args.binds,
        keep_address: args.keep_address,
        unaccepted: args.unaccepted,
        restore: args.restore,
        tcp: args.tcp,
        forward: args.forward.filter(|time| !time.is_zero()),
        remove_source: args.remove_source,
        keep: args.keep_memory,
        identity: places.identity,
        state: places.state,
        interrupt,
    };
    let (events, listener) = Events::channel();
    let style = show::Style::new(args.json, args.progress, order.goal.downtime);
    let shown = tokio::spawn(show::show(listener, style));
    let result = migrate(order, events).await;
    let shown = shown.await?;
    if let Some(path) = &args.report
        && let Err(error) = std::fs::write(path, timeline::svg(&shown))
    {
        eprintln!("blip: cannot draw into {path:?}: {error}");
    }
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
    show::say("stopping: the container stays here, unless the target owns it already");
    let _ = stop.send(true);
    // Kept until the end: a dropped sender would read as another interrupt.
    std::future::pending::<()>().await;
}
