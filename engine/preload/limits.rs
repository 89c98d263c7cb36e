//! Resource limits of other users' processes, where `prlimit` may not tell them.
//!
//! Reading them takes CAP_SYS_RESOURCE, which root lacks in some containers and
//! virtual machines, and CRIU gives up without them. `/proc/PID/limits` says the
//! same to everybody.
//!
//! **Invariant**: only a question that the kernel has refused is answered here,
//! and only if the file has the answer.

use super::{AT_FDCWD, O_RDONLY_CLOEXEC, digits, nr, set_errno, system_call};
use core::ffi::c_int;
use core::ptr::null;

const EPERM: isize = 1;
/// Limits that the kernel has.
const MOST: c_int = 16;
/// More than the file has: a head and a line of about 80 bytes for each.
const ROOM: usize = 4096;
/// Where the numbers begin in a line: behind the name.
const NAME: usize = 26;

/// `struct rlimit64`.
#[repr(C)]
pub struct Limit {
    soft: u64,
    hard: u64,
}

/// The system call `prlimit64`, answered from the file where the kernel refuses.
///
/// # Safety
/// As for `prlimit` (getrlimit(2)).
pub unsafe fn ask(pid: c_int, resource: c_int, new: *const Limit, old: *mut Limit) -> isize {
    let arguments = [pid as usize, resource as usize, new as usize, old as usize, 0, 0];
    // SAFETY: the caller's business.
    let result = unsafe { system_call(nr::PRLIMIT, arguments) };
    if result == -EPERM
        && new == null()
        && !old.is_null()
        && let Some(limit) = read(pid, resource)
    {
        // SAFETY: the caller's place for the answer.
        unsafe { *old = limit };
        return 0;
    }
    result
}

/// The C library's `prlimit`, as CRIU calls it.
///
/// # Safety
/// As for `prlimit` (getrlimit(2)).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prlimit64(
    pid: c_int,
    resource: c_int,
    new: *const Limit,
    old: *mut Limit,
) -> c_int {
    // SAFETY: the caller's business.
    set_errno(unsafe { ask(pid, resource, new, old) })
}

/// What the kernel's file says of a limit.
fn read(pid: c_int, resource: c_int) -> Option<Limit> {
    if pid <= 0 || !(0..MOST).contains(&resource) {
        return None;
    }
    let mut text = [0_u8; ROOM];
    let length = load(pid as u32, &mut text)?;
    // Limits stand in the order of their numbers, behind a head.
    let mut lines = text.get(..length)?.split(|byte| *byte == b'\n');
    let line = lines.nth(resource as usize + 1)?.get(NAME..)?;
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    Some(Limit { soft: number(words.next()?)?, hard: number(words.next()?)? })
}

fn number(word: &[u8]) -> Option<u64> {
    if word == b"unlimited" {
        return Some(u64::MAX);
    }
    word.iter().try_fold(0_u64, |value, &byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then(|| value.wrapping_mul(10).wrapping_add(u64::from(digit)))
    })
}

/// Reads `/proc/PID/limits`; answers how much that was.
fn load(pid: u32, text: &mut [u8; ROOM]) -> Option<usize> {
    let mut path = [0_u8; 32];
    let (digits, count) = digits(pid);
    let pid = digits.iter().take(count).rev();
    let letters = b"/proc/".iter().chain(pid).chain(b"/limits");
    path.iter_mut().zip(letters).for_each(|(to, from)| *to = *from);
    let open = [AT_FDCWD, path.as_ptr() as usize, O_RDONLY_CLOEXEC, 0, 0, 0];
    // SAFETY: the path ends in zero, as it is shorter than its place.
    let fd = usize::try_from(unsafe { system_call(nr::OPENAT, open) }).ok()?;
    let mut length = 0;
    while let Some(rest) = text.get_mut(length..).filter(|rest| !rest.is_empty()) {
        let read = [fd, rest.as_mut_ptr() as usize, rest.len(), 0, 0, 0];
        // SAFETY: the place is ours, of the length given.
        let got = unsafe { system_call(nr::READ, read) };
        if got <= 0 {
            break;
        }
        length += got as usize;
    }
    // SAFETY: the descriptor is ours.
    unsafe { system_call(nr::CLOSE, [fd, 0, 0, 0, 0, 0]) };
    Some(length)
}
