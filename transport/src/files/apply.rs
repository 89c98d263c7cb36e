//! Makes the changes of a stream beneath one directory.
//!
//! What comes in is not trusted. A path is resolved name by name beneath the
//! root, without following any symbolic link and without crossing a mount; the
//! last name is never followed. Content, entries and devices are limited by
//! what the caller allows, and everything else that is not expected ends the
//! stream with an error. What was applied until then stays: the caller throws
//! the half-made tree away.
//!
//! On the mounted root of an overlay this leaves the target's upper directory
//! as the source's was: removing makes whiteouts, and a directory that is
//! cleared is removed and made anew, which makes it opaque.

mod beneath;
mod error;
mod node;

pub use error::ApplyError;

use super::BLOCK;
use super::path::{Exclude, RelPath};
use super::wire::{Base, Meta, Record, Time, open, records};
use beneath::Beneath;
use rustix::fs::{FallocateFlags, Timestamps};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

/// How much one stream may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes of content.
    pub bytes: u64,
    /// Entries made or replaced.
    pub entries: u64,
}

impl Room {
    /// No limit but the disk's.
    pub const UNLIMITED: Room = Room { bytes: u64::MAX, entries: u64::MAX };
}

/// What a stream may do.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// Whether it may make device nodes.
    pub allow_devices: bool,
    /// How much it may write.
    pub room: Room,
    /// What it must not touch: the same paths the source leaves out.
    pub keep: Exclude,
}

/// What a stream did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Entries made, replaced or given new metadata.
    pub entries: u64,
    /// Entries removed, each with everything beneath it.
    pub removed: u64,
    /// Bytes of content written.
    pub content_bytes: u64,
}

/// Applies one stream: one round. Blocks; call it where blocking is fine.
#[derive(Debug)]
pub struct Apply {
    beneath: Beneath,
    options: ApplyOptions,
    current: Option<Current>,
    /// Directories by path: what they get when everything else is done.
    last: BTreeMap<RelPath, Last>,
    ended: bool,
    done: Applied,
}

/// The file whose content is coming.
#[derive(Debug)]
struct Current {
    path: RelPath,
    file: OwnedFd,
    size: u64,
}

/// What a directory gets at the end.
#[derive(Debug)]
enum Last {
    /// The times it had before its entries changed: the source says nothing
    /// of it, so it stays as it was.
    Times(Time, Time),
    Meta(Meta),
}

impl Apply {
    /// Applies to the directory `root`, which is opened once, here.
    pub fn open(root: &Path, options: ApplyOptions) -> Result<Self, ApplyError> {
        use rustix::fs::{CWD, Mode, OFlags};
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(|errno| {
            ApplyError::Io { what: "open", path: RelPath::root(), source: errno.into() }
        })?;
        Ok(Self::new(fd, options))
    }

    /// Applies to the directory open as `root`.
    pub fn new(root: OwnedFd, options: ApplyOptions) -> Self {
        Self {
            beneath: Beneath::new(root, options.keep.clone()),
            options,
            current: None,
            last: BTreeMap::new(),
            ended: false,
            done: Applied::default(),
        }
    }

    /// Applies the next frame of the stream.
    pub fn frame(&mut self, frame: &[u8]) -> Result<(), ApplyError> {
        for item in records(&open(frame)?) {
            let (record, data) = item?;
            self.record(record, data)?;
        }
        Ok(())
    }

    /// Whether the stream's end was seen.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Gives the directories their metadata, once the stream is complete.
    pub fn finish(mut self) -> Result<Applied, ApplyError> {
        if !self.ended {
            return Err(ApplyError::Truncated);
        }
        for (path, last) in std::mem::take(&mut self.last).into_iter().rev() {
            self.beneath.finish_directory(&path, &last)?;
        }
        Ok(self.done)
    }

    fn record(&mut self, record: Record, data: &[u8]) -> Result<(), ApplyError> {
        if self.ended {
            return Err(self.grammar("a record after the end"));
        }
        match record {
            Record::Hole { offset, len } => self.hole(offset, len),
            Record::Data { offset, .. } => self.data(offset, data),
            Record::Close { meta } => self.close(&meta),
            _ if self.current.is_some() => Err(self.grammar("a file was not closed")),
            Record::End => {
                self.ended = true;
                Ok(())
            }
            Record::Remove { path } => {
                self.may_touch(&path)?;
                self.parent_changes(&path)?;
                self.remove(&path)?;
                self.done.removed += 1;
                Ok(())
            }
            record => self.entry(record),
        }
    }

    /// A record that makes or changes an entry.
    fn entry(&mut self, record: Record) -> Result<(), ApplyError> {
        let path = match &record {
            Record::Dir { path, .. }
            | Record::File { path, .. }
            | Record::Meta { path, .. }
            | Record::Symlink { path, .. }
            | Record::Node { path, .. }
            | Record::HardLink { path, .. } => path.clone(),
            _ => return Err(self.grammar("a record without a place")),
        };
        self.may_touch(&path)?;
        self.done.entries += 1;
        if self.done.entries > self.options.room.entries {
            return Err(ApplyError::NoRoom { path, room: self.options.room });
        }
        match record {
            Record::Dir { clear, meta, .. } => {
                if !path.is_root() {
                    self.parent_changes(&path)?;
                    self.directory(&path, clear)?;
                }
                self.last.insert(path, Last::Meta(meta));
                Ok(())
            }
            Record::Meta { meta, .. } => self.beneath.set_meta(&path, &meta),
            Record::File { size, base: Base::Present, .. } => {
                let file = self.beneath.open_file(&path)?;
                self.begin(path, file, size)
            }
            Record::File { size, base: Base::Nothing, .. } => {
                self.make_way(&path)?;
                let file = self.beneath.create_file(&path)?;
                self.begin(path, file, size)
            }
            Record::Symlink { target, meta, .. } => {
                self.make_way(&path)?;
                self.beneath.symlink(&path, &target)?;
                self.beneath.set_meta(&path, &meta)
            }
            Record::Node { kind, meta, .. } => {
                if kind.is_device() && !self.options.allow_devices {
                    return Err(ApplyError::Device { path });
                }
                self.make_way(&path)?;
                self.beneath.node(&path, kind)?;
                self.beneath.set_meta(&path, &meta)
            }
            Record::HardLink { to, .. } => {
                self.may_touch(&to)?;
                self.make_way(&path)?;
                self.beneath.hard_link(&path, &to)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, path: RelPath, file: OwnedFd, size: u64) -> Result<(), ApplyError> {
        rustix::fs::ftruncate(&file, size)
            .map_err(|errno| ApplyError::io("set the size of", &path, errno))?;
        self.current = Some(Current { path, file, size });
        Ok(())
    }

    fn open_current(&self, offset: u64, len: u64) -> Result<&Current, ApplyError> {
        let current = self.current.as_ref().ok_or(self.grammar("content without a file"))?;
        if offset.checked_add(len).is_none_or(|end| end > current.size) {
            return Err(self.grammar("content beyond the end of its file"));
        }
        Ok(current)
    }

    fn data(&mut self, offset: u64, data: &[u8]) -> Result<(), ApplyError> {
        let room = self.options.room;
        let total = self.done.content_bytes.saturating_add(data.len() as u64);
        let current = self.open_current(offset, data.len() as u64)?;
        if total > room.bytes {
            return Err(ApplyError::NoRoom { path: current.path.clone(), room });
        }
        write_all(&current.file, data, offset)
            .map_err(|errno| ApplyError::io("write", &current.path, errno))?;
        self.done.content_bytes = total;
        Ok(())
    }

    fn hole(&mut self, offset: u64, len: u64) -> Result<(), ApplyError> {
        let current = self.open_current(offset, len)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Up to the file's end, its last page has to go as well.
        let end = offset + len;
        let whole = if end == current.size { end.next_multiple_of(BLOCK) - offset } else { len };
        let punched = match rustix::fs::fallocate(&current.file, flags, offset, whole) {
            Err(Errno::OPNOTSUPP) => write_zeros(&current.file, offset, len),
            punched => punched,
        };
        punched.map_err(|errno| ApplyError::io("punch a hole into", &current.path, errno))
    }

    fn close(&mut self, meta: &Meta) -> Result<(), ApplyError> {
        let Some(current) = self.current.take() else {
            return Err(self.grammar("a close without a file"));
        };
        node::set_open(&current.path, &current.file, meta)
    }

    /// Removes whatever is at `path`, noting that its directory changes.
    fn make_way(&mut self, path: &RelPath) -> Result<(), ApplyError> {
        self.parent_changes(path)?;
        self.remove(path)
    }

    fn remove(&mut self, path: &RelPath) -> Result<(), ApplyError> {
        if self.beneath.remove(path)? {
            let gone = self.last.range(path..).map(|(dir, _)| dir);
            // Between a path and what is beneath it sort names like "a-b".
            let gone = gone.take_while(|dir| dir.as_bytes().starts_with(path.as_bytes()));
            let gone: Vec<RelPath> = gone.filter(|dir| dir.is_within(path)).cloned().collect();
            for dir in gone {
                self.last.remove(&dir);
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: &RelPath, clear: bool) -> Result<(), ApplyError> {
        if clear || !self.beneath.is_directory(path)? {
            self.remove(path)?;
        }
        self.beneath.make_directory(path)
    }

    /// Notes the times of the directory that holds `path`, the first time one
    /// of its entries changes.
    fn parent_changes(&mut self, path: &RelPath) -> Result<(), ApplyError> {
        let Some((parent, _)) = path.split() else { return Ok(()) };
        if !self.last.contains_key(&parent) {
            let (atime, mtime) = self.beneath.times(&parent)?;
            self.last.insert(parent, Last::Times(atime, mtime));
        }
        Ok(())
    }

    fn may_touch(&self, path: &RelPath) -> Result<(), ApplyError> {
        if self.options.keep.covers(path.as_bytes()) {
            return Err(ApplyError::Kept { path: path.clone() });
        }
        Ok(())
    }

    fn grammar(&self, what: &'static str) -> ApplyError {
        let path = self.current.as_ref().map(|current| current.path.clone()).unwrap_or_default();
        ApplyError::Grammar { path, what }
    }
}

fn write_all(file: &OwnedFd, data: &[u8], offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < data.len() {
        match rustix::io::pwrite(file, &data[done..], offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// For file systems that cannot punch holes. Only what a block can hold: the
/// sender asks for no longer holes than it had blocks there.
fn write_zeros(file: &OwnedFd, offset: u64, len: u64) -> Result<(), Errno> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < len {
        let step = (len - done).min(ZEROS.len() as u64);
        write_all(file, &ZEROS[..step as usize], offset + done)?;
        done += step;
    }
    Ok(())
}

fn timestamps(atime: Time, mtime: Time) -> Timestamps {
    let spec =
        |time: Time| rustix::fs::Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanos) };
    Timestamps { last_access: spec(atime), last_modification: spec(mtime) }
}
