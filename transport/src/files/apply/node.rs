//! Sets metadata, in the order in which nothing undoes what came before:
//! changing the owner drops set-user-ID and capabilities, and changing
//! anything may change times.

use super::{ApplyError, timestamps};
use crate::files::exact::in_proc;
use crate::files::path::RelPath;
use crate::files::wire::{Meta, NodeKind};
use crate::files::xattr::{Of, travels};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

impl NodeKind {
    /// Whether it is a device.
    pub fn is_device(self) -> bool {
        matches!(self, NodeKind::CharDevice(..) | NodeKind::BlockDevice(..))
    }
}

/// Of a regular file or a directory that is open.
pub(super) fn set_open(path: &RelPath, fd: &OwnedFd, meta: &Meta) -> Result<(), ApplyError> {
    let (uid, gid) = owner(meta);
    rustix::fs::fchown(fd, uid, gid).map_err(|errno| failed("set the owner of", path, errno))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.mode))
        .map_err(|errno| failed("set the permissions of", path, errno))?;
    set_xattrs(path, &Of::open(fd), meta)?;
    rustix::fs::futimens(fd, &timestamps(meta.atime, meta.mtime))
        .map_err(|errno| failed("set the times of", path, errno))
}

/// Of anything, opened with `O_PATH`.
pub(super) fn set_located(path: &RelPath, fd: &OwnedFd, meta: &Meta) -> Result<(), ApplyError> {
    let (uid, gid) = owner(meta);
    rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)
        .map_err(|errno| failed("set the owner of", path, errno))?;
    let stat = rustix::fs::fstat(fd).map_err(|errno| failed("look at", path, errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(meta.mode);
        rustix::fs::chmodat(CWD, in_proc(fd), mode, AtFlags::empty())
            .map_err(|errno| failed("set the permissions of", path, errno))?;
    }
    set_xattrs(path, &Of::located(fd), meta)?;
    rustix::fs::utimensat(fd, c"", &timestamps(meta.atime, meta.mtime), AtFlags::EMPTY_PATH)
        .map_err(|errno| failed("set the times of", path, errno))
}

/// Makes the attributes those of `meta`; a new file may have inherited some.
fn set_xattrs(path: &RelPath, of: &Of<'_>, meta: &Meta) -> Result<(), ApplyError> {
    let present =
        of.names().map_err(|errno| failed("list the extended attributes of", path, errno))?;
    for name in present {
        if !meta.xattrs.iter().any(|xattr| xattr.name == name) {
            match of.remove(&name) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(errno) => return Err(failed("remove an extended attribute of", path, errno)),
            }
        }
    }
    for xattr in meta.xattrs.iter().filter(|xattr| travels(&xattr.name)) {
        of.set(&xattr.name, &xattr.value)
            .map_err(|errno| failed("set an extended attribute of", path, errno))?;
    }
    Ok(())
}

fn owner(meta: &Meta) -> (Option<Uid>, Option<Gid>) {
    // All ones, which these types cannot hold, did not decode.
    (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
}

fn failed(what: &'static str, path: &RelPath, errno: Errno) -> ApplyError {
    ApplyError::io(what, path, errno)
}
