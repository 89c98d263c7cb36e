//! Reading the pages a scan reported.
//!
//! Long runs go by up to 1 MiB per system call, single pages by up to 256 per
//! call. Pages that `process_vm_readv` may not read (`PROT_NONE`) are read
//! through `/proc/PID/mem`, which may.

use super::Stop;
use crate::sys::readmem::{MAX_PIECES, read_pieces};
use blip_transport::page::{PageIndex, PageRun};
use blip_transport::units::PAGE_SIZE;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Most bytes read by one system call.
const BATCH: usize = 1 << 20;

/// Why pages could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The process ended. The next scan reports it gone.
    #[error("process {pid} ended before its memory was read")]
    Gone {
        /// Host process ID.
        pid: i32,
    },
    /// A page has vanished although the process stands still: it does not, or
    /// the scan was wrong. Either way the copy cannot be trusted.
    #[error("page {page:#x} of stopped process {pid} cannot be read: abort the migration",
        page = page.address())]
    Vanished {
        /// Host process ID.
        pid: i32,
        /// The page.
        page: PageIndex,
    },
    /// The kernel refused.
    #[error("cannot read memory of process {pid} at {address:#x}: {source}")]
    Refused {
        /// Host process ID.
        pid: i32,
        /// First byte that was to be read.
        address: u64,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Reads pages of other processes into one reused buffer.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    /// A reader.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads `runs` and hands over their bytes: each time a run of pages and as
    /// many bytes. A run may be handed over in pieces, in order. Returns the
    /// pages that have vanished since the scan (the next one will tell); if the
    /// process stands still that is an error.
    pub fn each(
        &mut self,
        pid: i32,
        runs: &[PageRun],
        stop: Stop,
        mut take: impl FnMut(PageRun, &[u8]),
    ) -> Result<Vec<PageIndex>, ReadError> {
        self.buffer.resize(BATCH, 0);
        let mut missing = Vec::new();
        for_each_batch(runs, |batch| {
            let missed = missing.len();
            read_batch(pid, batch, &mut self.buffer, &mut missing)?;
            if let (Stop::Frozen, Some(&page)) = (stop, missing.get(missed)) {
                return Err(ReadError::Vanished { pid, page });
            }
            let mut bytes = &self.buffer[..];
            for &run in batch {
                let (own, rest) = bytes.split_at(run.count.bytes().0 as usize);
                bytes = rest;
                hand_over(run, own, &missing[missed..], &mut take);
            }
            Ok(())
        })?;
        Ok(missing)
    }

    /// Reads one run of at most 256 pages (1 MiB) into `buffer`, which must be
    /// as long. Returns the pages that have vanished; their bytes are zero.
    pub fn read(
        &self,
        pid: i32,
        run: PageRun,
        stop: Stop,
        buffer: &mut [u8],
    ) -> Result<Vec<PageIndex>, ReadError> {
        let mut missing = Vec::new();
        read_batch(pid, &[run], buffer, &mut missing)?;
        match (stop, missing.first()) {
            (Stop::Frozen, Some(&page)) => Err(ReadError::Vanished { pid, page }),
            _ => Ok(missing),
        }
    }
}

/// Cuts runs into batches of at most [`BATCH`] bytes and [`MAX_PIECES`] pieces.
fn for_each_batch<E>(
    runs: &[PageRun],
    mut each: impl FnMut(&[PageRun]) -> Result<(), E>,
) -> Result<(), E> {
    let most = (BATCH / PAGE_SIZE) as u64;
    let mut batch = Vec::with_capacity(MAX_PIECES);
    let mut room = most;
    for run in runs {
        let mut at = run.start.0;
        while at < run.end() {
            let count = (run.end() - at).min(room);
            batch.push(PageRun::new(at, count));
            at += count;
            room -= count;
            if room == 0 || batch.len() == MAX_PIECES {
                each(&batch)?;
                batch.clear();
                room = most;
            }
        }
    }
    if batch.is_empty() { Ok(()) } else { each(&batch) }
}

/// Reads one batch to the front of `buffer`, each page at its place. Pages that
/// cannot be read are added to `missing`, in order; their bytes are zero.
fn read_batch(
    pid: i32,
    batch: &[PageRun],
    buffer: &mut [u8],
    missing: &mut Vec<PageIndex>,
) -> Result<(), ReadError> {
    let mut pieces: Vec<(u64, usize)> =
        batch.iter().map(|run| (run.start.address(), run.count.bytes().0 as usize)).collect();
    let (mut first, mut filled) = (0, 0);
    let mut memory = None;
    while first < pieces.len() {
        let count = match read_pieces(pid, &pieces[first..], &mut buffer[filled..]) {
            Ok(count) => count - count % PAGE_SIZE,
            Err(error) => match error.raw_os_error() {
                Some(libc::EFAULT) => 0,
                Some(libc::ESRCH) => return Err(ReadError::Gone { pid }),
                _ => {
                    let address = pieces[first].0;
                    return Err(ReadError::Refused { pid, address, source: error });
                }
            },
        };
        filled += count;
        skip(&mut pieces, &mut first, count);
        // Whatever is left starts with a page that was refused.
        let Some(&(address, _)) = pieces.get(first) else { break };
        let page = &mut buffer[filled..filled + PAGE_SIZE];
        if !read_forced(pid, address, page, &mut memory)? {
            page.fill(0);
            missing.push(PageIndex::holding(address));
        }
        filled += PAGE_SIZE;
        skip(&mut pieces, &mut first, PAGE_SIZE);
    }
    Ok(())
}

/// Takes `count` bytes off the front of the pieces from `first` on.
fn skip(pieces: &mut [(u64, usize)], first: &mut usize, mut count: usize) {
    while count > 0 && *first < pieces.len() {
        let (address, length) = &mut pieces[*first];
        let step = count.min(*length);
        *address += step as u64;
        *length -= step;
        count -= step;
        if *length == 0 {
            *first += 1;
        }
    }
}

/// Reads one page through `/proc/PID/mem`, which heeds no protection. `false`
/// if nothing is there.
fn read_forced(
    pid: i32,
    address: u64,
    page: &mut [u8],
    memory: &mut Option<File>,
) -> Result<bool, ReadError> {
    let file = match memory {
        Some(file) => file,
        None => {
            let file = File::open(format!("/proc/{pid}/mem")).map_err(|source| {
                if super::identity::is_gone(&source) {
                    ReadError::Gone { pid }
                } else {
                    ReadError::Refused { pid, address, source }
                }
            })?;
            memory.insert(file)
        }
    };
    match file.read_exact_at(page, address) {
        Ok(()) => Ok(true),
        // EIO: nothing mapped, or a guard page. End of file: no memory at all.
        Err(error)
            if error.raw_os_error() == Some(libc::EIO)
                || error.kind() == io::ErrorKind::UnexpectedEof =>
        {
            Ok(false)
        }
        Err(source) => Err(ReadError::Refused { pid, address, source }),
    }
}

/// Hands over `run` but for the pages in `missing` (sorted).
fn hand_over(
    run: PageRun,
    bytes: &[u8],
    missing: &[PageIndex],
    take: &mut impl FnMut(PageRun, &[u8]),
) {
    let mut at = run.start.0;
    let mut give = |from: u64, to: u64| {
        if from < to {
            let offset = |page: u64| (page - run.start.0) as usize * PAGE_SIZE;
            take(PageRun::new(from, to - from), &bytes[offset(from)..offset(to)]);
        }
    };
    for page in missing.iter().filter(|page| run.start <= **page && page.0 < run.end()) {
        give(at, page.0);
        at = page.0 + 1;
    }
    give(at, run.end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_every_page_once_and_keep_the_limits() {
        let mut runs = vec![PageRun::new(10, 700)];
        runs.extend((0..600).map(|i| PageRun::new(2000 + 2 * i, 1)));
        let mut seen = Vec::new();
        for_each_batch(&runs, |batch| {
            assert!(batch.len() <= MAX_PIECES);
            assert!(batch.iter().map(|run| run.count.0).sum::<u64>() <= 256);
            seen.extend(batch.iter().flat_map(|run| run.pages()));
            Ok::<_, ()>(())
        })
        .unwrap();
        assert!(seen.into_iter().eq(runs.iter().flat_map(|run| run.pages())));
    }

    #[test]
    fn own_memory_reads_back_and_unmapped_pages_are_missing() {
        let pid = std::process::id() as i32;
        let memory: Vec<u8> = (0..64 * PAGE_SIZE).map(|i| (i / 7) as u8).collect();
        let first = (memory.as_ptr() as u64).div_ceil(PAGE_SIZE as u64);
        let offset = (first * PAGE_SIZE as u64 - memory.as_ptr() as u64) as usize;
        // Page 1 of the address space is never mapped.
        let runs = [PageRun::new(1, 1), PageRun::new(first, 3), PageRun::new(first + 9, 1)];
        let mut seen = Vec::new();
        let missing = Reader::new()
            .each(pid, &runs, Stop::Live, |run, bytes| {
                let from = offset + (run.start.0 - first) as usize * PAGE_SIZE;
                assert_eq!(bytes, &memory[from..from + bytes.len()]);
                seen.push(run);
            })
            .unwrap();
        assert_eq!(missing, [PageIndex(1)]);
        assert_eq!(seen, runs[1..]);
        let frozen = Reader::new().each(pid, &runs, Stop::Frozen, |_, _| ());
        assert!(matches!(frozen, Err(ReadError::Vanished { page: PageIndex(1), .. })));
    }
}
