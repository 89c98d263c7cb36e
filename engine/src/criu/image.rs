//! Reading the image files of a CRIU dump.
//!
//! An image opens with a magic number shared by all of them and one that names
//! its kind (both little endian, `criu/include/magic.h`), followed by entries:
//! a little-endian `u32` length and a protobuf message of that length
//! (`images/*.proto`). Only the messages and fields that blip asks about are
//! described here.
//!
//! **Invariant:** lengths are checked before anything is allocated, so that a
//! damaged image is an error and not a crash.

use prost::Message;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// First number of every image but `inventory.img`.
const COMMON_MAGIC: u32 = 0x5456_4319;
/// No entry that CRIU writes is longer; `mm` of a process with 65,530 mappings
/// has about 5 MiB.
const MAX_ENTRY: usize = 64 << 20;

/// What kind of image a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `pstree.img`: the processes.
    PsTree = 0x5027_3030,
    /// `pagemap-<pid>.img`: which pages a process has, and where they are.
    PageMap = 0x5608_4025,
    /// `mm-<pid>.img`: the mappings of a process.
    Mm = 0x5749_2820,
}

/// An image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be read.
    #[error("cannot read CRIU image {}: {error}", .path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The file is not the image it should be.
    #[error("{} is no intact CRIU image: {what}; dump again", .path.display())]
    Malformed {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl ImageError {
    /// Whether the image does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

/// One process of `pstree.img`. Pids are those inside the container.
#[derive(Clone, PartialEq, Message)]
pub struct PsTreeEntry {
    /// Its pid.
    #[prost(uint32, required, tag = "1")]
    pub pid: u32,
    /// Its parent's pid; 0 for the root.
    #[prost(uint32, required, tag = "2")]
    pub ppid: u32,
    /// Its process group.
    #[prost(uint32, required, tag = "3")]
    pub pgid: u32,
    /// Its session.
    #[prost(uint32, required, tag = "4")]
    pub sid: u32,
    /// Its threads.
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    pub threads: Vec<u32>,
}

/// First message of `pagemap-<pid>.img`.
#[derive(Clone, PartialEq, Message)]
pub struct PageMapHead {
    /// Number of the `pages-<id>.img` that holds the bytes.
    #[prost(uint32, required, tag = "1")]
    pub pages_id: u32,
}

/// A run of pages in `pagemap-<pid>.img`.
#[derive(Clone, PartialEq, Message)]
pub struct PageMapEntry {
    /// Address of the first page.
    #[prost(uint64, required, tag = "1")]
    pub vaddr: u64,
    /// Number of pages in images of CRIU before 4.0.
    #[prost(uint32, required, tag = "2")]
    pub compat_nr_pages: u32,
    /// Lies in the parent image (old images without `flags`).
    #[prost(bool, optional, tag = "3")]
    pub in_parent: Option<bool>,
    /// `PE_*` bits.
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    /// Number of pages.
    #[prost(uint64, optional, tag = "5")]
    pub nr_pages: Option<u64>,
}

impl PageMapEntry {
    /// The pages are in the parent image.
    pub const PARENT: u32 = 1;
    /// The pages may be restored lazily.
    pub const LAZY: u32 = 2;
    /// The pages are in this image.
    pub const PRESENT: u32 = 4;

    /// Number of pages, whichever way it was written.
    pub fn pages(&self) -> u64 {
        self.nr_pages.filter(|&n| n > 0).unwrap_or(u64::from(self.compat_nr_pages))
    }

    /// Whether the pages are in this image.
    pub fn is_present(&self) -> bool {
        self.flags.unwrap_or(0) & Self::PRESENT != 0
    }

    /// Whether the pages are in the parent image.
    pub fn is_in_parent(&self) -> bool {
        self.flags.unwrap_or(0) & Self::PARENT != 0 || self.in_parent == Some(true)
    }

    /// Whether a lazy restore leaves these pages to the lazy-pages server.
    pub fn is_lazy(&self) -> bool {
        self.flags.unwrap_or(0) & Self::LAZY != 0
    }
}

/// `mm-<pid>.img`, as far as blip reads it.
#[derive(Clone, PartialEq, Message)]
pub struct MmEntry {
    /// The mappings, ascending.
    #[prost(message, repeated, tag = "14")]
    pub vmas: Vec<VmaEntry>,
}

/// One mapping.
#[derive(Clone, PartialEq, Message)]
pub struct VmaEntry {
    /// First byte.
    #[prost(uint64, required, tag = "1")]
    pub start: u64,
    /// First byte after it.
    #[prost(uint64, required, tag = "2")]
    pub end: u64,
    /// `MAP_*` bits.
    #[prost(uint32, required, tag = "6")]
    pub flags: u32,
    /// One bit for each `MADV_*` number in force.
    #[prost(uint64, optional, tag = "9")]
    pub madv: Option<u64>,
}

impl VmaEntry {
    /// Whether a forked child sees zeros here (`MADV_WIPEONFORK`).
    pub fn wiped_on_fork(&self) -> bool {
        self.madv.unwrap_or(0) & 1 << libc::MADV_WIPEONFORK != 0
    }
}

/// `stats-dump`, as far as blip reads it.
#[derive(Clone, PartialEq, Message)]
struct StatsEntry {
    #[prost(message, optional, tag = "1")]
    dump: Option<DumpStats>,
}

/// What a dump or pre-dump says of itself. Times in microseconds.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct DumpStats {
    /// Time until all tasks stood still.
    #[prost(uint32, required, tag = "1")]
    pub freezing_time: u32,
    /// Time for which they did.
    #[prost(uint32, required, tag = "2")]
    pub frozen_time: u32,
    /// Pages looked at.
    #[prost(uint64, required, tag = "5")]
    pub pages_scanned: u64,
    /// Pages left to the parent.
    #[prost(uint64, required, tag = "6")]
    pub pages_skipped_parent: u64,
    /// Pages written to images.
    #[prost(uint64, required, tag = "7")]
    pub pages_written: u64,
}

impl DumpStats {
    /// The longest any task can have stood still.
    pub fn stopped(&self) -> Duration {
        Duration::from_micros(u64::from(self.freezing_time) + u64::from(self.frozen_time))
    }
}

/// What the dump or pre-dump in `dir` says of itself; `None` if it says
/// nothing.
pub fn dump_stats(dir: &Path) -> Option<DumpStats> {
    let bytes = std::fs::read(dir.join("stats-dump")).ok()?;
    // Two magic numbers and a length, as in every image, but other numbers.
    let entry = StatsEntry::decode(bytes.get(12..)?).ok()?;
    entry.dump
}

/// An opened image: its entries, still encoded.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    bytes: Vec<u8>,
    at: usize,
}

impl Image {
    /// Reads `dir/name` and checks that it is an image of this kind.
    ///
    /// # Errors
    /// [`ImageError`]; see [`ImageError::is_missing`].
    pub fn open(dir: &Path, name: &str, kind: Kind) -> Result<Self, ImageError> {
        let path = dir.join(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Err(ImageError::Io { path, error }),
        };
        let mut image = Self { path, bytes, at: 0 };
        let magic = (image.word()?, image.word()?);
        if magic != (COMMON_MAGIC, kind as u32) {
            return Err(image.malformed(format!("it opens with {:#x} {:#x}", magic.0, magic.1)));
        }
        Ok(image)
    }

    /// The next entry as a `T`, or `None` at the end.
    ///
    /// # Errors
    /// [`ImageError::Malformed`] if it is cut short or no `T`.
    pub fn entry<T: Message + Default>(&mut self) -> Result<Option<T>, ImageError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let len = self.word()? as usize;
        if len > MAX_ENTRY || len > self.bytes.len() - self.at {
            return Err(self.malformed(format!("an entry of {len} bytes at {}", self.at)));
        }
        let body = &self.bytes[self.at..self.at + len];
        let entry = T::decode(body)
            .map_err(|e| self.malformed(format!("the entry at {}: {e}", self.at)))?;
        self.at += len;
        Ok(Some(entry))
    }

    /// All remaining entries.
    ///
    /// # Errors
    /// Those of [`Image::entry`].
    pub fn entries<T: Message + Default>(mut self) -> Result<Vec<T>, ImageError> {
        let mut all = Vec::new();
        while let Some(entry) = self.entry()? {
            all.push(entry);
        }
        Ok(all)
    }

    /// An error about the content of this image.
    pub fn malformed(&self, what: impl Into<String>) -> ImageError {
        ImageError::Malformed { path: self.path.clone(), what: what.into() }
    }

    fn word(&mut self) -> Result<u32, ImageError> {
        let word = self
            .bytes
            .get(self.at..self.at + 4)
            .and_then(|raw| raw.try_into().ok())
            .map(u32::from_le_bytes)
            .ok_or_else(|| self.malformed("it ends too early"))?;
        self.at += 4;
        Ok(word)
    }
}

/// Writes an image the way CRIU does, for tests and simulators.
pub fn encode<T: Message>(kind: Kind, entries: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(COMMON_MAGIC.to_le_bytes());
    out.extend((kind as u32).to_le_bytes());
    append(&mut out, entries);
    out
}

/// Appends entries to an image begun by [`encode`].
pub fn append<T: Message>(image: &mut Vec<u8>, entries: &[T]) {
    for entry in entries {
        image.extend((entry.encoded_len() as u32).to_le_bytes());
        image.extend(entry.encode_to_vec());
    }
}
