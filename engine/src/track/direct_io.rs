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

use std::io;
use std::path::Path;

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
    pub(super) fn of(pid: i32, aio: bool) -> io::Result<Self> {
        let mut worst = Self::None;
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            // Descriptors come and go while we look.
            let Ok(entry) = entry else { continue };
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let name = target.as_os_str().as_encoded_bytes();
            if name == b"anon_inode:[io_uring]" {
                return Ok(Self::Asynchronous);
            }
            // Sockets, pipes and the like have no slash in front.
            if name.starts_with(b"/") && is_direct(pid, &entry.path()) {
                worst = Self::Synchronous;
            }
        }
        Ok(if aio && worst == Self::Synchronous { Self::Asynchronous } else { worst })
    }
}

/// Whether `/proc/PID/fdinfo/N` shows `O_DIRECT` among the flags (octal).
fn is_direct(pid: i32, descriptor: &Path) -> bool {
    let Some(number) = descriptor.file_name().and_then(|name| name.to_str()) else { return false };
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
    info.lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & libc::O_DIRECT != 0)
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
}
