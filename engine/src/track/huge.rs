//! Transparent huge pages, which have one soft-dirty bit for 2 MiB.
//!
//! Where the kernel lets us, they are split before their bits are cleared, so
//! that each page has its own. What is in them does not change, and the kernel
//! may form them again; a page of a huge one that was formed since is dirty as
//! a whole, which costs bytes and loses nothing.

use std::io;

/// When the kernel makes huge pages by itself: the word in brackets.
const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// Takes `pid,0xfrom,0xto` and splits the huge pages in between (debugfs, with
/// CONFIG_TRANSPARENT_HUGEPAGE).
const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";

/// Whether the kernel makes huge pages without being asked.
pub(super) fn are_automatic() -> bool {
    std::fs::read_to_string(ENABLED).is_ok_and(|text| text.contains("[always]"))
}

/// Whether the kernel splits them for us.
pub(super) fn can_be_split() -> bool {
    // A locked-down kernel does not let the file be opened.
    std::fs::File::options().write(true).open(SPLIT).is_ok()
}

/// Splits the huge pages of a process, as far as the kernel can: some may be in
/// use just now.
///
/// # Errors
/// The kernel's; the pages are as before.
pub(super) fn split(pid: i32) -> io::Result<()> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    for (start, end) in ranges(&smaps) {
        std::fs::write(SPLIT, format!("{pid},0x{start:x},0x{end:x}"))?;
    }
    Ok(())
}

/// The mappings in `smaps` that have huge pages: first address, and the one
/// after the last.
fn ranges(smaps: &str) -> Vec<(u64, u64)> {
    let (mut found, mut current) = (Vec::new(), None);
    for line in smaps.lines() {
        let Some((first, rest)) = line.split_once(' ') else { continue };
        let hex = |text| u64::from_str_radix(text, 16).ok();
        if let Some((start, end)) = first.split_once('-') {
            current = hex(start).zip(hex(end));
        } else if first == "AnonHugePages:" && !rest.trim().starts_with("0 ") {
            found.extend(current);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mappings_with_huge_pages_are_split() {
        let smaps = "\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0 
Size:               4096 kB
AnonHugePages:      2048 kB
VmFlags: rd wr
7f0000400000-7f0000401000 r--p 00000000 00:00 0                          [heap]
AnonHugePages:         0 kB
";
        assert_eq!(ranges(smaps), [(0x7f00_0000_0000, 0x7f00_0040_0000)]);
    }
}
