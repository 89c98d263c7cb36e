//! Which mappings of a process are blip's to ship.
//!
//! Exactly those whose pages CRIU marks lazy, because all others stand in its
//! images (criu: `vma_entry_can_be_lazy`, `handle_vma`): private, with no file
//! behind them, not locked, not huge TLB, and not one of the kernel's special
//! mappings. In particular
//!
//! * a private mapping of `/dev/zero` has a file in CRIU's eyes: not ours;
//! * `MAP_DROPPABLE` mappings lose their "private" there: not ours;
//! * the stack is ours. CRIU takes the pages that hold a thread's stack pointer
//!   into its images; that they are in our store too does no harm.
//!
//! `/proc/PID/maps` tells all of that but "locked" and "droppable". Locked is
//! read from `smaps` (slow: it walks all page tables) only while `VmLck` says
//! that anything is locked at all; droppable shows when it cannot be registered.

use super::runs::Runs;
use blip_transport::page::PageRun;
use blip_transport::units::PAGE_SIZE;
use std::io;

/// One mapping that is ours, in page numbers `start .. end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// All mappings of a process that are ours, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Mappings {
    pub(super) ours: Vec<Mapping>,
    /// Those of them that are stacks of some kind.
    pub(super) stacks: Vec<Mapping>,
    /// Whether any mapping was listed: none means that the process has no
    /// memory any more.
    pub(super) any: bool,
    /// Whether a ring of the kernel's asynchronous I/O (`io_setup`) is mapped.
    pub(super) aio: bool,
}

impl Mappings {
    /// Reads them from `/proc`.
    pub(super) fn read(pid: i32) -> io::Result<Self> {
        let locked = holds_locked_memory(pid)?;
        let text = std::fs::read(format!("/proc/{pid}/{}", if locked { "smaps" } else { "maps" }))?;
        Ok(Self::parse(&text))
    }

    /// Reads them with all flags, however long it takes.
    pub(super) fn read_with_flags(pid: i32) -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read(format!("/proc/{pid}/smaps"))?))
    }

    /// Parses `maps` or `smaps`.
    fn parse(text: &[u8]) -> Self {
        let mut found = Self::default();
        // In `smaps` a mapping's flags follow its head line.
        let mut current = false;
        for line in text.split(|&byte| byte == b'\n') {
            if let Some(head) = Head::parse(line) {
                found.any = true;
                found.aio |= head.name == b"/[aio] (deleted)" || head.name == b"/[aio]";
                current = head.is_ours();
                if current {
                    found.ours.push(head.mapping);
                    if head.is_stack() {
                        found.stacks.push(head.mapping);
                    }
                }
            } else if current && line.starts_with(b"VmFlags:") {
                let not_ours = |flag: &[u8]| matches!(flag, b"lo" | b"ht" | b"dp" | b"io" | b"pf");
                if line.split(|&byte| byte == b' ').any(not_ours) {
                    found.ours.pop();
                }
            }
        }
        // `/proc` reads across changes: a mapping may appear twice, or grown.
        found.ours.sort_by_key(|mapping| mapping.start);
        found.ours.dedup_by(|next, previous| {
            let overlaps = next.start < previous.end;
            if overlaps {
                previous.end = previous.end.max(next.end);
            }
            overlaps
        });
        found
    }

    /// The mappings, whole, that hold any of `pages`.
    pub(super) fn around(&self, pages: &Runs) -> Runs {
        let mut result = Runs::default();
        for page in pages.as_slice() {
            let first = self.ours.partition_point(|mapping| mapping.end <= page.start.0);
            for mapping in self.ours[first..].iter().take_while(|m| m.start < page.end()) {
                result.push(mapping.start, mapping.end);
            }
        }
        result
    }

    /// `pages`, cut at the borders of mappings.
    pub(super) fn parts_of(&self, pages: &Runs) -> Vec<PageRun> {
        let mut parts = Vec::new();
        for run in pages.as_slice() {
            let first = self.ours.partition_point(|mapping| mapping.end <= run.start.0);
            for mapping in self.ours[first..].iter().take_while(|m| m.start < run.end()) {
                let (from, to) = (mapping.start.max(run.start.0), mapping.end.min(run.end()));
                parts.push(PageRun::new(from, to - from));
            }
        }
        parts
    }

    /// The pages of those with at least `least` pages that are no stacks.
    pub(super) fn large(&self, least: u64) -> Runs {
        let large = self.ours.iter().filter(|mapping| {
            mapping.end - mapping.start >= least && !self.stacks.contains(mapping)
        });
        large.fold(Runs::default(), |mut set, mapping| {
            set.push(mapping.start, mapping.end);
            set
        })
    }

    /// Their pages.
    pub(super) fn pages(&self) -> Runs {
        self.ours.iter().fold(Runs::default(), |mut set, mapping| {
            set.push(mapping.start, mapping.end);
            set
        })
    }
}

/// Ranges of addresses, in bytes, at which a process has shared objects mapped:
/// what CRIU calls anonymous shared memory.
pub(super) fn shared_objects(pid: i32) -> io::Result<Vec<(u64, u64)>> {
    Ok(shared_in(&std::fs::read(format!("/proc/{pid}/maps"))?))
}

fn shared_in(maps: &[u8]) -> Vec<(u64, u64)> {
    let names: [&[u8]; 3] = [b"/dev/zero (deleted)", b"/SYSV", b"/memfd:"];
    let heads = maps.split(|&byte| byte == b'\n').filter_map(Head::parse);
    let shared =
        heads.filter(|head| !head.private && names.iter().any(|name| head.name.starts_with(name)));
    let bytes = |page: u64| page * PAGE_SIZE as u64;
    shared.map(|head| (bytes(head.mapping.start), bytes(head.mapping.end))).collect()
}

/// A head line: `start-end perms offset major:minor inode   name`.
struct Head<'a> {
    mapping: Mapping,
    private: bool,
    file: bool,
    name: &'a [u8],
}

impl<'a> Head<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        // Names may hold spaces; the five fields before cannot.
        let mut fields = line.splitn(6, |&byte| byte == b' ');
        let (range, perms) = (fields.next()?, fields.next()?);
        let (_offset, device, inode) = (fields.next()?, fields.next()?, fields.next()?);
        let dash = range.iter().position(|&byte| byte == b'-')?;
        let (start, end) = (hex(&range[..dash])?, hex(&range[dash + 1..])?);
        Some(Self {
            mapping: Mapping { start: start / PAGE_SIZE as u64, end: end / PAGE_SIZE as u64 },
            private: perms.get(3) == Some(&b'p'),
            file: inode != b"0" || !device.iter().all(|byte| matches!(byte, b'0' | b':')),
            name: fields.next().unwrap_or_default().trim_ascii(),
        })
    }

    fn is_stack(&self) -> bool {
        matches!(self.name, b"[stack]" | b"[shadow stack]") || self.name.starts_with(b"[stack:")
    }

    fn is_ours(&self) -> bool {
        let ordinary = self.name.is_empty()
            || matches!(self.name, b"[heap]" | b"[stack]" | b"[shadow stack]")
            || self.name.starts_with(b"[anon:")
            || self.name.starts_with(b"[stack:");
        self.private && !self.file && ordinary
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| {
        let digit = (digit as char).to_digit(16)?;
        value.checked_mul(16)?.checked_add(u64::from(digit))
    })
}

/// Whether the process has locked any memory (`mlock`).
fn holds_locked_memory(pid: i32) -> io::Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    Ok(locked.is_some_and(|amount| amount.trim() != "0 kB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c8a00000-55d0c8a21000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000021000 rw-p 00000000 00:00 0 
7f0000021000-7f0004000000 ---p 00000000 00:00 0 
7f1000000000-7f1000010000 rw-p 00000000 00:05 4                          /dev/zero
7f1100000000-7f1100010000 rw-s 00000000 00:01 1027                       /dev/zero (deleted)
7f1200000000-7f1200010000 rw-p 00012000 fe:00 393                        /usr/lib/a b.so
7f1300000000-7f1300001000 rw-s 00000000 00:0f 11                         /[aio] (deleted)
7f1400000000-7f1400200000 rw-p 00000000 00:10 12                         /anon_hugepage (deleted)
7f1500000000-7f1500001000 rw-p 00000000 00:00 0                          [anon:glibc: malloc]
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
7ffd00100000-7ffd00104000 r--p 00000000 00:00 0                          [vvar]
7ffd00104000-7ffd00106000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn only_private_memory_without_a_file_is_ours() {
        let found = Mappings::parse(MAPS.as_bytes());
        let starts: Vec<u64> = found.ours.iter().map(|m| m.start << 12).collect();
        assert_eq!(
            starts,
            [
                0x55d0_c8a0_0000,
                0x7f00_0000_0000,
                0x7f00_0002_1000,
                0x7f15_0000_0000,
                0x7ffd_0000_0000
            ]
        );
        assert!(found.any && found.aio);
        let large: Vec<u64> =
            found.large(0x21).as_slice().iter().map(|run| run.start.0 << 12).collect();
        assert_eq!(large, [0x55d0_c8a0_0000, 0x7f00_0000_0000], "the stack is not among them");
        assert_eq!(found.large(0x22).pages().0, 0x3fdf);
        assert!(!Mappings::parse(b"").any);
    }

    #[test]
    fn shared_objects_are_told_from_files() {
        let more = "\
7f0000000000-7f0000002000 rw-s 00000000 00:01 5                          /SYSV00000000 (deleted)
7f0000002000-7f0000004000 r--s 00002000 00:01 9                          /memfd:a b (deleted)
7f0000004000-7f0000005000 rw-s 00000000 fe:00 7                          /var/lib/data
7f0000005000-7f0000006000 rw-p 00000000 00:01 9                          /memfd:a b (deleted)
";
        let starts: Vec<u64> =
            shared_in((MAPS.to_owned() + more).as_bytes()).iter().map(|range| range.0).collect();
        assert_eq!(starts, [0x7f11_0000_0000, 0x7f00_0000_0000, 0x7f00_0000_2000]);
    }

    #[test]
    fn flags_take_mappings_away() {
        let smaps = "\
7f0000000000-7f0000001000 rw-p 00000000 00:00 0 
Size:                  4 kB
VmFlags: rd wr mr mw me lo ac 
7f0000002000-7f0000003000 rw-p 00000000 00:00 0 
VmFlags: rd wr mr mw me ac 
7f0000004000-7f0000005000 rw-p 00000000 00:00 0 
VmFlags: rd wr dp 
";
        let found = Mappings::parse(smaps.as_bytes());
        assert_eq!(found.ours, [Mapping { start: 0x7_f000_0002, end: 0x7_f000_0003 }]);
    }
}
