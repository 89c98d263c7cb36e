//! The target's memory of all pages received so far.
//!
//! What the container's processes will find in their memory once they run
//! here. Contents are kept once, however many pages share them, and named by
//! the hash that [`crate::wire::decode`] computed on arrival.
//!
//! **Invariants**
//! * Updates commute: for each page the batch with the highest
//!   [`BatchId`] wins, in whatever order batches are
//!   applied and however often. What order does decide is whether a reference
//!   or delta finds its content; when it does not, the page counts as
//!   *awaited*, never as having its old bytes, and the source is asked to send
//!   it whole. So apply in order of arrival and keep that near the sending
//!   order: any order is right, but not every order is cheap.
//! * A page is what a batch said or it is absent. Absent is never zero.
//! * Released is final: the container has the page, no batch brings it back.
//! * No batch makes the store take more memory than its limit.
//!
//! **Non-goals**: durability and sharing. Wrap it in a lock to use it from
//! several threads; the expensive part of receiving is in `decode`, outside.

mod apply;
mod error;
pub(crate) mod index;
mod slabs;
mod tombstones;

pub use apply::Applied;
pub use error::StoreError;

use crate::page::{PageAt, PageBytes, PageIndex, PageRun, SpaceId};
use crate::units::{ByteSize, PageCount, Round};
use crate::wire::{Batch, BatchId, MAX_DATA_PAGES, RawBatch};
use index::{ContentId, Contents, PageMap, Release};
use slabs::{SLAB_BYTES, Slabs};
use std::collections::BTreeMap;
use tombstones::Tombstones;

/// Pages by address space; see the module's header.
#[derive(Debug)]
pub struct PageStore {
    limit: u64,
    pages: PageMap<Held>,
    contents: Contents,
    slabs: Slabs,
    tombstones: BTreeMap<SpaceId, Tombstones>,
    sealed: Option<Round>,
    counts: Counts,
}

/// What a page of the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredPage<'a> {
    /// 4096 zero bytes.
    Zero,
    /// These bytes.
    Data(&'a PageBytes),
}

/// How much the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Pages that [`PageStore::get`] would return, zero ones included.
    pub pages: PageCount,
    /// Of these, pages that are all zero.
    pub zero: PageCount,
    /// Different contents among the others.
    pub contents: PageCount,
    /// Pages the source has yet to send whole.
    pub awaited: PageCount,
    /// Pages that were released.
    pub released: PageCount,
    /// Memory taken, indexes included.
    pub resident: ByteSize,
    /// The most it may take.
    pub limit: ByteSize,
}

impl PageStore {
    /// An empty store that takes at most `limit` bytes, indexes included.
    ///
    /// Memory is taken in slabs of 1 MiB.
    pub fn new(limit: ByteSize) -> Self {
        Self {
            limit: limit.0,
            pages: PageMap::new(),
            contents: Contents::default(),
            slabs: Slabs::default(),
            tombstones: BTreeMap::new(),
            sealed: None,
            counts: Counts::default(),
        }
    }

    /// What a page holds; nothing when it is absent, awaited or released.
    pub fn get(&self, at: PageAt) -> Option<StoredPage<'_>> {
        match self.pages.get(at)?.what {
            What::Zero => Some(StoredPage::Zero),
            What::Content(id) => Some(StoredPage::Data(self.slabs.get(id))),
            What::Awaited | What::Released => None,
        }
    }

    /// Frees a page, because the container has it now. Says whether the store
    /// held it. Batches applied later leave the page alone, also when the
    /// store had never heard of it. A content that no other page has goes with
    /// it, which the source does not know: a later reference to it is missing.
    pub fn release(&mut self, at: PageAt) -> bool {
        let batch = self.pages.get(at).map_or_else(BatchId::default, |held| held.batch);
        let held = Held { what: What::Released, batch };
        let before = self.pages.insert(at, held).map(|held| held.what);
        self.counts.enter(What::Released);
        if let Some(before) = before {
            self.leave(before);
        }
        before.is_some_and(What::is_present)
    }

    /// Whether [`PageStore::release`] was called for a page.
    pub fn is_released(&self, at: PageAt) -> bool {
        self.pages.get(at).is_some_and(|held| held.what == What::Released)
    }

    /// The address spaces in which pages are present, in order.
    pub fn spaces(&self) -> impl Iterator<Item = SpaceId> {
        self.pages.spaces().filter(|space| self.present(*space).next().is_some())
    }

    /// The pages present in a space as sorted runs that do not touch.
    pub fn runs(&self, space: SpaceId) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        for index in self.present(space) {
            match runs.last_mut() {
                Some(last) if last.end() == index.0 => last.count += PageCount(1),
                _ => runs.push(PageRun::new(index.0, 1)),
            }
        }
        runs
    }

    /// The pages that the source has yet to send whole, in order.
    ///
    /// Empty when every page of a finished migration arrived.
    pub fn awaited(&self) -> Vec<PageAt> {
        let of = |space| {
            self.pages
                .pages(space)
                .filter(|(_, held)| held.what == What::Awaited)
                .map(move |(index, _)| PageAt { space, index })
        };
        self.pages.spaces().flat_map(of).collect()
    }

    /// Every page that is present, by the name of its content: batches without
    /// a byte of data, for an encoder that is to [assume](crate::encode::Encoder::assume)
    /// them.
    pub fn inventory(&self, mut take: impl FnMut(Batch)) {
        let mut open = RawBatch::new(BatchId::default());
        for space in self.pages.spaces() {
            for (index, held) in self.pages.pages(space) {
                let at = PageAt { space, index };
                match held.what {
                    What::Zero => open.zero(at),
                    What::Content(id) => open.reference(at, self.contents.name(id)),
                    What::Awaited | What::Released => continue,
                }
                if open.is_full(MAX_DATA_PAGES) {
                    let full = std::mem::replace(&mut open, RawBatch::new(BatchId::default()));
                    take(full.compress(0));
                }
            }
        }
        if !open.is_empty() {
            take(open.compress(0));
        }
    }

    /// Says that every batch of `round` and of the rounds before was applied.
    ///
    /// What was kept only to order them is forgotten, and another batch of
    /// these rounds becomes [`StoreError::Late`].
    pub fn seal_round(&mut self, round: Round) {
        self.sealed = self.sealed.max(Some(round));
        self.tombstones.retain(|_, space| {
            self.counts.tombstones -= space.len();
            space.seal(round);
            self.counts.tombstones += space.len();
            space.len() > 0
        });
    }

    /// How much the store holds.
    pub fn stats(&self) -> StoreStats {
        let Counts { zero, content, awaited, released, .. } = self.counts;
        StoreStats {
            pages: PageCount(zero + content),
            zero: PageCount(zero),
            contents: PageCount(self.contents.len()),
            awaited: PageCount(awaited),
            released: PageCount(released),
            resident: ByteSize(self.resident()),
            limit: ByteSize(self.limit),
        }
    }

    fn present(&self, space: SpaceId) -> impl Iterator<Item = PageIndex> {
        self.pages.pages(space).filter(|(_, held)| held.what.is_present()).map(|(index, _)| index)
    }

    /// Bytes taken.
    fn resident(&self) -> u64 {
        self.contents.segments() * SLAB_BYTES as u64
            + self.contents.bytes()
            + self.pages.bytes()
            + self.counts.tombstones * Tombstones::RUN_BYTES
    }

    /// A page stopped being `what`.
    fn leave(&mut self, what: What) {
        self.counts.leave(what);
        if let What::Content(id) = what {
            self.release_content(id);
        }
    }

    fn release_content(&mut self, id: ContentId) {
        if self.contents.release(id) == Release::SegmentGone {
            self.slabs.unmap(id);
        }
    }
}

/// What is known of a page, and from which batch.
#[derive(Clone, Copy, Debug)]
struct Held {
    what: What,
    batch: BatchId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Zero,
    Content(ContentId),
    /// Its newest batch referred to a content that is not here.
    Awaited,
    Released,
}

impl What {
    fn is_present(self) -> bool {
        matches!(self, Self::Zero | Self::Content(_))
    }
}

/// Pages by what they are, and runs in all tombstones.
#[derive(Debug, Default)]
struct Counts {
    zero: u64,
    content: u64,
    awaited: u64,
    released: u64,
    tombstones: u64,
}

impl Counts {
    fn of(&mut self, what: What) -> &mut u64 {
        match what {
            What::Zero => &mut self.zero,
            What::Content(_) => &mut self.content,
            What::Awaited => &mut self.awaited,
            What::Released => &mut self.released,
        }
    }

    fn enter(&mut self, what: What) {
        *self.of(what) += 1;
    }

    fn leave(&mut self, what: What) {
        *self.of(what) -= 1;
    }
}

#[cfg(test)]
mod tests;
