//! What the target holds after a stream: the memory between two rounds.
//!
//! Pure. A manifest mirrors the tree; directories in which nothing changed are
//! shared between rounds, so that remembering costs nothing where nothing
//! happened.

use super::wire::Time;
use std::collections::BTreeMap;
use std::sync::Arc;

/// BLAKE3 of what a record or a block says.
pub(super) type Digest = [u8; 32];

/// The blocks of a file that hold data, by number, with the digest of their
/// data and of where in the block it lies. A block not listed is a hole.
pub(super) type Blocks = Arc<Vec<(u64, Digest)>>;

/// What the target has: the result of one round and the base of the next.
/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// The root directory; `None` before the first round.
    pub(super) root: Option<Node>,
    /// Files with several names in the tree, by inode.
    pub(super) links: Arc<BTreeMap<u64, Linked>>,
}

impl Manifest {
    /// Of a target that holds nothing of ours.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Whether no round came before.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// How the file named `path` with `node` for an entry was left: its blocks
    /// and all names of it.
    pub(super) fn content_of<'a>(&'a self, path: &'a [u8], node: &'a Node) -> Option<Content<'a>> {
        match &node.body {
            Body::File { blocks } => {
                Some(Content { size: node.stamp.size, blocks, names: Names::One(path) })
            }
            Body::Linked => self.links.get(&node.stamp.inode).map(Linked::content),
            _ => None,
        }
    }
}

/// A file's content as the target has it.
#[derive(Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) size: u64,
    pub(super) blocks: &'a Blocks,
    pub(super) names: Names<'a>,
}

/// All paths of one file.
#[derive(Clone, Copy)]
pub(super) enum Names<'a> {
    One(&'a [u8]),
    Many(&'a [Vec<u8>]),
}

impl Names<'_> {
    pub(super) fn all(self, test: impl Fn(&[u8]) -> bool) -> bool {
        match self {
            Names::One(one) => test(one),
            Names::Many(many) => many.iter().all(|name| test(name)),
        }
    }

    pub(super) fn count(self) -> usize {
        match self {
            Names::One(_) => 1,
            Names::Many(many) => many.len(),
        }
    }
}

/// A file, or anything but a directory, with several names.
#[derive(Clone, Debug)]
pub(super) struct Linked {
    /// All of them, in the order of the walk.
    pub(super) names: Vec<Vec<u8>>,
    pub(super) size: u64,
    pub(super) blocks: Blocks,
    pub(super) digest: Digest,
    pub(super) stamp: Stamp,
    pub(super) settled: bool,
}

impl Linked {
    pub(super) fn content(&self) -> Content<'_> {
        Content { size: self.size, blocks: &self.blocks, names: Names::Many(&self.names) }
    }
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) stamp: Stamp,
    /// Whether an equal stamp proves that nothing changed since.
    pub(super) settled: bool,
    /// Of the record that describes it, without its access time.
    pub(super) digest: Digest,
    pub(super) body: Body,
}

impl Node {
    /// Whether it stands for itself: no directory, and its only name.
    pub(super) fn is_lone(&self) -> bool {
        !matches!(self.body, Body::Dir { .. } | Body::Linked)
    }

    /// Whether the target has both names as one file.
    pub(super) fn shares(&self, other: &Node) -> bool {
        matches!((&self.body, &other.body), (Body::Linked, Body::Linked))
            && self.stamp.inode == other.stamp.inode
    }
}

/// What kind of entry it is.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Dir {
        opaque: bool,
        children: Children,
    },
    File {
        blocks: Blocks,
    },
    /// Anything but a directory with several names; its content is in [`Manifest::links`].
    Linked,
    /// Nothing is there on purpose.
    Whiteout,
    /// Symbolic link, device, pipe or socket: all said by the digest.
    Plain,
}

/// Entries of a directory, sorted by name.
pub(super) type Children = Arc<Vec<(Arc<[u8]>, Node)>>;

/// What `stat` tells that changes with any change. Access times do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    /// Type and permissions.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u64,
    pub(super) rdev: u64,
}

impl Stamp {
    // The link count is narrower on some architectures.
    #[allow(clippy::unnecessary_cast)]
    pub(super) fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            inode: stat.st_ino,
            size: stat.st_size.max(0) as u64,
            mtime: Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
            ctime: Time { seconds: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            links: stat.st_nlink as u64,
            rdev: stat.st_rdev,
        }
    }

    pub(super) fn kind(&self) -> rustix::fs::FileType {
        rustix::fs::FileType::from_raw_mode(self.mode)
    }
}
