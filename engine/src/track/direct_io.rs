//! Does a process have devices write into its memory behind the page tables?
//!
//! A read through an `O_DIRECT` descriptor pins pages, and the device fills
//! them without a page fault. A page protected while that is under way changes
//! without being seen as written. Two cases:
//!
//! * **Synchronous**: the thread waits for the device. When all threads stand
//!   still nothing is under way, and a later read faults when it pins. So the
//!   scan is made while they stand still.
//! * **Asynchronous** (`io_submit`, io_uring): standing still does not help.
//!   Live rounds are best effort, and at the final stop all is copied in full.
//!
//! Knowledge is kept until the process executes another program: a process
//! that did so once may do so again between two looks.

use crate::descriptors;
use crate::sys::pidfd;
use rustix::fs::{OFlags, fcntl_getfl};
use std::io;
use std::os::fd::OwnedFd;

/// The worst that was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DirectIo {
    /// Nothing of the kind.
    #[default]
    None,
    /// `O_DIRECT` descriptors.
    Synchronous,
    /// Those, and a ring of asynchronous I/O; or io_uring.
    Asynchronous,
}

impl DirectIo {
    /// Looks through the open descriptors; `aio`: whether it has such a ring.
    ///
    /// Those of files are borrowed for a moment, which costs a fraction of what
    /// reading about them in `/proc` does: servers keep tens of thousands open.
    /// Sockets are not: the kernel would count them as ours from then on.
    pub(super) fn of(pid: i32, aio: bool) -> io::Result<Self> {
        let process = pidfd::open(pid)?;
        let mut worst = Self::None;
        for open in descriptors::of(pid)? {
            if open.link == "anon_inode:[io_uring]" {
                return Ok(Self::Asynchronous);
            }
            // Sockets, pipes and the like have no slash in front.
            if open.link.starts_with('/') && is_direct(&process, open.number)? {
                worst = Self::Synchronous;
            }
        }
        Ok(if aio && worst == Self::Synchronous { Self::Asynchronous } else { worst })
    }
}

/// Whether reads of descriptor `number` go straight into memory.
fn is_direct(process: &OwnedFd, number: i32) -> io::Result<bool> {
    match pidfd::fetch(process, number) {
        Ok(file) => Ok(fcntl_getfl(&file)?.contains(OFlags::DIRECT)),
        // Descriptors come and go while we look.
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn an_o_direct_descriptor_is_seen() {
        let own = std::process::id() as i32;
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(DirectIo::of(own, false).unwrap(), DirectIo::None);
        let direct =
            std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file.path());
        // Some file systems have no direct I/O; then there is nothing to see.
        if direct.is_ok() {
            assert_eq!(DirectIo::of(own, false).unwrap(), DirectIo::Synchronous);
            assert_eq!(DirectIo::of(own, true).unwrap(), DirectIo::Asynchronous);
        }
    }

    #[test]
    fn a_descriptor_of_any_number_is_looked_at() {
        let own = std::process::id() as i32;
        let file = tempfile::NamedTempFile::new().unwrap();
        let far = nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(700);
        let far = nix::fcntl::fcntl(file.as_file(), far).unwrap();
        let numbers: Vec<i32> =
            descriptors::of(own).unwrap().into_iter().map(|open| open.number).collect();
        assert!(numbers.contains(&far), "{far}");
        nix::unistd::close(far).unwrap();
    }
}
