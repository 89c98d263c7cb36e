//! The container's writable layer, on its way out.

use crate::target::stage::docker_own;
use blip_transport::files::{Manifest, Marks, Pace, RoundTotals, ScanError, Scanner, Tree};
use blip_transport::link::LinkError;
use blip_transport::link::quic::{Connection, Priority, StreamKind};
use blip_transport::units::Round;
use bytes::Bytes;
use std::io;
use std::path::Path;
use tokio::sync::mpsc;

/// What went wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Looking at them.
    #[error("cannot carry the container's files: {0}")]
    Scan(#[from] ScanError),
    /// Sending them.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A thread of ours panicked.
    #[error("the file scanner panicked: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

/// A writable layer and what the target has of it.
pub struct Layer {
    scanner: Scanner,
    known: Manifest,
}

impl Layer {
    /// The layer in `upper`.
    pub fn open(upper: &Path) -> Result<Self, FilesError> {
        let scanner = Scanner::open(upper, Tree::Upper(Marks::Trusted), docker_own(&[]))?;
        Ok(Self { scanner, known: Manifest::empty() })
    }

    /// Sends what changed since the last round.
    pub async fn round(
        mut self,
        round: Round,
        pace: Pace,
        link: &Connection,
    ) -> Result<(Self, RoundTotals), FilesError> {
        let (frames, mut out) = mpsc::channel::<Bytes>(4);
        let scanning = tokio::task::spawn_blocking(move || {
            let mut sink = |frame: Bytes| frames.blocking_send(frame).map_err(io::Error::other);
            let sent = self.scanner.round(&self.known, pace, &mut sink);
            sent.map(|sent| {
                self.known = sent.manifest;
                (self, sent.totals)
            })
        });
        let mut stream = link.open_bulk(StreamKind::Files(round), Priority::AHEAD).await?;
        while let Some(frame) = out.recv().await {
            stream.send(frame).await?;
        }
        let done = scanning.await??;
        stream.finish();
        Ok(done)
    }
}
