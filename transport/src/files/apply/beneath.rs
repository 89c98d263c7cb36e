//! Every path the applier touches goes through here.
//!
//! **Invariant**: directories are opened with `openat2`, beneath the root,
//! without symbolic links, magic links or mount crossings; what is in them is
//! named by its last name alone, which is never followed.

use super::{ApplyError, Last, node, timestamps};
use crate::files::path::{Exclude, RelPath};
use crate::files::wire::{Meta, NodeKind, Time};
use crate::files::{MAX_DEPTH, exact};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// How often an open is repeated that a concurrent rename disturbed.
const ATTEMPTS: usize = 16;

/// One directory and everything beneath it.
#[derive(Debug)]
pub(super) struct Beneath {
    root: Arc<OwnedFd>,
    keep: Exclude,
    /// The directory used last: neighbours come together.
    recent: Option<(RelPath, Arc<OwnedFd>)>,
}

impl Beneath {
    pub(super) fn new(root: OwnedFd, keep: Exclude) -> Self {
        Self { root: Arc::new(root), keep, recent: None }
    }

    /// Opens the directory that holds `path`.
    fn parent<'p>(&mut self, path: &'p RelPath) -> Result<(Arc<OwnedFd>, &'p [u8]), ApplyError> {
        // A record that cannot be the root was checked when it was decoded.
        let (parent, name) = path.split().ok_or_else(|| ApplyError::Grammar {
            path: path.clone(),
            what: "the root where it cannot be",
        })?;
        Ok((self.directory(parent)?, name))
    }

    fn directory(&mut self, path: RelPath) -> Result<Arc<OwnedFd>, ApplyError> {
        if path.is_root() {
            return Ok(self.root.clone());
        }
        if let Some((recent, fd)) = &self.recent
            && *recent == path
        {
            return Ok(fd.clone());
        }
        let fd = Arc::new(
            open_beneath(&self.root, path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|errno| ApplyError::io("open", &path, errno))?,
        );
        self.recent = Some((path, fd.clone()));
        Ok(fd)
    }

    pub(super) fn times(&mut self, directory: &RelPath) -> Result<(Time, Time), ApplyError> {
        let fd = self.directory(directory.clone())?;
        let stat =
            rustix::fs::fstat(&*fd).map_err(|errno| ApplyError::io("look at", directory, errno))?;
        Ok((
            Time { seconds: stat.st_atime, nanos: stat.st_atime_nsec as u32 },
            Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
        ))
    }

    pub(super) fn is_directory(&mut self, path: &RelPath) -> Result<bool, ApplyError> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(ApplyError::io("look at", path, errno)),
        }
    }

    /// Makes sure of a directory; its metadata comes at the end.
    pub(super) fn make_directory(&mut self, path: &RelPath) -> Result<(), ApplyError> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&*parent, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(ApplyError::io("make the directory", path, errno)),
        }
    }

    pub(super) fn create_file(&mut self, path: &RelPath) -> Result<OwnedFd, ApplyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        self.last_name(path, flags, Mode::RUSR | Mode::WUSR, "create")
    }

    /// Opens a regular file that is there.
    pub(super) fn open_file(&mut self, path: &RelPath) -> Result<OwnedFd, ApplyError> {
        let located = self.located(path)?;
        exact::regular(&located, OFlags::WRONLY)
            .map_err(|errno| ApplyError::io("open", path, errno))?
            .ok_or_else(|| ApplyError::Grammar {
                path: path.clone(),
                what: "a change of something that is no file",
            })
    }

    fn last_name(
        &mut self,
        path: &RelPath,
        flags: OFlags,
        mode: Mode,
        what: &'static str,
    ) -> Result<OwnedFd, ApplyError> {
        let (parent, name) = self.parent(path)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&*parent, name, flags, mode)
            .map_err(|errno| ApplyError::io(what, path, errno))
    }

    pub(super) fn symlink(&mut self, path: &RelPath, target: &[u8]) -> Result<(), ApplyError> {
        let (parent, name) = self.parent(path)?;
        rustix::fs::symlinkat(target, &*parent, name)
            .map_err(|errno| ApplyError::io("make the symbolic link", path, errno))
    }

    pub(super) fn node(&mut self, path: &RelPath, kind: NodeKind) -> Result<(), ApplyError> {
        let (parent, name) = self.parent(path)?;
        let (kind, device) = match kind {
            NodeKind::Fifo => (FileType::Fifo, 0),
            NodeKind::Socket => (FileType::Socket, 0),
            NodeKind::CharDevice(major, minor) => {
                (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
            }
            NodeKind::BlockDevice(major, minor) => {
                (FileType::BlockDevice, rustix::fs::makedev(major, minor))
            }
        };
        rustix::fs::mknodat(&*parent, name, kind, Mode::RUSR | Mode::WUSR, device)
            .map_err(|errno| ApplyError::io("make the node", path, errno))
    }

    pub(super) fn hard_link(&mut self, path: &RelPath, to: &RelPath) -> Result<(), ApplyError> {
        let (from_dir, from_name) = self.parent(to)?;
        let (dir, name) = self.parent(path)?;
        rustix::fs::linkat(&*from_dir, from_name, &*dir, name, AtFlags::empty())
            .map_err(|errno| ApplyError::io("link", path, errno))
    }

    /// Sets the metadata of what is at `path`.
    pub(super) fn set_meta(&mut self, path: &RelPath, meta: &Meta) -> Result<(), ApplyError> {
        let fd = self.located(path)?;
        node::set_located(path, &fd, meta)
    }

    fn located(&mut self, path: &RelPath) -> Result<OwnedFd, ApplyError> {
        self.last_name(path, OFlags::PATH, Mode::empty(), "find")
    }

    pub(super) fn finish_directory(
        &mut self,
        path: &RelPath,
        last: &Last,
    ) -> Result<(), ApplyError> {
        let fd = self.directory(path.clone())?;
        match last {
            Last::Meta(meta) => node::set_open(path, &fd, meta),
            Last::Times(atime, mtime) => rustix::fs::futimens(&*fd, &timestamps(*atime, *mtime))
                .map_err(|errno| ApplyError::io("set the times of", path, errno)),
        }
    }

    /// Removes what is at `path` with everything beneath it, but nothing that
    /// is to be kept. Whether a directory, or part of one, went.
    pub(super) fn remove(&mut self, path: &RelPath) -> Result<bool, ApplyError> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::unlinkat(&*parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(false),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(ApplyError::io("remove", path, errno)),
        }
        self.recent = None;
        let mut full = path.as_bytes().to_vec();
        self.remove_directory(&parent, name, &mut full, 0)?;
        Ok(true)
    }

    fn remove_directory(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), ApplyError> {
        let here = |path: &[u8]| RelPath::parse(path).unwrap_or_default();
        if depth >= MAX_DEPTH {
            return Err(ApplyError::TooDeep { path: here(path) });
        }
        let failed = |path: &[u8], errno| ApplyError::io("remove", &here(path), errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = open_beneath(parent, name, flags).map_err(|errno| failed(path, errno))?;
        let length = path.len();
        for name in list(&dir).map_err(|errno| failed(path, errno))? {
            path.push(b'/');
            path.extend_from_slice(&name);
            if !self.keep.covers(path) {
                match rustix::fs::unlinkat(&dir, name.as_slice(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(Errno::ISDIR | Errno::PERM) => {
                        self.remove_directory(&dir, &name, path, depth + 1)?;
                    }
                    Err(errno) => return Err(failed(path, errno)),
                }
            }
            path.truncate(length);
        }
        if self.keep.reaches_into(path) {
            return Ok(());
        }
        rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(|errno| failed(path, errno))
    }
}

/// Opens `path` without leaving `dir` by any means.
fn open_beneath(dir: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut attempt = 0;
    loop {
        attempt += 1;
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if attempt < ATTEMPTS => {}
            opened => return opened,
        }
    }
}

fn list(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}
