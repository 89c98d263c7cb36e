//! One round's walk through the tree.

use super::entry::{digest, still};
use super::fresh::Fresh;
use super::{RoundTotals, ScanError, Scanner, Sent, WriteLog};
use crate::files::content::Block;
use crate::files::manifest::{Blocks, Body, Children, Digest, Manifest, Node, Stamp};
use crate::files::overlay::{Tree, interpret};
use crate::files::path::{MAX_PATH, RelPath};
use crate::files::wire::{FrameWriter, Record, Time};
use crate::files::{MAX_DEPTH, xattr};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Digest of what is not there.
pub(super) const NOTHING: Digest = [0; 32];

pub(super) struct Walk<'a, 'w> {
    pub(super) scanner: &'a Scanner,
    pub(super) known: &'a Manifest,
    /// Change times before it are believed; without it, none.
    pub(super) fence: Option<Time>,
    /// What is in directories that did not change is as it was.
    pub(super) names_only: bool,
    /// The only inodes that changed since they were looked at, if that is known.
    pub(super) touched: Option<HashSet<u64>>,
    /// What was written to large files, if somebody knows.
    pub(super) log: Option<&'w mut dyn WriteLog>,
    pub(super) writer: FrameWriter<'w>,
    pub(super) path: Vec<u8>,
    pub(super) depth: usize,
    /// Files with several names, held back until all names are known.
    pub(super) linked: BTreeMap<u64, Vec<Name<'a>>>,
    pub(super) block: Block,
    pub(super) totals: RoundTotals,
}

/// One name of a file that has several.
pub(super) struct Name<'a> {
    pub(super) path: Vec<u8>,
    pub(super) stamp: Stamp,
    pub(super) known: Option<&'a Node>,
}

/// What became of an entry since the last round.
pub(super) enum Seen {
    Same,
    New(Node),
    Gone,
}

/// What reading a regular file led to.
pub(super) enum Read {
    File { stamp: Stamp, settled: bool, digest: Digest, blocks: Blocks },
    Whiteout,
    Gone,
}

impl<'a, 'w> Walk<'a, 'w> {
    pub(super) fn new(
        scanner: &'a Scanner,
        known: &'a Manifest,
        fence: Option<Time>,
        log: Option<&'w mut dyn WriteLog>,
        writer: FrameWriter<'w>,
    ) -> Self {
        Self {
            scanner,
            known,
            fence,
            names_only: false,
            touched: None,
            log,
            writer,
            path: Vec::new(),
            depth: 0,
            linked: BTreeMap::new(),
            block: Block::new(),
            totals: RoundTotals::default(),
        }
    }

    pub(super) fn run(mut self) -> Result<Sent, ScanError> {
        let known = self.known.root.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = rustix::fs::openat(&self.scanner.root, c".", flags, Mode::empty())
            .map_err(|errno| self.failed("open", errno))?;
        let root = match self.directory(root, known)? {
            Seen::New(node) => Some(node),
            Seen::Same => self.known.root.clone(),
            Seen::Gone => None,
        };
        let links = self.linked_files()?;
        let wire = self
            .writer
            .end()
            .map_err(|source| ScanError::Sink { path: RelPath::root(), source })?;
        self.totals.frames = wire.frames;
        self.totals.frame_bytes = wire.bytes;
        Ok(Sent { manifest: Manifest { root, links: Arc::new(links) }, totals: self.totals })
    }

    /// A directory and everything beneath it.
    pub(super) fn directory(
        &mut self,
        fd: OwnedFd,
        known: Option<&'a Node>,
    ) -> Result<Seen, ScanError> {
        let stat = rustix::fs::fstat(&fd).map_err(|errno| self.failed("look at", errno))?;
        if stat.st_dev != self.scanner.device {
            return Err(ScanError::CrossesMount { path: self.here() });
        }
        let stamp = Stamp::of(&stat);
        let before = known.and_then(|node| match &node.body {
            Body::Dir { opaque, children } => Some((node, *opaque, children)),
            _ => None,
        });
        let untouched = before.is_some_and(|(node, ..)| node.settled && node.stamp == stamp);
        let (digest, opaque, below) = match before {
            Some((node, opaque, children)) if untouched => (node.digest, opaque, Some(children)),
            _ => {
                let (digest, opaque, clear) = self.directory_itself(&fd, &stat, known)?;
                (digest, opaque, before.map(|(.., children)| children).filter(|_| !clear))
            }
        };
        // Frozen, an untouched directory has the names it had.
        let trusted = untouched && self.fence.is_none();
        let (children, complete) = self.children(&fd, below, trusted)?;
        let unchanged = below.is_some_and(|below| Arc::ptr_eq(below, &children));
        if untouched && unchanged && complete {
            return Ok(Seen::Same);
        }
        let settled = complete && (self.settles(&stamp) || (untouched && self.fence.is_none()));
        Ok(Seen::New(Node { stamp, settled, digest, body: Body::Dir { opaque, children } }))
    }

    /// Sends a directory if it changed, without its entries.
    pub(super) fn directory_itself(
        &mut self,
        fd: &OwnedFd,
        stat: &Stat,
        known: Option<&Node>,
    ) -> Result<(Digest, bool, bool), ScanError> {
        if self.path.is_empty() && self.scanner.only.is_some() {
            return Ok((NOTHING, false, false));
        }
        let mut meta = self.meta(&xattr::Of::open(fd), stat)?;
        let said = interpret(self.scanner.tree, &mut meta.xattrs);
        self.resolvable(said.elsewhere)?;
        // What hides the lower layer now, and did not before, hides it from
        // the target only by being cleared.
        let clear = said.opaque
            && !self.path.is_empty()
            && match known.map(|node| &node.body) {
                None | Some(Body::Dir { opaque: false, .. }) => true,
                Some(_) => false,
            };
        let digest =
            digest(&Record::Dir { path: RelPath::root(), clear: false, meta: still(&meta) });
        if clear || known.is_none_or(|node| node.digest != digest) {
            self.put(&Record::Dir { path: self.here(), clear, meta })?;
        }
        Ok((digest, said.opaque, clear))
    }

    /// All entries of a directory; `known` itself if all are the same. Also
    /// whether the listing held while it was walked.
    pub(super) fn children(
        &mut self,
        dir: &OwnedFd,
        known: Option<&'a Children>,
        trusted: bool,
    ) -> Result<(Children, bool), ScanError> {
        if self.depth >= MAX_DEPTH {
            return Err(ScanError::TooDeep { path: self.here() });
        }
        self.depth += 1;
        let old: &'a [(Arc<[u8]>, Node)] = known.map_or(&[], |known| known.as_slice());
        let (listed, mut complete) = match trusted {
            true => (None, true),
            false => self.list(dir).map(|(names, complete)| (Some(names), complete))?,
        };
        let mut fresh = Fresh { old, kept: 0, new: None };
        let mut next_old = 0;
        let mut next_listed = 0;
        loop {
            let old_entry = old.get(next_old);
            let name: Arc<[u8]> = match &listed {
                None => match old_entry {
                    Some((name, _)) => name.clone(),
                    None => break,
                },
                Some(listed) => match (listed.get(next_listed), old_entry) {
                    (None, None) => break,
                    (Some(name), None) => name.as_slice().into(),
                    (Some(name), Some((old, _))) if name.as_slice() < &**old => {
                        name.as_slice().into()
                    }
                    (_, Some((old, _))) => old.clone(),
                },
            };
            let present = listed.as_ref().is_none_or(|listed| {
                listed.get(next_listed).is_some_and(|listed| **listed == *name)
            });
            let before = old_entry.filter(|(old, _)| *old == name).map(|(_, node)| node);
            next_listed += usize::from(present);
            next_old += usize::from(before.is_some());
            let seen = match before {
                _ if !present => Seen::Gone,
                Some(node) if trusted && self.is_as_it_was(node) => Seen::Same,
                before => self.named(dir, &name, before)?,
            };
            match (seen, before) {
                (Seen::Same, Some(_)) => fresh.keep(next_old - 1),
                (Seen::New(node), _) => fresh.push(name, node),
                (Seen::Gone | Seen::Same, before) => {
                    complete &= !present;
                    if let Some(before) = before {
                        fresh.diverge();
                        self.gone(&name, before)?;
                    }
                }
            }
        }
        self.depth -= 1;
        let children = match (fresh.finish(), known) {
            (None, Some(known)) => known.clone(),
            (new, _) => Arc::new(new.unwrap_or_default()),
        };
        Ok((children, complete))
    }

    /// Whether an entry of a directory that did not change need not be looked at.
    fn is_as_it_was(&self, node: &Node) -> bool {
        let lone = self.names_only && node.is_lone();
        lone || self.touched.as_ref().is_some_and(|touched| is_untouched(node, touched))
    }

    /// The sorted names in a directory, each once and without those that are
    /// excluded; also whether the directory was there to the end.
    pub(super) fn list(&mut self, dir: &OwnedFd) -> Result<(Vec<Vec<u8>>, bool), ScanError> {
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        let mut complete = true;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // Removed while it was listed: nothing more is in it.
                Err(Errno::NOENT) => {
                    complete = false;
                    break;
                }
                Err(errno) => return Err(self.failed("list", errno)),
            };
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." && self.wanted(name) {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        // A name that went and came back meanwhile may be listed twice.
        names.dedup();
        Ok((names, complete))
    }

    /// One entry of a directory.
    pub(super) fn named(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        known: Option<&'a Node>,
    ) -> Result<Seen, ScanError> {
        let length = self.path.len();
        if length + 1 + name.len() > MAX_PATH {
            return Err(ScanError::TooDeep { path: self.here() });
        }
        if length > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        self.totals.scanned += 1;
        let seen = self.entry(dir, name, known);
        if let Ok(Seen::New(node)) = &seen {
            self.totals.unsettled += u64::from(!node.settled);
        }
        self.path.truncate(length);
        seen
    }

    pub(super) fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        known: Option<&'a Node>,
    ) -> Result<Seen, ScanError> {
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Seen::Gone),
            Err(errno) => return Err(self.failed("look at", errno)),
        };
        let stamp = Stamp::of(&stat);
        let same = known.filter(|node| node.stamp == stamp);
        match stamp.kind() {
            FileType::Directory => match self.open_directory(dir, name)? {
                Some(fd) => self.directory(fd, known),
                None => Ok(Seen::Gone),
            },
            FileType::CharacterDevice if self.is_whiteout(&stamp) => self.whiteout(stamp, known),
            _ if stamp.links > 1 => {
                let name = Name { path: self.path.clone(), stamp, known };
                self.linked.entry(stamp.inode).or_default().push(name);
                let settled = true;
                Ok(match same {
                    Some(Node { body: Body::Linked, .. }) => Seen::Same,
                    _ => Seen::New(Node { stamp, settled, digest: NOTHING, body: Body::Linked }),
                })
            }
            _ if same.is_some_and(|node| node.settled) => Ok(Seen::Same),
            FileType::RegularFile => self.file(dir, name, stamp, known),
            _ => self.node(dir, name, known),
        }
    }

    /// Whether a character device stands for "nothing is here".
    pub(super) fn is_whiteout(&self, stamp: &Stamp) -> bool {
        stamp.rdev == 0 && matches!(self.scanner.tree, Tree::Upper(_))
    }

    pub(super) fn whiteout(
        &mut self,
        stamp: Stamp,
        known: Option<&Node>,
    ) -> Result<Seen, ScanError> {
        match known {
            Some(Node { body: Body::Whiteout, .. }) => Ok(Seen::Same),
            _ => {
                self.totals.removed += 1;
                self.put_only(&Record::Remove { path: self.here() })?;
                let body = Body::Whiteout;
                Ok(Seen::New(Node { stamp, settled: true, digest: NOTHING, body }))
            }
        }
    }

    /// Something known is no longer there.
    pub(super) fn gone(&mut self, name: &[u8], known: &Node) -> Result<(), ScanError> {
        if matches!(known.body, Body::Whiteout) {
            return Ok(());
        }
        self.totals.removed += 1;
        self.put_only(&Record::Remove { path: relative(&self.below(name)) })
    }

    pub(super) fn resolvable(&self, elsewhere: Option<&'static str>) -> Result<(), ScanError> {
        match elsewhere {
            Some(mark) => Err(ScanError::Unresolvable { path: self.here(), mark }),
            None => Ok(()),
        }
    }

    pub(super) fn settles(&self, stamp: &Stamp) -> bool {
        self.fence.is_some_and(|fence| stamp.ctime < fence)
    }

    pub(super) fn put(&mut self, record: &Record) -> Result<(), ScanError> {
        self.totals.changed += 1;
        self.put_only(record)
    }

    pub(super) fn put_only(&mut self, record: &Record) -> Result<(), ScanError> {
        self.writer.put(record, &[]).map_err(|source| ScanError::Sink { path: self.here(), source })
    }

    /// Whether an entry of the directory at hand travels.
    fn wanted(&self, name: &[u8]) -> bool {
        let Scanner { only, exclude, .. } = self.scanner;
        let chosen = |only: &Vec<u8>| !self.path.is_empty() || only == name;
        only.as_ref().is_none_or(chosen)
            && (exclude.is_empty() || !exclude.covers(&self.below(name)))
    }

    /// The path of `name` in the directory at hand.
    pub(super) fn below(&self, name: &[u8]) -> Vec<u8> {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    pub(super) fn here(&self) -> RelPath {
        relative(&self.path)
    }

    pub(super) fn failed(&self, what: &'static str, errno: Errno) -> ScanError {
        let source = io::Error::from(errno);
        ScanError::Io { what, path: self.here(), source }
    }
}

/// Whether neither `node` nor anything beneath it changed. What has several
/// names is found by the walk alone, so it cannot be left out.
fn is_untouched(node: &Node, touched: &HashSet<u64>) -> bool {
    node.settled
        && !touched.contains(&node.stamp.inode)
        && match &node.body {
            Body::Dir { children, .. } => {
                children.iter().all(|(_, child)| is_untouched(child, touched))
            }
            Body::Linked => false,
            Body::File { .. } | Body::Whiteout | Body::Plain => true,
        }
}

/// Names come from the kernel and are joined by this module.
pub(super) fn relative(path: &[u8]) -> RelPath {
    RelPath::parse(path).unwrap_or_default()
}
