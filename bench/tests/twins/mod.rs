//! The same container on two hosts, both standing still: is all of its memory
//! the same? Looked at from outside, through `/proc`, by nothing of blip's.

use blip_bench::lab::Host;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const PAGE: u64 = 4096;
/// Pages looked at in one go.
const PORTION: u64 = 512;
/// Bits of an entry of `/proc/PID/pagemap` (admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const GUARD: u64 = 1 << 58;
/// Differences that are told.
const TOLD: usize = 12;

/// The processes of a host's only container, by their numbers in there.
pub(crate) struct Family(BTreeMap<u32, Process>);

/// How much was compared, and what differs.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) processes: usize,
    pub(crate) pages: u64,
    pub(crate) differences: Vec<String>,
}

struct Process {
    pid: u32,
    maps: Vec<Mapping>,
    memory: File,
    pagemap: File,
}

#[derive(Clone, Debug)]
struct Mapping {
    start: u64,
    end: u64,
    name: String,
}

impl Family {
    /// Finds it: it alone has processes with a number of their own.
    pub(crate) fn of(host: &Host) -> Self {
        let folder = host.root().join("proc");
        let all = fs::read_dir(&folder).expect("the host's processes").flatten();
        let processes = all.filter_map(|entry| Process::open(&entry.path()));
        Self(processes.map(|process| (process.pid, process)).collect())
    }

    /// Compares all that either of both has in memory.
    pub(crate) fn compare(&self, other: &Self) -> Comparison {
        let mut found = Comparison { processes: self.0.len(), ..Comparison::default() };
        let (ours, theirs): (Vec<_>, Vec<_>) = (self.0.keys().collect(), other.0.keys().collect());
        if ours != theirs {
            found.differences.push(format!("processes {ours:?} and {theirs:?}"));
        }
        for (pid, process) in &self.0 {
            let Some(twin) = other.0.get(pid) else { continue };
            for mapping in &process.maps {
                if let Err(error) = process.compare(twin, mapping, &mut found) {
                    found.differences.push(format!("{pid}: {mapping:x?}: {error}"));
                }
            }
        }
        found
    }

    /// Changes one byte of the page at this address, in the process that has
    /// most there. Says where that was, in the words of a difference.
    pub(crate) fn distort(&self, address: u64) -> String {
        let has = |process: &&Process| process.maps.iter().any(|m| m.holds(address));
        let process = self.0.values().find(has).expect("a process with that address");
        let mut byte = [0];
        process.memory.read_exact_at(&mut byte, address + 77).expect("readable");
        process.memory.write_all_at(&[!byte[0]], address + 77).expect("writable");
        format!("{} {:#x}", process.pid, address / PAGE)
    }
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let name = fields.nth(4).unwrap_or_default().to_owned();
        Some(Self { start: hex(start)?, end: hex(end)?, name })
    }

    /// Not what the kernel puts into every process.
    fn is_the_programs(&self) -> bool {
        !["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"].contains(&self.name.as_str())
    }

    fn holds(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

impl Process {
    /// `None` unless it is of a container, and has memory.
    fn open(folder: &Path) -> Option<Self> {
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        let [_, inner] = numbers[..] else { return None };
        let maps = fs::read_to_string(folder.join("maps")).ok()?;
        let maps: Vec<_> = maps.lines().filter_map(Mapping::parse).collect();
        let memory = File::options().read(true).write(true).open(folder.join("mem")).ok()?;
        let pagemap = File::open(folder.join("pagemap")).ok()?;
        let pid = inner.parse().ok()?;
        (!maps.is_empty()).then_some(Self { pid, maps, memory, pagemap })
    }

    fn compare(&self, twin: &Self, mapping: &Mapping, found: &mut Comparison) -> io::Result<()> {
        if !mapping.is_the_programs() {
            return Ok(());
        }
        let mut at = mapping.start / PAGE;
        while at < mapping.end / PAGE {
            let count = PORTION.min(mapping.end / PAGE - at);
            let (ours, theirs) = (self.kinds(at, count)?, twin.kinds(at, count)?);
            for (page, (ours, theirs)) in (at..).zip(ours.into_iter().zip(theirs)) {
                if (ours | theirs) & (PRESENT | SWAPPED) == 0 || ours & GUARD != 0 {
                    continue;
                }
                found.pages += 1;
                let (a, b) = (self.page(page)?, twin.page_or_none(page)?);
                if a != b && !is_the_kernels(&a, &b) {
                    let first = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or_default();
                    if found.differences.len() < TOLD {
                        let place = format!("{} {page:#x}", self.pid);
                        found.differences.push(format!("{place} + {first} of {mapping:x?}"));
                    }
                }
            }
            at += count;
        }
        Ok(())
    }

    fn kinds(&self, page: u64, count: u64) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; count as usize * 8];
        self.pagemap.read_exact_at(&mut bytes, page * 8)?;
        let words = bytes.chunks_exact(8).filter_map(|word| word.try_into().ok());
        Ok(words.map(u64::from_ne_bytes).collect())
    }

    /// Zeros where there is no page: one that is missing in memory watched by a
    /// userfaultfd cannot be read from outside, and is one of zeros as soon as its
    /// process asks for it.
    fn page_or_none(&self, page: u64) -> io::Result<[u8; PAGE as usize]> {
        match self.page(page) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok([0; PAGE as usize]),
            other => other,
        }
    }

    fn page(&self, page: u64) -> io::Result<[u8; PAGE as usize]> {
        let mut bytes = [0; PAGE as usize];
        self.memory.read_exact_at(&mut bytes, page * PAGE)?;
        Ok(bytes)
    }
}

/// Whether two pages differ only in what the kernel writes there whenever it
/// lets a thread go on: the processor's number, twice (rseq(2)).
fn is_the_kernels(a: &[u8], b: &[u8]) -> bool {
    let mut areas = a.chunks(32).zip(b.chunks(32)).filter(|(a, b)| a != b);
    let words = |area: &[u8]| -> Vec<u32> {
        let words = area.chunks_exact(4).filter_map(|word| word.try_into().ok());
        words.map(u32::from_ne_bytes).collect()
    };
    areas.all(|(a, b)| {
        let (a, b) = (words(a), words(b));
        let number = |w: &[u32]| w[0] == w[1] && w[0] < 4096;
        // Between them and the last ones is what the program writes.
        number(&a) && number(&b) && a[2..5] == b[2..5]
    })
}

/// Where a process' memory can be looked at, for messages.
impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}
