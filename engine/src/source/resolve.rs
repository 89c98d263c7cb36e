//! What became of a handover: asking the target, and acting on its word.

use super::peer::{Peer, PeerError};
use super::{farewell, hand};
use crate::cgroup::{Freezer, Version};
use crate::connections;
use crate::docker::{Docker, DockerError, never_restart};
use crate::external;
use crate::handover::{Ticket, Verdict};
use crate::ledger::{Departed, Ledger, SourceRecord};
use crate::network;
use crate::protocol::{ToSource, ToTarget};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;

/// Asks the target at `target`. `None`: it does not know yet.
pub async fn ask(
    target: &str,
    identity: &Path,
    ticket: Ticket,
) -> Result<Option<Verdict>, PeerError> {
    let mut peer = Peer::connect(target, identity).await?;
    peer.say(&ToTarget::Ask(ticket)).await?;
    let answer = peer.hear().await?;
    peer.part().await;
    match answer {
        ToSource::Answer(verdict) => Ok(verdict),
        other => Err(PeerError::OutOfTurn(format!("{other:?}"))),
    }
}

/// The container is dead here and lives elsewhere: it is removed, or renamed so
/// that nobody starts it by its name.
pub async fn put_away(
    docker: &Docker,
    record: &SourceRecord,
    remove: bool,
) -> Result<(), DockerError> {
    docker.wait_ended(&record.container).await?;
    if let Err(DockerError::NoContainer { .. }) = docker.inspect(&record.container).await {
        // Run with --rm.
        return Ok(());
    }
    if remove {
        return docker.remove(&record.container).await;
    }
    let ticket = record.ticket.to_string();
    let name = format!("{}.moved-{}", record.name, &ticket[..8]);
    docker.rename(&record.container, &name).await
}

/// Notes what stays here of a container that moved: its volumes are this
/// host's own should it come back. Worth a warning, no more.
pub fn remember(state: &Path, record: &SourceRecord) {
    let (container, remains) = (record.container.clone(), record.remains.clone());
    let departed = Departed { ticket: record.ticket, container, remains };
    let ledger = Ledger::open(&state.join("departed"));
    if let Err(error) = ledger.and_then(|ledger| ledger.save(record.ticket, &departed)) {
        tracing::warn!("what stays of {} is not on record: {error}", record.name);
    }
}

/// Acts on a verdict for a container that a blip which is gone left frozen.
pub async fn settle(
    docker: &Docker,
    ledger: &Ledger,
    record: &SourceRecord,
    verdict: Verdict,
) -> anyhow::Result<()> {
    if record.by_docker.is_some() {
        match verdict {
            Verdict::Ran => put_away(docker, record, record.remove_source).await?,
            Verdict::NeverRan => {
                external::thaw(docker, record).await.map_err(anyhow::Error::msg)?;
            }
            Verdict::Lost => return Ok(()),
        }
        return Ok(ledger.remove(record.ticket)?);
    }
    let version = if record.unified { Version::V2 } else { Version::V1 };
    let freezer = Freezer { path: record.freezer.clone(), version };
    match verdict {
        Verdict::Ran => {
            docker.set_restart_policy(&record.container, never_restart()).await?;
            if record.close_connections {
                connections::reset(freezer.processes().unwrap_or_default()).await;
            }
            farewell::say(record);
            let forwarder = hand::forward::start(record.forward.as_ref()).await;
            let _ = kill(Pid::from_raw(record.init), Signal::SIGKILL);
            let _ = freezer.thaw();
            put_away(docker, record, record.remove_source).await?;
            hand::forward::opened(forwarder, record.forward.as_ref(), None).await;
        }
        Verdict::NeverRan => {
            network::join(record.init).await?;
            freezer.thaw()?;
        }
        Verdict::Lost => return Ok(()),
    }
    ledger.remove(record.ticket)?;
    Ok(())
}
