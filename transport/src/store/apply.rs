//! Applying a batch: the one way into the store.

use super::index::{ContentId, Contents, PageMap};
use super::slabs::SLAB_BYTES;
use super::tombstones::Tombstones;
use super::{Held, PageStore, StoreError, What};
use crate::page::{ContentHash, PageAt, PageBytes, PageIndex, PageRun, SpaceId};
use crate::wire::{BatchId, DecodedBatch, Entry, pages_of, whole_space, xor};

/// What applying a batch left open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "pages that are missing have to be asked for"]
pub struct Applied {
    /// Pages whose content the batch only named and the store does not hold.
    /// The source must send them whole.
    pub missing: Vec<PageAt>,
}

impl PageStore {
    /// Applies a batch, in any order with others (see the invariants of
    /// [`super`]).
    ///
    /// Costs a copy and an index update per page; hashing was done by
    /// [`crate::wire::decode`].
    ///
    /// # Errors
    /// [`StoreError`] before the limit would be exceeded, when the kernel has
    /// no memory, or when the batch's round was sealed.
    pub fn apply(&mut self, batch: &DecodedBatch) -> Result<Applied, StoreError> {
        self.apply_as(batch, batch.id())
    }

    /// Takes in what this host knew of the pages before: every batch of the
    /// migration that now begins overrules it.
    ///
    /// # Errors
    /// As [`PageStore::apply`].
    pub fn recall(&mut self, batch: &DecodedBatch) -> Result<(), StoreError> {
        self.apply_as(batch, BatchId::default()).map(drop)
    }

    fn apply_as(&mut self, batch: &DecodedBatch, id: BatchId) -> Result<Applied, StoreError> {
        if let Some(sealed) = self.sealed.filter(|sealed| id.round <= *sealed) {
            return Err(StoreError::Late { round: id.round, sealed });
        }
        let mut missing = Vec::new();
        for entry in batch.entries() {
            match entry {
                Entry::Zero { space, run } => {
                    for at in pages(space, run) {
                        self.set(at, id, |_| Ok(What::Zero))?;
                    }
                }
                Entry::Data { space, run, bytes, hashes } => {
                    for ((at, bytes), hash) in pages(space, run).zip(pages_of(bytes)).zip(hashes) {
                        self.set(at, id, |store| store.keep(hash, bytes).map(What::Content))?;
                    }
                }
                Entry::Ref { space, run, hashes } => {
                    for (at, hash) in pages(space, run).zip(hashes) {
                        let what = self.set(at, id, |store| Ok(store.share(hash)))?;
                        missing.extend(what.filter(|what| *what == What::Awaited).map(|_| at));
                    }
                }
                Entry::Delta { space, run, bases, xors } => {
                    for ((at, base), xor) in pages(space, run).zip(bases).zip(pages_of(xors)) {
                        let what = self.set(at, id, |store| store.patch(base, xor))?;
                        missing.extend(what.filter(|what| *what == What::Awaited).map(|_| at));
                    }
                }
                Entry::Drop { space, run } => self.drop_run(space, run, id)?,
                Entry::DropSpace { space } => self.drop_run(space, whole_space(), id)?,
            }
        }
        Ok(Applied { missing })
    }

    /// Makes a page what `make` says, unless a newer batch has spoken.
    ///
    /// `make` takes the new content before the old one is let go, as the
    /// source does: a reference to what the page held until now succeeds.
    fn set(
        &mut self,
        at: PageAt,
        batch: BatchId,
        make: impl FnOnce(&mut Self) -> Result<What, StoreError>,
    ) -> Result<Option<What>, StoreError> {
        let before = self.pages.get(at);
        if before.is_some_and(|held| held.batch > batch || held.what == What::Released) {
            return Ok(None);
        }
        let dropped = self.tombstones.get(&at.space).and_then(|space| space.newest(at.index));
        if dropped.is_some_and(|by| by > batch) {
            return Ok(None);
        }
        if before.is_none() {
            self.make_room_for_index(at)?;
        }
        let what = make(self)?;
        self.pages.insert(at, Held { what, batch });
        self.counts.enter(what);
        if let Some(before) = before {
            self.leave(before.what);
        }
        Ok(Some(what))
    }

    /// One more page has the content `hash`, whose bytes are here.
    fn keep(&mut self, hash: &ContentHash, bytes: &PageBytes) -> Result<ContentId, StoreError> {
        if let Some(id) = self.contents.find(hash) {
            self.contents.acquire(id);
            return Ok(id);
        }
        self.make_room_for_content()?;
        let id = self.contents.insert(*hash);
        if let Err(error) = self.slabs.put(id, bytes) {
            self.release_content(id);
            return Err(StoreError::Memory(error));
        }
        Ok(id)
    }

    /// One more page has the content `hash`, if it is held.
    fn share(&mut self, hash: &ContentHash) -> What {
        match self.contents.find(hash) {
            Some(id) => {
                self.contents.acquire(id);
                What::Content(id)
            }
            None => What::Awaited,
        }
    }

    /// A page has the content that differs from `base` by `difference`.
    fn patch(&mut self, base: &ContentHash, difference: &PageBytes) -> Result<What, StoreError> {
        let Some(base) = self.contents.find(base) else { return Ok(What::Awaited) };
        let bytes = xor(self.slabs.get(base), difference);
        self.keep(&ContentHash::of(&bytes), &bytes).map(What::Content)
    }

    fn drop_run(&mut self, space: SpaceId, run: PageRun, batch: BatchId) -> Result<(), StoreError> {
        self.make_room(2 * Tombstones::RUN_BYTES)?;
        let mut gone = Vec::new();
        self.pages.remove_where(space, run, |_, held| {
            let goes = held.batch <= batch && held.what != What::Released;
            gone.extend(goes.then_some(held.what));
            goes
        });
        for what in gone {
            self.leave(what);
        }
        let tombstones = self.tombstones.entry(space).or_default();
        self.counts.tombstones -= tombstones.len();
        tombstones.cover(run, batch);
        self.counts.tombstones += tombstones.len();
        Ok(())
    }

    fn make_room_for_index(&self, at: PageAt) -> Result<(), StoreError> {
        const NEEDED: u64 = PageMap::<Held>::CHUNK_BYTES;
        // The look into the map is saved as long as the answer cannot matter.
        if self.resident() + NEEDED > self.limit && !self.pages.has_room(at) {
            return self.make_room(NEEDED);
        }
        Ok(())
    }

    fn make_room_for_content(&self) -> Result<(), StoreError> {
        const SEGMENT: u64 = Contents::SEGMENT_BYTES + SLAB_BYTES as u64;
        let segment = if self.contents.is_full() { SEGMENT } else { 0 };
        let needed = segment + self.contents.growth();
        // The page's chunk of the index comes after, so it is counted here too.
        if needed > 0 { self.make_room(needed + PageMap::<Held>::CHUNK_BYTES) } else { Ok(()) }
    }

    fn make_room(&self, needed: u64) -> Result<(), StoreError> {
        let resident = self.resident();
        if resident + needed > self.limit {
            return Err(StoreError::full(needed, resident, self.limit));
        }
        Ok(())
    }
}

fn pages(space: SpaceId, run: PageRun) -> impl Iterator<Item = PageAt> {
    run.pages().map(move |index: PageIndex| PageAt { space, index })
}
