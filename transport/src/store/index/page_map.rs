//! A sparse map from pages to small values, sorted within each space.
//!
//! Address spaces are huge and used in runs, so values live in chunks of 64
//! neighbouring pages with one bitmap. A fully used chunk costs 64 values and
//! about 30 bytes; a lone page costs a whole chunk.

use crate::page::{PageAt, PageIndex, PageRun, SpaceId};
use std::collections::BTreeMap;

const CHUNK: u64 = 64;

/// See the module's header.
#[derive(Debug)]
pub(crate) struct PageMap<T> {
    spaces: BTreeMap<SpaceId, BTreeMap<u64, Box<Chunk<T>>>>,
    chunks: u64,
}

#[derive(Debug)]
struct Chunk<T> {
    /// Bit `i` is set while `cells[i]` means something. Never 0 in the map.
    used: u64,
    cells: [T; CHUNK as usize],
}

impl<T: Copy> PageMap<T> {
    /// Bytes one chunk takes, with its share of the tree around it.
    pub(crate) const CHUNK_BYTES: u64 = size_of::<Chunk<T>>() as u64 + 24;

    pub(crate) fn new() -> Self {
        Self { spaces: BTreeMap::new(), chunks: 0 }
    }

    pub(crate) fn get(&self, at: PageAt) -> Option<T> {
        let (chunk, cell) = place(at.index);
        self.spaces.get(&at.space)?.get(&chunk)?.get(cell)
    }

    /// Whether inserting at `at` takes no new chunk.
    pub(crate) fn has_room(&self, at: PageAt) -> bool {
        let (chunk, _) = place(at.index);
        self.spaces.get(&at.space).is_some_and(|space| space.contains_key(&chunk))
    }

    /// Sets the value of a page; returns the one before.
    pub(crate) fn insert(&mut self, at: PageAt, value: T) -> Option<T> {
        let (number, cell) = place(at.index);
        let chunks = &mut self.chunks;
        let chunk = self.spaces.entry(at.space).or_default().entry(number).or_insert_with(|| {
            *chunks += 1;
            Box::new(Chunk { used: 0, cells: [value; CHUNK as usize] })
        });
        let before = chunk.get(cell);
        chunk.used |= 1 << cell;
        chunk.cells[cell] = value;
        before
    }

    /// Removes the pages of `run` for which `gone` answers true, in order.
    pub(crate) fn remove_where(
        &mut self,
        space: SpaceId,
        run: PageRun,
        mut gone: impl FnMut(PageIndex, T) -> bool,
    ) {
        let Some(chunks) = self.spaces.get_mut(&space) else { return };
        let mut emptied = Vec::new();
        for (number, chunk) in chunks.range_mut(chunks_of(run)) {
            for cell in ones(chunk.used & mask(*number, run)) {
                if gone(PageIndex(number * CHUNK + cell as u64), chunk.cells[cell]) {
                    chunk.used &= !(1 << cell);
                }
            }
            if chunk.used == 0 {
                emptied.push(*number);
            }
        }
        self.chunks -= emptied.len() as u64;
        for number in emptied {
            chunks.remove(&number);
        }
        if chunks.is_empty() {
            self.spaces.remove(&space);
        }
    }

    /// Whether any page of `run` has a value.
    pub(crate) fn any_in(&self, space: SpaceId, run: PageRun) -> bool {
        self.spaces.get(&space).is_some_and(|chunks| {
            chunks.range(chunks_of(run)).any(|(number, chunk)| chunk.used & mask(*number, run) != 0)
        })
    }

    /// The pages of a space, in order.
    pub(crate) fn pages(&self, space: SpaceId) -> impl Iterator<Item = (PageIndex, T)> {
        self.spaces.get(&space).into_iter().flatten().flat_map(|(number, chunk)| {
            ones(chunk.used)
                .map(move |cell| (PageIndex(number * CHUNK + cell as u64), chunk.cells[cell]))
        })
    }

    /// The spaces that have pages, in order.
    pub(crate) fn spaces(&self) -> impl Iterator<Item = SpaceId> {
        self.spaces.keys().copied()
    }

    /// Memory the map takes, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.chunks * Self::CHUNK_BYTES
    }
}

impl<T: Copy> Chunk<T> {
    fn get(&self, cell: usize) -> Option<T> {
        (self.used >> cell & 1 == 1).then(|| self.cells[cell])
    }
}

/// The chunk of a page and its cell there.
fn place(index: PageIndex) -> (u64, usize) {
    (index.0 / CHUNK, (index.0 % CHUNK) as usize)
}

/// The chunks that a run touches.
fn chunks_of(run: PageRun) -> std::ops::Range<u64> {
    run.start.0 / CHUNK..run.end().div_ceil(CHUNK)
}

/// The cells of chunk `number`, one of [`chunks_of`], that lie in `run`.
fn mask(number: u64, run: PageRun) -> u64 {
    let first = number * CHUNK;
    let from = run.start.0.saturating_sub(first).min(CHUNK);
    let to = run.end().saturating_sub(first).min(CHUNK);
    if from >= to {
        return 0;
    }
    (u64::MAX >> (CHUNK - (to - from))) << from
}

/// Positions of the set bits, lowest first.
fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(lowest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u16),
        Remove(u64, u64, u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0u64..400, any::<u16>()).prop_map(|(at, value)| Step::Insert(at, value)),
            1 => (0u64..400, 0u64..150, 1u16..4).prop_map(|(at, n, m)| Step::Remove(at, n, m)),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_sorted_map(steps in steps(), probe in 0u64..400, length in 0u64..150) {
            let space = SpaceId(7);
            let mut map = PageMap::new();
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(at, value) => {
                        let page = PageAt { space, index: PageIndex(at) };
                        prop_assert_eq!(map.insert(page, value), model.insert(at, value));
                    }
                    Step::Remove(start, count, modulus) => {
                        map.remove_where(space, PageRun::new(start, count), |_, value| {
                            value % modulus == 0
                        });
                        model.retain(|at, value| {
                            !(start..start + count).contains(at) || *value % modulus != 0
                        });
                    }
                }
            }
            let pages: Vec<_> = map.pages(space).map(|(index, value)| (index.0, value)).collect();
            prop_assert_eq!(pages, model.iter().map(|(a, b)| (*a, *b)).collect::<Vec<_>>());
            let page = PageAt { space, index: PageIndex(probe) };
            prop_assert_eq!(map.get(page), model.get(&probe).copied());
            prop_assert_eq!(
                map.any_in(space, PageRun::new(probe, length)),
                model.range(probe..probe + length).next().is_some()
            );
            prop_assert_eq!(map.spaces().count(), usize::from(!model.is_empty()));
            let mut chunks: Vec<_> = model.keys().map(|at| at / CHUNK).collect();
            chunks.dedup();
            prop_assert_eq!(map.chunks, chunks.len() as u64);
        }
    }
}
