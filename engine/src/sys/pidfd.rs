//! Another process, held by a descriptor, and copies of what it has open.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::io;
use std::os::fd::OwnedFd;

/// A descriptor of process `pid`.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let process = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    Ok(pidfd_open(process, PidfdFlags::empty())?)
}

/// A copy of descriptor `number` of the process behind `pidfd`. Of a socket the
/// kernel's network classes count it as ours from then on.
pub fn fetch(pidfd: &OwnedFd, number: i32) -> io::Result<OwnedFd> {
    Ok(pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())?)
}
