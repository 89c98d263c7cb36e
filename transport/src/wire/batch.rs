//! The sending side: collect entries, compress, lay out the frame.
//!
//! Page bytes are written where the frame will have them, behind the room
//! left for the header, so that a batch stored raw is never copied again.

use super::plan::{Item, Kind, Plan, whole_space};
use super::{MAX_COVERED_PAGES, MAX_DATA_PAGES};
use crate::page::{ContentHash, PageAt, PageBytes, PageRun, SpaceId};
use crate::units::{ByteSize, PAGE_SIZE, PageCount, Round};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// "blp" and the version of the format.
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"blp\x01");
pub(super) const HEADER_BYTES: usize = 36;
/// Room for a batch full of data and the plan that usually goes with it.
const FULL_FRAME_BYTES: usize = HEADER_BYTES + MAX_DATA_PAGES * PAGE_SIZE + 4096;
/// The checksum is the header's last field and covers all before it.
pub(super) const CHECKSUM_AT: usize = HEADER_BYTES - 8;
pub(super) const ENCODING_RAW: u32 = 0;
pub(super) const ENCODING_ZSTD: u32 = 1;

/// A batch's place in the order of one migration: the later round overrules
/// the earlier, and within a round the higher number the lower.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct BatchId {
    /// The round its pages were read in.
    pub round: Round,
    /// Its number, counted up by the source.
    pub number: u32,
}

/// A batch as the source collected it, not yet compressed.
#[derive(Clone, Debug)]
pub struct RawBatch {
    id: BatchId,
    plan: Plan,
    /// Hashes of the pages in the payload.
    pages: Vec<ContentHash>,
    /// Room for the header, then the payload.
    frame: Vec<u8>,
}

impl RawBatch {
    /// An empty batch.
    pub fn new(id: BatchId) -> Self {
        Self { id, plan: Plan::default(), pages: Vec::new(), frame: Vec::new() }
    }

    /// Compresses the page data as one zstd frame of `level` (1 is fast, 19
    /// small, 0 leaves it raw) and lays out the wire form.
    ///
    /// Data that would not shrink by at least a sixteenth is left raw: such a
    /// batch costs the target more time than it saves the link. Pure, and
    /// about 0.5 GB/s at level 1: fit for another thread.
    pub fn compress(mut self, level: i32) -> Batch {
        let data = self.frame.get(HEADER_BYTES..).unwrap_or_default();
        let small = if level == 0 { None } else { compress_payload(data, level) };
        let mut encoding = ENCODING_RAW;
        let mut frame = match small {
            Some(frame) => {
                encoding = ENCODING_ZSTD;
                frame
            }
            None => std::mem::take(&mut self.frame),
        };
        if frame.is_empty() {
            frame.resize(HEADER_BYTES, 0);
        }
        let payload = frame.len() - HEADER_BYTES;
        self.plan.write(&mut frame);
        self.write_header(&mut frame, payload, encoding);
        // Compression reserved for the worst case, and frames wait in queues.
        frame.shrink_to_fit();
        Batch { id: self.id, raw: self.data_pages().bytes(), bytes: frame.into() }
    }

    /// This batch's place in the order of the migration.
    pub fn id(&self) -> BatchId {
        self.id
    }

    /// Pages whose bytes the batch carries.
    pub fn data_pages(&self) -> PageCount {
        PageCount(self.pages.len() as u64)
    }

    /// Whether the batch says nothing.
    pub fn is_empty(&self) -> bool {
        self.plan.items.is_empty()
    }

    /// Whether a batch of at most `data_pages` pages of data should be sent
    /// before anything is added.
    pub(crate) fn is_full(&self, data_pages: usize) -> bool {
        /// Far below what a receiver accepts: one more entry always fits.
        const PLAN_BYTES: usize = super::MAX_PLAN_BYTES / 4;
        self.pages.len() >= data_pages.min(MAX_DATA_PAGES)
            || self.plan.covered >= MAX_COVERED_PAGES
            || self.plan.bytes_bound() >= PLAN_BYTES
    }

    /// Says that a page is all zero.
    pub(crate) fn zero(&mut self, at: PageAt) {
        self.plan.push_page(Kind::Zero, at, None);
    }

    /// Carries a page whole. `hash` must be the hash of `bytes`.
    pub(crate) fn data(&mut self, at: PageAt, hash: ContentHash, bytes: &PageBytes) {
        self.plan.push_page(Kind::Data, at, None);
        self.push_payload(hash, bytes);
    }

    /// Says that a page has a content the target holds.
    pub(crate) fn reference(&mut self, at: PageAt, hash: ContentHash) {
        self.plan.push_page(Kind::Ref, at, Some(hash));
    }

    /// Carries the XOR of a page with the content named `base`.
    pub(crate) fn delta(&mut self, at: PageAt, base: ContentHash, xor: &PageBytes) {
        self.plan.push_page(Kind::Delta, at, Some(base));
        self.push_payload(ContentHash::of(xor), xor);
    }

    /// Says that pages are gone.
    pub(crate) fn drop_run(&mut self, space: SpaceId, run: PageRun) {
        self.plan.push(Item { kind: Kind::Drop, space, run });
    }

    /// Says that a whole address space is gone.
    pub(crate) fn drop_space(&mut self, space: SpaceId) {
        self.plan.push(Item { kind: Kind::DropSpace, space, run: whole_space() });
    }

    /// Puts a wrong entry in place of the last, as no sender should.
    #[cfg(test)]
    pub(super) fn replace_last(&mut self, item: Item) {
        self.plan.items.pop();
        self.plan.push(item);
    }

    fn push_payload(&mut self, hash: ContentHash, bytes: &PageBytes) {
        if self.frame.is_empty() {
            self.frame.reserve_exact(FULL_FRAME_BYTES);
            self.frame.resize(HEADER_BYTES, 0);
        }
        self.pages.push(hash);
        self.frame.extend_from_slice(bytes);
    }

    fn write_header(&self, frame: &mut [u8], payload: usize, encoding: u32) {
        let plan = frame.len() - HEADER_BYTES - payload;
        let fields = [
            MAGIC,
            self.id.round.0,
            self.id.number,
            self.pages.len() as u32,
            payload as u32,
            plan as u32,
            encoding,
        ];
        for (place, field) in frame.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let sum = checksum(&frame[..CHECKSUM_AT], &frame[HEADER_BYTES + payload..], &self.pages);
        frame[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    }
}

/// A batch in its wire form.
#[derive(Clone, Debug)]
pub struct Batch {
    id: BatchId,
    raw: ByteSize,
    bytes: Bytes,
}

impl Batch {
    /// The frame to send; what [`super::decode`] reads.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// This batch's place in the order of the migration.
    pub fn id(&self) -> BatchId {
        self.id
    }

    /// Page data carried, before compression.
    pub fn raw_size(&self) -> ByteSize {
        self.raw
    }

    /// Length of the frame.
    pub fn wire_size(&self) -> ByteSize {
        ByteSize(self.bytes.len() as u64)
    }
}

/// The compressed payload behind room for a header; nothing where it would
/// save too little.
fn compress_payload(data: &[u8], level: i32) -> Option<Vec<u8>> {
    if data.len() < PAGE_SIZE {
        return None;
    }
    let worth = data.len() - data.len() / 16;
    let mut frame = vec![0; HEADER_BYTES + worth];
    // Running out of room is the answer "not worth it", not a failure.
    let length = zstd::bulk::compress_to_buffer(data, &mut frame[HEADER_BYTES..], level).ok()?;
    frame.truncate(HEADER_BYTES + length);
    Some(frame)
}

/// Checksum over a header (without its checksum), a plan, and the names of
/// the pages in the payload.
pub(super) fn checksum(header: &[u8], plan: &[u8], pages: &[ContentHash]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header);
    hasher.update(plan);
    for page in pages {
        hasher.update(&page.0);
    }
    let mut sum = [0; 8];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(sum)
}
