//! The receiving side: from bytes to a batch that cannot be malformed.

use super::batch::{CHECKSUM_AT, ENCODING_RAW, ENCODING_ZSTD, HEADER_BYTES, MAGIC, checksum};
use super::plan::{Kind, Plan};
use super::{BatchId, MAX_DATA_PAGES, MAX_PLAN_BYTES, WireError};
use crate::page::{ContentHash, PageBytes, PageRun, SpaceId};
use crate::units::{PAGE_SIZE, Round};
use bytes::Bytes;

/// Decompresses and checks one frame.
///
/// Hashes every page it carries (the batch keeps the hashes, so the store need
/// not), which makes this the expensive half of receiving: run it outside any
/// lock. A frame whose payload is raw is not copied. Pure; never panics; uses
/// at most about 16 MiB whatever the bytes say.
///
/// # Errors
/// [`WireError`] says what is wrong; nothing of such a frame may be used.
pub fn decode(frame: Bytes) -> Result<DecodedBatch, WireError> {
    let header = Header::read(&frame)?;
    let plan_at = HEADER_BYTES + header.payload;
    let payload = frame.slice(HEADER_BYTES..plan_at);
    let payload = match header.encoding {
        Encoding::Raw => payload,
        Encoding::Zstd => decompress(&payload, header.pages)?,
    };
    let pages: Vec<_> = payload
        .chunks_exact(PAGE_SIZE)
        .map(|page| ContentHash(*blake3::hash(page).as_bytes()))
        .collect();
    let plan = &frame[plan_at..];
    let found = checksum(&frame[..CHECKSUM_AT], plan, &pages);
    if found != header.checksum {
        return Err(WireError::Checksum { expected: header.checksum, found });
    }
    let plan = Plan::read(plan)?;
    if plan.payload_pages != pages.len() as u64 {
        return Err(WireError::Plan {
            at: 0,
            what: "its entries and the payload differ in their number of pages",
        });
    }
    Ok(DecodedBatch { id: header.id, plan, payload, pages })
}

/// A valid batch. Owns its page data.
#[derive(Clone, Debug)]
pub struct DecodedBatch {
    id: BatchId,
    plan: Plan,
    payload: Bytes,
    pages: Vec<ContentHash>,
}

impl DecodedBatch {
    /// What the batch says, to be applied in this order.
    pub fn entries(&self) -> Entries<'_> {
        Entries { batch: self, item: 0, page: 0, name: 0 }
    }

    /// The pages it brings; not those it drops.
    pub fn runs(&self) -> impl Iterator<Item = (SpaceId, PageRun)> {
        let brings = |kind| !matches!(kind, Kind::Drop | Kind::DropSpace);
        let items = self.plan.items.iter().filter(move |item| brings(item.kind));
        items.map(|item| (item.space, item.run))
    }

    /// This batch's place in the order of the migration.
    pub fn id(&self) -> BatchId {
        self.id
    }
}

/// What became of some pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// All bytes of these pages are zero.
    Zero {
        /// The address space.
        space: SpaceId,
        /// The pages.
        run: PageRun,
    },
    /// New bytes.
    Data {
        /// The address space.
        space: SpaceId,
        /// The pages.
        run: PageRun,
        /// The bytes, page after page.
        bytes: &'a [u8],
        /// The hash of each page, computed from `bytes`.
        hashes: &'a [ContentHash],
    },
    /// Contents that other pages brought.
    Ref {
        /// The address space.
        space: SpaceId,
        /// The pages.
        run: PageRun,
        /// The content of each page.
        hashes: &'a [ContentHash],
    },
    /// Differences to contents sent before.
    Delta {
        /// The address space.
        space: SpaceId,
        /// The pages.
        run: PageRun,
        /// The content each page differs from.
        bases: &'a [ContentHash],
        /// XOR of each page with its base, page after page.
        xors: &'a [u8],
    },
    /// These pages are gone.
    Drop {
        /// The address space.
        space: SpaceId,
        /// The pages.
        run: PageRun,
    },
    /// The whole address space is gone.
    DropSpace {
        /// The address space.
        space: SpaceId,
    },
}

/// Iterator over the entries of a [`DecodedBatch`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    batch: &'a DecodedBatch,
    item: usize,
    page: usize,
    name: usize,
}

impl<'a> Entries<'a> {
    fn payload(&mut self, count: usize) -> (&'a [u8], &'a [ContentHash]) {
        let pages = self.page..self.page + count;
        self.page = pages.end;
        let bytes = &self.batch.payload[pages.start * PAGE_SIZE..pages.end * PAGE_SIZE];
        (bytes, &self.batch.pages[pages])
    }

    fn names(&mut self, count: usize) -> &'a [ContentHash] {
        let names = self.name..self.name + count;
        self.name = names.end;
        &self.batch.plan.names[names]
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let item = self.batch.plan.items.get(self.item)?;
        self.item += 1;
        let (space, run) = (item.space, item.run);
        let count = run.count.0 as usize;
        Some(match item.kind {
            Kind::Zero => Entry::Zero { space, run },
            Kind::Data => {
                let (bytes, hashes) = self.payload(count);
                Entry::Data { space, run, bytes, hashes }
            }
            Kind::Ref => Entry::Ref { space, run, hashes: self.names(count) },
            Kind::Delta => {
                let bases = self.names(count);
                Entry::Delta { space, run, bases, xors: self.payload(count).0 }
            }
            Kind::Drop => Entry::Drop { space, run },
            Kind::DropSpace => Entry::DropSpace { space },
        })
    }
}

/// The pages of a payload slice.
pub(crate) fn pages_of(bytes: &[u8]) -> impl Iterator<Item = &PageBytes> {
    bytes.chunks_exact(PAGE_SIZE).filter_map(|page| page.try_into().ok())
}

enum Encoding {
    Raw,
    Zstd,
}

struct Header {
    id: BatchId,
    pages: usize,
    payload: usize,
    encoding: Encoding,
    checksum: u64,
}

impl Header {
    fn read(frame: &[u8]) -> Result<Self, WireError> {
        let Some((header, body)) = frame.split_first_chunk::<HEADER_BYTES>() else {
            return Err(WireError::Length {
                expected: HEADER_BYTES as u64,
                found: frame.len() as u64,
            });
        };
        let mut words = header
            .chunks_exact(4)
            .map(|word| word.iter().rev().fold(0u32, |value, byte| value << 8 | u32::from(*byte)));
        let mut word = || words.next().unwrap_or_default();
        let magic = word();
        if magic != MAGIC {
            return Err(WireError::Format { expected: MAGIC, found: magic });
        }
        let id = BatchId { round: Round(word()), number: word() };
        let pages = limited("the number of pages with data", word(), MAX_DATA_PAGES)?;
        let payload = limited("the payload's length", word(), pages * PAGE_SIZE)?;
        let plan = limited("the plan's length", word(), MAX_PLAN_BYTES)?;
        let encoding = word();
        let checksum = u64::from(word()) | u64::from(word()) << 32;
        if body.len() != payload + plan {
            return Err(WireError::Length {
                expected: (HEADER_BYTES + payload + plan) as u64,
                found: frame.len() as u64,
            });
        }
        let encoding = match encoding {
            ENCODING_RAW if payload == pages * PAGE_SIZE => Encoding::Raw,
            ENCODING_RAW => {
                return Err(WireError::Payload {
                    pages,
                    reason: format!("it is raw and has {payload} bytes"),
                });
            }
            ENCODING_ZSTD => Encoding::Zstd,
            _ => return Err(WireError::Encoding(encoding)),
        };
        Ok(Self { id, pages, payload, encoding, checksum })
    }
}

fn limited(what: &'static str, value: u32, limit: usize) -> Result<usize, WireError> {
    let found = value as usize;
    if found > limit {
        return Err(WireError::TooLarge { what, found: value.into(), limit: limit as u64 });
    }
    Ok(found)
}

fn decompress(payload: &[u8], pages: usize) -> Result<Bytes, WireError> {
    let failed = |reason| WireError::Payload { pages, reason };
    let mut data = vec![0; pages * PAGE_SIZE];
    let length = zstd::bulk::decompress_to_buffer(payload, &mut data)
        .map_err(|error| failed(error.to_string()))?;
    if length != data.len() {
        return Err(failed(format!("it gives {length} bytes")));
    }
    Ok(data.into())
}
