//! Loaded into the CRIU that dumps: keeps it away from memory that blip ships.
//!
//! CRIU asks the kernel for every present page of every mapping (the ioctl
//! `PAGEMAP_SCAN` on `/proc/PID/pagemap`) and puts each into a pipe, although
//! with lazy pages it writes none of them. Here that question is answered with
//! "nothing" for the ranges on blip's list, and passed on for all others.
//!
//! In the same way it looks for the content of every object that processes share
//! (`lseek` with `SEEK_DATA`), and is told that objects on the list have none.
//!
//! And a question for resource limits that the kernel refuses, which CRIU asks
//! through `syscall`, is answered from the file that has them ([`limits`]).
//!
//! Last, it reads one file in bites that spare the kernel work ([`smaps`]), and
//! is given an empty list where it asks for what must not travel ([`conntrack`]).
//!
//! The list lies in a memory file named by `BLIP_SKIP`, mapped here when CRIU
//! starts and filled by blip while CRIU waits (`criu/preload.rs` writes it).
//!
//! **Invariants**
//! * Whatever is not exactly one of the questions above goes to the kernel untouched;
//!   without a list everything does.
//! * A listed page or object is hidden, no other is, and no page is reported
//!   twice.
//! * Nothing here allocates, blocks or panics, and no descriptor stays open.
//!
//! This is the second of the crate's two rooms that hold `unsafe`. It stands
//! alone: `build.rs` compiles it, without `std`, and blip carries the result.

#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]

mod call;
mod conntrack;
mod limits;
mod smaps;

use call::{nr, set_errno, system_call};
use core::ffi::{c_char, c_int, c_long, c_ulong};
use core::mem::size_of;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// `_IOWR('f', 16, struct pm_scan_arg)`, see linux/fs.h.
const PAGEMAP_SCAN: c_ulong = 0xC060_6610;
/// `PAGE_IS_PRESENT | PAGE_IS_SWAPPED`: what CRIU looks for.
const CONTENT: u64 = 1 << 3 | 1 << 4;
/// Bytes of the list's file, `LIST_BYTES` of `criu/preload.rs`.
const LIST_BYTES: usize = 1 << 20;
/// Ranges that fit behind the count.
const LIST_MAX: u64 = (LIST_BYTES as u64 - 8) / size_of::<Hidden>() as u64;

const SEEK_DATA: c_int = 3;
const ENXIO: isize = 6;
/// Errors' numbers are no larger.
const MAX_ERRNO: isize = 4095;
const O_RDONLY_CLOEXEC: usize = 0o2_000_000;
const PROT_READ: usize = 1;
const MAP_SHARED: usize = 1;
const AT_FDCWD: usize = -100_isize as usize;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// One entry of the list; they are sorted by process and address, disjoint. Of
/// process 0 are the objects: a device, and a number of an inode.
#[repr(C)]
#[derive(Clone, Copy)]
struct Hidden {
    pid: u64,
    start: u64,
    end: u64,
}

/// The mapped list: a count, then the entries. Null without one.
static LIST: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());

unsafe extern "C" {
    fn getenv(name: *const c_char) -> *const c_char;
    fn unsetenv(name: *const c_char) -> c_int;
}

/// Runs when the loader is done.
#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

/// Maps the list, and takes both variables out of the environment: what CRIU
/// runs must not load us, least of all where these paths mean something else.
extern "C" fn init() {
    // SAFETY: the names end in zero, and no other thread runs yet that could
    // change the environment under `getenv`'s result.
    unsafe {
        let path = getenv(c"BLIP_SKIP".as_ptr());
        if !path.is_null() {
            map_list(path);
        }
        unsetenv(c"BLIP_SKIP".as_ptr());
        unsetenv(c"LD_PRELOAD".as_ptr());
    }
}

/// # Safety
/// `path` ends in zero.
unsafe fn map_list(path: *const c_char) {
    // SAFETY: `path` is what openat wants; the mapping is new, of a file that
    // blip has made `LIST_BYTES` long, and is never unmapped; the descriptor is
    // ours.
    unsafe {
        let fd = system_call(nr::OPENAT, [AT_FDCWD, path as usize, O_RDONLY_CLOEXEC, 0, 0, 0]);
        if fd < 0 {
            return;
        }
        let fd = fd as usize;
        let at = system_call(nr::MMAP, [0, LIST_BYTES, PROT_READ, MAP_SHARED, fd, 0]);
        if at > 0 {
            LIST.store(at as *mut AtomicU64, Ordering::Release);
        }
        system_call(nr::CLOSE, [fd, 0, 0, 0, 0, 0]);
    }
}

/// The C library's `ioctl`, as CRIU calls it.
///
/// # Safety
/// As for the ioctl that is meant.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut u8) -> c_int {
    let result = if request == PAGEMAP_SCAN {
        // SAFETY: this request's argument is a `pm_scan_arg`, the caller's.
        unsafe { scan(fd, argument.cast()) }
    } else {
        // SAFETY: the caller's business.
        unsafe { raw(fd, request, argument) }
    };
    set_errno(result)
}

/// The same where an answer may be larger than an `int`.
fn answer(result: isize) -> isize {
    if (-MAX_ERRNO..0).contains(&result) { set_errno(result) as isize } else { result }
}

/// # Safety
/// As for the ioctl that is meant.
unsafe fn raw(fd: c_int, request: c_ulong, argument: *mut u8) -> isize {
    let arguments = [fd as usize, request as usize, argument as usize, 0, 0, 0];
    // SAFETY: the caller's business.
    unsafe { system_call(nr::IOCTL, arguments) }
}

/// The C library's `syscall`, as CRIU calls it. The arguments that a call has not
/// are whatever stands in their places, as there.
///
/// # Safety
/// As for the system call that is meant.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    // SAFETY: the caller's business.
    let result = unsafe {
        if number == nr::PRLIMIT {
            limits::ask(a as c_int, b as c_int, c as *const _, d as *mut _)
        } else {
            system_call(number, [a, b, c, d, e, f])
        }
    };
    answer(result) as c_long
}

/// The C library's `lseek`, as CRIU calls it.
///
/// # Safety
/// None is needed: it touches no memory of the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lseek64(fd: c_int, offset: i64, whence: c_int) -> i64 {
    let result = if whence == SEEK_DATA && is_hidden_object(fd) {
        -ENXIO
    } else {
        // SAFETY: lseek(2) touches no memory.
        unsafe { system_call(nr::LSEEK, [fd as usize, offset as usize, whence as usize, 0, 0, 0]) }
    };
    if result >= 0 { result as i64 } else { i64::from(set_errno(result)) }
}

/// The same by its other name.
///
/// # Safety
/// As for the other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64 {
    // SAFETY: as this function demands.
    unsafe { lseek64(fd, offset, whence) }
}

/// Whether a descriptor is of an object on the list.
fn is_hidden_object(fd: c_int) -> bool {
    let Some(list) = List::filled() else { return false };
    // `struct stat` begins with device and inode, and is shorter than this.
    let mut stat = [0_u64; 32];
    // SAFETY: fstat(2) fills in a `struct stat`, for which there is room.
    let result =
        unsafe { system_call(nr::FSTAT, [fd as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    let [device, inode, ..] = stat;
    let mut objects =
        (0..list.count).map_while(|index| list.get(index)).take_while(|entry| entry.pid == 0);
    result == 0 && objects.any(|entry| (entry.start, entry.end) == (device, inode))
}

/// Answers one `PAGEMAP_SCAN`.
///
/// # Safety
/// `argument` is the caller's `pm_scan_arg`.
unsafe fn scan(fd: c_int, argument: *mut Scan) -> isize {
    // SAFETY: as this function demands.
    let plain = || unsafe { raw(fd, PAGEMAP_SCAN, argument.cast()) };
    if argument.is_null() {
        return plain();
    }
    // SAFETY: as this function demands.
    let asked = unsafe { *argument };
    let ours = asked.size == size_of::<Scan>() as u64
        && asked.flags == 0
        && asked.max_pages == 0
        && asked.vec != 0
        && asked.category_anyof_mask == CONTENT;
    let Some(list) = List::filled().filter(|_| ours) else { return plain() };
    let Some(pid) = pagemap_owner(fd) else { return plain() };
    let Some(first) = list.first_after(pid, asked.start, asked.end) else { return plain() };
    // SAFETY: as this function demands; `asked` is a copy of it.
    unsafe { scan_around(fd, argument, asked, list, pid, first) }
}

/// Scans what lies between the hidden ranges, from entry `next` of the list on.
///
/// # Safety
/// `argument` is the caller's, and `asked` what stood there.
unsafe fn scan_around(
    fd: c_int,
    argument: *mut Scan,
    asked: Scan,
    list: List,
    pid: u64,
    mut next: u64,
) -> isize {
    let (mut at, mut count) = (asked.start, 0);
    while at < asked.end {
        let hidden = list.get(next).filter(|hidden| hidden.pid == pid);
        let until = hidden.map_or(asked.end, |hidden| hidden.start.max(at).min(asked.end));
        if at < until {
            if count == asked.vec_len {
                break;
            }
            let vec = asked.vec + count * size_of::<Region>() as u64;
            let mut part =
                Scan { start: at, end: until, vec, vec_len: asked.vec_len - count, ..asked };
            // SAFETY: a well-formed argument of our own, whose `vec` is the part
            // of the caller's that has not been filled.
            let found = unsafe { raw(fd, PAGEMAP_SCAN, (&raw mut part).cast()) };
            if found < 0 {
                return found;
            }
            count += found as u64;
            if found as u64 == part.vec_len && found > 0 {
                // No room: it may have stopped anywhere. The kernel's word may
                // lag behind its last answer.
                // SAFETY: the kernel has filled all of the vector.
                let last = unsafe { *(asked.vec as *const Region).add(count as usize - 1) };
                at = part.walk_end.max(last.end).min(until);
                if at < until {
                    break;
                }
            }
        }
        at = hidden.map_or(asked.end, |hidden| hidden.end.max(until).min(asked.end));
        next += 1;
    }
    // SAFETY: as this function demands.
    unsafe { (*argument).walk_end = at };
    count as isize
}

/// The list, which has entries.
#[derive(Clone, Copy)]
struct List {
    at: *const AtomicU64,
    count: u64,
}

impl List {
    fn filled() -> Option<Self> {
        let at = LIST.load(Ordering::Acquire);
        if at.is_null() {
            return None;
        }
        // SAFETY: the mapping is there for good, and begins with the count.
        let count = unsafe { (*at).load(Ordering::Acquire) };
        (count > 0 && count <= LIST_MAX).then_some(Self { at, count })
    }

    fn get(self, index: u64) -> Option<Hidden> {
        if index >= self.count {
            return None;
        }
        // SAFETY: entry `index` lies in the mapping, as the count is at most
        // `LIST_MAX`; nobody writes to it once the count stands there.
        Some(unsafe { *self.at.add(1).cast::<Hidden>().add(index as usize) })
    }

    /// The first entry of a process that ends after `start`, if it begins
    /// before `end`.
    fn first_after(self, pid: u64, start: u64, end: u64) -> Option<u64> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let before =
                self.get(middle).is_some_and(|hidden| (hidden.pid, hidden.end) <= (pid, start));
            if before { low = middle + 1 } else { high = middle }
        }
        self.get(low).filter(|hidden| hidden.pid == pid && hidden.start < end).map(|_| low)
    }
}

/// The digits of a number, the last one first, and how many there are.
fn digits(number: u32) -> ([u8; 10], usize) {
    let mut digits = [0_u8; 10];
    let (mut left, mut count) = (number, 0);
    for digit in &mut digits {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
        count += 1;
        if left == 0 {
            break;
        }
    }
    (digits, count)
}

/// Whose pagemap a descriptor is: its link reads `/proc/PID/pagemap`.
fn pagemap_owner(fd: c_int) -> Option<u64> {
    let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0";
    let (digits, count) = digits(u32::try_from(fd).ok()?);
    let written = digits.iter().take(count).rev();
    path.iter_mut().skip(14).zip(written).for_each(|(to, from)| *to = *from);
    let mut link = [0_u8; 40];
    let (from, to) = (path.as_ptr() as usize, link.as_mut_ptr() as usize);
    // SAFETY: `path` ends in zero, and `link` is ours, of the length given.
    let read = unsafe { system_call(nr::READLINKAT, [AT_FDCWD, from, to, link.len(), 0, 0]) };
    let link = link.get(..usize::try_from(read).ok()?)?;
    let digits = link.strip_prefix(b"/proc/")?.strip_suffix(b"/pagemap")?;
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |pid, &digit| {
        let digit = digit.wrapping_sub(b'0');
        (digit < 10).then(|| pid.wrapping_mul(10).wrapping_add(u64::from(digit)))
    })
}
