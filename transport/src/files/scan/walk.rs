//! One round's walk through the tree.

use super::{RoundTotals, ScanError, Scanner, Sent};
use crate::files::content::{Before, Block, ContentError, Outgoing};
use crate::files::manifest::{
    Blocks, Body, Children, Content, Digest, Linked, Manifest, Node, Stamp,
};
use crate::files::overlay::{Tree, interpret};
use crate::files::path::{MAX_PATH, RelPath};
use crate::files::wire::{FrameWriter, Meta, NodeKind, Record, Time};
use crate::files::{MAX_DEPTH, xattr};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Digest of what is not there.
const NOTHING: Digest = [0; 32];

pub(super) struct Walk<'a, 'w> {
    scanner: &'a Scanner,
    known: &'a Manifest,
    /// Change times before it are believed; without it, none.
    fence: Option<Time>,
    writer: FrameWriter<'w>,
    path: Vec<u8>,
    depth: usize,
    /// Files with several names, held back until all names are known.
    linked: BTreeMap<u64, Vec<Name<'a>>>,
    block: Block,
    totals: RoundTotals,
}

/// One name of a file that has several.
struct Name<'a> {
    path: Vec<u8>,
    stamp: Stamp,
    known: Option<&'a Node>,
}

/// What became of an entry since the last round.
enum Seen {
    Same,
    New(Node),
    Gone,
}

/// What reading a regular file led to.
enum Read {
    File { stamp: Stamp, settled: bool, digest: Digest, blocks: Blocks },
    Whiteout,
    Gone,
}

impl<'a, 'w> Walk<'a, 'w> {
    pub(super) fn new(
        scanner: &'a Scanner,
        known: &'a Manifest,
        fence: Option<Time>,
        writer: FrameWriter<'w>,
    ) -> Self {
        Self {
            scanner,
            known,
            fence,
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
    fn directory(&mut self, fd: OwnedFd, known: Option<&'a Node>) -> Result<Seen, ScanError> {
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
    fn directory_itself(
        &mut self,
        fd: &OwnedFd,
        stat: &Stat,
        known: Option<&Node>,
    ) -> Result<(Digest, bool, bool), ScanError> {
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
    fn children(
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
        let listed = if trusted { None } else { Some(self.list(dir)?) };
        let mut fresh = Fresh { old, kept: 0, new: None };
        let mut complete = true;
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
            let seen = if present { self.named(dir, &name, before)? } else { Seen::Gone };
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

    /// The sorted names in a directory, without those that are excluded.
    fn list(&mut self, dir: &OwnedFd) -> Result<Vec<Vec<u8>>, ScanError> {
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|errno| self.failed("list", errno))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." && !self.excluded(name) {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// One entry of a directory.
    fn named(
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

    fn entry(
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
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                match self.open(dir, name, flags)? {
                    Some(fd) => self.directory(fd, known),
                    None => Ok(Seen::Gone),
                }
            }
            FileType::CharacterDevice
                if stamp.rdev == 0 && matches!(self.scanner.tree, Tree::Upper(_)) =>
            {
                self.whiteout(stamp, known)
            }
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

    fn whiteout(&mut self, stamp: Stamp, known: Option<&Node>) -> Result<Seen, ScanError> {
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

    /// A regular file with one name.
    fn file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        stamp: Stamp,
        known: Option<&'a Node>,
    ) -> Result<Seen, ScanError> {
        let path = self.path.clone();
        // A file that shared its inode may be written in place only if it is
        // the one that kept it: all its former names are replaced or removed
        // in this very stream.
        let before = known.filter(|node| node.stamp.kind() == stamp.kind()).and_then(|node| {
            let content = self.known.content_of(&path, node)?;
            (content.names.count() == 1 || node.stamp.inode == stamp.inode).then_some(content)
        });
        let digest = known.filter(|node| matches!(node.body, Body::File { .. })).map(|n| n.digest);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let Some(fd) = self.open(dir, name, flags)? else { return Ok(Seen::Gone) };
        match self.read(&fd, before, digest)? {
            Read::Gone => Ok(Seen::Gone),
            Read::Whiteout => self.whiteout(stamp, known),
            Read::File { stamp, settled, digest, blocks } => {
                Ok(Seen::New(Node { stamp, settled, digest, body: Body::File { blocks } }))
            }
        }
    }

    /// Reads an open regular file and sends what differs from `before`.
    fn read(
        &mut self,
        fd: &OwnedFd,
        before: Option<Content<'_>>,
        known: Option<Digest>,
    ) -> Result<Read, ScanError> {
        let stat = rustix::fs::fstat(fd).map_err(|errno| self.failed("look at", errno))?;
        let stamp = Stamp::of(&stat);
        if stamp.kind() != FileType::RegularFile {
            return Ok(Read::Gone);
        }
        let mut meta = self.meta(&xattr::Of::open(fd), &stat)?;
        let said = interpret(self.scanner.tree, &mut meta.xattrs);
        self.resolvable(said.elsewhere)?;
        if said.whiteout && stamp.size == 0 {
            return Ok(Read::Whiteout);
        }
        let path = self.here();
        let sink = |source| ScanError::Sink { path: path.clone(), source };
        let before = before.map(|content| Before { size: content.size, blocks: content.blocks });
        let mut outgoing =
            Outgoing::new(&mut self.writer, path.clone(), stamp.size, before).map_err(sink)?;
        let blocks = outgoing.send(fd.as_fd(), &mut self.block).map_err(|error| match error {
            ContentError::Read(errno) => {
                ScanError::Io { what: "read", path: path.clone(), source: errno.into() }
            }
            ContentError::Write(source) => sink(source),
        })?;
        self.totals.read_bytes += outgoing.read;
        self.totals.content_bytes += outgoing.sent;
        let digest = digest(&Record::Close { meta: still(&meta) });
        if outgoing.begun {
            outgoing.close(meta).map_err(sink)?;
            self.totals.changed += 1;
        } else if known != Some(digest) {
            self.put(&Record::Meta { path, meta })?;
        }
        let after = rustix::fs::fstat(fd).map_err(|errno| self.failed("look at", errno))?;
        let settled =
            self.scanner.marks_mapped_writes && self.settles(&stamp) && Stamp::of(&after) == stamp;
        Ok(Read::File { stamp, settled, digest, blocks })
    }

    /// A symbolic link, device, pipe or socket with one name.
    fn node(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        known: Option<&Node>,
    ) -> Result<Seen, ScanError> {
        let Some(fd) = self.open(dir, name, OFlags::PATH | OFlags::NOFOLLOW)? else {
            return Ok(Seen::Gone);
        };
        let Some((stamp, mut record)) = self.describe(&fd)? else { return Ok(Seen::Gone) };
        let digest = digest_of_node(&mut record);
        if known.is_none_or(|node| node.digest != digest) {
            self.put(&record)?;
        }
        let settled = self.settles(&stamp);
        Ok(Seen::New(Node { stamp, settled, digest, body: Body::Plain }))
    }

    /// The record of what is neither file nor directory; `None` if it is one
    /// by now, which the next round will see.
    fn describe(&self, fd: &OwnedFd) -> Result<Option<(Stamp, Record)>, ScanError> {
        let stat = rustix::fs::fstat(fd).map_err(|errno| self.failed("look at", errno))?;
        let stamp = Stamp::of(&stat);
        let mut meta = self.meta(&xattr::Of::located(fd), &stat)?;
        interpret(self.scanner.tree, &mut meta.xattrs);
        let numbers = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let path = self.here();
        let kind = match stamp.kind() {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(fd, c"", Vec::new())
                    .map_err(|errno| self.failed("read the link", errno))?;
                let record = Record::Symlink { path, target: target.into_bytes(), meta };
                return Ok(Some((stamp, record)));
            }
            FileType::Fifo => NodeKind::Fifo,
            FileType::Socket => NodeKind::Socket,
            FileType::CharacterDevice => NodeKind::CharDevice(numbers.0, numbers.1),
            FileType::BlockDevice => NodeKind::BlockDevice(numbers.0, numbers.1),
            _ => return Ok(None),
        };
        Ok(Some((stamp, Record::Node { path, kind, meta })))
    }

    /// Something known is no longer there.
    fn gone(&mut self, name: &[u8], known: &Node) -> Result<(), ScanError> {
        if matches!(known.body, Body::Whiteout) {
            return Ok(());
        }
        self.totals.removed += 1;
        self.put_only(&Record::Remove { path: relative(&self.below(name)) })
    }

    /// Sends the files with several names, now that all of them are known.
    fn linked_files(&mut self) -> Result<BTreeMap<u64, Linked>, ScanError> {
        let mut links = BTreeMap::new();
        for (inode, names) in std::mem::take(&mut self.linked) {
            if let Some(linked) = self.linked_file(inode, names)? {
                links.insert(inode, linked);
            }
        }
        Ok(links)
    }

    /// One file with several names. The target may write in place what it has
    /// under one of them if every other name of that is in the group too, or if
    /// this is the same inode, for then all its former names are replaced or
    /// removed in this very stream.
    fn linked_file(
        &mut self,
        inode: u64,
        found: Vec<Name<'a>>,
    ) -> Result<Option<Linked>, ScanError> {
        let all: HashSet<&[u8]> = found.iter().map(|name| name.path.as_slice()).collect();
        let base = found.iter().find_map(|name| {
            let node = name.known?;
            let content = self.known.content_of(&name.path, node)?;
            if node.stamp.kind() != name.stamp.kind() {
                return None;
            }
            let ours = node.stamp.inode == inode || content.names.all(|name| all.contains(name));
            ours.then_some((name, node, content))
        });
        let joined = |name: &Name<'_>| {
            base.is_some_and(|(_, node, _)| name.known.is_some_and(|known| known.shares(node)))
        };
        let before = base.and_then(|(_, node, _)| match node.body {
            Body::Linked => self.known.links.get(&node.stamp.inode),
            _ => None,
        });
        if let Some(before) = before.filter(|before| {
            let same = |name: &Name<'_>| name.stamp == before.stamp && joined(name);
            before.settled && before.names.len() == found.len() && found.iter().all(same)
        }) {
            return Ok(Some(before.clone()));
        }
        let primary = base.map_or(&found[0], |(name, ..)| name);
        let known = base.map(|(_, node, _)| before.map_or(node.digest, |before| before.digest));
        self.path.clone_from(&primary.path);
        let regular = primary.stamp.kind() == FileType::RegularFile;
        let read = if regular {
            match self.open_again(inode, OFlags::RDONLY | OFlags::NONBLOCK)? {
                Some(fd) => self.read(&fd, base.map(|(.., content)| content), known)?,
                None => Read::Gone,
            }
        } else {
            self.linked_node(inode, known)?
        };
        self.path.clear();
        let Read::File { stamp, settled, digest, blocks } = read else { return Ok(None) };
        // What is no file was made anew if anything about it changed.
        let anew = !regular && known != Some(digest);
        for name in &found {
            if name.path != primary.path && (anew || !joined(name)) {
                let (path, to) = (relative(&name.path), relative(&primary.path));
                self.put(&Record::HardLink { path, to })?;
            }
        }
        let settled = settled && found.iter().all(|name| name.stamp == stamp);
        self.totals.unsettled += u64::from(!settled);
        let names = found.into_iter().map(|name| name.path).collect();
        Ok(Some(Linked { names, size: stamp.size, blocks, digest, stamp, settled }))
    }

    /// What is neither file nor directory and has several names.
    fn linked_node(&mut self, inode: u64, known: Option<Digest>) -> Result<Read, ScanError> {
        let Some(fd) = self.open_again(inode, OFlags::PATH)? else { return Ok(Read::Gone) };
        let Some((stamp, mut record)) = self.describe(&fd)? else { return Ok(Read::Gone) };
        let digest = digest_of_node(&mut record);
        if known != Some(digest) {
            self.put(&record)?;
        }
        let settled = self.settles(&stamp);
        Ok(Read::File { stamp, settled, digest, blocks: Blocks::default() })
    }

    /// Opens the path at hand, which was `inode`. If that leads elsewhere by
    /// now, the next round has to sort it out.
    fn open_again(&self, inode: u64, flags: OFlags) -> Result<Option<OwnedFd>, ScanError> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let root = &self.scanner.root;
        match rustix::fs::openat2(root, self.path.as_slice(), flags, Mode::empty(), resolve) {
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd).map_err(|errno| self.failed("look at", errno))?;
                Ok((stat.st_ino == inode).then_some(fd))
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::AGAIN | Errno::NXIO) => {
                Ok(None)
            }
            Err(errno) => Err(self.failed("open", errno)),
        }
    }

    /// Opens an entry without leaving a trace in its access time; `None` if it
    /// went or became something else.
    fn open(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        flags: OFlags,
    ) -> Result<Option<OwnedFd>, ScanError> {
        let flags = flags | OFlags::CLOEXEC;
        let quiet = if flags.contains(OFlags::PATH) { flags } else { flags | OFlags::NOATIME };
        let opened = match rustix::fs::openat(dir, name, quiet, Mode::empty()) {
            // Only owners and root may look without a trace.
            Err(Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty()),
            opened => opened,
        };
        match opened {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(None),
            Err(errno) => Err(self.failed("open", errno)),
        }
    }

    fn meta(&self, of: &xattr::Of<'_>, stat: &Stat) -> Result<Meta, ScanError> {
        let xattrs =
            of.read().map_err(|errno| self.failed("read the extended attributes of", errno))?;
        let stamp = Stamp::of(stat);
        Ok(Meta {
            mode: stamp.mode & 0o7777,
            uid: stamp.uid,
            gid: stamp.gid,
            atime: Time { seconds: stat.st_atime, nanos: stat.st_atime_nsec as u32 },
            mtime: stamp.mtime,
            xattrs,
        })
    }

    fn resolvable(&self, elsewhere: Option<&'static str>) -> Result<(), ScanError> {
        match elsewhere {
            Some(mark) => Err(ScanError::Unresolvable { path: self.here(), mark }),
            None => Ok(()),
        }
    }

    fn settles(&self, stamp: &Stamp) -> bool {
        self.fence.is_some_and(|fence| stamp.ctime < fence)
    }

    fn put(&mut self, record: &Record) -> Result<(), ScanError> {
        self.totals.changed += 1;
        self.put_only(record)
    }

    fn put_only(&mut self, record: &Record) -> Result<(), ScanError> {
        self.writer.put(record, &[]).map_err(|source| ScanError::Sink { path: self.here(), source })
    }

    fn excluded(&self, name: &[u8]) -> bool {
        !self.scanner.exclude.is_empty() && self.scanner.exclude.covers(&self.below(name))
    }

    /// The path of `name` in the directory at hand.
    fn below(&self, name: &[u8]) -> Vec<u8> {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    fn here(&self) -> RelPath {
        relative(&self.path)
    }

    fn failed(&self, what: &'static str, errno: Errno) -> ScanError {
        let source = io::Error::from(errno);
        ScanError::Io { what, path: self.here(), source }
    }
}

/// The entries of a directory in the making: as long as all are as they were,
/// nothing is copied.
struct Fresh<'a> {
    old: &'a [(Arc<[u8]>, Node)],
    kept: usize,
    new: Option<Vec<(Arc<[u8]>, Node)>>,
}

impl Fresh<'_> {
    fn keep(&mut self, at: usize) {
        match &mut self.new {
            None => self.kept = at + 1,
            Some(new) => new.push(self.old[at].clone()),
        }
    }

    fn push(&mut self, name: Arc<[u8]>, node: Node) {
        self.diverge().push((name, node));
    }

    fn diverge(&mut self) -> &mut Vec<(Arc<[u8]>, Node)> {
        self.new.get_or_insert_with(|| self.old[..self.kept].to_vec())
    }

    fn finish(self) -> Option<Vec<(Arc<[u8]>, Node)>> {
        self.new
    }
}

/// Names come from the kernel and are joined by this module.
fn relative(path: &[u8]) -> RelPath {
    RelPath::parse(path).unwrap_or_default()
}

/// Metadata without what is no change by itself.
fn still(meta: &Meta) -> Meta {
    Meta { atime: Time::default(), ..meta.clone() }
}

fn digest(record: &Record) -> Digest {
    match postcard::to_stdvec(record) {
        Ok(bytes) => *blake3::hash(&bytes).as_bytes(),
        Err(_) => NOTHING,
    }
}

/// Of a symbolic link or node, leaving its access time out.
fn digest_of_node(record: &mut Record) -> Digest {
    let mut atime = Time::default();
    let mut swap = |record: &mut Record| {
        if let Record::Symlink { meta, .. } | Record::Node { meta, .. } = record {
            std::mem::swap(&mut meta.atime, &mut atime);
        }
    };
    swap(record);
    let digest = digest(record);
    swap(record);
    digest
}
