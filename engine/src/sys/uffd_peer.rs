//! The restored side of the lazy-pages protocol, as CRIU plays it: memory whose
//! missing pages somebody else fills. Tests use it in place of CRIU, and a
//! preflight may, to learn whether this kernel serves lazily at all.

use super::uffd_copy::{
    UFFD_API, UffdioApi, UffdioRange, UffdioRegister, uffdio_api, uffdio_register,
};
use blip_transport::units::PAGE_SIZE;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// `UFFD_FEATURE_EVENT_FORK | _REMAP | _REMOVE | _UNMAP`: what CRIU asks for.
pub const CRIU_FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;

/// `UFFDIO_REGISTER_MODE_MISSING`.
const MODE_MISSING: u64 = 1;

/// Opens a userfaultfd over this process, as CRIU's restorer does.
///
/// # Errors
/// `EPERM` without the right to see kernel faults, `ENOSYS` or `EINVAL` where
/// the kernel has no userfaultfd or lacks a feature.
pub fn open(features: u64) -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: a system call without pointers; it answers a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = UffdioApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the kernel reads and writes only `api`.
    unsafe { uffdio_api(fd.as_raw_fd(), &mut api) }?;
    Ok(fd)
}

/// Private anonymous memory at an address of the caller's choice, which is
/// never unmapped by being dropped: tests map, move and unmap pieces of it.
///
/// Every access is a single atomic byte access, so that threads and a filler
/// in another process may share it.
#[derive(Clone, Copy, Debug)]
pub struct Arena {
    start: u64,
    pages: u64,
}

/// Flags of [`Arena::advise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// `MADV_DONTNEED`: throw the content away.
    DontNeed,
    /// `MADV_DONTFORK`: a forked child shall not have it.
    DontFork,
    /// `MADV_WIPEONFORK`: a forked child shall see zeros.
    WipeOnFork,
}

impl Arena {
    /// Maps `pages` pages at `address` (which must be free), or anywhere for 0.
    ///
    /// # Errors
    /// What `mmap` reports; `EEXIST` if the place is taken.
    pub fn map(address: u64, pages: u64) -> io::Result<Self> {
        let place = if address == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
        // SAFETY: a new mapping that replaces none.
        let got = unsafe {
            libc::mmap(
                address as *mut libc::c_void,
                pages as usize * PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | place,
                -1,
                0,
            )
        };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: got as u64, pages })
    }

    /// First address.
    pub fn start(self) -> u64 {
        self.start
    }

    /// Length in pages.
    pub fn pages(self) -> u64 {
        self.pages
    }

    /// The `count` pages from page `first` of this arena.
    ///
    /// # Panics
    /// If they are not inside.
    pub fn part(self, first: u64, count: u64) -> Self {
        assert!(first + count <= self.pages, "part outside of the arena");
        Self { start: self.start + first * PAGE_SIZE as u64, pages: count }
    }

    fn bytes(self) -> usize {
        self.pages as usize * PAGE_SIZE
    }

    /// Lets `uffd` answer for missing pages of this arena.
    ///
    /// # Errors
    /// What `UFFDIO_REGISTER` reports.
    pub fn register(self, uffd: &OwnedFd) -> io::Result<()> {
        let range = UffdioRange { start: self.start, len: self.bytes() as u64 };
        let mut arg = UffdioRegister { range, mode: MODE_MISSING, ioctls: 0 };
        // SAFETY: the kernel reads and writes only `arg`.
        unsafe { uffdio_register(uffd.as_raw_fd(), &mut arg) }?;
        Ok(())
    }

    fn cell(self, offset: usize) -> &'static AtomicU8 {
        assert!(offset < self.bytes(), "access outside of the arena");
        // SAFETY: the byte lies in an arena this program mapped and is only
        // ever used as an atomic; one that has been unmapped kills the test by
        // a signal, which is what such a test is about.
        unsafe { AtomicU8::from_ptr((self.start as usize + offset) as *mut u8) }
    }

    /// Reads the byte at `offset`.
    pub fn read(self, offset: usize) -> u8 {
        self.cell(offset).load(Ordering::Relaxed)
    }

    /// Writes the byte at `offset`.
    pub fn write(self, offset: usize, value: u8) {
        self.cell(offset).store(value, Ordering::Relaxed);
    }

    /// Copies page `page` out.
    pub fn page(self, page: u64) -> [u8; PAGE_SIZE] {
        assert!(page < self.pages(), "access outside of the arena");
        let start = self.start as usize + page as usize * PAGE_SIZE;
        // SAFETY: as in `cell`; pages are aligned.
        let memory = unsafe { &*(start as *const [AtomicU64; PAGE_SIZE / 8]) };
        let mut words = [0; PAGE_SIZE / 8];
        for (word, cell) in words.iter_mut().zip(memory) {
            *word = cell.load(Ordering::Relaxed);
        }
        // SAFETY: words are as good as bytes.
        unsafe { std::mem::transmute::<[u64; PAGE_SIZE / 8], [u8; PAGE_SIZE]>(words) }
    }

    /// `madvise`.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn advise(self, advice: Advice) -> io::Result<()> {
        let advice = match advice {
            Advice::DontNeed => libc::MADV_DONTNEED,
            Advice::DontFork => libc::MADV_DONTFORK,
            Advice::WipeOnFork => libc::MADV_WIPEONFORK,
        };
        // SAFETY: the range is one of our own arenas, read only as atomics.
        let result =
            unsafe { libc::madvise(self.start as *mut libc::c_void, self.bytes(), advice) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Unmaps the arena.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn unmap(self) -> io::Result<()> {
        // SAFETY: the range is one of our own arenas; later accesses through
        // copies of this value fault, which tests of it want.
        let result = unsafe { libc::munmap(self.start as *mut libc::c_void, self.bytes()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Moves the arena to `to`, replacing what is there.
    ///
    /// # Errors
    /// What `mremap` reports.
    pub fn move_to(self, to: u64) -> io::Result<Self> {
        // SAFETY: source and destination are memory of the caller's arenas.
        let got = unsafe {
            libc::mremap(
                self.start as *mut libc::c_void,
                self.bytes(),
                self.bytes(),
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                to as *mut libc::c_void,
            )
        };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: got as u64, pages: self.pages })
    }
}

/// Forks; `child` runs in the new process and its answer is the exit code.
/// Answers the child's pid.
///
/// The child of a program with threads may only touch memory and leave.
///
/// # Errors
/// What `fork` reports.
pub fn fork_running(child: impl FnOnce() -> u8) -> io::Result<i32> {
    // SAFETY: the child runs `child` and leaves by `_exit`, without returning
    // into code that believes to be the parent.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(child.as_raw()),
        nix::unistd::ForkResult::Child => {
            let code = child();
            // SAFETY: ends the process; runs no handlers.
            unsafe { libc::_exit(i32::from(code)) }
        }
    }
}
