//! The truth about a stopped process, found by other means than the tracker's:
//! `smaps` and the old pagemap, page by page.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

pub(crate) const PAGE: usize = 4096;

/// Bits of a pagemap entry and of /proc/kpageflags (admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const GUARD: u64 = 1 << 58;
const FRAME: u64 = (1 << 55) - 1;
const ZERO_PAGE: u64 = 1 << 24;
const HUGE_PAGE: u64 = 1 << 22;

/// One mapping as `smaps` describes it.
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) head: String,
    pub(crate) flags: String,
}

/// All mappings of a process.
pub(crate) fn mappings(pid: i32) -> Vec<Mapping> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut found: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let range = range.and_then(|(start, end)| Some((hex(start)?, hex(end)?)));
        if let Some((start, end)) = range {
            found.push(Mapping { start, end, head: line.to_owned(), flags: String::new() });
        } else if let (Some(flags), Some(last)) = (line.strip_prefix("VmFlags:"), found.last_mut())
        {
            last.flags = format!("{flags} ");
        }
    }
    found
}

impl Mapping {
    /// What `criu` calls "can be lazy", from its own words.
    pub(crate) fn is_ours(&self) -> bool {
        let fields: Vec<&str> = self.head.split_whitespace().collect();
        let special = ["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"];
        let name = fields.get(5).copied().unwrap_or("");
        fields[1].ends_with('p')
            && fields[3] == "00:00"
            && fields[4] == "0"
            && !special.contains(&name)
            && [" lo ", " ht ", " dp "].iter().all(|flag| !self.flags.contains(flag))
    }
}

fn word(file: &File, index: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, index * 8).unwrap();
    u64::from_ne_bytes(bytes)
}

/// Every page of a stopped process that is ours and has content, by page number.
pub(crate) fn truth(pid: i32) -> BTreeMap<u64, Vec<u8>> {
    if std::fs::read(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.is_empty()) {
        return BTreeMap::new(); // a zombie
    }
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let frames = File::open("/proc/kpageflags").unwrap();
    let mut pages = BTreeMap::new();
    for mapping in mappings(pid).iter().filter(|mapping| mapping.is_ours()) {
        let (first, end) = (mapping.start / PAGE as u64, mapping.end / PAGE as u64);
        let mut entries = vec![0; (end - first) as usize * 8];
        pagemap.read_exact_at(&mut entries, first * 8).unwrap();
        for (number, entry) in (first..).zip(entries.chunks_exact(8)) {
            let entry = u64::from_ne_bytes(entry.try_into().unwrap());
            let zero = entry & PRESENT != 0 && word(&frames, entry & FRAME) & ZERO_PAGE != 0;
            if entry & (PRESENT | SWAPPED) != 0 && entry & GUARD == 0 && !zero {
                let mut bytes = vec![0; PAGE];
                memory.read_exact_at(&mut bytes, number * PAGE as u64).unwrap();
                pages.insert(number, bytes);
            }
        }
    }
    pages
}

/// Whether a page may have come up after the last scan: the kernel has formed a
/// huge page out of pages and holes, in memory that is not registered.
pub(crate) fn formed_later(pid: i32, page: u64, bytes: &[u8]) -> bool {
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let flags = word(&File::open("/proc/kpageflags").unwrap(), word(&pagemap, page) & FRAME);
    if flags & HUGE_PAGE == 0 || bytes.iter().any(|byte| *byte != 0) {
        return false;
    }
    let address = page * PAGE as u64;
    let mappings = mappings(pid);
    let mapping = mappings.iter().find(|m| m.start <= address && address < m.end);
    mapping.is_some_and(|mapping| !mapping.flags.contains(" uw "))
}
