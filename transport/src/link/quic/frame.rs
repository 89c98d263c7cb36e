//! Frames: a little-endian `u32` length, then that many bytes.

use super::pacer::{PIECE, Paced};
use crate::link::{LinkError, LostWhy, error::clean};
use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;

/// Bytes of a frame's length.
const LENGTH: usize = size_of::<u32>();

/// Pieces taken from quinn under one lock.
const CHUNKS_AT_ONCE: usize = 32;

/// Code of a stream given up by its sender.
pub(super) const ABANDONED: VarInt = VarInt::from_u32(1);
/// Code of a stream its receiver cannot make sense of.
const REJECTED: VarInt = VarInt::from_u32(2);

/// Cuts a stream into frames. Cancel-safe: what has come stays here.
pub(super) struct FrameReader {
    stream: RecvStream,
    name: &'static str,
    limit: usize,
    /// Received, not yet part of a frame.
    chunks: VecDeque<Bytes>,
    buffered: usize,
    /// The frame being filled, and its final length.
    frame: Option<(BytesMut, usize)>,
    /// A stream that failed once is out of step for good.
    failed: Option<LinkError>,
}

impl FrameReader {
    pub(super) fn new(stream: RecvStream, name: &'static str, limit: usize) -> Self {
        let (chunks, frame, failed) = (VecDeque::new(), None, None);
        Self { stream, name, limit, chunks, buffered: 0, frame, failed }
    }

    /// Goes on under another name and limit: after a header has told more.
    pub(super) fn becomes(&mut self, name: &'static str, limit: usize) {
        self.name = name;
        self.limit = limit;
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The next frame; `None` if the sender finished after the last one.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.read().await;
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            let _ = self.stream.stop(REJECTED);
        }
        result
    }

    /// The next frame, where one must come.
    pub(super) async fn expect(&mut self) -> Result<Bytes, LinkError> {
        self.next().await?.ok_or(LinkError::Ended { stream: self.name })
    }

    async fn read(&mut self) -> Result<Option<Bytes>, LinkError> {
        loop {
            if let Some(frame) = self.assemble()? {
                return Ok(Some(frame));
            }
            let mut chunks: [Bytes; CHUNKS_AT_ONCE] = Default::default();
            match self.stream.read_chunks(&mut chunks).await {
                Ok(Some(count)) => {
                    for chunk in chunks.into_iter().take(count) {
                        self.buffered += chunk.len();
                        self.chunks.push_back(chunk);
                    }
                }
                Ok(None) if self.frame.is_none() && self.buffered == 0 => return Ok(None),
                Ok(None) => return Err(LinkError::Truncated { stream: self.name }),
                Err(error) => return Err(read_failed(error, self.name)),
            }
        }
    }

    /// Builds a frame from what has come, if that is enough.
    fn assemble(&mut self) -> Result<Option<Bytes>, LinkError> {
        if self.frame.is_none() {
            let Some(length) = self.take_length() else { return Ok(None) };
            if length > self.limit {
                let (size, limit) = (length as u64, self.limit as u64);
                return Err(LinkError::FrameTooBig { stream: self.name, size, limit });
            }
            self.frame = Some((BytesMut::with_capacity(length), length));
        }
        let Some((mut body, length)) = self.frame.take() else { return Ok(None) };
        while body.len() < length {
            let Some(mut chunk) = self.chunks.pop_front() else {
                self.frame = Some((body, length));
                return Ok(None);
            };
            let part = chunk.split_to(chunk.len().min(length - body.len()));
            body.extend_from_slice(&part);
            self.buffered -= part.len();
            if !chunk.is_empty() {
                self.chunks.push_front(chunk);
            }
        }
        Ok(Some(body.freeze()))
    }

    fn take_length(&mut self) -> Option<usize> {
        if self.buffered < LENGTH {
            return None;
        }
        let mut length = [0; LENGTH];
        for byte in &mut length {
            while self.chunks.front()?.is_empty() {
                self.chunks.pop_front();
            }
            let chunk = self.chunks.front_mut()?;
            *byte = chunk[0];
            let _ = chunk.split_to(1);
        }
        self.buffered -= LENGTH;
        usize::try_from(u32::from_le_bytes(length)).ok()
    }
}

/// Writes frames to a stream.
pub(super) struct FrameWriter {
    stream: SendStream,
    name: &'static str,
    limit: usize,
    /// A frame has been begun and not ended.
    midway: bool,
    /// What it waits for, if the connection has a ceiling.
    paced: Option<Paced>,
}

impl FrameWriter {
    pub(super) fn new(stream: SendStream, name: &'static str, limit: usize, priority: i32) -> Self {
        // Fails only on a closed stream, which the first write reports better.
        let _ = stream.set_priority(priority);
        Self { stream, name, limit, midway: false, paced: None }
    }

    /// Keeps to the connection's ceiling from now on.
    pub(super) fn paced(mut self, paced: Paced) -> Self {
        self.paced = Some(paced);
        self
    }

    pub(super) fn becomes(&mut self, name: &'static str, limit: usize) {
        self.name = name;
        self.limit = limit;
    }

    /// Sends `prefix` and `body` as one frame; returns when QUIC holds it.
    pub(super) async fn send(&mut self, prefix: &[u8], body: Bytes) -> Result<(), LinkError> {
        let size = prefix.len() + body.len();
        if size > self.limit {
            let (size, limit) = (size as u64, self.limit as u64);
            return Err(LinkError::FrameTooBig { stream: self.name, size, limit });
        }
        if self.midway {
            return Err(LinkError::HalfSent { stream: self.name });
        }
        // Every limit is far below 4 GiB.
        let length = size as u32;
        let mut head = BytesMut::with_capacity(LENGTH + prefix.len());
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(prefix);
        self.midway = true;
        let written = self.write(head.freeze(), body).await;
        self.midway = false;
        written.map_err(|error| write_failed(error, self.name))
    }

    async fn write(&mut self, head: Bytes, mut body: Bytes) -> Result<(), WriteError> {
        let Some(paced) = self.paced.as_ref().filter(|paced| paced.is_on()) else {
            return self.stream.write_all_chunks(&mut [head, body]).await;
        };
        paced.take(head.len()).await;
        self.stream.write_chunk(head).await?;
        while !body.is_empty() {
            let piece = body.split_to(body.len().min(PIECE));
            paced.take(piece.len()).await;
            self.stream.write_chunk(piece).await?;
        }
        Ok(())
    }

    /// Sends `message` as one frame of postcard after `prefix`.
    pub(super) async fn send_message<T: Serialize + ?Sized>(
        &mut self,
        message: &T,
    ) -> Result<(), LinkError> {
        let body = encode(message, self.name)?;
        self.send(&[], body).await
    }

    /// Nothing more will come. What was sent is still delivered.
    pub(super) fn finish(&mut self) {
        if self.midway {
            let _ = self.stream.reset(ABANDONED);
        } else {
            let _ = self.stream.finish();
        }
    }

    /// Finishes, and waits until the other host's QUIC has everything.
    pub(super) async fn finish_delivered(&mut self) -> Result<(), LinkError> {
        self.finish();
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(LinkError::NotWanted { stream: self.name }),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(lost(error)),
            Err(_) => Err(LinkError::Ended { stream: self.name }),
        }
    }

    /// The stream itself, to misbehave on.
    #[cfg(test)]
    pub(super) fn raw(&mut self) -> &mut SendStream {
        &mut self.stream
    }

    /// Gives the stream up; the receiver sees that it is incomplete.
    pub(super) fn abandon(&mut self) {
        let _ = self.stream.reset(ABANDONED);
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        // Left alone, quinn would finish the stream as if the frame were whole.
        if self.midway {
            self.abandon();
        }
    }
}

pub(super) fn encode<T: Serialize + ?Sized>(
    message: &T,
    stream: &'static str,
) -> Result<Bytes, LinkError> {
    postcard::to_stdvec(message)
        .map(Bytes::from)
        .map_err(|e| LinkError::Malformed { stream, why: e.to_string() })
}

pub(super) fn decode<T: DeserializeOwned>(
    bytes: &[u8],
    stream: &'static str,
) -> Result<T, LinkError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => {
            Err(LinkError::Malformed { stream, why: format!("{} bytes too many", rest.len()) })
        }
        Err(error) => Err(LinkError::Malformed { stream, why: error.to_string() }),
    }
}

/// A broken connection, told as a [`LinkError`].
pub(super) fn lost(error: ConnectionError) -> LinkError {
    LinkError::ConnectionLost { why: why_lost(error) }
}

pub(super) fn why_lost(error: ConnectionError) -> LostWhy {
    match error {
        ConnectionError::TimedOut => LostWhy::TimedOut,
        ConnectionError::Reset => LostWhy::Reset,
        ConnectionError::LocallyClosed => LostWhy::ClosedHere,
        ConnectionError::ApplicationClosed(close) => LostWhy::ClosedByPeer {
            code: close.error_code.into_inner(),
            reason: clean(&close.reason),
        },
        ConnectionError::ConnectionClosed(close) => {
            LostWhy::Protocol(clean(close.to_string().as_bytes()))
        }
        other => LostWhy::Protocol(other.to_string()),
    }
}

fn read_failed(error: ReadError, stream: &'static str) -> LinkError {
    match error {
        ReadError::ConnectionLost(error) => lost(error),
        ReadError::Reset(_) => LinkError::Abandoned { stream },
        _ => LinkError::Ended { stream },
    }
}

fn write_failed(error: WriteError, stream: &'static str) -> LinkError {
    match error {
        WriteError::ConnectionLost(error) => lost(error),
        WriteError::Stopped(_) => LinkError::NotWanted { stream },
        _ => LinkError::Ended { stream },
    }
}
