//! The bytes of pages that keep changing.
//!
//! A page sent for the second time will likely be sent a third time, with
//! little of it changed. So from the second time on its bytes are kept, in
//! bounded memory, and the next change may travel as a difference.
//!
//! Which bytes to keep is decided by the clock algorithm: a hand goes round,
//! passes over what was used since it last came by, and replaces what was not.

use crate::page::{ContentHash, PageAt, PageBytes};
use crate::units::{ByteSize, PAGE_SIZE};
use crate::wire::xor;
use std::collections::HashMap;

/// Bytes recently sent; see the module's header.
#[derive(Debug)]
pub(super) struct Recent {
    capacity: usize,
    slots: Vec<Slot>,
    by_page: HashMap<PageAt, usize>,
    hand: usize,
}

#[derive(Debug)]
struct Slot {
    at: PageAt,
    hash: ContentHash,
    bytes: Box<PageBytes>,
    used: bool,
}

impl Recent {
    /// Keeps at most `limit` bytes of pages.
    pub(super) fn new(limit: ByteSize) -> Self {
        let capacity = usize::try_from(limit.0).unwrap_or(usize::MAX) / PAGE_SIZE;
        Self { capacity, slots: Vec::new(), by_page: HashMap::new(), hand: 0 }
    }

    /// How `bytes` differs from the content `base` of its page: nothing where
    /// those bytes are not kept or a delta would not be much smaller.
    pub(super) fn delta(
        &mut self,
        at: PageAt,
        base: ContentHash,
        bytes: &PageBytes,
    ) -> Option<PageBytes> {
        let slot = &mut self.slots[*self.by_page.get(&at)?];
        if slot.hash != base {
            return None;
        }
        slot.used = true;
        let delta = xor(&slot.bytes, bytes);
        let same = delta.chunks_exact(8).filter(|word| *word == [0; 8]).count();
        (same >= PAGE_SIZE / 8 / 2).then_some(delta)
    }

    /// Keeps the bytes of a page that was just sent.
    pub(super) fn put(&mut self, at: PageAt, hash: ContentHash, bytes: &PageBytes) {
        if let Some(slot) = self.by_page.get(&at) {
            let slot = &mut self.slots[*slot];
            slot.hash = hash;
            slot.bytes.copy_from_slice(bytes);
        } else if self.slots.len() < self.capacity {
            self.by_page.insert(at, self.slots.len());
            self.slots.push(Slot { at, hash, bytes: Box::new(*bytes), used: false });
        } else if self.capacity > 0 {
            let victim = self.victim();
            let slot = &mut self.slots[victim];
            self.by_page.remove(&slot.at);
            self.by_page.insert(at, victim);
            (slot.at, slot.hash) = (at, hash);
            slot.bytes.copy_from_slice(bytes);
        }
    }

    pub(super) fn memory(&self) -> ByteSize {
        ByteSize((self.slots.len() * (PAGE_SIZE + 100)) as u64)
    }

    /// The next slot not used since the hand last passed it.
    fn victim(&mut self) -> usize {
        loop {
            let at = self.hand;
            self.hand = (at + 1) % self.slots.len();
            if !std::mem::take(&mut self.slots[at].used) {
                return at;
            }
        }
    }
}
