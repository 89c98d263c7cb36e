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

use rustix::fs::{OFlags, fcntl_getfl, readlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

/// A table of so many descriptors is gone through, however few are in use.
const SMALL_TABLE: u64 = 4096;

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
        let process = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
        let process = pidfd_open(process, PidfdFlags::empty())?;
        let directory = File::open(format!("/proc/{pid}/fd"))?;
        let mut worst = Self::None;
        let mut name = Vec::new();
        for number in numbers(pid)? {
            // Descriptors come and go while we look.
            name = match readlinkat(&directory, number.to_string(), name) {
                Ok(name) => name.into_bytes(),
                Err(_) => Vec::new(),
            };
            if name == b"anon_inode:[io_uring]" {
                return Ok(Self::Asynchronous);
            }
            // Sockets, pipes and the like have no slash in front.
            if name.starts_with(b"/") && is_direct(&process, number)? {
                worst = Self::Synchronous;
            }
        }
        Ok(if aio && worst == Self::Synchronous { Self::Asynchronous } else { worst })
    }
}

/// The numbers its descriptors can have: all that its table has room for or, if
/// most of that is empty, those that are in use.
fn numbers(pid: i32) -> io::Result<Vec<i32>> {
    let directory = format!("/proc/{pid}/fd");
    // How many are in use, since Linux 6.2; zero before.
    let used = fs::metadata(&directory)?.len();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let room =
        status.lines().find_map(|line| line.strip_prefix("FDSize:")?.trim().parse::<u32>().ok());
    if let Some(room) = room.filter(|room| u64::from(*room) <= SMALL_TABLE.max(used * 8)) {
        return Ok((0..room as i32).collect());
    }
    let names = fs::read_dir(directory)?.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// Whether reads of descriptor `number` go straight into memory.
fn is_direct(process: &OwnedFd, number: i32) -> io::Result<bool> {
    match pidfd_getfd(process, number, PidfdGetfdFlags::empty()) {
        Ok(file) => Ok(fcntl_getfl(&file)?.contains(OFlags::DIRECT)),
        Err(Errno::BADF) => Ok(false),
        Err(error) => Err(error.into()),
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
        assert!(numbers(own).unwrap().contains(&far), "{far}");
        nix::unistd::close(far).unwrap();
    }
}
