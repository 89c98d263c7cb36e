//! `--restore docker`: the move by Docker's own means, stop-and-copy.
//!
//! `docker checkpoint create` ends the container on the source and leaves its
//! state in files; they cross blip's link with what changed in its file system;
//! `docker start --checkpoint` makes it go on in a container that Docker has
//! created on the target. Nothing stands in for runc there. It is slow, knows no
//! rounds and no `hold`, and works only where Docker still can ([`finding`]).
//!
//! The promises are the same, kept by the same machines
//! ([`handover`](crate::handover)): *frozen* means ended with a checkpoint here,
//! *held* that everything is on the target's disk, *thaw* to start from the
//! checkpoint here. What is weaker: whether the checkpoint can be started is
//! known only after the grant. If it cannot, the target swears that it never
//! ran, and the source starts it again.

mod arrival;
mod departure;

pub use arrival::{remove_leftovers, run as arrive};
pub(crate) use departure::remembered;
pub use departure::{Departure, thaw};

use crate::handover::Ticket;
use crate::protocol::{Finding, HostFacts};
use clap::ValueEnum;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// Who restores the container on the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Restore {
    /// blip, in a container that is staged before the freeze: a short downtime
    #[default]
    Staged,
    /// Docker, by its own checkpoints (experimental, Docker before 28):
    /// stop-and-copy, open connections are not supported
    Docker,
}

/// The first Docker that cannot start a checkpoint of a container with a
/// network: `bind-mount /proc/0/ns/net -> …: no such file or directory`.
const BROKEN_SINCE: u32 = 28;

/// Why Docker on `side` cannot take part.
pub fn finding(facts: &HostFacts, side: &str, networks: bool) -> Option<Finding> {
    let remedy = "leave the restore to blip (--restore staged)";
    let major = facts.docker.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if networks && major.is_some_and(|major| major >= BROKEN_SINCE) {
        let what = format!(
            "Docker {} on the {side} cannot start a container with a network from a checkpoint \
             (bind-mount /proc/0/ns/net)",
            facts.docker
        );
        return Some(Finding::blocker(what, remedy));
    }
    let what = format!("Docker on the {side} has its experimental features off");
    let remedy = "set \"experimental\": true in daemon.json and restart it, or --restore staged";
    (!facts.docker_experimental).then(|| Finding::blocker(what, remedy))
}

/// A file in a checkpoint that is nobody's image.
const MARK: &str = "blip-mark";

/// The name of a migration's checkpoint.
fn checkpoint(ticket: Ticket) -> String {
    format!("blip-{}", &ticket.to_string()[..12])
}

/// Where Docker keeps it.
fn directory(docker_root: &Path, container: &str, ticket: Ticket) -> PathBuf {
    docker_root.join("containers").join(container).join("checkpoints").join(checkpoint(ticket))
}

/// Starts container `id` from its checkpoint in `directory`, where Docker keeps
/// it.
///
/// # Errors
/// With Docker's words.
pub async fn start(id: &str, directory: &Path) -> Result<(), String> {
    mark(directory).map_err(|error| format!("cannot write to {directory:?}: {error}"))?;
    docker(&start_words(id, directory)).await
}

/// The same, for a process without a runtime of tokio's.
///
/// # Errors
/// If it cannot be started.
pub fn start_blocking(id: &str, directory: &Path) -> io::Result<()> {
    mark(directory)?;
    let mut command = std::process::Command::new("docker");
    let status = command.args(start_words(id, directory)).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

fn start_words<'a>(id: &'a str, directory: &'a Path) -> [&'a str; 4] {
    let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ["start", "--checkpoint", name, id]
}

/// Makes a checkpoint unlike any that containerd has: Docker gives it one to
/// start from, and it refuses content that it holds, as it does until it
/// collects the garbage of `checkpoint create` ("content …: already exists").
fn mark(directory: &Path) -> io::Result<()> {
    fs::write(directory.join(MARK), fs::read("/proc/sys/kernel/random/uuid")?)
}

/// `docker …`: the API's client that blip uses knows no checkpoints.
async fn docker(words: &[&str]) -> Result<(), String> {
    let output = Command::new("docker").args(words).stdin(Stdio::null()).output().await;
    let output = output.map_err(|error| format!("cannot run docker: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("docker {} failed: {said}", words[..2.min(words.len())].join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_docker_that_cannot_is_named() {
        let facts = |docker: &str, docker_experimental| HostFacts {
            docker: docker.into(),
            docker_experimental,
            ..HostFacts::default()
        };
        let found = finding(&facts("28.5.2", true), "target", true).unwrap();
        assert!(found.blocks && found.what.contains("28.5.2"), "{found:?}");
        assert!(finding(&facts("26.1.5+dfsg1", true), "target", true).is_none());
        let found = finding(&facts("26.1.5", false), "source", true).unwrap();
        assert!(found.what.contains("experimental"), "{found:?}");
    }
}
