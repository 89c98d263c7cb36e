//! `PAGEMAP_SCAN`: which pages of an address space have content, which were
//! written, and, atomically per page, protecting those that are reported.
//!
//! Interface: linux/fs.h, Documentation/admin-guide/mm/pagemap.rst.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The page lies in a mapping registered for asynchronous write protection.
pub const WPALLOWED: u64 = 1 << 0;
/// The page is not write-protected: written since it last was.
pub const WRITTEN: u64 = 1 << 1;
/// The page is in memory.
pub const PRESENT: u64 = 1 << 3;
/// The page is in swap, on its way between places, or a marker stands there.
pub const SWAPPED: u64 = 1 << 4;
/// The page is the kernel's shared page of zeros.
pub const PFNZERO: u64 = 1 << 5;
/// The page is part of a mapped huge page.
pub const HUGE: u64 = 1 << 6;
/// A guard marker (`MADV_GUARD_INSTALL`): any access is a fault. Since 6.15.
pub const GUARD: u64 = 1 << 8;

/// Bit of an entry of `/proc/PID/pagemap`: written since the bits were cleared
/// (admin-guide/mm/soft-dirty.rst), where the kernel keeps them.
pub const SOFT_DIRTY: u64 = 1 << 55;

const WP_MATCHING: u64 = 1 << 0;
/// Regions one call can answer: 96 KiB of answers.
const REGIONS: usize = 4096;

#[repr(C)]
#[derive(Debug, Default)]
struct ScanArgs {
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

mod ioctl {
    //! The raw call; see linux/fs.h.
    #![allow(missing_docs, unreachable_pub)]
    nix::ioctl_readwrite!(pagemap_scan, b'f', 16, super::ScanArgs);
}

/// A range of byte addresses whose pages have the same `categories`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// First byte after.
    pub end: u64,
    /// What the pages are, of what [`Query::report`] asked for.
    pub categories: u64,
}

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Pages must have all of these categories …
    pub all: u64,
    /// … none of these …
    pub none: u64,
    /// … and, unless it is empty, at least one of these.
    pub any: u64,
    /// The categories to report.
    pub report: u64,
    /// Protect what is reported and was `WRITTEN`, in mappings that allow it.
    /// Other mappings are then **silently skipped**.
    pub protect: bool,
}

/// An open `/proc/PID/pagemap`. It stays with the address space the process had
/// when it was opened.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    answers: Vec<Region>,
}

impl Pagemap {
    /// Opens the pagemap of a process. Needs the right to trace it.
    pub fn open(pid: i32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(Self { file, answers: vec![Region::default(); REGIONS] })
    }

    /// Scans `start .. end` (byte addresses, whole pages) and hands over each
    /// region found, in order. Holds the target's `mmap_lock` for reading all
    /// the while: choose short ranges while it runs.
    pub fn scan(
        &mut self,
        start: u64,
        end: u64,
        query: Query,
        mut found: impl FnMut(Region),
    ) -> io::Result<()> {
        let mut at = start;
        while at < end {
            let mut args = ScanArgs {
                size: size_of::<ScanArgs>() as u64,
                flags: if query.protect { WP_MATCHING } else { 0 },
                start: at,
                end,
                vec: self.answers.as_mut_ptr() as u64,
                vec_len: self.answers.len() as u64,
                category_inverted: query.none,
                category_mask: query.all | query.none,
                category_anyof_mask: query.any,
                return_mask: query.report,
                ..ScanArgs::default()
            };
            // SAFETY: `args` is laid out as `struct pm_scan_arg`, valid and
            // exclusively ours; it points at `answers`, exclusively ours too,
            // with its true length, whose elements are plain integers.
            let count = match unsafe { ioctl::pagemap_scan(self.file.as_raw_fd(), &mut args) } {
                Ok(count) => count as usize,
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let answers = &self.answers[..count];
            answers.iter().copied().for_each(&mut found);
            // The kernel passes answers on by the few hundred, and leaves in
            // `walk_end` where it last did so even if it has gone on to the end.
            // It stops early only for want of room; all before the last answer
            // has been scanned, and to scan it again would hide what was written.
            let Some(last) = answers.last().filter(|_| count == REGIONS) else { break };
            at = args.walk_end.max(last.end);
        }
        Ok(())
    }
}

/// Which of this module's features the running kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `PAGEMAP_SCAN` at all (6.7).
    pub scan: bool,
    /// The [`GUARD`] category (6.15).
    pub guard: bool,
}

impl Features {
    /// Asks the kernel, on our own first pages.
    pub fn detect() -> io::Result<Self> {
        let mut own = Pagemap::open(std::process::id() as i32)?;
        let mut can = |report| {
            let query = Query { all: 0, none: 0, any: report, report, protect: false };
            own.scan(0x10000, 0x11000, query, |_| ()).is_ok()
        };
        Ok(Self { scan: can(PRESENT), guard: can(PRESENT | GUARD) })
    }
}
