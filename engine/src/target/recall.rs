//! What this host still has of a container that left it and now comes back.
//!
//! Its memory as it was, if it was kept; its volumes, which are still there;
//! and its writable layer, which is copied into the new container's. The source
//! is told of all of it by the names of contents, and sends only what differs.

use super::intake::{Intake, write};
use super::stage::docker_own;
use crate::docker::Docker;
use crate::handover::Ticket;
use crate::kept;
use crate::ledger::{Departed, Ledger};
use crate::mounts::Origin;
use crate::protocol::StageRequest;
use crate::source::files::LAYER;
use blip_transport::files::{
    Apply, ApplyError, ApplyOptions, Exclude, Manifest, Marks, Room, ScanError, Scanner, Tree,
};
use blip_transport::link::LinkError;
use blip_transport::link::quic::{Connection, MAX_BULK_FRAME, Priority, StreamKind};
use blip_transport::store::{PageStore, StoreError};
use blip_transport::units::{ByteSize, Round, TreeId};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why something that is still here cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecallError {
    /// The memory that was kept, or a directory.
    #[error("cannot use what was left here: {0}")]
    Left(#[from] io::Error),
    /// It is too much.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Files that were left here.
    #[error("cannot read the files that were left here: {0}")]
    Scan(#[from] ScanError),
    /// The new container's files.
    #[error("cannot copy the files that were left here: {0}")]
    Apply(#[from] ApplyError),
    /// A thread of ours panicked.
    #[error("a worker panicked: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

/// What this host has of a container before anything is sent.
#[derive(Debug, Default)]
pub struct Recalled {
    /// Its memory is in the store.
    pub pages: bool,
    /// What its trees of files hold.
    pub trees: BTreeMap<TreeId, Manifest>,
}

/// Takes the memory that was kept into the store. Without it, or without room
/// for it, the store stays empty.
pub fn pages(intake: &Intake, ticket: Option<Ticket>, limit: ByteSize) -> bool {
    let Some(ticket) = ticket else { return false };
    let mut store = PageStore::new(limit);
    let taken = kept::recall(ticket, |batch| store.recall(batch).map_err(RecallError::from));
    match taken {
        Ok(found) => {
            if found {
                *write(&intake.store) = store;
            }
            found
        }
        Err(error) => {
            tracing::warn!("all memory is sent again: {error}");
            false
        }
    }
}

/// What is left here of the container that comes back, if nobody has touched
/// it.
pub async fn remains(docker: &Docker, state: &Path, ticket: Option<Ticket>) -> Option<Departed> {
    let departed = Ledger::open(&state.join("departed")).ok()?.load::<Departed>(ticket?).ok()??;
    let there = docker.inspect(&departed.container).await.ok()?;
    (!there.running).then_some(departed)
}

/// Brings every tree as near to what comes as this host can, and says what it
/// holds. `places` are the trees' roots in the new container.
pub async fn trees(
    request: &StageRequest,
    departed: Option<&Departed>,
    places: &BTreeMap<TreeId, PathBuf>,
    mounted: &[PathBuf],
) -> Result<BTreeMap<TreeId, Manifest>, RecallError> {
    let mut jobs = Vec::new();
    for mount in &request.mounts {
        let Some((tree, place)) = mount.tree.and_then(|id| Some((id, places.get(&id)?))) else {
            continue;
        };
        if matches!(mount.origin, Origin::Path { directory: false, .. }) {
            continue;
        }
        let left = departed.and_then(|departed| departed.remains.places.get(&mount.destination));
        jobs.push((tree, left.cloned(), place.clone()));
    }
    let layer = departed.and_then(|departed| departed.remains.upper.clone());
    if let (Some(upper), Some(place)) = (layer, places.get(&LAYER)) {
        jobs.push((LAYER, Some(upper), place.clone()));
    }
    let own = docker_own(mounted);
    let working = tokio::task::spawn_blocking(move || {
        let done = jobs.into_iter().map(|(tree, left, place)| {
            let kind = if tree == LAYER { Tree::Upper(Marks::Trusted) } else { Tree::Plain };
            let keep = if tree == LAYER { own.clone() } else { Exclude::default() };
            bring(left.as_deref(), kind, keep, &place).map(|manifest| (tree, manifest))
        });
        done.collect()
    });
    working.await?
}

/// Brings one tree to `place`, where it may be already.
fn bring(
    left: Option<&Path>,
    kind: Tree,
    keep: Exclude,
    place: &Path,
) -> Result<Manifest, RecallError> {
    let Some(left) = left.filter(|left| *left != place && left.is_dir()) else {
        if kind != Tree::Plain {
            return Ok(Manifest::empty());
        }
        return Ok(Scanner::open(place, kind, keep)?.survey()?);
    };
    if kind == Tree::Plain {
        // What Docker put into a new volume from the image.
        super::mounts::clear(place)?;
    }
    let scanner = Scanner::open(left, kind, keep.clone())?;
    let options = ApplyOptions { allow_devices: true, room: Room::UNLIMITED, keep };
    let mut apply = Apply::open(place, options)?;
    let mut failed = None;
    let copied = scanner.copy_to(&mut |frame: Bytes| {
        apply.frame(&frame).map_err(|error| {
            let told = io::Error::other(error.to_string());
            failed = Some(error);
            told
        })
    });
    match (failed, copied) {
        (Some(error), _) => Err(error.into()),
        (None, copied) => {
            let manifest = copied?;
            apply.finish()?;
            Ok(manifest)
        }
    }
}

/// Tells the source what is here, each on a stream of its own.
pub async fn tell(
    recalled: Recalled,
    intake: Arc<Intake>,
    link: Connection,
) -> Result<(), LinkError> {
    for (tree, manifest) in &recalled.trees {
        let mut list = Bytes::from(manifest.to_bytes());
        let kind = StreamKind::Files(*tree, Round(0));
        let mut stream = link.open_bulk(kind, Priority::BULK).await?;
        while !list.is_empty() {
            stream.send(list.split_to(list.len().min(MAX_BULK_FRAME))).await?;
        }
        stream.finish();
    }
    if recalled.pages {
        let mut list = Vec::new();
        super::intake::read(&intake.store).inventory(|batch| list.push(batch.into_bytes()));
        let mut stream = link.open_bulk(StreamKind::Pages(Round(0)), Priority::BULK).await?;
        for batch in list {
            stream.send(batch).await?;
        }
        stream.finish();
    }
    Ok(())
}

/// The container is back: what was left of it is of no more use, if nobody gave
/// it a name of its own.
pub async fn superseded(docker: &Docker, state: &Path, ticket: Option<Ticket>) {
    let Some(ticket) = ticket else { return };
    kept::forget(ticket);
    let Some(departed) = remains(docker, state, Some(ticket)).await else { return };
    let mark = format!(".moved-{}", &ticket.to_string()[..8]);
    let named = docker.inspect(&departed.container).await;
    if !named.is_ok_and(|found| found.name.ends_with(&mark)) {
        return;
    }
    match docker.discard(&departed.container).await {
        Ok(()) => {
            let ledger = Ledger::open(&state.join("departed"));
            let _ = ledger.and_then(|ledger| ledger.remove(ticket));
        }
        Err(error) => tracing::warn!("what was left here stays: {error}"),
    }
}
