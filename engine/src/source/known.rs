//! What the target holds of the container from an earlier time.

use super::peer::PeerError;
use crate::protocol::Remembered;
use blip_transport::files::Manifest;
use blip_transport::link::LinkError;
use blip_transport::link::quic::{BulkReceiver, Connection, StreamKind};
use blip_transport::units::{ByteSize, TreeId};
use blip_transport::wire::{DecodedBatch, decode};
use std::collections::BTreeMap;

/// A list longer than this is not read: 32 bytes a page, of 256 GiB.
const MOST: ByteSize = ByteSize(2 << 30);

/// What need not be sent.
#[derive(Debug, Default)]
pub struct Known {
    /// Pages, by the names of their contents.
    pub pages: Vec<DecodedBatch>,
    /// Files, as they are there.
    pub trees: BTreeMap<TreeId, Manifest>,
    /// What the lists of all this took.
    pub lists: ByteSize,
}

impl Known {
    /// Receives what the target says it remembers.
    pub async fn receive(remembered: Remembered, link: &Connection) -> Result<Self, PeerError> {
        let mut known = Self::default();
        for _ in 0..remembered.trees + u32::from(remembered.pages) {
            let stream = link.accept_bulk().await?;
            match stream.kind() {
                StreamKind::Files(tree, _) => known.files(tree, stream).await?,
                StreamKind::Pages(_) => known.pages(stream).await?,
                other => return Err(PeerError::OutOfTurn(format!("a stream of {other:?}"))),
            }
        }
        Ok(known)
    }

    /// Whether the target holds anything.
    pub fn is_nothing(&self) -> bool {
        self.lists == ByteSize(0)
    }

    async fn files(&mut self, tree: TreeId, mut stream: BulkReceiver) -> Result<(), PeerError> {
        let mut list = Vec::new();
        while let Some(part) = stream.recv().await? {
            self.count(part.len())?;
            list.extend_from_slice(&part);
        }
        let manifest = Manifest::from_bytes(&list).map_err(malformed)?;
        self.trees.insert(tree, manifest);
        Ok(())
    }

    async fn pages(&mut self, mut stream: BulkReceiver) -> Result<(), PeerError> {
        while let Some(frame) = stream.recv().await? {
            self.count(frame.len())?;
            self.pages.push(decode(frame).map_err(malformed)?);
        }
        Ok(())
    }

    fn count(&mut self, bytes: usize) -> Result<(), PeerError> {
        self.lists += ByteSize(bytes as u64);
        if self.lists > MOST { Err(malformed("it is too long")) } else { Ok(()) }
    }
}

fn malformed(why: impl ToString) -> PeerError {
    LinkError::Malformed { stream: "what the target holds", why: why.to_string() }.into()
}
