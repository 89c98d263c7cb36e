//! What the kernel says, line by line.

use nix::unistd::{SysconfVar, sysconf};
use std::fs;
use std::ops::Range;

/// Events that say no more than that a file is about to change, or has.
const TOUCHES: [&str; 2] = [": ext4_mark_inode_dirty: ", ": ext4_journal_start_inode: "];

/// What one line of the ring says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Content, where.
    Wrote {
        inode: u64,
        range: Range<u64>,
    },
    /// Anything that the kernel keeps of a file.
    Touched {
        inode: u64,
    },
    Lost,
}

impl Event {
    pub(super) fn parse(line: &str, folio: &Folio) -> Option<Self> {
        if line.contains(" EVENTS]") && line.contains("[LOST ") {
            return Some(Self::Lost);
        }
        let field = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            let text = rest.split([' ', ',']).next()?;
            match text.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            }
        };
        if line.contains(": writeback_dirty_folio: ") {
            let range = folio.range(field(" index=")?);
            return Some(Self::Wrote { inode: field(" ino=")?, range });
        }
        let inode = field(" ino ");
        if TOUCHES.iter().any(|name| line.contains(name)) {
            return Some(Self::Touched { inode: inode? });
        }
        if line.contains(": iomap_dio_rw_begin: ") {
            let start = field(" offset ")?;
            let range = start..start.saturating_add(field(" length ")?);
            return Some(Self::Wrote { inode: inode?, range });
        }
        if line.contains(": iomap_dio_complete: ") {
            // The offset is where it ended; an error has no length.
            let end = field(" offset ")?;
            let range = end.saturating_sub(field(" ret ").unwrap_or(0))..end;
            return Some(Self::Wrote { inode: inode?, range });
        }
        None
    }
}

/// How large the pieces of the page cache can be of which only the first page
/// is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Folio {
    page: u64,
    most: u64,
}

impl Folio {
    pub(super) fn of_this_kernel() -> Self {
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096).max(1) as u64;
        let huge = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
        let huge = huge.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Self { page, most: (2u64 << 20).max(huge) }
    }

    /// All that the folio which begins at page `index` can span: it lies at a
    /// multiple of its size.
    fn range(&self, index: u64) -> Range<u64> {
        let most = self.most / self.page;
        let pages = if index == 0 { most } else { most.min(1 << index.trailing_zeros()) };
        let start = index.saturating_mul(self.page);
        start..start.saturating_add(pages * self.page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLIO: Folio = Folio { page: 4096, most: 2 << 20 };

    #[test]
    fn a_folio_counts_as_large_as_it_can_be() {
        assert_eq!(FOLIO.range(3), 3 * 4096..4 * 4096);
        assert_eq!(FOLIO.range(24), 24 * 4096..32 * 4096);
        assert_eq!(FOLIO.range(0), 0..2 << 20);
        assert_eq!(FOLIO.range(1024).end - FOLIO.range(1024).start, 2 << 20);
    }

    #[test]
    fn the_kernels_words_are_understood() {
        let parse = |line| Event::parse(line, &FOLIO);
        let wrote = |inode, range| Some(Event::Wrote { inode, range });
        let line = "dd-1 [000] d..1. 1.2: writeback_dirty_folio: bdi 254:0: ino=77 index=1";
        assert_eq!(parse(line), wrote(77, 4096..8192));
        let line = "dd-1 [0] 1.2: iomap_dio_rw_begin: dev 254:0 ino 0x10 size 0x3000 offset \
                    0x1000 length 0x2000 done_before 0x0 flags DIRECT dio_flags  aio 0";
        assert_eq!(parse(line), wrote(16, 0x1000..0x3000));
        let line = "dd-1 [0] 1.2: iomap_dio_complete: dev 254:0 ino 0x10 size 0x3000 offset \
                    0x3000 flags DIRECT aio 0 error 0 ret 4096";
        assert_eq!(parse(line), wrote(16, 0x2000..0x3000));
        let touched = Some(Event::Touched { inode: 9 });
        let line =
            "ls-1 [1] .1: ext4_mark_inode_dirty: dev 254,0 ino 9 caller ext4_dirty_inode+0x5";
        assert_eq!(parse(line), touched);
        let line = "ls-1 [1] .1: ext4_journal_start_inode: dev 254,0 blocks 2, rsv_blocks 0, \
                    revoke_creds 8, type 10, ino 9, caller ext4_xattr_set+0x8";
        assert_eq!(parse(line), touched);
        assert_eq!(parse("CPU:1 [LOST 17 EVENTS]"), Some(Event::Lost));
        assert_eq!(parse("something else"), None);
    }
}
