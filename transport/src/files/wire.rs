//! The stream's grammar, its records and its frames. Pure.
//!
//! A frame is one byte of form, for compressed ones the plain length (`u32`,
//! little-endian), and the body: records one after the other, each a postcard
//! header, [`Record::Data`] followed by its raw bytes. No record crosses a
//! frame. A stream reads
//!
//! ```text
//! stream  := change* End
//! change  := Dir | Symlink | Node | HardLink | Remove | Meta
//!          | File (Hole | Data)* Close
//! ```
//!
//! **Invariant**: nothing is reserved for a length before it was compared with
//! its limit, and what decodes is valid on its own; the order of records is
//! the applier's to check.

use super::path::RelPath;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::io;

/// Most bytes a frame's body may have before compression.
pub const MAX_BODY: usize = 1 << 20;
/// Most bytes of a whole frame.
pub const MAX_FRAME: usize = MAX_BODY + 5;
/// A body this large is sent without waiting for more.
const FULL: usize = 512 * 1024;
/// Most content one [`Record::Data`] may carry.
pub const MAX_DATA: usize = super::BLOCK as usize;
/// Longest value of an extended attribute, as Linux has it.
pub const MAX_XATTR_VALUE: usize = 64 * 1024;
/// Longest target of a symbolic link.
const MAX_TARGET: usize = 4095;
/// Frames sent plain after one that did not shrink, before trying again.
const PATIENCE: u32 = 7;

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
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

/// A time of a file, in seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds below a second.
    pub nanos: u32,
}

/// An extended attribute, raw: capabilities and ACLs are among them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// Its full name, such as `security.capability`.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Its value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// What a file carries beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permissions with set-user-ID, set-group-ID and sticky bits: `0o7777`.
    pub mode: u32,
    /// Owner, in the host's numbering.
    pub uid: u32,
    /// Group, in the host's numbering.
    pub gid: u32,
    /// Last access.
    pub atime: Time,
    /// Last modification.
    pub mtime: Time,
    /// All attributes that travel; others on the target go.
    pub xattrs: Vec<Xattr>,
}

/// What a file's new content builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Base {
    /// Nothing: whatever is there goes, and all links to it stay with the rest.
    Nothing,
    /// The file that is there, as an earlier round left it.
    Present,
}

/// A node without content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device with major and minor number.
    CharDevice(u32, u32),
    /// A block device with major and minor number.
    BlockDevice(u32, u32),
}

/// One step of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A directory is there; with `clear`, nothing that was in it before.
    Dir {
        /// Where; the root is allowed without `clear`.
        path: RelPath,
        /// Whether what the target has in it is to go first.
        clear: bool,
        /// Set after everything else, so that its times hold.
        meta: Meta,
    },
    /// A file's content follows, up to its [`Record::Close`].
    File {
        /// Where.
        path: RelPath,
        /// Its size in bytes from now on.
        size: u64,
        /// What the content builds on.
        base: Base,
    },
    /// A range of the open file that holds nothing.
    Hole {
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Content of the open file; that many raw bytes follow the record.
    Data {
        /// First byte.
        offset: u64,
        /// How many bytes, at most [`MAX_DATA`].
        len: u32,
    },
    /// The open file is complete.
    Close {
        /// Set after the content, which would undo some of it.
        meta: Meta,
    },
    /// Something present changed in its metadata only.
    Meta {
        /// Where.
        path: RelPath,
        /// Its new metadata.
        meta: Meta,
    },
    /// A symbolic link.
    Symlink {
        /// Where.
        path: RelPath,
        /// What it says; never looked up.
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
        /// Its metadata; the mode has no meaning.
        meta: Meta,
    },
    /// A device, pipe or socket.
    Node {
        /// Where.
        path: RelPath,
        /// What.
        kind: NodeKind,
        /// Its metadata.
        meta: Meta,
    },
    /// Another name of a file named before.
    HardLink {
        /// The new name.
        path: RelPath,
        /// The name it shares its file with.
        to: RelPath,
    },
    /// Nothing is there, nor beneath it.
    Remove {
        /// Where.
        path: RelPath,
    },
    /// The stream is complete.
    End,
}

/// Why bytes are no frame of a file stream.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Too large, before or after compression.
    #[error("a frame of the file stream claims {claimed} bytes, at most {MAX_BODY} are allowed")]
    TooLarge {
        /// The length it claims or has.
        claimed: usize,
    },
    /// Not a frame at all, or a broken one.
    #[error("a frame of the file stream is malformed: {what}; the peer is broken or hostile")]
    Malformed {
        /// What did not hold.
        what: &'static str,
    },
}

fn malformed(what: &'static str) -> WireError {
    WireError::Malformed { what }
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

fn validate(record: &Record) -> Result<(), WireError> {
    let range = |offset: u64, len: u64| {
        // Kernel offsets are signed.
        let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
        if len == 0 || end.is_none() {
            return Err(malformed("an impossible range"));
        }
        Ok(())
    };
    match record {
        Record::File { path, size, .. } => {
            below_root(path)?;
            i64::try_from(*size).map(drop).map_err(|_| malformed("an impossible size"))
        }
        Record::Hole { offset, len } => range(*offset, *len),
        Record::Data { offset, len } => {
            if *len as usize > MAX_DATA {
                return Err(malformed("more content in one record than allowed"));
            }
            range(*offset, u64::from(*len))
        }
        Record::Dir { path, clear, meta } => {
            if *clear {
                below_root(path)?;
            }
            valid_meta(meta)
        }
        Record::Close { meta } | Record::Meta { meta, .. } => valid_meta(meta),
        Record::Symlink { path, target, meta } => {
            below_root(path)?;
            if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                return Err(malformed("an impossible link target"));
            }
            valid_meta(meta)
        }
        Record::Node { path, meta, .. } => {
            below_root(path)?;
            valid_meta(meta)
        }
        Record::HardLink { path, to } => {
            below_root(path)?;
            below_root(to)?;
            if path == to {
                return Err(malformed("a file linked to itself"));
            }
            Ok(())
        }
        Record::Remove { path } => below_root(path),
        Record::End => Ok(()),
    }
}

fn below_root(path: &RelPath) -> Result<(), WireError> {
    if path.is_root() { Err(malformed("the root where it cannot be")) } else { Ok(()) }
}

fn valid_meta(meta: &Meta) -> Result<(), WireError> {
    if meta.mode & !0o7777 != 0 {
        return Err(malformed("impossible permissions"));
    }
    if meta.atime.nanos >= 1_000_000_000 || meta.mtime.nanos >= 1_000_000_000 {
        return Err(malformed("an impossible time"));
    }
    // All ones means "leave as it is" to chown.
    if meta.uid == u32::MAX || meta.gid == u32::MAX {
        return Err(malformed("an impossible owner"));
    }
    for xattr in &meta.xattrs {
        let name = &xattr.name;
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(malformed("an impossible attribute name"));
        }
        if xattr.value.len() > MAX_XATTR_VALUE {
            return Err(malformed("an impossible attribute value"));
        }
    }
    Ok(())
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
            plain_for: 0,
            totals: WireTotals::default(),
        })
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
        if self.plain_for == 0 {
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
            self.plain_for -= 1;
        }
        let mut frame = Vec::with_capacity(self.body.len() + 1);
        frame.push(PLAIN);
        frame.extend_from_slice(&self.body);
        Ok(frame.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    fn written(records: &[(Record, Vec<u8>)]) -> Vec<Bytes> {
        let mut frames = Vec::new();
        let mut sink = |frame| {
            frames.push(frame);
            Ok(())
        };
        let mut writer = FrameWriter::new(&mut sink).unwrap();
        for (record, data) in records {
            writer.put(record, data).unwrap();
        }
        writer.end().unwrap();
        frames
    }

    fn read(frames: &[Bytes]) -> Vec<(Record, Vec<u8>)> {
        let mut all = Vec::new();
        for frame in frames {
            assert!(frame.len() <= MAX_FRAME);
            for item in records(&open(frame).unwrap()) {
                let (record, data) = item.unwrap();
                all.push((record, data.to_vec()));
            }
        }
        all
    }

    #[test]
    fn records_and_content_come_back_in_order_across_frames() {
        let mut sent = vec![(
            Record::File { path: path("a"), size: 1 << 30, base: Base::Nothing },
            Vec::new(),
        )];
        for block in 0..40u64 {
            let noise: Vec<u8> =
                (0..MAX_DATA as u64).map(|i| (i * i * 31 + block * 7 + (i >> 3)) as u8).collect();
            let len = MAX_DATA as u32;
            sent.push((Record::Data { offset: block * MAX_DATA as u64, len }, noise));
        }
        sent.push((Record::Close { meta: Meta::default() }, Vec::new()));
        let frames = written(&sent);
        assert!(frames.len() > 1);
        sent.push((Record::End, Vec::new()));
        assert_eq!(read(&frames), sent);
    }

    #[test]
    fn a_record_larger_than_a_frame_is_refused_by_the_writer() {
        let xattr = Xattr { name: b"user.x".to_vec(), value: vec![1; MAX_XATTR_VALUE] };
        let meta = Meta { xattrs: vec![xattr; 17], ..Meta::default() };
        let mut sink = |_| Ok(());
        let mut writer = FrameWriter::new(&mut sink).unwrap();
        let error = writer.put(&Record::Meta { path: path("a"), meta }, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn impossible_records_do_not_decode() {
        let bad = [
            Record::Remove { path: RelPath::root() },
            Record::Dir { path: RelPath::root(), clear: true, meta: Meta::default() },
            Record::HardLink { path: path("a"), to: path("a") },
            Record::Hole { offset: u64::MAX, len: 2 },
            Record::Hole { offset: 0, len: 0 },
            Record::Data { offset: 0, len: MAX_DATA as u32 + 1 },
            Record::File { path: path("a"), size: u64::MAX, base: Base::Nothing },
            Record::Symlink { path: path("a"), target: vec![], meta: Meta::default() },
            Record::Close { meta: Meta { mode: 0o10000, ..Meta::default() } },
            Record::Close { meta: Meta { uid: u32::MAX, ..Meta::default() } },
        ];
        for record in bad {
            let mut bytes = postcard::to_stdvec(&record).unwrap();
            bytes.resize(bytes.len() + MAX_DATA + 1, 0);
            assert!(records(&bytes).next().unwrap().is_err(), "{record:?}");
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_unpacked() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        for claim in [64u32 << 20, 1000] {
            let mut frame = vec![ZSTD];
            frame.extend_from_slice(&claim.to_le_bytes());
            frame.extend_from_slice(&bomb);
            assert!(open(&frame).is_err());
        }
        assert!(open(&vec![PLAIN; MAX_FRAME + 1]).is_err());
        assert!(open(&[]).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(form in 0u8..3, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut frame = vec![form];
            frame.extend_from_slice(&bytes);
            if let Ok(body) = open(&frame) {
                for _ in records(&body) {}
            }
        }
    }
}
