//! Reading and hashing on all cores.
//!
//! While the container runs, the threads that do so are the politest there
//! are: whoever else wants the core gets it. While it stands still they take
//! all they can, as every millisecond is downtime.

use super::runs::Runs;
use super::{Sent, Stop};
use crate::sys::sched;
use blip_transport::page::{ContentHash, PageAt, PageBytes, PageIndex, PageRun, SpaceId};
use blip_transport::units::PAGE_SIZE;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Pages one thread takes at once: 4 MiB, enough to make up for the taking.
const PORTION: u64 = 1024;

/// The content of a page of zeros; to see that a page is one is quicker than
/// to hash it.
static ZERO: LazyLock<ContentHash> = LazyLock::new(|| ContentHash::of(&[0; PAGE_SIZE]));

/// Where the bytes of pages come from; each thread has one of its own.
pub(super) trait Source {
    /// Why they could not be read.
    type Error: Send;

    /// Reads `runs`, in order, and hands over what is there.
    fn each(
        &mut self,
        runs: &[PageRun],
        take: &mut dyn FnMut(PageRun, &[u8]),
    ) -> Result<(), Self::Error>;
}

/// Those of `pages` that are not now what the target was sent. Pages of which
/// it was sent nothing are not even read.
pub(super) fn changed<S: Source>(
    space: SpaceId,
    pages: &Runs,
    stop: Stop,
    sent: &dyn Sent,
    source: impl Fn() -> S + Sync,
) -> Result<Runs, S::Error> {
    let portions = portions(pages);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let mut worker = Worker { space, sent, source: source(), known: Vec::new() };
        let mut found = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(portion) = portions.get(number) else { break };
            let changed = worker.changed(portion);
            failed.fetch_or(changed.is_err(), Ordering::Relaxed);
            found.push((number, changed?));
        }
        Ok(found)
    };
    let mut found = std::thread::scope(|scope| {
        let spawn = |_| {
            scope.spawn(|| {
                if stop == Stop::Live {
                    sched::be_polite();
                }
                work()
            })
        };
        let workers: Vec<_> = (0..cores.min(portions.len())).map(spawn).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Result<Vec<_>, S::Error>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?
    .concat();
    found.sort_by_key(|(number, _)| *number);
    let runs = found.iter().flat_map(|(_, changed)| changed.as_slice());
    Ok(runs.fold(Runs::default(), |mut all, run| {
        all.push(run.start.0, run.end());
        all
    }))
}

/// Cuts the pages into what one thread takes at once.
fn portions(pages: &Runs) -> Vec<Vec<PageRun>> {
    let mut portions = Vec::new();
    let (mut open, mut room) = (Vec::new(), PORTION);
    for run in pages.as_slice() {
        let mut at = run.start.0;
        while at < run.end() {
            let count = (run.end() - at).min(room);
            open.push(PageRun::new(at, count));
            at += count;
            room -= count;
            if room == 0 {
                portions.push(std::mem::take(&mut open));
                room = PORTION;
            }
        }
    }
    if !open.is_empty() {
        portions.push(open);
    }
    portions
}

/// One thread's work.
struct Worker<'a, S> {
    space: SpaceId,
    sent: &'a dyn Sent,
    source: S,
    /// What the target was sent of the portion at hand, in order.
    known: Vec<(PageIndex, ContentHash)>,
}

impl<S: Source> Worker<'_, S> {
    fn changed(&mut self, portion: &[PageRun]) -> Result<Runs, S::Error> {
        self.known.clear();
        let (mut changed, mut unknown, mut read) = <(Runs, Runs, Runs)>::default();
        for index in portion.iter().flat_map(|run| run.pages()) {
            match self.sent.content(PageAt { space: self.space, index }) {
                Some(content) => {
                    self.known.push((index, content));
                    read.push(index.0, index.0 + 1);
                }
                None => unknown.push(index.0, index.0 + 1),
            }
        }
        let mut known = self.known.iter().peekable();
        self.source.each(read.as_slice(), &mut |run, bytes| {
            for (page, bytes) in run.pages().zip(bytes.chunks_exact(PAGE_SIZE)) {
                // Pages that have vanished are not handed over.
                while known.next_if(|(index, _)| *index < page).is_some() {}
                if known.next().map(|(_, content)| *content) != content_of(bytes) {
                    changed.push(page.0, page.0 + 1);
                }
            }
        })?;
        Ok(changed.union(&unknown))
    }
}

/// What names these bytes; `None` if they are no page.
fn content_of(bytes: &[u8]) -> Option<ContentHash> {
    let bytes: &PageBytes = bytes.try_into().ok()?;
    Some(if *bytes == [0; PAGE_SIZE] { *ZERO } else { ContentHash::of(bytes) })
}

#[cfg(test)]
mod tests {
    use super::super::Task;
    use super::super::hash::Memory;
    use super::*;
    use std::collections::BTreeMap;

    struct Map(BTreeMap<u64, ContentHash>);

    impl Sent for Map {
        fn content(&self, at: PageAt) -> Option<ContentHash> {
            self.0.get(&at.index.0).copied()
        }
    }

    #[test]
    fn exactly_what_is_not_as_it_was_sent_is_found() {
        let count = 3 * PORTION as usize + 7;
        let mut memory = vec![0_u8; (count + 1) * PAGE_SIZE];
        let first = (memory.as_ptr() as u64).div_ceil(PAGE_SIZE as u64);
        let offset = (first * PAGE_SIZE as u64 - memory.as_ptr() as u64) as usize;
        for page in (0..count).filter(|page| page % 3 != 0) {
            memory[offset + page * PAGE_SIZE + page % PAGE_SIZE] = page as u8 | 1;
        }
        let pages = memory[offset..].chunks_exact(PAGE_SIZE).take(count);
        let sent = pages.map(|page| ContentHash::of(page.try_into().unwrap()));
        let mut sent = Map((first..).zip(sent).collect());
        let mut all = Runs::default();
        all.push(first, first + 5);
        all.push(first + 9, first + count as u64);
        let space = SpaceId(1);
        let task = Task { pid: std::process::id() as i32, space };
        let own = || Memory::of(task, Stop::Frozen);
        let find = |sent: &Map| changed(space, &all, Stop::Frozen, sent, own).unwrap();
        assert_eq!(find(&sent), Runs::default());

        // One changed, one to zeros, one from zeros, one never sent; and two
        // that nobody asks about.
        for page in [1, 6, 10, 1501] {
            memory[offset + page * PAGE_SIZE + 99] ^= 0x80;
        }
        memory[offset + 2000 * PAGE_SIZE..][..PAGE_SIZE].fill(0);
        std::hint::black_box(&mut memory);
        sent.0.remove(&(first + count as u64 - 1));
        sent.0.remove(&(first + 7));
        let found: Vec<u64> = find(&sent)
            .as_slice()
            .iter()
            .flat_map(|run| run.pages())
            .map(|p| p.0 - first)
            .collect();
        assert_eq!(found, [1, 10, 1501, 2000, count as u64 - 1]);
    }

    #[test]
    fn portions_hold_every_page_once() {
        let mut pages = Runs::default();
        (0..900).for_each(|at| pages.push(at * 5, at * 5 + 3));
        pages.push(9000, 9000 + 4 * PORTION);
        let portions = portions(&pages);
        let size = |portion: &Vec<PageRun>| portion.iter().map(|run| run.count.0).sum::<u64>();
        assert!(portions.iter().rev().skip(1).all(|portion| size(portion) == PORTION));
        let all: Vec<_> = portions.concat().iter().flat_map(|run| run.pages()).collect();
        assert!(all.into_iter().eq(pages.as_slice().iter().flat_map(|run| run.pages())));
    }
}
