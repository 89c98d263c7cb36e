//! Named blobs: whole files, one after another on a bulk stream.
//!
//! Each is a head (name and length) and then its bytes in frames. A name is
//! one plain path component; a receiver may join it to a directory.

use super::bulk::{BulkReceiver, BulkSender, MAX_BULK_FRAME};
use super::frame::decode;
use crate::link::LinkError;
use crate::units::ByteSize;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest name of a blob: the longest name of a file on Linux.
const MAX_NAME: usize = 255;

/// Bytes per frame of a blob's content.
const PIECE: usize = MAX_BULK_FRAME / 2;

/// A name that is exactly one path component, also when it came from the
/// network: not empty, not `.` or `..`, without `/` or NUL, at most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BlobName(String);

impl BlobName {
    /// `name`, if it is one path component.
    pub fn new(name: &str) -> Option<Self> {
        let plain = !name.is_empty()
            && name.len() <= MAX_NAME
            && !matches!(name, "." | "..")
            && !name.contains(['/', '\0']);
        plain.then(|| Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<BlobName> for String {
    fn from(name: BlobName) -> Self {
        name.0
    }
}

impl TryFrom<String> for BlobName {
    type Error = &'static str;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(&name).ok_or("not a plain file name")
    }
}

/// What comes before a blob's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobHead {
    /// Its name.
    pub name: BlobName,
    /// Its exact length.
    pub size: ByteSize,
}

/// A whole blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its name.
    pub name: BlobName,
    /// Its content.
    pub bytes: Bytes,
}

/// Sends blobs. Dropped before [`finish`](Self::finish), it tells the receiver
/// that the set is incomplete.
pub struct BlobSender(BulkSender);

impl BlobSender {
    pub(super) fn new(stream: BulkSender) -> Self {
        Self(stream)
    }

    /// Sends one blob. Not cancel-safe: see [the module](super).
    ///
    /// # Errors
    /// The connection is lost or the receiver reads no more.
    pub async fn send_file(&mut self, name: &BlobName, mut bytes: Bytes) -> Result<(), LinkError> {
        let head = BlobHead { name: name.clone(), size: ByteSize(bytes.len() as u64) };
        self.0.send_message(&head).await?;
        while !bytes.is_empty() {
            self.0.send(bytes.split_to(bytes.len().min(PIECE))).await?;
        }
        Ok(())
    }

    /// Marks the set as complete; delivery goes on in the background.
    pub fn finish(self) {
        self.0.finish();
    }
}

/// Receives blobs from a stream of kind
/// [`StreamKind::Blobs`](super::StreamKind::Blobs).
pub struct BlobReceiver {
    stream: BulkReceiver,
    /// Bytes of the current blob still to come.
    left: u64,
    /// A blob [`next_whole`](Self::next_whole) was cancelled in.
    partial: Option<(BlobName, Vec<u8>)>,
}

impl BlobReceiver {
    /// Reads `stream` as blobs.
    pub fn new(stream: BulkReceiver) -> Self {
        Self { stream, left: 0, partial: None }
    }

    /// The next blob's head; `None` if the set is complete. What was not read
    /// of the blob before is skipped. Cancel-safe.
    ///
    /// # Errors
    /// The connection is lost, the sender gave up, or the stream is malformed.
    pub async fn next(&mut self) -> Result<Option<BlobHead>, LinkError> {
        while self.chunk().await?.is_some() {}
        let Some(frame) = self.stream.recv().await? else { return Ok(None) };
        let head: BlobHead = decode(&frame, self.stream.name())?;
        self.left = head.size.0;
        Ok(Some(head))
    }

    /// The next piece of the current blob; `None` at its end. Cancel-safe.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, LinkError> {
        if self.left == 0 {
            return Ok(None);
        }
        let stream = self.stream.name();
        let frame = self.stream.recv().await?.ok_or(LinkError::Truncated { stream })?;
        let size = frame.len() as u64;
        if size == 0 || size > self.left {
            let why = format!("a piece of {size} bytes where {} are left", self.left);
            return Err(LinkError::Malformed { stream, why });
        }
        self.left -= size;
        Ok(Some(frame))
    }

    /// The next blob as a whole, if it is no larger than `limit`; `None` if
    /// the set is complete. Cancel-safe.
    ///
    /// # Errors
    /// As [`next`](Self::next); [`LinkError::FrameTooBig`] above `limit`.
    pub async fn next_whole(&mut self, limit: ByteSize) -> Result<Option<Blob>, LinkError> {
        if self.partial.is_none() {
            let Some(head) = self.next().await? else { return Ok(None) };
            if head.size > limit {
                let (size, limit) = (head.size.0, limit.0);
                return Err(LinkError::FrameTooBig { stream: self.stream.name(), size, limit });
            }
            self.partial = Some((head.name, Vec::new()));
        }
        while let Some(piece) = self.chunk().await? {
            if let Some((_, bytes)) = &mut self.partial {
                bytes.extend_from_slice(&piece);
            }
        }
        Ok(self.partial.take().map(|(name, bytes)| Blob { name, bytes: bytes.into() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_get_through() {
        for bad in ["", ".", "..", "a/b", "/etc", "a\0b", &"x".repeat(256)] {
            assert!(BlobName::new(bad).is_none(), "{bad:?}");
            let wire = postcard::to_stdvec(bad).unwrap();
            assert!(postcard::from_bytes::<BlobName>(&wire).is_err(), "{bad:?}");
        }
        for good in ["core-1.img", "..img", "tmpfs-dev-62.tar.gz.img"] {
            let wire = postcard::to_stdvec(good).unwrap();
            assert_eq!(postcard::from_bytes::<BlobName>(&wire).unwrap().as_str(), good);
        }
    }
}
