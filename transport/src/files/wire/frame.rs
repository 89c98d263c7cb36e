//! Frames: made from records, and taken apart again.

use super::check::validate;
use super::{MAX_BODY, MAX_DATA, MAX_FRAME, Record, WireError, malformed};
use bytes::Bytes;
use std::borrow::Cow;
use std::io;

/// A body this large is sent without waiting for more.
const FULL: usize = 512 * 1024;
/// Frames sent plain after one that did not shrink, before trying again.
const PATIENCE: u32 = 7;

pub(super) const PLAIN: u8 = 0;
pub(super) const ZSTD: u8 = 1;
const ZSTD_LEVEL: i32 = 1;

/// Takes frames on their way to the target.
pub trait Sink {
    /// Hands over one frame of at most [`MAX_FRAME`] bytes. May block; an error
    /// ends the round.
    fn frame(&mut self, frame: Bytes) -> io::Result<()>;
}

impl<F: FnMut(Bytes) -> io::Result<()>> Sink for F {
    fn frame(&mut self, frame: Bytes) -> io::Result<()> {
        self(frame)
    }
}

/// A frame's body, decompressed if need be.
pub fn open(frame: &[u8]) -> Result<Cow<'_, [u8]>, WireError> {
    if frame.len() > MAX_FRAME {
        return Err(WireError::TooLarge { claimed: frame.len() });
    }
    match frame {
        [PLAIN, body @ ..] if body.len() > MAX_BODY => {
            Err(WireError::TooLarge { claimed: body.len() })
        }
        [PLAIN, body @ ..] => Ok(Cow::Borrowed(body)),
        [ZSTD, a, b, c, d, body @ ..] => {
            let claimed = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            if claimed > MAX_BODY {
                return Err(WireError::TooLarge { claimed });
            }
            let plain = zstd::bulk::decompress(body, claimed)
                .map_err(|_| malformed("its body does not decompress to its length"))?;
            if plain.len() != claimed {
                return Err(malformed("its body does not decompress to its length"));
            }
            Ok(Cow::Owned(plain))
        }
        _ => Err(malformed("unknown form")),
    }
}

/// The records of a frame's body, one by one, [`Record::Data`] with its bytes
/// and any other with none. Ends after the first error.
pub fn records(body: &[u8]) -> Records<'_> {
    Records { rest: body }
}

/// Iterator of [`records`].
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(Record, &'a [u8]), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = take(self.rest);
        self.rest = item.as_ref().map_or(&[], |(_, _, rest)| rest);
        Some(item.map(|(record, data, _)| (record, data)))
    }
}

type Taken<'a> = (Record, &'a [u8], &'a [u8]);

fn take(body: &[u8]) -> Result<Taken<'_>, WireError> {
    let (record, rest) = postcard::take_from_bytes::<Record>(body)
        .map_err(|_| malformed("a record does not decode"))?;
    validate(&record)?;
    let len = match record {
        Record::Data { len, .. } => len as usize,
        _ => 0,
    };
    let (data, rest) =
        rest.split_at_checked(len).ok_or(malformed("content is shorter than its length"))?;
    Ok((record, data, rest))
}

/// What a [`FrameWriter`] let through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireTotals {
    /// Frames handed to the sink.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Collects records into frames.
pub struct FrameWriter<'a> {
    sink: &'a mut dyn Sink,
    body: Vec<u8>,
    zstd: zstd::bulk::Compressor<'static>,
    /// Whether it pays to compress.
    far: bool,
    /// Frames still to be sent without trying to compress.
    plain_for: u32,
    totals: WireTotals,
}

impl<'a> FrameWriter<'a> {
    /// Writes into `sink`. Fails only if zstd has no memory.
    pub fn new(sink: &'a mut dyn Sink) -> io::Result<Self> {
        Ok(Self {
            sink,
            body: Vec::with_capacity(FULL + 2 * MAX_DATA),
            zstd: zstd::bulk::Compressor::new(ZSTD_LEVEL)?,
            far: true,
            plain_for: 0,
            totals: WireTotals::default(),
        })
    }

    /// The frames stay on this host: compressing them saves nothing.
    pub fn nearby(mut self) -> Self {
        self.far = false;
        self
    }

    /// Adds `record`, with `data` behind it if it is [`Record::Data`].
    ///
    /// Fails with [`io::ErrorKind::InvalidData`] if it is larger than a frame
    /// can be, and with whatever the sink fails with.
    pub fn put(&mut self, record: &Record, data: &[u8]) -> io::Result<()> {
        let start = self.body.len();
        postcard::to_io(record, &mut self.body).map_err(io::Error::other)?;
        self.body.extend_from_slice(data);
        if self.body.len() > MAX_BODY {
            let tail = self.body.split_off(start);
            self.flush()?;
            self.body = tail;
            if self.body.len() > MAX_BODY {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "its attributes do not fit into one frame",
                ));
            }
        }
        if self.body.len() >= FULL { self.flush() } else { Ok(()) }
    }

    /// Ends the stream.
    pub fn end(mut self) -> io::Result<WireTotals> {
        self.put(&Record::End, &[])?;
        self.flush()?;
        Ok(self.totals)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.body.is_empty() {
            return Ok(());
        }
        let frame = self.seal()?;
        self.body.clear();
        self.totals.frames += 1;
        self.totals.bytes += frame.len() as u64;
        self.sink.frame(frame)
    }

    fn seal(&mut self) -> io::Result<Bytes> {
        if self.far && self.plain_for == 0 {
            let packed = self.zstd.compress(&self.body)?;
            if packed.len() < self.body.len() - self.body.len() / 16 {
                let mut frame = Vec::with_capacity(packed.len() + 5);
                frame.push(ZSTD);
                frame.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
                frame.extend_from_slice(&packed);
                return Ok(frame.into());
            }
            self.plain_for = PATIENCE;
        } else {
            self.plain_for = self.plain_for.saturating_sub(1);
        }
        let mut frame = Vec::with_capacity(self.body.len() + 1);
        frame.push(PLAIN);
        frame.extend_from_slice(&self.body);
        Ok(frame.into())
    }
}
