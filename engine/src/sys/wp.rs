//! Asynchronous write protection of another process' memory.
//!
//! A [`WriteProtect`] is a userfaultfd that belongs to the address space it was
//! made in ([`super::inject`]) and is held here. In `WP_ASYNC` mode the kernel
//! resolves a write to a protected page by itself and remembers it; nobody
//! waits for us, and if we die the kernel drops everything.
//! Interface: linux/userfaultfd.h, Documentation/admin-guide/mm/userfaultfd.rst.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `O_CLOEXEC | UFFD_USER_MODE_ONLY`: flags for the `userfaultfd` system call.
/// User mode only needs no privilege in the target, and `WP_ASYNC` no kernel mode.
pub const OPEN_FLAGS: u64 = libc::O_CLOEXEC as u64 | 1;

const API: u64 = 0xAA;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const MODE_WP: u64 = 1 << 1;
/// A page at the end of user space on x86-64 that is never mapped.
const NOWHERE: u64 = 0x7fff_ffff_e000;

#[repr(C)]
#[derive(Debug)]
struct ApiArgs {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug)]
struct RangeArgs {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Debug)]
struct RegisterArgs {
    range: RangeArgs,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug)]
struct ProtectArgs {
    range: RangeArgs,
    mode: u64,
}

mod ioctl {
    //! The raw calls; see linux/userfaultfd.h.
    #![allow(missing_docs, unreachable_pub)]
    use super::{ApiArgs, ProtectArgs, RangeArgs, RegisterArgs};
    nix::ioctl_readwrite!(api, 0xAA, 0x3F, ApiArgs);
    nix::ioctl_readwrite!(register, 0xAA, 0x00, RegisterArgs);
    nix::ioctl_read!(unregister, 0xAA, 0x01, RangeArgs);
    nix::ioctl_readwrite!(writeprotect, 0xAA, 0x06, ProtectArgs);
}

/// Why a range was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nothing is mapped there any more, or it is of a kind that cannot be
    /// registered (`MAP_DROPPABLE`).
    Unsuitable,
    /// Another userfaultfd has it.
    Taken,
    /// The address space is gone, or the kernel lacks memory for it.
    Dead,
}

/// A userfaultfd in `WP_ASYNC` mode. Dropping it unregisters everything.
#[derive(Debug)]
pub struct WriteProtect(OwnedFd);

impl WriteProtect {
    /// Switches a fresh userfaultfd to asynchronous write protection, with no
    /// events (they would block the target). `EINVAL` if the kernel cannot.
    pub fn enable(fd: OwnedFd) -> io::Result<Self> {
        let mut args = ApiArgs { api: API, features: FEATURE_WP_ASYNC, ioctls: 0 };
        // SAFETY: `args` is laid out as the ioctl's `struct uffdio_api`, valid
        // and exclusively ours through the call; the descriptor is open.
        unsafe { ioctl::api(fd.as_raw_fd(), &mut args) }?;
        Ok(Self(fd))
    }

    /// A userfaultfd of our own process: only for probing what the kernel can.
    pub fn own() -> io::Result<Self> {
        // SAFETY: the call takes a number and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, OPEN_FLAGS) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just given us this descriptor; nobody else has it.
        Self::enable(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Registers `start .. end` (byte addresses, whole pages). Takes 2–6 µs per
    /// VMA and may be repeated. Does not protect anything yet.
    pub fn register(&self, start: u64, end: u64) -> Result<(), Refused> {
        let range = RangeArgs { start, len: end - start };
        let mut args = RegisterArgs { range, mode: MODE_WP, ioctls: 0 };
        // SAFETY: `args` is laid out as `struct uffdio_register`, valid and
        // exclusively ours through the call; the descriptor is open. The range
        // lies in the target's address space; write protection that resolves
        // itself changes nothing a program can see.
        match unsafe { ioctl::register(self.0.as_raw_fd(), &mut args) } {
            Ok(_) => Ok(()),
            Err(nix::Error::EBUSY) => Err(Refused::Taken),
            Err(nix::Error::ENOMEM | nix::Error::ESRCH) => Err(Refused::Dead),
            Err(_) => Err(Refused::Unsuitable),
        }
    }

    /// Unregisters `start .. end` and lifts all protection there. Closing does
    /// that for everything at once, but holds the target's `mmap_lock` as long.
    pub fn unregister(&self, start: u64, end: u64) {
        let mut args = RangeArgs { start, len: end - start };
        // SAFETY: `args` is laid out as `struct uffdio_range`, valid through
        // the call; the descriptor is open. A failure means that nothing is
        // registered there, which is what is wanted.
        let _ = unsafe { ioctl::unregister(self.0.as_raw_fd(), &mut args) };
    }

    /// Whether the address space this belongs to still exists. It ends when its
    /// last process ends or executes another program.
    pub fn alive(&self) -> bool {
        let range = RangeArgs { start: NOWHERE, len: 4096 };
        let mut args = ProtectArgs { range, mode: 0 };
        // SAFETY: `args` is laid out as `struct uffdio_writeprotect`, valid
        // through the call; the descriptor is open. Mode 0 lifts protection
        // from a page that is never mapped: nothing happens but the answer.
        let answer = unsafe { ioctl::writeprotect(self.0.as_raw_fd(), &mut args) };
        answer != Err(nix::Error::ESRCH)
    }
}

/// Asks the kernel to form huge pages again in the byte ranges `start, end` of
/// process `pid`, at best effort: it may lack the memory, or the right.
pub fn collapse(pid: i32, ranges: &[(u64, u64)]) {
    if ranges.is_empty() {
        return;
    }
    let Ok(pidfd) = super::pidfd::open(pid) else { return };
    for &(start, end) in ranges {
        let range =
            libc::iovec { iov_base: start as *mut libc::c_void, iov_len: (end - start) as usize };
        // SAFETY: one valid `iovec`, interpreted in the other process only;
        // collapsing changes how its memory is mapped, not what it holds.
        let _ = unsafe {
            let fd = pidfd.as_raw_fd();
            libc::syscall(
                libc::SYS_process_madvise,
                fd,
                &raw const range,
                1,
                libc::MADV_COLLAPSE,
                0,
            )
        };
    }
}

/// Whether two processes share one address space (`CLONE_VM`). `false` if the
/// kernel does not tell (without CONFIG_KCMP).
pub fn same_address_space(a: i32, b: i32) -> bool {
    const KCMP_VM: i32 = 1;
    // SAFETY: the call takes numbers and touches no memory.
    a == b || unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) } == 0
}
