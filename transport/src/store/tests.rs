use super::*;
use crate::page::ContentHash;
use crate::units::PAGE_SIZE;
use crate::wire::{DecodedBatch, RawBatch, decode};
use proptest::collection::vec;
use proptest::prelude::*;

const PAGES: u64 = 90;

/// What one batch says, without references: those depend on order.
#[derive(Clone, Debug)]
enum Say {
    Data(u64, u16),
    Zero(u64),
    Drop(u64, u64),
    DropSpace,
}

fn say() -> impl Strategy<Value = Say> {
    prop_oneof![
        6 => (0..PAGES, 1u16..700).prop_map(|(at, content)| Say::Data(at, content)),
        1 => (0..PAGES).prop_map(Say::Zero),
        2 => (0..PAGES, 1u64..20).prop_map(|(at, count)| Say::Drop(at, count)),
        1 => Just(Say::DropSpace),
    ]
}

fn page(content: u16) -> PageBytes {
    let mut bytes = [0; PAGE_SIZE];
    bytes[..2].copy_from_slice(&content.to_le_bytes());
    bytes
}

fn at(index: u64) -> PageAt {
    PageAt { space: SpaceId(4), index: PageIndex(index) }
}

fn batch(round: u32, number: u32, says: &[Say]) -> DecodedBatch {
    let mut raw = RawBatch::new(BatchId { round: Round(round), number });
    for say in says {
        match say {
            Say::Data(index, content) => {
                let bytes = page(*content);
                raw.data(at(*index), ContentHash::of(&bytes), &bytes);
            }
            Say::Zero(index) => raw.zero(at(*index)),
            Say::Drop(index, count) => raw.drop_run(at(0).space, PageRun::new(*index, *count)),
            Say::DropSpace => raw.drop_space(at(0).space),
        }
    }
    decode(raw.compress(1).into_bytes()).expect("decodes")
}

/// Page contents after `batches` in their order; 0 is the zero page.
fn model(batches: &[Vec<Say>]) -> BTreeMap<u64, u16> {
    let mut pages = BTreeMap::new();
    for say in batches.iter().flatten() {
        match *say {
            Say::Data(index, content) => drop(pages.insert(index, content)),
            Say::Zero(index) => drop(pages.insert(index, 0)),
            Say::Drop(index, count) => pages.retain(|at, _| !(index..index + count).contains(at)),
            Say::DropSpace => pages.clear(),
        }
    }
    pages
}

fn assert_holds(store: &PageStore, model: &BTreeMap<u64, u16>) -> Result<(), TestCaseError> {
    for index in 0..PAGES + 20 {
        let expected = model.get(&index).map(|content| page(*content));
        let held = match store.get(at(index)) {
            Some(StoredPage::Zero) => Some([0; PAGE_SIZE]),
            Some(StoredPage::Data(bytes)) => Some(*bytes),
            None => None,
        };
        prop_assert!(held == expected, "page {index}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn order_and_repetition_of_batches_do_not_matter(
        batches in vec(vec(say(), 1..12), 1..14),
        order in vec(any::<prop::sample::Index>(), 20),
        per_round in 1u32..5,
    ) {
        let expected = model(&batches);
        let mut decoded: Vec<_> = batches
            .iter()
            .enumerate()
            .map(|(number, says)| batch(number as u32 / per_round, number as u32, says))
            .collect();
        // Some twice; then each swapped with some other.
        decoded.extend(order[..4].iter().map(|index| index.get(&decoded).clone()).collect::<Vec<_>>());
        for (place, index) in order.iter().enumerate() {
            let (a, b) = (place % decoded.len(), index.index(decoded.len()));
            decoded.swap(a, b);
        }
        let mut store = PageStore::new(ByteSize(64 << 20));
        for batch in &decoded {
            let applied = store.apply(batch).expect("there is room");
            prop_assert_eq!(applied.missing, []);
        }
        assert_holds(&store, &expected)?;
        // Sealing forgets the tombstones and no page.
        store.seal_round(Round(100));
        prop_assert!(store.tombstones.is_empty());
        prop_assert_eq!(store.counts.tombstones, 0);
        assert_holds(&store, &expected)?;
    }

    #[test]
    fn no_slot_is_leaked_and_no_slab_kept(
        batches in vec(vec(say(), 1..200), 1..8),
        released in vec(0..PAGES, 0..60),
    ) {
        let mut store = PageStore::new(ByteSize(64 << 20));
        for (number, says) in batches.iter().enumerate() {
            let applied = store.apply(&batch(number as u32, 0, says)).expect("there is room");
            prop_assert_eq!(applied.missing, []);
        }
        let mut expected = model(&batches);
        for index in released {
            prop_assert_eq!(store.release(at(index)), expected.remove(&index).is_some());
        }
        assert_holds(&store, &expected)?;
        let mut contents: Vec<_> = expected.values().filter(|content| **content > 0).collect();
        prop_assert_eq!(store.counts.content, contents.len() as u64);
        contents.sort();
        contents.dedup();
        prop_assert_eq!(store.stats().contents.0, contents.len() as u64);
        prop_assert_eq!(store.slabs.bytes(), store.contents.segments() * SLAB_BYTES as u64);
        for index in expected.keys() {
            store.release(at(*index));
        }
        prop_assert_eq!((store.contents.len(), store.slabs.bytes()), (0, 0));
    }
}

#[test]
fn the_error_of_a_full_store_says_what_to_do() {
    let mut store = PageStore::new(ByteSize(512 << 10));
    let error = store.apply(&batch(0, 0, &[Say::Data(0, 1)])).expect_err("no room for a slab");
    assert_eq!(
        error.to_string(),
        "page store: 1.0 MiB more would exceed its limit of 512.0 KiB (0 B in use): \
         raise the agent's memory limit, or migrate when the container holds less"
    );
    assert_eq!(store.stats().pages, PageCount(0));
}
