//! Opens the very inode that was looked at.
//!
//! Opening a device can have effects by itself (it arms a watchdog, rewinds a
//! tape), and between looking at a name and opening it the name may have become
//! a device. So what should be a file is located first, checked, and then
//! opened through its link in /proc, which leads to that inode and no other.

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Opens what `located` found with `O_PATH`, if it is a regular file.
pub(super) fn regular(located: &OwnedFd, access: OFlags) -> Result<Option<OwnedFd>, Errno> {
    let stat = rustix::fs::fstat(located)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let access = access | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, in_proc(located), access, Mode::empty()).map(Some)
}

/// Access to read without leaving a trace in the access time, where that is
/// allowed; the call is repeated without it where it is not.
pub(super) fn quietly(
    mut open: impl FnMut(OFlags) -> Result<Option<OwnedFd>, Errno>,
) -> Result<Option<OwnedFd>, Errno> {
    match open(OFlags::RDONLY | OFlags::NOATIME) {
        // Only owners and root may.
        Err(Errno::PERM) => open(OFlags::RDONLY),
        opened => opened,
    }
}

/// The link in /proc to what `fd` has open.
pub(super) fn in_proc(fd: &impl AsFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap_or_default()
}
