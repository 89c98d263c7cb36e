//! The container's writable layer, on its way out.

use crate::target::stage::docker_own;
use blip_transport::files::{Manifest, Marks, Pace, RoundTotals, ScanError, Scanner, Tree};
use blip_transport::link::LinkError;
use blip_transport::link::quic::{Connection, Priority, StreamKind};
use blip_transport::units::Round;
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
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

/// The container's log, so that `docker logs` on the target begins where it
/// began here. Docker only appends to it.
pub struct Log {
    path: PathBuf,
    sent: u64,
}

impl Log {
    /// The log file in which Docker keeps what the container says, if its
    /// driver keeps one.
    pub fn of(path: Option<&str>) -> Option<Self> {
        let path = path.filter(|path| !path.is_empty())?;
        Some(Self { path: path.into(), sent: 0 })
    }

    /// What was added since the last call. A log that cannot be read is not
    /// worth a migration: it ends here.
    pub fn added(&mut self) -> Bytes {
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.sent))?;
            let mut added = Vec::new();
            file.read_to_end(&mut added)?;
            Ok(added)
        });
        let added = read.unwrap_or_else(|error| {
            tracing::warn!("the log {:?} does not travel: {error}", self.path);
            Vec::new()
        });
        self.sent += added.len() as u64;
        added.into()
    }
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
