//! `blip pair`.

use super::Places;
use blip_transport::identity::{Fingerprint, Identity, PeerName, Peers};
use clap::{Args, Subcommand};
use std::io::{self, Write};
use std::process::ExitCode;

const EXAMPLE: &str = "Both hosts must know each other:
  on a:  blip pair show                  prints a's fingerprint
  on b:  blip pair add FINGERPRINT a     and the other way round";

/// Whom to know.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct PairArgs {
    #[command(subcommand)]
    command: PairCommand,
}

#[derive(Debug, Subcommand)]
enum PairCommand {
    /// Print this host's fingerprint
    Show,
    /// Pin another host's key
    Add {
        /// As `blip pair show` prints it there
        fingerprint: Fingerprint,
        /// A name for it; best the one given to --to
        name: String,
    },
    /// Forget a host
    Remove {
        /// Its name or fingerprint
        who: String,
    },
    /// List the hosts that are known
    List,
}

pub(super) fn run(args: PairArgs, places: &Places) -> anyhow::Result<ExitCode> {
    let directory = &places.identity;
    let mut out = io::stdout();
    match args.command {
        PairCommand::Show => {
            writeln!(out, "{}", Identity::load_or_create(directory)?.fingerprint())?;
        }
        PairCommand::Add { fingerprint, name } => {
            Identity::load_or_create(directory)?;
            Peers::add(directory, &PeerName::new(&name)?, fingerprint)?;
        }
        PairCommand::Remove { who } => {
            Peers::remove(directory, &who)?;
        }
        PairCommand::List => {
            for peer in Peers::load(directory)?.iter() {
                writeln!(out, "{} {}", peer.fingerprint, peer.name.as_str())?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
