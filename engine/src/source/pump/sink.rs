//! The way of pages from the encoder to the link.

use crate::event::RoundReport;
use crate::track::Sent;
use crate::track::shared::Offer;
use blip_transport::encode::{Encoder, RoundTally};
use blip_transport::page::{ContentHash, PageAt, PageRun};
use blip_transport::units::{PageCount, Round};
use blip_transport::wire::{Batch, RawBatch};
use tokio::sync::mpsc;

/// zstd level of page batches: the fastest that still saves most.
const LEVEL: i32 = 1;

/// A report of what the encoder did.
pub(super) fn tallied(round: Round, tally: &RoundTally) -> RoundReport {
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
pub(super) struct Sink(pub(super) mpsc::Sender<RawBatch>);

impl Sink {
    pub(super) fn take_from(&self, encoder: &mut Encoder) {
        while let Some(batch) = encoder.next_batch() {
            let _ = self.0.blocking_send(batch);
        }
    }
}

/// Compresses batches until there are no more, or nobody wants them.
pub(super) fn compress(mut from: mpsc::Receiver<RawBatch>, to: &mpsc::Sender<Batch>) {
    while let Some(batch) = from.blocking_recv() {
        if to.blocking_send(batch.compress(LEVEL)).is_err() {
            return;
        }
    }
}

/// Sends pages of shared memory ahead.
pub(super) struct Ahead<'a> {
    pub(super) encoder: &'a mut Encoder,
    pub(super) out: &'a Sink,
    pub(super) offered: PageCount,
}

impl Sent for Ahead<'_> {
    fn content(&self, at: PageAt) -> Option<ContentHash> {
        self.encoder.content(at)
    }
}

impl Offer for Ahead<'_> {
    fn as_sent(&self) -> &dyn Sent {
        &*self.encoder
    }

    fn page(&mut self, at: PageAt, bytes: &[u8]) {
        let run = PageRun { start: at.index, count: PageCount(1) };
        self.encoder.pages(at.space, run, bytes);
        self.out.take_from(self.encoder);
        self.offered += PageCount(1);
    }
}
