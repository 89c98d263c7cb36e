//! Finds what changed in a tree since the last round and sends it.
//!
//! Change times alone miss two things, and [`Pace::Live`] closes both gaps.
//! Two changes within one tick of the clock have one change time; so what
//! changed close to the round is not believed. And a process that wrote
//! through a shared mapping may write again without any trace as long as the
//! page is dirty; so the file system is synchronised first, which makes the
//! next such write leave its mark, and only files whose change time is older
//! than that are believed. On file systems that never write pages back (tmpfs,
//! ramfs) no file is ever believed: their files are read in every round, and
//! only blocks that differ are sent.
//!
//! The tree may change under the walk. Directories are opened one name at a
//! time and never through symbolic links; a file that changed while it was
//! read is sent as it was read and looked at again in the next round.

mod entry;
mod fresh;
mod linked;
mod walk;

use super::manifest::Manifest;
use super::path::{Exclude, RelPath};
use super::wire::{FrameWriter, Sink, Time};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::time::ClockId;
use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use walk::Walk;

pub use super::overlay::{Marks, Tree};

/// How far behind the round's begin a change time must lie to be believed, in
/// nanoseconds: twice the longest tick of any kernel (10 ms).
const TICK_MARGIN: i64 = 20_000_000;

const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// Whether anything may still change the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The container runs. Synchronises the tree's whole file system first,
    /// which may take a while.
    Live,
    /// The container is frozen and nothing else writes either. Waits for
    /// nothing, lists only directories that changed, and looks at nothing of
    /// which a [`WriteLog`] says that it has not been touched.
    Frozen,
    /// Nothing has changed since a frozen round but names: entries that came or
    /// went. Looks only into directories in which some did.
    Names,
}

/// Why a round failed. Its stream is void.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The system refused.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what, below the root.
        path: RelPath,
        /// Why not.
        source: io::Error,
    },
    /// The root cannot be opened.
    #[error("cannot open {root} to read its files: {source}")]
    Root {
        /// The root.
        root: String,
        /// Why not.
        source: io::Error,
    },
    /// Something is mounted below the root.
    #[error(
        "{path} is on another file system than the tree it is in; exclude it or carry it by itself"
    )]
    CrossesMount {
        /// Where.
        path: RelPath,
    },
    /// Deeper or longer than allowed.
    #[error(
        "the tree below {path} is nested deeper than {} directories, or its paths are longer than {} bytes",
        super::MAX_DEPTH,
        super::path::MAX_PATH
    )]
    TooDeep {
        /// The last path that was not.
        path: RelPath,
    },
    /// An overlay mark that points into a lower directory.
    #[error(
        "{path} has the overlay mark \"{mark}\", whose content is in a lower layer; mount with {mark}=off (redirect_dir=off for redirect) and recreate the container"
    )]
    Unresolvable {
        /// Where.
        path: RelPath,
        /// `redirect` or `metacopy`.
        mark: &'static str,
    },
    /// The frames cannot be handed over.
    #[error("cannot send {path}: {source}")]
    Sink {
        /// What was being sent.
        path: RelPath,
        /// Why not.
        source: io::Error,
    },
}

/// What a round looked at and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTotals {
    /// Entries looked at.
    pub scanned: u64,
    /// Entries sent, in whole or in part.
    pub changed: u64,
    /// Entries that went, each with everything beneath it.
    pub removed: u64,
    /// Bytes of content read to find out.
    pub read_bytes: u64,
    /// Bytes of content sent, before compression.
    pub content_bytes: u64,
    /// Entries the next round has to look at closely whatever their stamp.
    pub unsettled: u64,
    /// Files with names that [`Pace::Names`] did not look at: a frozen round has
    /// to follow.
    pub loose: u64,
    /// Frames handed to the sink.
    pub frames: u64,
    /// Their bytes.
    pub frame_bytes: u64,
}

/// A finished round.
#[derive(Clone, Debug)]
pub struct Sent {
    /// What the target has once it applied the stream to its end.
    pub manifest: Manifest,
    /// Numbers.
    pub totals: RoundTotals,
}

/// Knows which files changed, and which parts of them, by whatever way.
///
/// **Invariant**: what is written after [`before_sync`](Self::before_sync), and
/// what was written before and is not on disk when the synchronisation ends, is
/// told by the next [`written`](Self::written) and by the one after it; and
/// [`touched`](Self::touched) tells of it until the next synchronisation.
pub trait WriteLog: Send {
    /// The file system is about to be synchronised.
    fn before_sync(&mut self);

    /// Byte ranges of `file`, which is `inode`, that may differ from when this
    /// was asked last; `None`: any may.
    fn written(&mut self, file: BorrowedFd<'_>, inode: u64) -> Option<Vec<Range<u64>>>;

    /// Every inode of which content or metadata changed since the last
    /// synchronisation began, in this tree or elsewhere; `None`: any may have.
    fn touched(&mut self) -> Option<HashSet<u64>>;
}

/// Walks one tree, round after round.
#[derive(Debug)]
pub struct Scanner {
    root: OwnedFd,
    tree: Tree,
    exclude: Exclude,
    device: u64,
    /// The only name of the root that travels; the root itself then does not.
    only: Option<Vec<u8>>,
    /// Whether writes through mappings leave a mark on this file system.
    marks_mapped_writes: bool,
    /// The frames stay on this host.
    nearby: bool,
}

impl Scanner {
    /// Opens the directory `root`. What `exclude` names is neither read nor
    /// ever removed on the target.
    pub fn open(root: &Path, tree: Tree, exclude: Exclude) -> Result<Self, ScanError> {
        let refused = |errno: Errno| ScanError::Root {
            root: root.display().to_string(),
            source: errno.into(),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(refused)?;
        let device = rustix::fs::fstat(&fd).map_err(refused)?.st_dev;
        let magic = rustix::fs::fstatfs(&fd).map_err(refused)?.f_type as u64;
        Ok(Self {
            root: fd,
            tree,
            exclude,
            device,
            only: None,
            nearby: false,
            marks_mapped_writes: !matches!(magic, TMPFS_MAGIC | RAMFS_MAGIC),
        })
    }

    /// A tree of which only the entry `name` of its root travels: a single
    /// file, in a directory that means nothing. The target's directory may
    /// hold other things; they stay.
    pub fn open_entry(root: &Path, name: &[u8]) -> Result<Self, ScanError> {
        let only = Some(name.to_vec());
        Ok(Self { only, ..Self::open(root, Tree::Plain, Exclude::default())? })
    }

    /// What the tree holds, read to the end; nothing may write to it meanwhile.
    /// Blocks; call it where blocking is fine.
    ///
    /// Of a plain tree this is its own manifest; of an overlay's upper directory
    /// it is that of what [`copy_to`](Self::copy_to) would make of it.
    pub fn survey(self) -> Result<Manifest, ScanError> {
        self.copy_to(&mut |_: bytes::Bytes| Ok(()))
    }

    /// Hands the whole tree to an applier on this host; nothing may write to it
    /// meanwhile. Blocks; call it where blocking is fine.
    pub fn copy_to(mut self, sink: &mut dyn Sink) -> Result<Manifest, ScanError> {
        self.nearby = true;
        Ok(self.round(&Manifest::empty(), Pace::Frozen, sink)?.manifest)
    }

    /// Sends into `sink` what differs from `known` and returns what the target
    /// will then hold. Blocks; call it where blocking is fine.
    pub fn round(
        &self,
        known: &Manifest,
        pace: Pace,
        sink: &mut dyn Sink,
    ) -> Result<Sent, ScanError> {
        self.round_with(known, pace, None, sink)
    }

    /// The same, but reads of large files only what `log` says was written.
    /// All rounds since `known` was empty must have had this log.
    pub fn round_with(
        &self,
        known: &Manifest,
        pace: Pace,
        mut log: Option<&mut dyn WriteLog>,
        sink: &mut dyn Sink,
    ) -> Result<Sent, ScanError> {
        let root = RelPath::root;
        let fence = match pace {
            Pace::Live => {
                if let Some(log) = &mut log {
                    log.before_sync();
                }
                let fence = fence();
                rustix::fs::syncfs(&self.root).map_err(|errno| ScanError::Io {
                    what: "synchronise the file system of",
                    path: root(),
                    source: errno.into(),
                })?;
                Some(fence)
            }
            Pace::Frozen | Pace::Names => None,
        };
        let writer =
            FrameWriter::new(sink).map_err(|source| ScanError::Sink { path: root(), source })?;
        let writer = if self.nearby { writer.nearby() } else { writer };
        let touched = log.as_mut().filter(|_| pace == Pace::Frozen).and_then(|log| log.touched());
        let log = log.map(|log| log as &mut dyn WriteLog);
        let mut walk = Walk::new(self, known, fence, log, writer);
        walk.names_only = pace == Pace::Names;
        walk.touched = touched;
        walk.run()
    }
}

/// The youngest change time that is believed, by the clock that stamps files.
fn fence() -> Time {
    let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
    let nanos = now.tv_nsec - TICK_MARGIN;
    if nanos < 0 {
        Time { seconds: now.tv_sec - 1, nanos: (nanos + 1_000_000_000) as u32 }
    } else {
        Time { seconds: now.tv_sec, nanos: nanos as u32 }
    }
}
