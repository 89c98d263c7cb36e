//! One round of copying: scan, read, encode, compress, send.
//!
//! The pump owns everything that touches the container's memory and lives on a
//! blocking thread while it works; compressing and sending go on beside it.
//!
//! **Invariant**: a page is read only after the scan that reported it, so that
//! a write in between is reported by the next scan.

use crate::event::{RoundReport, millis};
use crate::track::read::{ReadError, Reader};
use crate::track::runs::Runs;
use crate::track::{Scan, Stop, Task, TrackError, Tracker};
use blip_transport::encode::{EncodeOptions, Encoder, RoundTally};
use blip_transport::link::LinkError;
use blip_transport::link::quic::{Connection, Priority, StreamKind};
use blip_transport::page::{PageAt, PageIndex, PageRun, SpaceId};
use blip_transport::units::{ByteSize, PageCount, Round};
use blip_transport::wire::{Batch, RawBatch};
use std::collections::BTreeMap;
use std::time::Instant;
use tokio::sync::mpsc;

/// zstd level of page batches: the fastest that still saves most.
const LEVEL: i32 = 1;
/// Memory for deltas of pages that change again and again.
const DELTA_CACHE: ByteSize = ByteSize(64 << 20);
/// Batches that may wait for the compressor or for the link.
const QUEUE: usize = 4;

/// What went wrong in a round.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The tracker.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// Reading memory.
    #[error(transparent)]
    Read(#[from] ReadError),
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
    /// Owner of each space, as this host numbers it.
    owners: BTreeMap<SpaceId, i32>,
    /// What the last scan found resident.
    resident: BTreeMap<SpaceId, Vec<PageRun>>,
    /// Resident pages that the target is known to hold.
    confirmed: BTreeMap<SpaceId, Runs>,
    /// What the last two scans found dirty: the pages to bring first.
    hot: [BTreeMap<SpaceId, Vec<PageRun>>; 2],
}

/// What a finished round did.
#[derive(Clone, Debug)]
pub struct RoundDone {
    /// For people.
    pub report: RoundReport,
    /// Batches the target must have applied.
    pub batches: u32,
}

impl Pump {
    /// A pump for a target that holds nothing.
    pub fn new(tracker: Box<dyn Tracker>) -> Self {
        let options = EncodeOptions { delta_cache: DELTA_CACHE, ..EncodeOptions::default() };
        Self {
            tracker,
            reader: Reader::new(),
            encoder: Encoder::new(options),
            owners: BTreeMap::new(),
            resident: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            hot: Default::default(),
        }
    }

    /// Copies what changed in `tasks` since the last round.
    pub async fn round(
        self,
        round: Round,
        tasks: Vec<Task>,
        stop: Stop,
        link: &Connection,
    ) -> Result<(Self, RoundDone), PumpError> {
        let begun = Instant::now();
        let work = move |pump: &mut Self, out: &Sink| pump.scan_and_read(round, &tasks, stop, out);
        let (pump, (tally, found), wire) = self.stream(round, link, work).await?;
        let cost = pump.tracker.stats().last;
        let report = RoundReport {
            round,
            frozen: stop == Stop::Frozen,
            scanned: found.scanned,
            dirty: found.dirty,
            sent: tally.data + tally.delta,
            zero: tally.zero,
            unchanged: tally.unchanged,
            deduplicated: tally.deduplicated,
            held_back: PageCount(0),
            bytes_raw: found.dirty.bytes(),
            bytes_wire: wire,
            ms: millis(begun.elapsed()),
            stall_ms: millis(cost.stop_max),
        };
        Ok((pump, RoundDone { report, batches: tally.batches }))
    }

    /// Sends the given pages of the frozen container, whatever is known of
    /// them: those the target asked for, or that CRIU left out unexpectedly.
    pub async fn patch(
        self,
        round: Round,
        pages: Vec<PageAt>,
        link: &Connection,
    ) -> Result<(Self, RoundDone), PumpError> {
        let begun = Instant::now();
        let count = PageCount(pages.len() as u64);
        let work = move |pump: &mut Self, out: &Sink| pump.read_again(round, &pages, out);
        let (pump, tally, wire) = self.stream(round, link, work).await?;
        let report = RoundReport {
            round,
            frozen: true,
            scanned: count,
            dirty: count,
            sent: tally.data + tally.delta,
            zero: tally.zero,
            unchanged: tally.unchanged,
            deduplicated: tally.deduplicated,
            held_back: PageCount(0),
            bytes_raw: count.bytes(),
            bytes_wire: wire,
            ms: millis(begun.elapsed()),
            stall_ms: 0.0,
        };
        Ok((pump, RoundDone { report, batches: tally.batches }))
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
        round: Round,
        tasks: &[Task],
        stop: Stop,
        out: &Sink,
    ) -> Result<(RoundTally, Found), PumpError> {
        self.encoder.begin_round(round);
        let scan = self.tracker.scan_against(tasks, stop, &self.encoder)?;
        let found = Found::of(&scan);
        self.forget(&scan);
        for space in &scan.spaces {
            self.owners.insert(space.space, space.pid);
            self.read(space.pid, space.space, &space.dirty, stop, out)?;
        }
        let tally = self.finish(out);
        self.remember(scan);
        Ok((tally, found))
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
            let Some(&pid) = self.owners.get(&page.space) else { continue };
            let run = PageRun { start: page.index, count: PageCount(1) };
            self.read(pid, page.space, &[run], Stop::Frozen, out)?;
        }
        Ok(self.finish(out))
    }

    fn read(
        &mut self,
        pid: i32,
        space: SpaceId,
        runs: &[PageRun],
        stop: Stop,
        out: &Sink,
    ) -> Result<(), PumpError> {
        let encoder = &mut self.encoder;
        self.reader.each(pid, runs, stop, |run, bytes| {
            encoder.pages(space, run, bytes);
            out.take_from(encoder);
        })?;
        Ok(())
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
            self.owners.remove(&space);
        }
        for space in &scan.spaces {
            let known = self.resident.get(&space.space);
            if space.restarted {
                self.encoder.forget_space(space.space);
                self.confirmed.remove(&space.space);
            } else if known != Some(&space.resident) {
                // Usually nothing has gone, and then there is nothing to look
                // for: this goes through every page.
                self.encoder.retain(space.space, &space.resident);
            }
        }
    }

    fn remember(&mut self, scan: Scan) {
        let first = self.resident.is_empty();
        let mut dirty = BTreeMap::new();
        self.resident.clear();
        for space in scan.spaces {
            dirty.insert(space.space, space.dirty);
            self.resident.insert(space.space, space.resident);
        }
        self.hot.swap(0, 1);
        // A first scan finds everything dirty, which says nothing.
        self.hot[1] = if first { BTreeMap::new() } else { dirty };
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
        &self.resident
    }

    /// The memory that is ours to bring.
    pub fn memory(&self) -> ByteSize {
        let runs = self.resident.values().flatten();
        PageCount(runs.map(|run| run.count.0).sum()).bytes()
    }

    /// Pages of a space that were dirty in the last two scans.
    pub fn hot(&self, space: SpaceId) -> Vec<PageRun> {
        let latest_first = self.hot.iter().rev();
        latest_first.filter_map(|scan| scan.get(&space)).flatten().copied().collect()
    }

    /// Notes which resident pages the target holds, so that the same question
    /// inside the freeze is about the few others only. What is written later is
    /// offered again and is held then, too.
    pub fn confirm(&mut self) {
        for (&space, runs) in &self.resident {
            let mut held = Runs::default();
            for index in runs.iter().flat_map(|run| run.pages()) {
                if self.encoder.holds(PageAt { space, index }) {
                    held.push(index.0, index.0 + 1);
                }
            }
            self.confirmed.insert(space, held);
        }
    }

    /// Those of `runs` that the target does not hold as they are now.
    pub fn absent(&self, space: SpaceId, runs: &[PageRun]) -> Vec<PageAt> {
        let mut asked = Runs::default();
        for run in runs {
            asked.push(run.start.0, run.end());
        }
        let left = match self.confirmed.get(&space) {
            Some(confirmed) => asked.subtract(confirmed),
            None => asked,
        };
        let pages = left.as_slice().iter().flat_map(|run| run.pages());
        pages.map(|index| PageAt { space, index }).filter(|&at| !self.encoder.holds(at)).collect()
    }

    /// Reads pages of the frozen container for a target that asks.
    pub fn fetch(&self) -> Fetcher {
        Fetcher { owners: self.owners.clone(), reader: Reader::new() }
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
    dirty: PageCount,
}

impl Found {
    fn of(scan: &Scan) -> Self {
        let mut found = Self::default();
        for space in &scan.spaces {
            found.scanned += space.scanned;
            found.dirty += PageCount(space.dirty.iter().map(|run| run.count.0).sum());
        }
        found
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
