//! The command line: what a user types, and what a user reads.

mod agent;
mod forward;
mod goal;
mod migrate;
mod pair;
mod plan;
mod show;
mod status;
mod values;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit codes, as `--help` documents them.
pub mod exit {
    /// What was asked for is done.
    pub const DONE: u8 = 0;
    /// It failed; the container runs where it ran.
    pub const KEPT: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// Something is in the way; nothing was touched.
    pub const BLOCKED: u8 = 3;
    /// The container is frozen here until `blip resolve`.
    pub const IN_DOUBT: u8 = 4;
    /// The user stopped it; the container runs where it ran.
    pub const INTERRUPTED: u8 = 130;
}

const EXIT_CODES: &str = "Exit codes:
  0    done: the container runs on the target
  1    it failed; the container runs here as before
  2    the command line is wrong
  3    something is in the way, named in the message; nothing was touched
  4    in doubt: the container is frozen here until `blip resolve`
  130  interrupted; the container runs here as before";

/// Move a running Docker container to another host; it is gone for a blip.
#[derive(Debug, Parser)]
#[command(name = "blip", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

/// Where blip keeps what it must remember.
#[derive(Clone, Debug, Args)]
struct Places {
    /// Directory of this host's key and its paired hosts
    #[arg(long, global = true, env = "BLIP_IDENTITY", default_value = "/etc/blip")]
    identity: PathBuf,
    /// Directory of what must survive a crash
    #[arg(long, global = true, env = "BLIP_STATE", default_value = "/var/lib/blip")]
    state: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Move a container from this host to a paired one
    #[command(after_help = EXIT_CODES)]
    Migrate(migrate::MigrateArgs),
    /// Forecast what each way of moving a container would take; move nothing
    Plan(plan::PlanArgs),
    /// Wait on this host for containers to arrive
    Agent(agent::AgentArgs),
    /// Make two hosts know each other: without it, no connection
    Pair(pair::PairArgs),
    /// Say what this host can do, and what it lacks
    Check,
    /// List the migrations that are under way, in doubt, and ended
    Status(status::list::StatusArgs),
    /// Ask the target what became of a handover in doubt, and act on it
    Resolve(status::ResolveArgs),
    /// List or end what is forwarded from this host (`migrate --forward`)
    Forward(forward::ForwardArgs),
    /// Describe what `blip migrate --json` prints
    #[command(after_long_help = show::guide::EVENTS)]
    Events,
    /// Stand in for runc (called by Docker)
    #[command(hide = true)]
    Runtime,
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("BLIP_LOG")
        .unwrap_or_else(|_| "warn,blip_engine=info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| show::Stderr).init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error.into()),
    };
    runtime.block_on(run(cli)).unwrap_or_else(|error| complain(&error))
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Migrate(args) => migrate::run(args, cli.places).await,
        Command::Plan(args) => plan::run(args, cli.places).await,
        Command::Agent(args) => agent::run(args, cli.places).await,
        Command::Pair(args) => pair::run(args, &cli.places),
        Command::Check => status::check().await,
        Command::Status(args) => status::list::status(&args, &cli.places),
        Command::Resolve(args) => status::resolve(&args, &cli.places).await,
        Command::Forward(args) => forward::run(args, &cli.places).await,
        Command::Events => {
            println!("{}", show::guide::EVENTS);
            Ok(ExitCode::SUCCESS)
        }
        Command::Runtime => Ok(ExitCode::FAILURE),
    }
}

fn complain(error: &anyhow::Error) -> ExitCode {
    eprintln!("blip: {error:#}");
    ExitCode::from(exit::KEPT)
}
