//! Extended attributes of an exact inode, whatever its kind.

use super::exact::in_proc;
use super::wire::{MAX_XATTR_VALUE, Xattr};
use rustix::buffer::spare_capacity;
use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

/// Labels of the host's security policy: they do not travel.
const OF_THE_HOST: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];

/// Whether an attribute may leave or enter a host.
pub(super) fn travels(name: &[u8]) -> bool {
    !OF_THE_HOST.contains(&name)
}

/// Whose attributes.
pub(super) enum Of<'a> {
    /// A file or directory opened for reading or writing.
    Open(BorrowedFd<'a>),
    /// Anything opened with `O_PATH`, by its link in /proc: that leads to the
    /// very inode and is not followed further, even if it is a symbolic link.
    Located(CString),
}

impl<'a> Of<'a> {
    pub(super) fn open(fd: &'a impl AsFd) -> Self {
        Self::Open(fd.as_fd())
    }

    pub(super) fn located(fd: &'a impl AsFd) -> Self {
        Self::Located(in_proc(fd))
    }

    /// Names of all attributes that may travel.
    pub(super) fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let list = grow(256, |list| match self {
            Of::Open(fd) => fs::flistxattr(fd, spare_capacity(list)),
            Of::Located(path) => fs::listxattr(path, spare_capacity(list)),
        });
        let list = match list {
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            list => list?,
        };
        Ok(list
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty() && travels(name))
            .map(<[u8]>::to_vec)
            .collect())
    }

    /// All attributes that may travel, sorted by name.
    pub(super) fn read(&self) -> Result<Vec<Xattr>, Errno> {
        let mut all = Vec::new();
        for name in self.names()? {
            let value = grow(256, |value| match self {
                Of::Open(fd) => fs::fgetxattr(fd, name.as_slice(), spare_capacity(value)),
                Of::Located(path) => fs::getxattr(path, name.as_slice(), spare_capacity(value)),
            });
            match value {
                Ok(value) => all.push(Xattr { name, value }),
                // Gone since it was listed: the change time says so.
                Err(Errno::NODATA) => {}
                Err(errno) => return Err(errno),
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Sets one attribute, whether it was there or not.
    pub(super) fn set(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Of::Open(fd) => fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Of::Located(path) => fs::setxattr(path, name, value, XattrFlags::empty()),
        }
    }

    /// Removes one attribute that is there.
    pub(super) fn remove(&self, name: &[u8]) -> Result<(), Errno> {
        match self {
            Of::Open(fd) => fs::fremovexattr(fd, name),
            Of::Located(path) => fs::removexattr(path, name),
        }
    }
}

/// Calls with ever larger buffers until what there is fits.
fn grow(
    first: usize,
    mut call: impl FnMut(&mut Vec<u8>) -> Result<usize, Errno>,
) -> Result<Vec<u8>, Errno> {
    let mut buffer = Vec::with_capacity(first);
    loop {
        buffer.clear();
        match call(&mut buffer) {
            Err(Errno::RANGE) if buffer.capacity() < 4 * MAX_XATTR_VALUE => {
                buffer = Vec::with_capacity(buffer.capacity() * 8);
            }
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(buffer),
        }
    }
}
