//! Which pages have content, also on kernels without `PAGEMAP_SCAN`.

use super::runs::{Runs, byte_range};
use crate::sys::pagemap::{self, Features, Pagemap, Query, SOFT_DIRTY};
use blip_transport::units::PAGE_SIZE;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

const PAGE: u64 = PAGE_SIZE as u64;
/// Bits of an entry of `/proc/PID/pagemap` (admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const GUARD: u64 = 1 << 58;
/// Entries read at once: those of 256 MiB.
const ENTRIES: u64 = 65_536;

/// What a page must be to have content: neither a hole, nor the shared page of
/// zeros (a hole for CRIU too), nor a guard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    none: u64,
}

impl Content {
    pub(super) fn new(guard_pages: bool) -> Self {
        Self { none: pagemap::PFNZERO | if guard_pages { pagemap::GUARD } else { 0 } }
    }

    /// All pages with content; `protect` those that were written.
    pub(super) fn query(self, protect: bool) -> Query {
        Query {
            all: 0,
            none: self.none,
            any: pagemap::PRESENT | pagemap::SWAPPED,
            report: pagemap::WPALLOWED | pagemap::WRITTEN | pagemap::HUGE,
            protect,
        }
    }

    /// Pages with content in mappings that are not armed.
    pub(super) fn unarmed(self) -> Query {
        let query = self.query(false);
        Query { none: query.none | pagemap::WPALLOWED, ..query }
    }
}

/// The pages of `where_` that have content. Without `PAGEMAP_SCAN` that may
/// include the shared page of zeros: more than need be, and no harm.
pub(super) fn resident(pid: i32, where_: &Runs) -> io::Result<Runs> {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    let detect = || Features::detect().unwrap_or(Features { scan: false, guard: false });
    let features = FEATURES.get_or_init(detect);
    if !features.scan {
        return read_entries(pid, where_);
    }
    let mut found = Runs::default();
    let mut map = Pagemap::open(pid)?;
    for run in where_.as_slice() {
        let (start, end) = byte_range(*run);
        map.scan(start, end, Content::new(features.guard).query(false), |region| {
            found.push(region.start / PAGE, region.end / PAGE);
        })?;
    }
    Ok(found)
}

/// The pages of `where_` that were not written since the soft-dirty bits were
/// cleared.
pub(super) fn not_soft_dirty(pid: i32, where_: &Runs) -> io::Result<Runs> {
    entries_where(pid, where_, |entry| entry & SOFT_DIRTY == 0)
}

/// As [`resident`], entry by entry.
fn read_entries(pid: i32, where_: &Runs) -> io::Result<Runs> {
    entries_where(pid, where_, |entry| entry & (PRESENT | SWAPPED) != 0 && entry & GUARD == 0)
}

/// The pages of `where_` whose entry is as wanted.
fn entries_where(pid: i32, where_: &Runs, wanted: impl Fn(u64) -> bool) -> io::Result<Runs> {
    let mut found = Runs::default();
    let file = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut entries = vec![0; ENTRIES as usize * 8];
    for run in where_.as_slice() {
        let mut at = run.start.0;
        while at < run.end() {
            let count = (run.end() - at).min(ENTRIES);
            let entries = &mut entries[..count as usize * 8];
            file.read_exact_at(entries, at * 8)?;
            for (page, entry) in (at..).zip(entries.chunks_exact(8)) {
                let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
                if wanted(entry) {
                    found.push(page, page + 1);
                }
            }
            at += count;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_agree_on_our_own_memory() {
        let memory = vec![1_u8; 100 * PAGE as usize];
        let start = (memory.as_ptr() as u64).div_ceil(PAGE);
        let mut where_ = Runs::default();
        where_.push(start, start + 99);
        let pid = std::process::id() as i32;
        assert_eq!(read_entries(pid, &where_).unwrap(), where_);
        assert_eq!(resident(pid, &where_).unwrap(), where_);
    }
}
