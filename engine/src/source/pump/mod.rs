//! One round of copying: scan, read, encode, compress, send.
//!
//! The pump owns everything that touches the container's memory and lives on a
//! blocking thread while it works; compressing and sending go on beside it.
//!
//! **Invariant**: a page is read only after the scan that reported it, so that
//! a write in between is reported by the next scan.

mod books;
mod keep;

use super::gauge::{Brake, Gauge};
use crate::event::{RoundReport, TrackingReport, millis};
use crate::track::read::{ReadError, Reader};
use crate::track::runs::Runs;
use crate::track::shared::{self, Offer, Shared};
use crate::track::{Scan, Sent, Stop, Task, TrackError, Tracker};
use blip_transport::encode::{EncodeOptions, Encoder, RoundTally};
use blip_transport::link::LinkError;
use blip_transport::link::quic::{Connection, Priority, StreamKind};
use blip_transport::page::{ContentHash, PageAt, PageIndex, PageRun, SpaceId};
use blip_transport::units::{ByteSize, PageCount, Round};
use blip_transport::wire::{Batch, DecodedBatch, RawBatch};
use books::Books;
pub use books::Take;
use std::collections::BTreeMap;
use std::fs::File;
use std::time::Instant;
use tokio::sync::mpsc;

/// zstd level of page batches: the fastest that still saves most.
const LEVEL: i32 = 1;
/// Memory for deltas of pages that change again and again.
const DELTA_CACHE: ByteSize = ByteSize(64 << 20);
/// Batches that may wait for the compressor or for the link.
const QUEUE: usize = 4;
/// Pages read between two looks at the brake.
const STRETCH: u64 = 256;

/// What went wrong in a round.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The tracker.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// Reading memory.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Reading what the tracker has copied.
    #[error("cannot read the images of CRIU's pre-dump: {0}")]
    Copy(std::io::Error),
    /// Sending.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A thread of ours panicked.
    #[error("a worker of the round panicked: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

/// A container's memory, on its way out.
pub struct Pump {
    tracker: Box<dyn Tracker>,
    reader: Reader,
    encoder: Encoder,
    books: Books,
    shared: Shared,
    /// Resident pages that the target is known to hold.
    confirmed: BTreeMap<SpaceId, Runs>,
}

/// One round to be made.
#[derive(Clone, Debug)]
pub struct Order {
    /// Its number.
    pub round: Round,
    /// The container's processes.
    pub tasks: Vec<Task>,
    /// What they do meanwhile.
    pub stop: Stop,
    /// Which of the dirty pages go.
    pub take: Take,
}

/// What a finished round did.
#[derive(Clone, Debug)]
pub struct RoundDone {
    /// For people.
    pub report: RoundReport,
    /// Batches the target must have applied.
    pub batches: u32,
    /// All pages with content.
    pub resident: PageCount,
    /// Pages the target lacked when the round began: dirty, or held back before.
    pub due: PageCount,
    /// Dirty pages that were dirty in the round before, too.
    pub hot: PageCount,
}

impl Pump {
    /// A pump for a target that holds what `known` says of an earlier time.
    pub fn new(tracker: Box<dyn Tracker>, known: &[DecodedBatch]) -> Self {
        let options = EncodeOptions { delta_cache: DELTA_CACHE, ..EncodeOptions::default() };
        let mut encoder = Encoder::new(options);
        known.iter().for_each(|batch| encoder.assume(batch));
        Self {
            tracker,
            reader: Reader::new(),
            encoder,
            books: Books::default(),
            shared: Shared::default(),
            confirmed: BTreeMap::new(),
        }
    }

    /// Copies what changed in the tasks since the last round.
    pub async fn round(
        self,
        order: Order,
        gauge: &Gauge,
        link: &Connection,
    ) -> Result<(Self, RoundDone), PumpError> {
        let (begun, round, stop) = (Instant::now(), order.round, order.stop);
        let _brake = Brake(gauge);
        let gauge = gauge.clone();
        let work = move |pump: &mut Self, out: &Sink| pump.scan_and_read(&order, &gauge, out);
        let (pump, (tally, found), wire) = self.stream(round, link, work).await?;
        let cost = pump.tracker.stats().last;
        tracing::debug!(%round, scan = ?cost.took, all = ?begun.elapsed(), "round");
        let report = RoundReport {
            frozen: stop == Stop::Frozen,
            scanned: found.scanned,
            dirty: found.dirty,
            held_back: pump.books.held_pages(),
            bytes_wire: wire,
            ms: millis(begun.elapsed()),
            stall_ms: millis(cost.stop_max),
            ..tallied(round, &tally)
        };
        let Found { resident, due, hot, .. } = found;
        Ok((pump, RoundDone { report, batches: tally.batches, resident, due, hot }))
    }

    /// Sends the given pages of the frozen container, whatever is known of
    /// them: those the target asked for, or that CRIU left out unexpectedly.
    pub async fn patch(
        self,
        round: Round,
        pages: Vec<PageAt>,
        link: &Connection,
    ) -> Result<(Self, RoundDone), PumpError> {
        let count = PageCount(pages.len() as u64);
        let work = move |pump: &mut Self, out: &Sink| pump.read_again(round, &pages, out);
        self.extra(round, count, link, work).await
    }

    /// Sends every page of the frozen container that the target does not hold,
    /// those dirtied last first.
    pub async fn push(
        self,
        round: Round,
        link: &Connection,
    ) -> Result<(Self, RoundDone), PumpError> {
        let owed = self.owed();
        let count = PageCount(owed.iter().map(|(_, runs)| runs.pages().0).sum());
        let mark = |(pump, mut done): (Self, RoundDone)| {
            done.report.pushed = true;
            (pump, done)
        };
        let work = move |pump: &mut Self, out: &Sink| {
            pump.encoder.begin_round(round);
            let gauge = Gauge::default();
            for (space, runs) in &owed {
                pump.read(*space, runs, Stop::Frozen, &gauge, out)?;
            }
            Ok(pump.finish(out))
        };
        self.extra(round, count, link, work).await.map(mark)
    }

    async fn extra(
        self,
        round: Round,
        count: PageCount,
        link: &Connection,
        work: impl FnOnce(&mut Self, &Sink) -> Result<RoundTally, PumpError> + Send + 'static,
    ) -> Result<(Self, RoundDone), PumpError> {
        let begun = Instant::now();
        let (pump, tally, wire) = self.stream(round, link, work).await?;
        let report = RoundReport {
            frozen: true,
            scanned: count,
            dirty: count,
            bytes_wire: wire,
            ms: millis(begun.elapsed()),
            ..tallied(round, &tally)
        };
        let batches = tally.batches;
        Ok((pump, RoundDone { report, batches, resident: count, due: count, hot: PageCount(0) }))
    }

    /// Runs `work` on a blocking thread while its batches are compressed on
    /// another and sent from here.
    async fn stream<T: Send + 'static>(
        mut self,
        round: Round,
        link: &Connection,
        work: impl FnOnce(&mut Self, &Sink) -> Result<T, PumpError> + Send + 'static,
    ) -> Result<(Self, T, ByteSize), PumpError> {
        let (raw_out, raw_in) = mpsc::channel(QUEUE);
        let (out, mut ready) = mpsc::channel(QUEUE);
        let working = tokio::task::spawn_blocking(move || {
            let result = work(&mut self, &Sink(raw_out));
            (self, result)
        });
        let compressing = tokio::task::spawn_blocking(move || compress(raw_in, &out));
        let mut stream = link.open_bulk(StreamKind::Pages(round), Priority::BULK).await?;
        let mut wire = ByteSize(0);
        while let Some(batch) = ready.recv().await {
            wire += batch.wire_size();
            stream.send(batch.into_bytes()).await?;
        }
        stream.finish();
        let (pump, result) = working.await?;
        compressing.await?;
        Ok((pump, result?, wire))
    }

    fn scan_and_read(
        &mut self,
        order: &Order,
        gauge: &Gauge,
        out: &Sink,
    ) -> Result<(RoundTally, Found), PumpError> {
        self.encoder.begin_round(order.round);
        let scan = self.tracker.scan_against(&order.tasks, order.stop, &self.encoder)?;
        let mut found = Found::of(&scan);
        self.forget(&scan);
        let shares: Vec<_> =
            scan.spaces.iter().map(|space| self.books.share(space, order.take)).collect();
        gauge.found(PageCount(shares.iter().map(|share| share.read.pages().0).sum()));
        for (space, mut share) in scan.spaces.iter().zip(shares) {
            found.hot += share.hot;
            found.due += share.read.pages() + share.kept.pages();
            self.books.owners.insert(space.space, space.pid);
            let unread = self.read(space.space, &share.read, order.stop, gauge, out)?;
            if order.take == Take::Nothing {
                self.leave(space.space, &share.kept);
            }
            share.kept = share.kept.union(&unread);
            self.books.hold(space.space, share.kept);
        }
        self.tracker.copied();
        if order.stop == Stop::Live {
            found.dirty += self.offer_shared(&order.tasks, gauge, out);
        }
        let tally = self.finish(out);
        self.books.remember(scan);
        Ok((tally, found))
    }

    /// Sends ahead what changed of the memory that the processes share; answers
    /// how many pages.
    fn offer_shared(&mut self, tasks: &[Task], gauge: &Gauge, out: &Sink) -> PageCount {
        let mut ahead = Ahead { encoder: &mut self.encoder, out, offered: PageCount(0) };
        self.shared.each(tasks, &mut ahead, || !gauge.is_cut());
        ahead.offered
    }

    /// Sends the pages of images of CRIU's, `count` in all, by name where the
    /// target has their content.
    pub async fn images(
        self,
        round: Round,
        images: Vec<(SpaceId, File)>,
        count: PageCount,
        link: &Connection,
    ) -> Result<(Self, RoundDone), PumpError> {
        let work = move |pump: &mut Self, out: &Sink| {
            pump.encoder.begin_round(round);
            for (space, file) in &images {
                let encoder = &mut pump.encoder;
                let offer = |run, bytes: &[u8]| {
                    encoder.pages(*space, run, bytes);
                    out.take_from(encoder);
                };
                shared::each_page_of(file, offer).map_err(PumpError::Copy)?;
            }
            Ok(pump.finish(out))
        };
        self.extra(round, count, link, work).await
    }

    fn read_again(
        &mut self,
        round: Round,
        pages: &[PageAt],
        out: &Sink,
    ) -> Result<RoundTally, PumpError> {
        self.encoder.begin_round(round);
        for &page in pages {
            self.encoder.resend(page);
            let run = PageRun { start: page.index, count: PageCount(1) };
            let run = Runs::from([run].as_slice());
            self.read(page.space, &run, Stop::Frozen, &Gauge::default(), out)?;
        }
        Ok(self.finish(out))
    }

    /// Reads and encodes; answers what it did not get to.
    fn read(
        &mut self,
        space: SpaceId,
        runs: &Runs,
        stop: Stop,
        gauge: &Gauge,
        out: &Sink,
    ) -> Result<Runs, PumpError> {
        let Some(&pid) = self.books.owners.get(&space) else { return Ok(Runs::default()) };
        let encoder = &mut self.encoder;
        let mut stretches = runs.stretches(STRETCH);
        while !gauge.is_cut() {
            let Some(stretch) = stretches.next() else { return Ok(Runs::default()) };
            let mut take = |run, bytes: &[u8]| {
                encoder.pages(space, run, bytes);
                out.take_from(encoder);
            };
            let rest = self.tracker.copy(space, stretch.as_slice(), &mut take);
            let rest = rest.map_err(PumpError::Copy)?;
            match self.reader.each(pid, rest.as_slice(), stop, take) {
                // The next scan finds it gone.
                Err(ReadError::Gone { .. }) if stop == Stop::Live => return Ok(Runs::default()),
                read => read?,
            };
            gauge.read(stretch.pages());
        }
        let mut unread = Runs::default();
        for stretch in stretches {
            for run in stretch.as_slice() {
                unread.push(run.start.0, run.end());
            }
        }
        Ok(unread)
    }

    /// The target's copies of these pages are old, and will not be renewed
    /// before the container runs: it must not use them.
    fn leave(&mut self, space: SpaceId, left: &Runs) {
        for &run in left.as_slice() {
            self.encoder.forget(space, run);
        }
        if let Some(confirmed) = self.confirmed.get_mut(&space) {
            *confirmed = confirmed.subtract(left);
        }
    }

    fn finish(&mut self, out: &Sink) -> RoundTally {
        let tally = self.encoder.finish_round();
        out.take_from(&mut self.encoder);
        tally
    }

    /// What is gone here must go there: a page that is absent at the end and
    /// still stored on the target would come back to life.
    fn forget(&mut self, scan: &Scan) {
        for &space in &scan.gone {
            self.encoder.forget_space(space);
            self.books.owners.remove(&space);
        }
        let first = self.books.resident.is_empty();
        if first {
            // Of processes that the target knew at an earlier time.
            let there = |space: SpaceId| scan.spaces.iter().any(|seen| seen.space == space);
            let gone = self.encoder.spaces().filter(|&s| shared::is_process(s) && !there(s));
            for space in gone.collect::<Vec<_>>() {
                self.encoder.forget_space(space);
            }
        }
        for space in &scan.spaces {
            let known = self.books.resident.get(&space.space);
            // To a first scan every process is new, and all its pages are dirty:
            // what the target holds of an earlier time is compared page by page.
            if space.restarted && !first {
                self.encoder.forget_space(space.space);
                self.confirmed.remove(&space.space);
            } else if known != Some(&space.resident) {
                // Usually nothing has gone, and then there is nothing to look
                // for: this goes through every page.
                self.encoder.retain(space.space, &space.resident);
            }
        }
    }

    /// The target could make nothing of these pages: the next scan reports them
    /// again, and they go whole.
    pub fn take_back(&mut self, pages: &[PageAt]) {
        if !pages.is_empty() {
            self.confirmed.clear();
        }
        for &page in pages {
            self.encoder.resend(page);
            let run = PageRun { start: page.index, count: PageCount(1) };
            self.tracker.give_back(page.space, &[run]);
        }
    }

    /// Every page of the container that is ours to bring, as of the last scan.
    pub fn resident(&self) -> &BTreeMap<SpaceId, Vec<PageRun>> {
        &self.books.resident
    }

    /// What tracking took so far.
    pub fn tracking(&self) -> TrackingReport {
        let stats = self.tracker.stats();
        TrackingReport { peak_bytes: stats.peak, fell_back: stats.fell_back }
    }

    /// The memory that is ours to bring.
    pub fn memory(&self) -> ByteSize {
        let runs = self.books.resident.values().flatten();
        PageCount(runs.map(|run| run.count.0).sum()).bytes()
    }

    /// Pages of a space that were dirty in the last two scans.
    pub fn hot(&self, space: SpaceId) -> Vec<PageRun> {
        self.books.hot(space)
    }

    /// Notes which resident pages the target holds, so that the same question
    /// inside the freeze is about the few others only. What is written later is
    /// offered again and is held then, too.
    pub fn confirm(&mut self) {
        for (&space, runs) in &self.books.resident {
            self.confirmed.insert(space, self.held_of(space, runs));
        }
    }

    /// Those of `runs` that the target does not hold as they are now.
    pub fn absent(&self, space: SpaceId, runs: &[PageRun]) -> Vec<PageAt> {
        let asked = Runs::from(runs);
        let left = match self.confirmed.get(&space) {
            Some(confirmed) => asked.subtract(confirmed),
            None => asked,
        };
        let pages = left.as_slice().iter().flat_map(|run| run.pages());
        pages.map(|index| PageAt { space, index }).filter(|&at| !self.encoder.holds(at)).collect()
    }

    /// Resident pages that the target does not hold, in the order in which to
    /// bring them: what the container wrote last it will need first.
    fn owed(&self) -> Vec<(SpaceId, Runs)> {
        let mut first = Vec::new();
        let mut then = Vec::new();
        for (&space, runs) in &self.books.resident {
            let owed = Runs::from(runs.as_slice()).subtract(&self.held_of(space, runs));
            let hot = Runs::from(self.hot(space).as_slice()).intersect(&owed);
            then.push((space, owed.subtract(&hot)));
            first.push((space, hot));
        }
        first.append(&mut then);
        first
    }

    fn held_of(&self, space: SpaceId, runs: &[PageRun]) -> Runs {
        let mut held = Runs::default();
        for index in runs.iter().flat_map(|run| run.pages()) {
            if self.encoder.holds(PageAt { space, index }) {
                held.push(index.0, index.0 + 1);
            }
        }
        held
    }

    /// Reads pages of the frozen container for a target that asks.
    pub fn fetch(&self) -> Fetcher {
        Fetcher { owners: self.books.owners.clone(), reader: Reader::new() }
    }
}

/// Sends pages of shared memory ahead.
struct Ahead<'a> {
    encoder: &'a mut Encoder,
    out: &'a Sink,
    offered: PageCount,
}

impl Sent for Ahead<'_> {
    fn content(&self, at: PageAt) -> Option<ContentHash> {
        self.encoder.content(at)
    }
}

impl Offer for Ahead<'_> {
    fn page(&mut self, at: PageAt, bytes: &[u8]) {
        let run = PageRun { start: at.index, count: PageCount(1) };
        self.encoder.pages(at.space, run, bytes);
        self.out.take_from(self.encoder);
        self.offered += PageCount(1);
    }
}

/// Reads single pages of frozen processes.
pub struct Fetcher {
    owners: BTreeMap<SpaceId, i32>,
    reader: Reader,
}

impl Fetcher {
    /// The page's bytes, or `None` if this host has no such page.
    pub fn page(&self, at: PageAt) -> Option<Vec<u8>> {
        let &pid = self.owners.get(&at.space)?;
        let mut bytes = vec![0; blip_transport::units::PAGE_SIZE];
        let run = PageRun { start: PageIndex(at.index.0), count: PageCount(1) };
        self.reader.read(pid, run, Stop::Frozen, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// What a scan came to.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    scanned: PageCount,
    resident: PageCount,
    dirty: PageCount,
    due: PageCount,
    hot: PageCount,
}

impl Found {
    fn of(scan: &Scan) -> Self {
        let mut found = Self::default();
        for space in &scan.spaces {
            found.scanned += space.scanned;
            found.dirty += count(&space.dirty);
            found.resident += count(&space.resident);
        }
        found
    }
}

fn count(runs: &[PageRun]) -> PageCount {
    PageCount(runs.iter().map(|run| run.count.0).sum())
}

/// A report of what the encoder did.
fn tallied(round: Round, tally: &RoundTally) -> RoundReport {
    RoundReport {
        round,
        sent: tally.data + tally.delta,
        zero: tally.zero,
        unchanged: tally.unchanged,
        deduplicated: tally.deduplicated,
        bytes_raw: tally.seen.bytes(),
        ..RoundReport::default()
    }
}

/// Where batches go. If nobody takes them any more, the round has failed and
/// its sender knows why: nothing is to be said here.
struct Sink(mpsc::Sender<RawBatch>);

impl Sink {
    fn take_from(&self, encoder: &mut Encoder) {
        while let Some(batch) = encoder.next_batch() {
            let _ = self.0.blocking_send(batch);
        }
    }
}

fn compress(mut from: mpsc::Receiver<RawBatch>, to: &mpsc::Sender<Batch>) {
    while let Some(batch) = from.blocking_recv() {
        if to.blocking_send(batch.compress(LEVEL)).is_err() {
            return;
        }
    }
}
