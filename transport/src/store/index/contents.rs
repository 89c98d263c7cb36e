//! Which contents are held, under which number, by how many pages.
//!
//! A content is named by its hash and, within one process, by a small number
//! ([`ContentId`]) that also says where its bytes are kept, if they are: ids
//! come in segments of [`SEGMENT`], freed ids are used again lowest segment
//! first, and a segment without contents is given back.
//!
//! **Invariant**: an id is valid exactly as long as its count is above zero,
//! and the count is the number of pages that refer to it.

use crate::page::ContentHash;
use hashbrown::HashTable;
use std::collections::BTreeSet;

/// Contents per segment.
pub(crate) const SEGMENT: usize = 256;
const WORDS: usize = SEGMENT / 64;

/// Number of a held content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContentId(u32);

impl ContentId {
    /// The segment, and the place in it.
    pub(crate) fn place(self) -> (usize, usize) {
        (self.0 as usize / SEGMENT, self.0 as usize % SEGMENT)
    }
}

/// What became of a content that one page no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// Other pages have it.
    Shared,
    /// It is gone; other contents of its segment remain.
    Gone,
    /// It is gone and its segment with it.
    SegmentGone,
}

/// See the module's header.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    segments: Vec<Option<Box<Segment>>>,
    /// Segments that exist and have a free place.
    roomy: BTreeSet<usize>,
    /// Numbers of segments that were given back.
    vacant: Vec<usize>,
    by_hash: HashTable<ContentId>,
}

#[derive(Debug)]
struct Segment {
    /// Bit set: place is free.
    free: [u64; WORDS],
    names: [ContentHash; SEGMENT],
    counts: [u32; SEGMENT],
}

impl Contents {
    /// Bytes one segment takes here.
    pub(crate) const SEGMENT_BYTES: u64 = size_of::<Segment>() as u64;

    pub(crate) fn find(&self, name: &ContentHash) -> Option<ContentId> {
        self.by_hash.find(short(name), |id| self.name(*id) == *name).copied()
    }

    pub(crate) fn name(&self, id: ContentId) -> ContentHash {
        let (segment, place) = id.place();
        self.segment(segment).names[place]
    }

    /// One more page has this content.
    pub(crate) fn acquire(&mut self, id: ContentId) {
        let (segment, place) = id.place();
        self.segment_mut(segment).counts[place] += 1;
    }

    /// A content that one page has and none had before.
    pub(crate) fn insert(&mut self, name: ContentHash) -> ContentId {
        let number = self.roomy.first().copied().unwrap_or_else(|| self.add_segment());
        let segment = self.segment_mut(number);
        let word = segment.free.iter().position(|word| *word != 0).unwrap_or_default();
        let place = word * 64 + segment.free[word].trailing_zeros() as usize;
        segment.free[word] &= segment.free[word] - 1;
        segment.names[place] = name;
        segment.counts[place] = 1;
        let full = segment.free == [0; WORDS];
        if full {
            self.roomy.remove(&number);
        }
        let id = ContentId((number * SEGMENT + place) as u32);
        let Self { segments, by_hash, .. } = self;
        by_hash.insert_unique(short(&name), id, |id| {
            let (segment, place) = id.place();
            segments[segment].as_ref().map_or(0, |segment| short(&segment.names[place]))
        });
        id
    }

    /// One page less has this content.
    pub(crate) fn release(&mut self, id: ContentId) -> Release {
        let (number, place) = id.place();
        let segment = self.segment_mut(number);
        segment.counts[place] -= 1;
        if segment.counts[place] > 0 {
            return Release::Shared;
        }
        let name = segment.names[place];
        segment.free[place / 64] |= 1 << (place % 64);
        let empty = segment.free == [u64::MAX; WORDS];
        if let Ok(entry) = self.by_hash.find_entry(short(&name), |other| *other == id) {
            entry.remove();
        }
        if empty {
            self.segments[number] = None;
            self.roomy.remove(&number);
            self.vacant.push(number);
            return Release::SegmentGone;
        }
        self.roomy.insert(number);
        Release::Gone
    }

    /// How many contents are held.
    pub(crate) fn len(&self) -> u64 {
        self.by_hash.len() as u64
    }

    /// Segments in use.
    pub(crate) fn segments(&self) -> u64 {
        (self.segments.len() - self.vacant.len()) as u64
    }

    /// Whether the next [`Contents::insert`] takes a new segment.
    pub(crate) fn is_full(&self) -> bool {
        self.roomy.is_empty()
    }

    /// Bytes by which the hash table grows at the next [`Contents::insert`].
    pub(crate) fn growth(&self) -> u64 {
        let grows = self.by_hash.len() == self.by_hash.capacity();
        if grows { self.by_hash.allocation_size() as u64 } else { 0 }
    }

    /// Memory taken, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments() * Self::SEGMENT_BYTES + self.by_hash.allocation_size() as u64
    }

    fn add_segment(&mut self) -> usize {
        let number = self.vacant.pop().unwrap_or_else(|| {
            self.segments.push(None);
            self.segments.len() - 1
        });
        self.segments[number] = Some(Box::new(Segment {
            free: [u64::MAX; WORDS],
            names: [ContentHash([0; 32]); SEGMENT],
            counts: [0; SEGMENT],
        }));
        self.roomy.insert(number);
        number
    }

    fn segment(&self, number: usize) -> &Segment {
        self.segments[number].as_ref().expect("an id outlived its content")
    }

    fn segment_mut(&mut self, number: usize) -> &mut Segment {
        self.segments[number].as_mut().expect("an id outlived its content")
    }
}

/// Hashes are uniform already: eight of their bytes choose the bucket.
fn short(name: &ContentHash) -> u64 {
    name.0.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn name(number: u16) -> ContentHash {
        ContentHash(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    proptest! {
        #[test]
        fn counts_follow_the_model_and_nothing_leaks(
            steps in proptest::collection::vec((0u16..700, any::<bool>()), 0..2500),
        ) {
            let mut contents = Contents::default();
            let mut model: BTreeMap<u16, u32> = BTreeMap::new();
            for (number, add) in steps {
                let held = contents.find(&name(number));
                prop_assert_eq!(held.is_some(), model.contains_key(&number));
                match (held, add) {
                    (Some(id), true) => {
                        contents.acquire(id);
                        *model.entry(number).or_default() += 1;
                    }
                    (None, true) => {
                        let id = contents.insert(name(number));
                        prop_assert_eq!(contents.name(id), name(number));
                        model.insert(number, 1);
                    }
                    (Some(id), false) => {
                        let left = model[&number] - 1;
                        prop_assert_eq!(contents.release(id) == Release::Shared, left > 0);
                        if left == 0 { model.remove(&number); } else { model.insert(number, left); }
                    }
                    (None, false) => {}
                }
                prop_assert_eq!(contents.len(), model.len() as u64);
            }
            for (number, count) in model {
                let id = contents.find(&name(number)).expect("held");
                for _ in 0..count {
                    contents.release(id);
                }
            }
            prop_assert_eq!((contents.len(), contents.segments()), (0, 0));
        }
    }

    #[test]
    fn a_freed_place_is_used_before_a_new_segment_is_taken() {
        let mut contents = Contents::default();
        let ids: Vec<_> = (0..2 * SEGMENT as u16).map(|n| contents.insert(name(n))).collect();
        assert_eq!(contents.segments(), 2);
        assert_eq!(contents.release(ids[3]), Release::Gone);
        assert_eq!(contents.insert(name(9999)), ids[3]);
        assert!(contents.is_full());
    }
}
