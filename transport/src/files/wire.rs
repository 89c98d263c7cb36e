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

mod check;
mod frame;

pub use frame::{FrameWriter, Records, Sink, WireTotals, open, records};

use super::path::RelPath;
use serde::{Deserialize, Serialize};

/// Most bytes a frame's body may have before compression.
pub const MAX_BODY: usize = 1 << 20;
/// Most bytes of a whole frame.
pub const MAX_FRAME: usize = MAX_BODY + 5;
/// Most content one [`Record::Data`] may carry.
pub const MAX_DATA: usize = super::BLOCK as usize;
/// Longest value of an extended attribute, as Linux has it.
pub const MAX_XATTR_VALUE: usize = 64 * 1024;
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

#[cfg(test)]
mod tests {
    use super::frame::{PLAIN, ZSTD};
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::io;

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
