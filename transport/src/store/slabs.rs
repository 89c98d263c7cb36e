//! The memory that holds page contents: big slabs of equal slots.
//!
//! Slots never differ in size, so memory cannot fragment: a freed slot fits
//! any page. Slabs are mapped anonymously rather than taken from the heap,
//! because then one that empties goes back to the kernel at once: while the
//! restored processes fill their own memory, ours must shrink.

use super::index::{ContentId, SEGMENT};
use crate::page::PageBytes;
use crate::units::PAGE_SIZE;
use memmap2::{MmapMut, MmapOptions};
use std::io;

/// Bytes of one slab: a slot for each content of an index segment.
pub(super) const SLAB_BYTES: usize = SEGMENT * PAGE_SIZE;

/// Bytes of contents by their id.
#[derive(Debug, Default)]
pub(super) struct Slabs {
    /// By the number of the index segment.
    slabs: Vec<Option<MmapMut>>,
}

impl Slabs {
    /// The bytes kept under `id`.
    ///
    /// # Panics
    /// When nothing was put there: wrong memory must never be served instead.
    pub(super) fn get(&self, id: ContentId) -> &PageBytes {
        let (slab, slot) = id.place();
        let slab = self.slabs[slab].as_ref().expect("a held content has its slab");
        slab[slot * PAGE_SIZE..].first_chunk().expect("a slot is one page")
    }

    /// Keeps `bytes` under `id`.
    ///
    /// # Errors
    /// When the kernel has no memory for a new slab.
    pub(super) fn put(&mut self, id: ContentId, bytes: &PageBytes) -> io::Result<()> {
        let (number, slot) = id.place();
        if self.slabs.len() <= number {
            self.slabs.resize_with(number + 1, || None);
        }
        let slab = match &mut self.slabs[number] {
            Some(slab) => slab,
            // Filled soon: one call for its pages is cheaper than a fault for each.
            empty => empty.insert(MmapOptions::new().len(SLAB_BYTES).populate().map_anon()?),
        };
        slab[slot * PAGE_SIZE..][..PAGE_SIZE].copy_from_slice(bytes);
        Ok(())
    }

    /// Gives the slab of `id` back to the kernel; no content is left in it.
    pub(super) fn unmap(&mut self, id: ContentId) {
        let (number, _) = id.place();
        if let Some(slab) = self.slabs.get_mut(number) {
            *slab = None;
        }
    }

    /// Memory mapped, in bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        (self.slabs.iter().flatten().count() * SLAB_BYTES) as u64
    }
}
