//! Files, symbolic links and nodes: reads them and says what changed.

use super::ScanError;
use super::walk::{NOTHING, Read, Seen, Walk};
use crate::files::content::{Before, ContentError, Outgoing};
use crate::files::manifest::{Body, Content, Digest, Node, Stamp};
use crate::files::overlay::interpret;
use crate::files::wire::{Meta, NodeKind, Record, Time};
use crate::files::{exact, xattr};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// From this size on, in bytes, it pays to know what of a file was written.
const LARGE: u64 = 1 << 20;

impl<'a> Walk<'a, '_> {
    /// A regular file with one name.
    pub(super) fn file(
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
        let read_last = known.map(|node| node.stamp.inode);
        let digest = known.filter(|node| matches!(node.body, Body::File { .. })).map(|n| n.digest);
        let Some(located) = self.locate(dir, name)? else { return Ok(Seen::Gone) };
        let Some(fd) = self.open_regular(&located)? else { return Ok(Seen::Gone) };
        match self.read(&fd, before, read_last, digest)? {
            Read::Gone => Ok(Seen::Gone),
            Read::Whiteout => self.whiteout(stamp, known),
            Read::File { stamp, settled, digest, blocks } => {
                Ok(Seen::New(Node { stamp, settled, digest, body: Body::File { blocks } }))
            }
        }
    }

    /// Reads an open regular file and sends what differs from `before`, which
    /// was read of the inode `read_last`.
    pub(super) fn read(
        &mut self,
        fd: &OwnedFd,
        before: Option<Content<'_>>,
        read_last: Option<u64>,
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
        let written = match &mut self.log {
            // Asking about a small one costs as much as reading it.
            Some(log) if stamp.size >= LARGE => {
                log.written(fd.as_fd(), stamp.inode).filter(|_| read_last == Some(stamp.inode))
            }
            _ => None,
        };
        let before =
            before.map(|content| Before { size: content.size, blocks: content.blocks, written });
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
    pub(super) fn node(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        known: Option<&Node>,
    ) -> Result<Seen, ScanError> {
        let Some(fd) = self.locate(dir, name)? else { return Ok(Seen::Gone) };
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
    pub(super) fn describe(&self, fd: &OwnedFd) -> Result<Option<(Stamp, Record)>, ScanError> {
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
            // A whiteout by now.
            FileType::CharacterDevice if self.is_whiteout(&stamp) => return Ok(None),
            FileType::CharacterDevice => NodeKind::CharDevice(numbers.0, numbers.1),
            FileType::BlockDevice => NodeKind::BlockDevice(numbers.0, numbers.1),
            _ => return Ok(None),
        };
        Ok(Some((stamp, Record::Node { path, kind, meta })))
    }

    /// Finds an entry without opening it; `None` if it went.
    pub(super) fn locate(&self, dir: &OwnedFd, name: &[u8]) -> Result<Option<OwnedFd>, ScanError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.there(rustix::fs::openat(dir, name, flags, Mode::empty()).map(Some))
    }

    /// Opens a directory to be listed; `None` if it is none any more.
    pub(super) fn open_directory(
        &self,
        dir: &OwnedFd,
        name: &[u8],
    ) -> Result<Option<OwnedFd>, ScanError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.there(exact::quietly(|access| {
            rustix::fs::openat(dir, name, flags | access, Mode::empty()).map(Some)
        }))
    }

    /// Opens what was located to be read; `None` if it is no regular file.
    pub(super) fn open_regular(&self, located: &OwnedFd) -> Result<Option<OwnedFd>, ScanError> {
        self.there(exact::quietly(|access| exact::regular(located, access)))
    }

    /// What is no longer there, or no longer what it was, is no failure.
    pub(super) fn there(
        &self,
        opened: Result<Option<OwnedFd>, Errno>,
    ) -> Result<Option<OwnedFd>, ScanError> {
        match opened {
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::AGAIN) => Ok(None),
            opened => opened.map_err(|errno| self.failed("open", errno)),
        }
    }

    pub(super) fn meta(&self, of: &xattr::Of<'_>, stat: &Stat) -> Result<Meta, ScanError> {
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
}

/// Metadata without what is no change by itself.
pub(super) fn still(meta: &Meta) -> Meta {
    Meta { atime: Time::default(), ..meta.clone() }
}

pub(super) fn digest(record: &Record) -> Digest {
    match postcard::to_stdvec(record) {
        Ok(bytes) => *blake3::hash(&bytes).as_bytes(),
        Err(_) => NOTHING,
    }
}

/// Of a symbolic link or node, leaving its access time out.
pub(super) fn digest_of_node(record: &mut Record) -> Digest {
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
