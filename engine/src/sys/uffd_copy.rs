//! The filling side of a userfaultfd: reading what the kernel reports, putting
//! pages into the address space behind the descriptor, and receiving such
//! descriptors over a unix socket.
//!
//! Numbers and layouts come from the kernel's `include/uapi/linux/userfaultfd.h`;
//! the meaning of each error from `mm/userfaultfd.c` and `fs/userfaultfd.c`.
//!
//! **Invariant:** closing a userfaultfd turns every page still missing into a
//! zero page, silently. [`Uffd`] therefore never closes by being dropped; only
//! [`Uffd::release`] does, and whoever calls it vouches that nothing is owed
//! any more or that the process is dead.

use blip_transport::units::PAGE_SIZE;
use nix::errno::Errno;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `UFFDIO_API` version understood here.
pub(super) const UFFD_API: u64 = 0xAA;
const UFFDIO: u8 = 0xAA;

#[repr(C)]
#[derive(Default)]
pub(super) struct UffdioApi {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
pub(super) struct UffdioRange {
    pub(super) start: u64,
    pub(super) len: u64,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct UffdioRegister {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeropage: i64,
}

/// The requests, as the kernel numbers them.
mod request {
    use super::{UFFDIO, UffdioApi, UffdioCopy, UffdioRange, UffdioRegister, UffdioZeropage};

    nix::ioctl_readwrite!(
        /// Agrees on the interface; comes first.
        api, UFFDIO, 0x3F, UffdioApi
    );
    nix::ioctl_readwrite!(
        /// Watches a range.
        register, UFFDIO, 0x00, UffdioRegister
    );
    nix::ioctl_read!(
        /// Wakes who waits in a range.
        wake, UFFDIO, 0x02, UffdioRange
    );
    nix::ioctl_readwrite!(
        /// Fills a range with bytes.
        copy, UFFDIO, 0x03, UffdioCopy
    );
    nix::ioctl_readwrite!(
        /// Fills a range with zeros.
        zeropage, UFFDIO, 0x04, UffdioZeropage
    );
}

pub(super) use request::{api as uffdio_api, register as uffdio_register};

/// One message of the kernel about an address space.
#[derive(Debug)]
pub enum UffdEvent {
    /// A thread touched a page that is not there and waits for it.
    PageFault {
        /// Address touched, perhaps rounded down to its page.
        address: u64,
    },
    /// The process forked; the child starts once this message has been read.
    Fork {
        /// The child's own userfaultfd, registered over the same ranges.
        child: Uffd,
    },
    /// `mremap` moved `len` bytes.
    Remap {
        /// Old address.
        from: u64,
        /// New address.
        to: u64,
        /// Bytes moved.
        len: u64,
    },
    /// Content of `start .. end` is about to be thrown away (`madvise`).
    Remove {
        /// First byte.
        start: u64,
        /// First byte after it.
        end: u64,
    },
    /// `start .. end` has been unmapped.
    Unmap {
        /// First byte.
        start: u64,
        /// First byte after it.
        end: u64,
    },
}

/// Size of `struct uffd_msg`.
const MSG: usize = 32;
/// Messages taken by one `read`.
const BATCH: usize = 64;

/// Why placing pages stopped before the end of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `EEXIST`: the next page is already there.
    Exists,
    /// `ENOENT`: the next page lies in no registered mapping, or the range
    /// crosses the border of one.
    Unregistered,
    /// `EAGAIN`: the address space is changing; read the pending events first.
    Again,
    /// `ESRCH` or `ENOSPC`: the address space is gone.
    Gone,
    /// `ENOMEM`: no memory for the page, in the host or in the container's
    /// memory cgroup.
    NoMemory,
    /// Anything else.
    Other(Errno),
}

/// What a [`Uffd::copy`] or [`Uffd::zero`] achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Pages placed, from the start of the range.
    pub pages: u64,
    /// Why no more; `None` if all were placed.
    pub stop: Option<Stop>,
}

/// A userfaultfd whose faults this process answers.
#[derive(Debug)]
pub struct Uffd(ManuallyDrop<OwnedFd>);

impl Uffd {
    /// Takes over a descriptor received from elsewhere, after checking that it
    /// is a userfaultfd, and makes it non-blocking.
    ///
    /// # Errors
    /// `EINVAL` if the descriptor is something else, or what `fcntl` reports.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if link.as_os_str() != "anon_inode:[userfaultfd]" {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL)?;
        let flags = nix::fcntl::OFlag::from_bits_retain(flags) | nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(flags))?;
        Ok(Self(ManuallyDrop::new(fd)))
    }

    /// Another descriptor of the same userfaultfd, for someone who must keep it
    /// open whatever happens here.
    ///
    /// # Errors
    /// What `fcntl` reports.
    pub fn keepsake(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Closes the descriptor. The kernel unregisters everything behind it and
    /// wakes all waiting threads; what is missing reads as zeros from now on.
    /// Call it only if no page is owed, or nobody will run to read it.
    pub fn release(self) {
        drop(ManuallyDrop::into_inner(self.0));
    }

    /// Takes the waiting messages, up to a batch. An empty answer means that
    /// none waits.
    ///
    /// # Errors
    /// What `read` reports, except that nothing waits; `EPROTO` for a message
    /// of a kind nobody asked for.
    pub fn read_events(&self, into: &mut Vec<UffdEvent>) -> io::Result<()> {
        let mut raw = [0u8; MSG * BATCH];
        let got = match nix::unistd::read(self, &mut raw) {
            Ok(n) => n,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        for message in raw[..got].chunks_exact(MSG) {
            into.push(parse(message).ok_or(io::Error::from_raw_os_error(libc::EPROTO))?);
        }
        Ok(())
    }

    /// Copies whole pages to `address`, waking whoever waits for them.
    ///
    /// `bytes` must be a whole number of pages and `address` the start of one.
    pub fn copy(&self, address: u64, bytes: &[u8]) -> Placed {
        debug_assert!(
            bytes.len().is_multiple_of(PAGE_SIZE) && address.is_multiple_of(PAGE_SIZE as u64)
        );
        self.place(bytes.len() as u64, |done| {
            let rest = &bytes[done as usize..];
            let mut arg = UffdioCopy {
                dst: address + done,
                src: rest.as_ptr() as u64,
                len: rest.len() as u64,
                mode: 0,
                copy: 0,
            };
            // SAFETY: the kernel reads `len` bytes from `src`, which is the
            // borrowed slice, and writes only `arg`; `dst` lies in the address
            // space behind the descriptor, where only missing pages are filled.
            let result = unsafe { request::copy(self.0.as_raw_fd(), &mut arg) };
            (arg.copy, result)
        })
    }

    /// Fills `pages` pages from `address` with zeros, waking whoever waits.
    pub fn zero(&self, address: u64, pages: u64) -> Placed {
        let len = pages * PAGE_SIZE as u64;
        self.place(len, |done| {
            let mut arg = UffdioZeropage {
                range: UffdioRange { start: address + done, len: len - done },
                mode: 0,
                zeropage: 0,
            };
            // SAFETY: the kernel writes only `arg` in this process; in the
            // address space behind the descriptor only missing pages are filled.
            let result = unsafe { request::zeropage(self.0.as_raw_fd(), &mut arg) };
            (arg.zeropage, result)
        })
    }

    /// Lets threads waiting in `pages` pages from `address` try again.
    ///
    /// # Errors
    /// What the kernel reports; `EINVAL` for a range no process can have.
    pub fn wake(&self, address: u64, pages: u64) -> io::Result<()> {
        let mut arg = UffdioRange { start: address, len: pages * PAGE_SIZE as u64 };
        // SAFETY: the kernel only reads `arg`.
        unsafe { request::wake(self.0.as_raw_fd(), &mut arg) }?;
        Ok(())
    }

    /// Repeats `step(bytes done)` while it makes progress: the kernel answers a
    /// partial placement with `EAGAIN`, and tells the reason only when asked
    /// to go on.
    fn place(&self, len: u64, step: impl Fn(u64) -> (i64, nix::Result<i32>)) -> Placed {
        let mut done = 0;
        loop {
            let stop = match step(done) {
                (_, Ok(_)) => return Placed { pages: len / PAGE_SIZE as u64, stop: None },
                (placed, Err(_)) if placed > 0 => {
                    done += placed as u64;
                    continue;
                }
                (_, Err(Errno::EEXIST)) => Stop::Exists,
                (_, Err(Errno::ENOENT)) => Stop::Unregistered,
                (_, Err(Errno::EAGAIN | Errno::EINTR)) => Stop::Again,
                (_, Err(Errno::ESRCH | Errno::ENOSPC)) => Stop::Gone,
                (_, Err(Errno::ENOMEM)) => Stop::NoMemory,
                (_, Err(other)) => Stop::Other(other),
            };
            return Placed { pages: done / PAGE_SIZE as u64, stop: Some(stop) };
        }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn parse(message: &[u8]) -> Option<UffdEvent> {
    let word = |at: usize| {
        let mut raw = [0u8; 8];
        raw.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(raw)
    };
    Some(match message[0] {
        0x12 => UffdEvent::PageFault { address: word(16) },
        0x13 => {
            let raw = word(8).to_ne_bytes();
            let fd = i32::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]]);
            // SAFETY: the kernel has just installed this descriptor in our
            // table on behalf of this message; nobody else knows its number.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            UffdEvent::Fork { child: Uffd(ManuallyDrop::new(fd)) }
        }
        0x14 => UffdEvent::Remap { from: word(8), to: word(16), len: word(24) },
        0x15 => UffdEvent::Remove { start: word(8), end: word(16) },
        0x16 => UffdEvent::Unmap { start: word(8), end: word(16) },
        _ => return None,
    })
}

/// What one [`receive`] brought.
#[derive(Debug)]
pub struct Received {
    /// Bytes put into the buffer; zero at the end of the stream.
    pub bytes: usize,
    /// Descriptors that came with them.
    pub fds: Vec<OwnedFd>,
    /// The kernel had to drop some of what came with them.
    pub truncated: bool,
}

/// Receives from a unix stream without waiting, together with descriptors.
/// Bytes sent before and with a descriptor are never joined beyond `buffer`.
///
/// # Errors
/// What `recvmsg` reports; [`io::ErrorKind::WouldBlock`] if nothing waits.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut space = nix::cmsg_space!([libc::c_int; 253]);
    let mut iov = [io::IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    let mut truncated = message.flags.contains(MsgFlags::MSG_CTRUNC);
    let mut fds = Vec::new();
    match message.cmsgs() {
        Ok(controls) => {
            for control in controls {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    for fd in raw {
                        // SAFETY: `recvmsg` has just installed this descriptor
                        // for us; nobody else knows its number.
                        fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                    }
                }
            }
        }
        Err(_) => truncated = true,
    }
    Ok(Received { bytes: message.bytes, fds, truncated })
}
