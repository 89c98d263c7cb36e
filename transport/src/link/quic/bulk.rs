//! Bulk streams: many frames one way, below everything urgent.

use super::frame::{FrameReader, FrameWriter, decode};
use super::pacer::Paced;
use super::settings::Priority;
use crate::link::LinkError;
use crate::units::{Round, TreeId};
use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use serde::{Deserialize, Serialize};

/// Largest bulk frame. 256 KiB and more keep the cost per frame negligible.
pub const MAX_BULK_FRAME: usize = 2 << 20;

/// Largest head of a bulk stream, encoded.
const MAX_HEAD: usize = 64;

/// What a bulk stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamKind {
    /// Page batches of one round.
    Pages(Round),
    /// What changed in one tree of files. A tree's rounds are counted from 0
    /// and have to be applied in this order.
    Files(TreeId, Round),
    /// The archive of an image.
    Image,
    /// Named blobs: read them with [`BlobReceiver`](super::BlobReceiver).
    Blobs,
}

impl StreamKind {
    fn name(self) -> &'static str {
        match self {
            Self::Pages(_) => "pages",
            Self::Files(..) => "files",
            Self::Image => "image",
            Self::Blobs => "blobs",
        }
    }
}

/// Sends the frames of one bulk stream. Dropped before [`finish`](Self::finish),
/// it tells the receiver that the stream is incomplete.
pub struct BulkSender {
    frames: FrameWriter,
    finished: bool,
}

impl BulkSender {
    pub(super) async fn open(
        stream: SendStream,
        kind: StreamKind,
        priority: Priority,
        paced: Paced,
    ) -> Result<Self, LinkError> {
        let writer = FrameWriter::new(stream, kind.name(), MAX_HEAD, priority.0);
        let mut frames = writer.paced(paced);
        frames.send_message(&kind).await?;
        frames.becomes(kind.name(), MAX_BULK_FRAME);
        Ok(Self { frames, finished: false })
    }

    /// Sends one frame; waits while the receiver's window is full. Not
    /// cancel-safe: see [the module](super).
    ///
    /// # Errors
    /// The connection is lost, the receiver reads no more, or the frame
    /// exceeds [`MAX_BULK_FRAME`].
    pub async fn send(&mut self, frame: Bytes) -> Result<(), LinkError> {
        self.frames.send(&[], frame).await
    }

    /// Marks the stream as complete. Delivery goes on in the background; that
    /// the receiver has *used* it, only a control message can tell.
    pub fn finish(mut self) {
        self.frames.finish();
        self.finished = true;
    }

    pub(super) async fn send_message<T: Serialize>(
        &mut self,
        message: &T,
    ) -> Result<(), LinkError> {
        self.frames.send_message(message).await
    }
}

impl Drop for BulkSender {
    fn drop(&mut self) {
        if !self.finished {
            self.frames.abandon();
        }
    }
}

/// Receives the frames of one bulk stream. Dropping it tells the sender to
/// stop.
pub struct BulkReceiver {
    frames: FrameReader,
    kind: StreamKind,
}

impl BulkReceiver {
    /// A stream whose head has not been read.
    pub(super) fn headless(stream: RecvStream) -> FrameReader {
        FrameReader::new(stream, "bulk", MAX_HEAD)
    }

    /// Reads the head. Cancel-safe as long as `frames` is kept.
    pub(super) async fn read_head(frames: &mut FrameReader) -> Result<StreamKind, LinkError> {
        decode(&frames.expect().await?, frames.name())
    }

    pub(super) fn new(mut frames: FrameReader, kind: StreamKind) -> Self {
        frames.becomes(kind.name(), MAX_BULK_FRAME);
        Self { frames, kind }
    }

    /// What the stream carries.
    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    /// The next frame, at most [`MAX_BULK_FRAME`] bytes; `None` once the
    /// sender has marked the stream complete. Cancel-safe.
    ///
    /// # Errors
    /// The connection is lost, the sender gave up, or a frame is too big.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, LinkError> {
        self.frames.next().await
    }

    pub(super) fn name(&self) -> &'static str {
        self.kind.name()
    }
}
