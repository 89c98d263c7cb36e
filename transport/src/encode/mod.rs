//! From pages read to batches: send each page once, and as little of it as
//! the target needs.
//!
//! | the page | becomes |
//! |---|---|
//! | is what the target holds of it | nothing |
//! | is all zero | a zero entry |
//! | has a content the target holds under another page | a reference of 32 bytes |
//! | differs little from what was last sent of it | a delta, if enabled |
//! | otherwise | its bytes |
//!
//! The encoder remembers the hash of everything it sent (`Sent`), so it needs
//! about 60 bytes of memory per page of the container and no copy of it. Each
//! page is hashed once; compressing is left to [`RawBatch::compress`], which
//! may run on another thread.
//!
//! **Invariants**
//! * `Sent` is what a target holds that applied all batches in order. One that
//!   applies them in another order may lack the content of a reference; it
//!   reports the page, and [`Encoder::resend`] has it sent whole.
//! * Nothing is assumed of a page never sent: absent is not zero.
//! * Every offered page ends in a batch or is counted as unchanged.

mod delta;
mod sent;
mod tally;

pub use tally::RoundTally;

use crate::page::{ContentHash, PageAt, PageBytes, PageRun, SpaceId};
use crate::units::{ByteSize, PAGE_SIZE, PageCount, Round};
use crate::wire::{
    BatchId, DecodedBatch, END_OF_SPACE, Entry, MAX_DATA_PAGES, RawBatch, pages_of, whole_space,
};
use delta::Recent;
use sent::{Sent, What};
use std::collections::VecDeque;
use std::sync::LazyLock;

/// What the encoder may do to save bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Pages of data per batch, at most (and at the most
    /// [`MAX_DATA_PAGES`]). Fewer make smaller, earlier batches.
    pub batch_pages: usize,
    /// Send a content that the target holds under another page by name.
    pub dedup: bool,
    /// Memory for the bytes of pages that were sent more than once, so that
    /// the next change of one may travel as a delta. Zero turns deltas off.
    pub delta_cache: ByteSize,
}

impl Default for EncodeOptions {
    /// Full batches, deduplication, no deltas.
    fn default() -> Self {
        Self { batch_pages: MAX_DATA_PAGES, dedup: true, delta_cache: ByteSize(0) }
    }
}

/// The source's side of the page path; see the module's header.
///
/// ```
/// use blip_transport::encode::{EncodeOptions, Encoder};
/// use blip_transport::page::{PageRun, SpaceId};
/// use blip_transport::store::PageStore;
/// use blip_transport::units::{ByteSize, Round};
/// use blip_transport::wire::decode;
///
/// let mut encoder = Encoder::new(EncodeOptions::default());
/// let mut store = PageStore::new(ByteSize(64 << 20));
/// let (space, run, memory) = (SpaceId(1), PageRun::new(16, 2), vec![7; 8192]);
///
/// encoder.begin_round(Round(0));
/// encoder.pages(space, run, &memory);
/// let mut tally = encoder.finish_round();
/// while let Some(raw) = encoder.next_batch() {
///     let batch = raw.compress(1);
///     tally.count_sent(&batch);
///     let batch = decode(batch.into_bytes())?;
///     assert!(store.apply(&batch)?.missing.is_empty());
/// }
/// assert_eq!(store.runs(space), [run]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Encoder {
    options: EncodeOptions,
    sent: Sent,
    recent: Recent,
    /// The batch being filled.
    open: RawBatch,
    ready: VecDeque<RawBatch>,
    tally: RoundTally,
    last_round: Option<Round>,
    in_round: bool,
}

static ZERO: PageBytes = [0; PAGE_SIZE];
static ZERO_CONTENT: LazyLock<ContentHash> = LazyLock::new(|| ContentHash::of(&ZERO));

impl Encoder {
    /// An encoder for a target that holds nothing.
    pub fn new(options: EncodeOptions) -> Self {
        Self {
            options,
            sent: Sent::default(),
            recent: Recent::new(options.delta_cache),
            open: RawBatch::new(BatchId::default()),
            ready: VecDeque::new(),
            tally: RoundTally::default(),
            last_round: None,
            in_round: false,
        }
    }

    /// The target holds what `batch` says, from an earlier time. Only before
    /// the first round: there every page has to be offered, so that what is
    /// different by now is told.
    ///
    /// # Panics
    /// Once a round was begun.
    pub fn assume(&mut self, batch: &DecodedBatch) {
        assert!(self.last_round.is_none(), "what is assumed is older than any round");
        for entry in batch.entries() {
            match entry {
                Entry::Zero { space, run } => {
                    for index in run.pages() {
                        self.sent.set_zero(PageAt { space, index }, Round(0));
                    }
                }
                Entry::Ref { space, run, hashes } => {
                    for (index, hash) in run.pages().zip(hashes) {
                        self.sent.set_content(PageAt { space, index }, *hash, Round(0), true);
                    }
                }
                // Nothing that an inventory says.
                _ => {}
            }
        }
    }

    /// Starts a round. One that was not finished is abandoned: its batches
    /// still have to be sent.
    ///
    /// # Panics
    /// If `round` is not newer than the round before: its pages could not
    /// overrule the earlier ones.
    pub fn begin_round(&mut self, round: Round) {
        assert!(Some(round) > self.last_round, "round {round} after {:?}", self.last_round);
        self.close_batch();
        self.open = RawBatch::new(BatchId { round, number: self.open.id().number });
        self.tally = RoundTally { round, ..RoundTally::default() };
        self.last_round = Some(round);
        self.in_round = true;
    }

    /// Takes the bytes of one page.
    ///
    /// Drain [`Encoder::next_batch`] now and then: full batches wait in memory.
    ///
    /// # Panics
    /// Outside a round.
    pub fn page(&mut self, at: PageAt, bytes: &PageBytes) {
        self.assert_in_round();
        self.tally.seen += PageCount(1);
        let known = self.sent.get(at);
        if *bytes == ZERO {
            if known == Some(What::Zero) {
                self.tally.unchanged += PageCount(1);
            } else {
                self.tally.zero += PageCount(1);
                self.sent.set_zero(at, self.tally.round);
                self.open.zero(at);
                self.close_if_full();
            }
            return;
        }
        let hash = ContentHash::of(bytes);
        let base = known.and_then(|what| self.sent.name(what));
        if base == Some(hash) {
            self.tally.unchanged += PageCount(1);
            return;
        }
        let offered = self.options.dedup && self.sent.offers(&hash);
        if offered {
            self.tally.deduplicated += PageCount(1);
            self.open.reference(at, hash);
        } else {
            self.send_bytes(at, known.is_some(), base, hash, bytes);
        }
        self.sent.set_content(at, hash, self.tally.round, !offered);
        self.close_if_full();
    }

    /// Takes the bytes of a run of pages, as [`Encoder::page`] does.
    ///
    /// # Panics
    /// Outside a round, or if `bytes` is not as long as `run`.
    pub fn pages(&mut self, space: SpaceId, run: PageRun, bytes: &[u8]) {
        assert_eq!(bytes.len() as u64, run.count.bytes().0, "bytes of {run:?}");
        for (index, page) in run.pages().zip(pages_of(bytes)) {
            self.page(PageAt { space, index }, page);
        }
    }

    /// Says that pages are holes now: the target must drop what it has of
    /// them. Costs nothing where it has none.
    ///
    /// # Panics
    /// Outside a round.
    pub fn forget(&mut self, space: SpaceId, run: PageRun) {
        self.assert_in_round();
        let dropped = self.sent.forget(space, run);
        if dropped > PageCount(0) {
            self.tally.dropped += dropped;
            self.open.drop_run(space, run);
            self.close_if_full();
        }
    }

    /// Says that an address space is gone.
    ///
    /// # Panics
    /// Outside a round.
    pub fn forget_space(&mut self, space: SpaceId) {
        self.assert_in_round();
        let dropped = self.sent.forget(space, whole_space());
        if dropped > PageCount(0) {
            self.tally.dropped += dropped;
            self.open.drop_space(space);
            self.close_if_full();
        }
    }

    /// Says that a space has no pages but those of `resident`: sorted runs
    /// that do not overlap. Everything between them is forgotten.
    ///
    /// # Panics
    /// Outside a round.
    pub fn retain(&mut self, space: SpaceId, resident: &[PageRun]) {
        let mut from = 0;
        for run in resident {
            if run.start.0 > from {
                self.forget(space, PageRun::new(from, run.start.0 - from));
            }
            from = run.end().max(from);
        }
        if from < END_OF_SPACE {
            self.forget(space, PageRun::new(from, END_OF_SPACE - from));
        }
    }

    /// The target could not make sense of a page and wants it whole: forgets
    /// what the target was thought to hold of it, and offers its content to no
    /// other page until it was sent again. The caller has to read the page
    /// again and offer it.
    pub fn resend(&mut self, at: PageAt) {
        self.sent.lose(at);
    }

    /// The next batch to compress and send, in order.
    pub fn next_batch(&mut self) -> Option<RawBatch> {
        self.ready.pop_front()
    }

    /// Ends the round; its last batch is ready then.
    pub fn finish_round(&mut self) -> RoundTally {
        self.close_batch();
        self.in_round = false;
        self.tally
    }

    /// Whether the target holds a page as it was last offered, once it applied
    /// every batch of the finished rounds. What a round still open has sent
    /// does not count.
    pub fn holds(&self, at: PageAt) -> bool {
        let open = self.in_round.then_some(self.tally.round);
        self.sent.sent_in(at).is_some_and(|round| Some(round) != open)
    }

    /// What the target was last sent of a page; `None` if that was nothing, or
    /// nothing it could make sense of. What a round still open has sent counts.
    pub fn content(&self, at: PageAt) -> Option<ContentHash> {
        match self.sent.get(at)? {
            What::Zero => Some(*ZERO_CONTENT),
            what => self.sent.name(what),
        }
    }

    /// The spaces of which the target holds pages, in order.
    pub fn spaces(&self) -> impl Iterator<Item = SpaceId> {
        self.sent.spaces()
    }

    /// Memory taken to remember what was sent; ready batches excluded.
    pub fn memory(&self) -> ByteSize {
        self.sent.memory() + self.recent.memory()
    }

    /// Sends a page's bytes, or how they differ from `base`.
    fn send_bytes(
        &mut self,
        at: PageAt,
        sent_before: bool,
        base: Option<ContentHash>,
        hash: ContentHash,
        bytes: &PageBytes,
    ) {
        let xor = base.and_then(|base| Some((base, self.recent.delta(at, base, bytes)?)));
        if let Some((base, xor)) = xor {
            self.tally.delta += PageCount(1);
            self.open.delta(at, base, &xor);
        } else {
            self.tally.data += PageCount(1);
            self.open.data(at, hash, bytes);
        }
        self.tally.raw += ByteSize(PAGE_SIZE as u64);
        if sent_before {
            self.recent.put(at, hash, bytes);
        }
    }

    fn close_if_full(&mut self) {
        if self.open.is_full(self.options.batch_pages.max(1)) {
            self.close_batch();
        }
    }

    fn close_batch(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let BatchId { round, number } = self.open.id();
        let next = RawBatch::new(BatchId { round, number: number + 1 });
        self.ready.push_back(std::mem::replace(&mut self.open, next));
        self.tally.batches += 1;
    }

    fn assert_in_round(&self) {
        assert!(self.in_round, "pages are offered within a round");
    }
}

#[cfg(test)]
mod tests;
