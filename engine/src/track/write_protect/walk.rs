//! Walking page tables in bites that do not choke their owner.
//!
//! A scan holds the target's `mmap_lock` for reading: meanwhile it cannot map or
//! unmap. So a live walk goes in windows of 32 MiB, and rests after each that
//! took a while. Windows over memory that is hardly populated grow, or a huge
//! reservation would take seconds.

use super::super::runs::{Runs, byte_range};
use crate::sys::pagemap::{Pagemap, Query, Region};
use blip_transport::units::PAGE_SIZE;
use std::io;
use std::time::{Duration, Instant};

/// Bytes of address space in a window.
const WINDOW: u64 = 32 << 20;
/// The most it may grow to: a dense window of this size takes about 3 ms.
const MAX_WINDOW: u64 = 256 << 20;
/// A window that took less than this was nearly empty.
const EMPTY: Duration = Duration::from_micros(20);
/// After holding the lock this long, the owner gets a turn …
const HELD: Duration = Duration::from_micros(100);
/// … of this length.
pub(super) const PAUSE: Duration = Duration::from_micros(200);

/// How a walk goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// The owner runs: short windows, and pauses.
    Considerate,
    /// The owner stands still and waits for us.
    Flat,
}

/// Scans the pages of `where_`, in order. `found` gets page numbers `start, end`
/// and categories.
pub(super) fn walk(
    pagemap: &mut Pagemap,
    where_: &Runs,
    query: Query,
    pace: Pace,
    mut found: impl FnMut(u64, u64, u64),
) -> io::Result<()> {
    let page = PAGE_SIZE as u64;
    let mut take = |region: Region| {
        found(region.start / page, region.end / page, region.categories);
    };
    let mut window = WINDOW;
    let mut held = Duration::ZERO;
    for run in where_.as_slice() {
        let (mut at, end) = byte_range(*run);
        while at < end {
            let to = match pace {
                // Aligned ends: a window that cuts a huge page would split it.
                Pace::Considerate => ((at / window + 1) * window).min(end),
                Pace::Flat => end,
            };
            let begin = Instant::now();
            pagemap.scan(at, to, query, &mut take)?;
            let took = begin.elapsed();
            held += took;
            window = if took < EMPTY { (window * 2).min(MAX_WINDOW) } else { WINDOW };
            if pace == Pace::Considerate && held > HELD {
                std::thread::sleep(PAUSE);
                held = Duration::ZERO;
            }
            at = to;
        }
    }
    Ok(())
}
