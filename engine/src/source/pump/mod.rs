//! One round of copying: scan, read, encode, compress, send.
//!
//! The pump owns everything that touches the container's memory and lives on a
//! blocking thread while it works; compressing and sending go on beside it.
//!
//! **Invariant**: a page is read only after the scan that reported it, so that
//! a write in between is reported by the next scan.

mod books;
mod extra;
mod holds;
mod keep;
mod reading;
mod sink;
mod still;

use super::gauge::{Brake, Gauge};
use crate::event::{RoundReport, TrackingReport, millis};
use crate::plan::{Look, Watched};
use crate::sys::sched::Claim;
use crate::track::read::{ReadError, Reader};
use crate::track::runs::Runs;
use crate::track::shared::{self, Shared, Still};
use crate::track::{Scan, Stop, Task, TrackError, Tracker};
use blip_transport::encode::{EncodeOptions, Encoder, RoundTally};
use blip_transport::link::LinkError;
use blip_transport::link::quic::{Connection, Priority, StreamKind};
use blip_transport::page::{PageAt, PageRun, SpaceId};
use blip_transport::units::{ByteSize, PageCount, Round};
use blip_transport::wire::DecodedBatch;
use books::Books;
pub use books::Take;
pub use extra::Fetcher;
use reading::Part;
use sink::{Ahead, Sink, compress, tallied};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

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
    /// Reading what the tracker has copied.
    #[error("cannot read the images of CRIU's pre-dump: {0}")]
    Copy(std::io::Error),
    /// Reading memory that processes share.
    #[error("cannot read the container's shared memory: {0}")]
    Shared(std::io::Error),
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
    /// Shared objects that CRIU is kept from.
    still: Vec<Still>,
    /// Resident pages that the target is known to hold.
    confirmed: BTreeMap<SpaceId, Runs>,
    begun: Instant,
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
    /// Look now and then, while it is being made, at what is being written.
    pub watch: bool,
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
    /// Those of them that are written again and again.
    pub hot: PageCount,
    /// What was seen while it was made.
    pub watched: Watched,
    /// None of what was due was sent, nor will be before the container runs.
    pub left: bool,
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
            still: Vec::new(),
            confirmed: BTreeMap::new(),
            begun: Instant::now(),
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
        let (pump, (tally, found), wire) = self.stream(round, Claim::Share, link, work).await?;
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
        let Found { resident, due, hot, watched, left, .. } = found;
        Ok((pump, RoundDone { report, batches: tally.batches, resident, due, hot, watched, left }))
    }

    /// Runs `work` on a blocking thread while its batches are compressed on
    /// another and sent from here.
    async fn stream<T: Send + 'static>(
        mut self,
        round: Round,
        claim: Claim,
        link: &Connection,
        work: impl FnOnce(&mut Self, &Sink) -> Result<T, PumpError> + Send + 'static,
    ) -> Result<(Self, T, ByteSize), PumpError> {
        let (raw_out, raw_in) = mpsc::channel(QUEUE);
        let (out, mut ready) = mpsc::channel(QUEUE);
        let working = tokio::task::spawn_blocking(move || {
            let result = claim.run(|| work(&mut self, &Sink(raw_out)));
            (self, result)
        });
        let compressing = tokio::task::spawn_blocking(move || claim.run(|| compress(raw_in, &out)));
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
        let scanned = self.begun.elapsed();
        self.books.remember(&scan, (order.stop == Stop::Live).then_some(scanned));
        let mut parts = Vec::new();
        let (take, shares) = self.books.divide(&scan, order.take);
        found.left = take == Take::Nothing;
        for (space, share) in scan.spaces.iter().zip(shares) {
            self.books.owners.insert(space.space, space.pid);
            found.hot += share.hot;
            found.due += share.read.pages() + share.kept.pages();
            gauge.found(share.read.pages());
            parts.push(Part::new(space, share));
        }
        self.read_parts(&mut parts, order, gauge, out)?;
        let mut ever = (PageCount(0), PageCount(0));
        for mut part in parts {
            if found.left {
                self.leave(part.space, part.kept());
            }
            let lacks = part.lacks();
            ever.0 += part.written().pages();
            ever.1 += part.written().subtract(&lacks).pages();
            self.books.hold(part.space, lacks);
            self.books.again.insert(part.space, part.into_again());
        }
        self.tracker.copied();
        if order.stop == Stop::Live {
            found.dirty += self.offer_shared(&order.tasks, gauge, out);
            found.watched = self.watched(scanned, ever);
        }
        Ok((self.finish(out), found))
    }

    /// What the glances since `scanned` have told; `ever`: pages that any of them
    /// has found written, and how many of those are not held back.
    fn watched(&self, scanned: Duration, ever: (PageCount, PageCount)) -> Watched {
        let seen = self.books.seen(scanned);
        let look = |(time, written, outside)| Look { time, written, outside };
        let mut looks: Vec<_> = seen.into_iter().map(look).collect();
        let (Some(last), Some(latest)) = (self.books.last_look(), looks.pop()) else {
            return Watched::default();
        };
        if !looks.is_empty() {
            // All of them together are a long look.
            looks.push(look((last.saturating_sub(scanned), ever.0, ever.1)));
        }
        looks.push(latest);
        let (again, hot) = self.books.due_again();
        Watched { looks, again, hot, since: self.begun.elapsed().saturating_sub(last) }
    }

    /// Sends ahead what changed of the memory that the processes share; answers
    /// how many pages.
    fn offer_shared(&mut self, tasks: &[Task], gauge: &Gauge, out: &Sink) -> PageCount {
        let mut ahead = Ahead { encoder: &mut self.encoder, out, offered: PageCount(0) };
        self.shared.each(tasks, &mut ahead, || !gauge.is_cut());
        ahead.offered
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

    /// What tracking took so far.
    pub fn tracking(&self) -> TrackingReport {
        let stats = self.tracker.stats();
        TrackingReport { peak_bytes: stats.peak, fell_back: stats.fell_back }
    }
}

/// What a scan came to.
#[derive(Clone, Debug, Default)]
struct Found {
    scanned: PageCount,
    resident: PageCount,
    dirty: PageCount,
    due: PageCount,
    hot: PageCount,
    watched: Watched,
    left: bool,
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
