//! Reading `/proc/PID/smaps` in bites that the kernel does not walk twice.
//!
//! The kernel walks all pages of a mapping for its entry there: some 15 ms
//! for each GiB. It fills a buffer of one page with entries, and an entry for which there
//! is no room is thrown away and made again with the next read. Who wants fewer
//! bytes than a page less an entry never meets that; CRIU wants a page.
//!
//! **Invariant**: only reads of that file are made shorter, and a short read is
//! what every reader of a file must expect.

use super::{answer, nr, set_errno, system_call};
use core::ffi::{c_char, c_int};
use core::sync::atomic::{AtomicI32, Ordering};

const NAME: &[u8] = b"smaps\0";
/// A page less an entry with a long name.
const BITE: usize = 2048;

/// The descriptor on which it is open; CRIU reads one at a time.
static OPEN: AtomicI32 = AtomicI32::new(-1);

/// The C library's `openat`, as CRIU calls it.
///
/// # Safety
/// As for `openat` (open(2)).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: usize,
) -> c_int {
    let arguments = [directory as usize, path as usize, flags as usize, mode, 0, 0];
    // SAFETY: the caller's business.
    let fd = set_errno(unsafe { system_call(nr::OPENAT, arguments) });
    // SAFETY: a path that was opened ends in zero.
    if fd >= 0 && unsafe { is_smaps(path.cast()) } {
        OPEN.store(fd, Ordering::Relaxed);
    }
    fd
}

/// # Safety
/// `path` ends in zero.
unsafe fn is_smaps(path: *const u8) -> bool {
    // SAFETY: no byte behind the first that differs is read, so none behind its end.
    NAME.iter().enumerate().all(|(at, byte)| unsafe { *path.add(at) } == *byte)
}

/// The C library's `read`, as CRIU calls it.
///
/// # Safety
/// As for `read` (read(2)).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(fd: c_int, to: *mut u8, count: usize) -> isize {
    let bites = fd >= 0 && fd == OPEN.load(Ordering::Relaxed);
    let count = if bites { count.min(BITE) } else { count };
    // SAFETY: the caller's business.
    answer(unsafe { system_call(nr::READ, [fd as usize, to as usize, count, 0, 0, 0]) })
}

/// The C library's `close`, as CRIU calls it.
///
/// # Safety
/// As for `close` (close(2)).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    // Its number may be another file's next.
    let _ = OPEN.compare_exchange(fd, -1, Ordering::Relaxed, Ordering::Relaxed);
    // SAFETY: the caller's business.
    set_errno(unsafe { system_call(nr::CLOSE, [fd as usize, 0, 0, 0, 0, 0]) })
}
