//! The page path from end to end: whatever a source's memory went through, the
//! target's store holds that memory, or says which pages it lacks. Never
//! anything else.

use blip_transport::encode::{EncodeOptions, Encoder};
use blip_transport::page::{PageAt, PageBytes, PageIndex, PageRun, SpaceId};
use blip_transport::store::{PageStore, StoreError, StoredPage};
use blip_transport::units::{ByteSize, PAGE_SIZE, PageCount, Round};
use blip_transport::wire::{DecodedBatch, Entry, WireError, decode};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

const SPACES: u32 = 3;
const PAGES: u64 = 200;
const ROOMY: ByteSize = ByteSize(256 << 20);

/// A page's content: one of a few that do not compress, a little changed.
/// `(0, 0)` is the zero page.
type Content = (u8, u8);

fn bytes_of((base, change): Content) -> PageBytes {
    let mut bytes = [0; PAGE_SIZE];
    if base > 0 {
        blake3::Hasher::new().update(&[base]).finalize_xof().fill(&mut bytes);
    }
    bytes[1000] ^= change;
    bytes
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        space: u32,
        start: u64,
        count: u64,
        content: Content,
    },
    /// A hole, reported on its own or left for `retain` at the round's end.
    Hole {
        space: u32,
        start: u64,
        count: u64,
        at_once: bool,
    },
    Exit {
        space: u32,
    },
    /// Offers pages again that did not change.
    Again {
        space: u32,
        start: u64,
        count: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let place = (0..SPACES, 0..PAGES, prop_oneof![3 => Just(1u64), 1 => 1u64..40]);
    let content = prop_oneof![
        1 => Just((0u8, 0u8)),
        5 => (0u8..6, 0u8..4),
    ];
    prop_oneof![
        8 => (place.clone(), content).prop_map(|((space, start, count), content)| {
            Step::Write { space, start, count, content }
        }),
        2 => (place.clone(), any::<bool>()).prop_map(|((space, start, count), at_once)| {
            Step::Hole { space, start, count, at_once }
        }),
        1 => (0..SPACES).prop_map(|space| Step::Exit { space }),
        1 => place.prop_map(|(space, start, count)| Step::Again { space, start, count }),
    ]
}

fn rounds() -> impl Strategy<Value = Vec<Vec<Step>>> {
    vec(vec(step(), 0..25), 1..6)
}

fn options() -> impl Strategy<Value = EncodeOptions> {
    (1usize..20, any::<bool>(), prop_oneof![Just(0u64), Just(8 * 4096), Just(1 << 20)]).prop_map(
        |(batch_pages, dedup, cache)| EncodeOptions {
            batch_pages,
            dedup,
            delta_cache: ByteSize(cache),
        },
    )
}

/// The source: a container's memory and the encoder that follows it.
struct Source {
    memory: BTreeMap<PageAt, Content>,
    encoder: Encoder,
    level: i32,
}

impl Source {
    fn new(options: EncodeOptions, level: i32) -> Self {
        Self { memory: BTreeMap::new(), encoder: Encoder::new(options), level }
    }

    /// Runs one round and returns what arrives at the target.
    fn round(&mut self, round: u32, steps: &[Step]) -> Vec<DecodedBatch> {
        self.encoder.begin_round(Round(round));
        for step in steps {
            self.step(step);
        }
        for space in 0..SPACES {
            self.encoder.retain(SpaceId(space), &self.resident(SpaceId(space)));
        }
        let mut tally = self.encoder.finish_round();
        let mut batches = Vec::new();
        while let Some(raw) = self.encoder.next_batch() {
            assert!(raw.data_pages() <= PageCount(256));
            let batch = raw.compress(self.level);
            tally.count_sent(&batch);
            let id = batch.id();
            let decoded = decode(batch.into_bytes()).expect("what was encoded decodes");
            assert_eq!(decoded.id(), id);
            batches.push(decoded);
        }
        let sorts = [tally.unchanged, tally.zero, tally.deduplicated, tally.delta, tally.data];
        assert_eq!(tally.seen.0, sorts.iter().map(|count| count.0).sum::<u64>());
        assert_eq!(tally.batches as usize, batches.len());
        assert_eq!(tally.raw, PageCount(tally.delta.0 + tally.data.0).bytes());
        batches
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write { space, start, count, content } => {
                let space = SpaceId(space);
                let run = PageRun::new(start, count);
                self.memory.extend(run.pages().map(|index| (PageAt { space, index }, content)));
                self.encoder.pages(space, run, &bytes_of(content).repeat(count as usize));
            }
            Step::Hole { space, start, count, at_once } => {
                let space = SpaceId(space);
                let run = PageRun::new(start, count);
                for index in run.pages() {
                    self.memory.remove(&PageAt { space, index });
                }
                if at_once {
                    self.encoder.forget(space, run);
                }
            }
            Step::Exit { space } => {
                self.memory.retain(|at, _| at.space != SpaceId(space));
                self.encoder.forget_space(SpaceId(space));
            }
            Step::Again { space, start, count } => {
                for index in PageRun::new(start, count).pages() {
                    let at = PageAt { space: SpaceId(space), index };
                    if let Some(content) = self.memory.get(&at) {
                        self.encoder.page(at, &bytes_of(*content));
                    }
                }
            }
        }
    }

    /// Sends pages whole, as the target asked.
    fn resend(&mut self, round: u32, missing: &[PageAt]) -> Vec<DecodedBatch> {
        for at in missing {
            self.encoder.resend(*at);
            assert!(!self.encoder.holds(*at));
        }
        let steps: Vec<_> = missing
            .iter()
            .map(|at| Step::Again { space: at.space.0, start: at.index.0, count: 1 })
            .collect();
        self.round(round, &steps)
    }

    fn resident(&self, space: SpaceId) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        for at in self.memory.keys().filter(|at| at.space == space) {
            match runs.last_mut() {
                Some(last) if last.end() == at.index.0 => last.count += PageCount(1),
                _ => runs.push(PageRun::new(at.index.0, 1)),
            }
        }
        runs
    }
}

/// Every page the model could have.
fn everywhere() -> impl Iterator<Item = PageAt> {
    (0..SPACES).flat_map(|space| {
        (0..PAGES + 50).map(move |index| PageAt { space: SpaceId(space), index: PageIndex(index) })
    })
}

fn holds(stored: Option<StoredPage<'_>>, content: Option<Content>) -> bool {
    match (stored, content) {
        (None, None) => true,
        (Some(StoredPage::Zero), Some(content)) => content == (0, 0),
        (Some(StoredPage::Data(bytes)), Some(content)) => *bytes == bytes_of(content),
        _ => false,
    }
}

/// The store holds exactly the source's memory, and counts it rightly.
fn assert_same(source: &Source, store: &PageStore) -> Result<(), TestCaseError> {
    for at in everywhere() {
        let content = source.memory.get(&at).copied();
        prop_assert!(holds(store.get(at), content), "{at:?} should hold {content:?}");
        prop_assert_eq!(source.encoder.holds(at), content.is_some());
    }
    for space in (0..SPACES).map(SpaceId) {
        prop_assert_eq!(store.runs(space), source.resident(space));
        prop_assert_eq!(
            store.spaces().any(|held| held == space),
            !source.resident(space).is_empty()
        );
    }
    prop_assert!(source.encoder.spaces().eq(store.spaces()));
    let mut contents: Vec<_> =
        source.memory.values().filter(|content| **content != (0, 0)).collect();
    let zero = source.memory.len() - contents.len();
    contents.sort();
    contents.dedup();
    let stats = store.stats();
    prop_assert_eq!(stats.pages.0, source.memory.len() as u64);
    prop_assert_eq!(stats.zero.0, zero as u64);
    prop_assert_eq!(stats.contents.0, contents.len() as u64);
    prop_assert_eq!(stats.awaited.0, 0);
    prop_assert!(store.awaited().is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_target_holds_what_the_source_had(
        rounds in rounds(), options in options(), level in 0..3i32,
    ) {
        let mut source = Source::new(options, level);
        let mut store = PageStore::new(ROOMY);
        for (number, steps) in rounds.iter().enumerate() {
            for batch in source.round(number as u32, steps) {
                let applied = store.apply(&batch).expect("there is room");
                prop_assert_eq!(applied.missing, []);
            }
            if number % 2 == 0 {
                store.seal_round(Round(number as u32));
            }
            assert_same(&source, &store)?;
        }
        // The end of everything leaves nothing behind.
        let exits: Vec<_> = (0..SPACES).map(|space| Step::Exit { space }).collect();
        let last = Round(rounds.len() as u32);
        for batch in source.round(last.0, &exits) {
            prop_assert_eq!(store.apply(&batch).expect("room").missing, []);
        }
        store.seal_round(last);
        prop_assert_eq!(store.stats().contents, PageCount(0));
        prop_assert!(store.stats().resident < ByteSize(64 << 10), "{:?}", store.stats());
    }

    #[test]
    fn batches_in_any_order_and_twice_give_right_pages_or_missing_ones(
        rounds in rounds(), options in options(), seed in any::<u64>(),
    ) {
        let mut source = Source::new(options, 0);
        let mut store = PageStore::new(ROOMY);
        let mut batches = Vec::new();
        for (number, steps) in rounds.iter().enumerate() {
            batches.extend(source.round(number as u32, steps));
        }
        let again = batches.len() / 3;
        batches.extend_from_within(..again);
        shuffle(&mut batches, seed);
        for batch in &batches {
            store.apply(batch).map(drop).expect("there is room");
        }
        let mut awaited = store.awaited();
        for at in everywhere().filter(|at| !awaited.contains(at)) {
            let content = source.memory.get(&at).copied();
            prop_assert!(holds(store.get(at), content), "{at:?} should hold {content:?}");
        }
        prop_assert!(awaited.iter().all(|at| store.get(*at).is_none()));
        // Asking is answered, and comes to an end.
        for attempt in 0.. {
            prop_assert!(attempt < 8, "still asking for {awaited:?}");
            if awaited.is_empty() {
                break;
            }
            for batch in source.resend(rounds.len() as u32 + attempt, &awaited) {
                store.apply(&batch).map(drop).expect("there is room");
            }
            awaited = store.awaited();
        }
        assert_same(&source, &store)?;
    }

    #[test]
    fn a_flipped_bit_is_an_error_or_means_the_same(
        steps in vec(step(), 1..12), level in 0..2i32, place in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        for frame in frames(&steps, level) {
            let right = decode(frame.clone()).expect("untouched");
            let mut bytes = frame.to_vec();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            if let Ok(flipped) = decode(bytes.into()) {
                prop_assert!(right.entries().eq(flipped.entries()));
                prop_assert_eq!(right.id(), flipped.id());
            }
        }
    }

    #[test]
    fn a_frame_cut_or_lengthened_is_an_error(
        steps in vec(step(), 1..12), level in 0..2i32, place in any::<prop::sample::Index>(),
        more in vec(any::<u8>(), 1..20),
    ) {
        for frame in frames(&steps, level) {
            let cut = frame.slice(..place.index(frame.len()));
            let refused = matches!(decode(cut), Err(WireError::Length { .. }));
            prop_assert!(refused);
            let longer = [&frame[..], &more[..]].concat();
            let refused = matches!(decode(longer.into()), Err(WireError::Length { .. }));
            prop_assert!(refused);
        }
    }

    #[test]
    fn any_bytes_are_refused(
        bytes in vec(any::<u8>(), 0..300), header in any::<bool>(), words in vec(0u32..600, 8),
    ) {
        let mut bytes = bytes;
        if header {
            let fields: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes = [b"blp\x01", &fields[..], &bytes[..]].concat();
        }
        prop_assert!(decode(bytes.into()).is_err());
    }

    #[test]
    fn a_full_store_says_so_and_stays_right(
        rounds in rounds(), options in options(), limit in 0u64..(6 << 20),
    ) {
        let mut source = Source::new(options, 0);
        let mut store = PageStore::new(ByteSize(limit));
        for (number, steps) in rounds.iter().enumerate() {
            // Many contents, so that several slabs are needed.
            let many = (0..300).map(|n| Step::Write {
                space: 0, start: n % PAGES, count: 1, content: (1 + (n / 256) as u8, n as u8),
            });
            let steps: Vec<_> = steps.iter().cloned().chain(many).collect();
            let before = source.memory.clone();
            for batch in source.round(number as u32, &steps) {
                match store.apply(&batch) {
                    Ok(_) => {}
                    Err(StoreError::Full { needed, resident, limit }) => {
                        prop_assert!(resident.0 + needed.0 > limit.0);
                        prop_assert_eq!(resident, store.stats().resident);
                        for at in everywhere() {
                            let held = store.get(at);
                            let written = steps.iter().any(|step| touches(step, at));
                            prop_assert!(written || holds(held, before.get(&at).copied()));
                        }
                        return Ok(());
                    }
                    Err(error) => return Err(TestCaseError::fail(error.to_string())),
                }
                prop_assert!(store.stats().resident <= ByteSize(limit));
            }
            assert_same(&source, &store)?;
        }
    }
}

fn touches(step: &Step, at: PageAt) -> bool {
    match *step {
        Step::Write { space, start, count, .. }
        | Step::Hole { space, start, count, .. }
        | Step::Again { space, start, count } => {
            at.space == SpaceId(space) && (start..start + count).contains(&at.index.0)
        }
        Step::Exit { space } => at.space == SpaceId(space),
    }
}

fn frames(steps: &[Step], level: i32) -> Vec<Bytes> {
    let mut source = Source::new(EncodeOptions::default(), level);
    source.encoder.begin_round(Round(3));
    for step in steps {
        source.step(step);
    }
    source.encoder.finish_round();
    std::iter::from_fn(|| source.encoder.next_batch())
        .map(|batch| batch.compress(level).into_bytes())
        .collect()
}

/// Fisher and Yates, driven by a small generator.
fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for last in (1..items.len()).rev() {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        items.swap(last, (seed >> 33) as usize % (last + 1));
    }
}

fn at(index: u64) -> PageAt {
    PageAt { space: SpaceId(1), index: PageIndex(index) }
}

/// Encodes single pages as one round and applies it.
fn send(
    encoder: &mut Encoder,
    store: &mut PageStore,
    round: u32,
    pages: &[(u64, Content)],
) -> Vec<PageAt> {
    encoder.begin_round(Round(round));
    for (index, content) in pages {
        encoder.page(at(*index), &bytes_of(*content));
    }
    encoder.finish_round();
    let mut missing = Vec::new();
    while let Some(batch) = encoder.next_batch() {
        let batch = decode(batch.compress(1).into_bytes()).expect("decodes");
        missing.extend(store.apply(&batch).expect("room").missing);
    }
    missing
}

#[test]
fn released_pages_free_their_memory_and_stay_gone() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    let mut store = PageStore::new(ROOMY);
    let pages: Vec<_> = (0..1024).map(|n| (n, (1 + (n / 256) as u8, n as u8))).collect();
    send(&mut encoder, &mut store, 0, &pages);
    let full = store.stats().resident;
    assert!(full >= PageCount(1024).bytes());
    for (index, _) in &pages[..1023] {
        assert!(store.release(at(*index)));
        assert!(!store.release(at(*index)));
        assert!(store.is_released(at(*index)));
    }
    // One page is left, so one slab of 1 MiB is.
    assert!(store.stats().resident < ByteSize(full.0 - (3 << 20) + 1));
    assert_eq!(store.stats().contents, PageCount(1));
    send(&mut encoder, &mut store, 1, &[(5, (7, 7)), (1023, (9, 9)), (2000, (8, 8))]);
    assert_eq!(store.get(at(5)), None);
    assert!(holds(store.get(at(1023)), Some((9, 9))));
    assert_eq!(store.runs(SpaceId(1)), [PageRun::new(1023, 1), PageRun::new(2000, 1)]);
    assert_eq!(store.stats().released, PageCount(1023));
}

#[test]
fn a_page_released_before_it_arrives_is_not_taken() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    let mut store = PageStore::new(ROOMY);
    assert!(!store.release(at(7)));
    send(&mut encoder, &mut store, 0, &[(7, (1, 1))]);
    assert_eq!((store.get(at(7)), store.stats().contents), (None, PageCount(0)));
}

#[test]
fn a_batch_of_a_sealed_round_is_refused() {
    let mut source = Source::new(EncodeOptions::default(), 1);
    let mut store = PageStore::new(ROOMY);
    let write = Step::Write { space: 0, start: 0, count: 4, content: (1, 0) };
    let old = source.round(4, std::slice::from_ref(&write));
    store.seal_round(Round(4));
    let error = store.apply(&old[0]).expect_err("sealed");
    assert!(matches!(error, StoreError::Late { round: Round(4), sealed: Round(4) }), "{error}");
    store.seal_round(Round(2));
    assert!(store.apply(&old[0]).is_err());
}

#[test]
fn data_of_an_older_round_does_not_undo_a_drop() {
    let mut source = Source::new(EncodeOptions::default(), 1);
    let mut store = PageStore::new(ROOMY);
    let old = source.round(0, &[Step::Write { space: 0, start: 0, count: 4, content: (1, 0) }]);
    let new = source.round(1, &[Step::Hole { space: 0, start: 1, count: 2, at_once: true }]);
    for batch in new.iter().chain(&old) {
        assert_eq!(store.apply(batch).expect("room").missing, []);
    }
    assert_eq!(store.runs(SpaceId(0)), [PageRun::new(0, 1), PageRun::new(3, 1)]);
}

#[test]
fn a_reference_that_came_too_early_is_missing_until_sent_whole() {
    let mut source = Source::new(EncodeOptions::default(), 1);
    let mut store = PageStore::new(ROOMY);
    let write = |start| Step::Write { space: 0, start, count: 1, content: (1, 0) };
    let first = source.round(0, &[write(0)]);
    let second = source.round(1, &[write(9)]);
    let lacking = PageAt { space: SpaceId(0), index: PageIndex(9) };
    assert!(matches!(second[0].entries().next(), Some(Entry::Ref { .. })));
    assert_eq!(store.apply(&second[0]).expect("room").missing, [lacking]);
    assert_eq!((store.get(lacking), store.awaited()), (None, vec![lacking]));
    let third = source.resend(2, &[lacking]);
    assert!(matches!(third[0].entries().next(), Some(Entry::Data { .. })));
    for batch in third.iter().chain(&first) {
        assert_eq!(store.apply(batch).expect("room").missing, []);
    }
    assert!(holds(store.get(lacking), Some((1, 0))));
}

#[test]
fn a_small_change_to_a_hot_page_travels_as_a_delta() {
    let options = EncodeOptions { delta_cache: ByteSize(1 << 20), ..EncodeOptions::default() };
    let mut source = Source::new(options, 1);
    let mut store = PageStore::new(ROOMY);
    let write = |change| [Step::Write { space: 0, start: 3, count: 1, content: (1, change) }];
    let mut kinds = Vec::new();
    for round in 0..4 {
        for batch in source.round(round, &write(round as u8)) {
            kinds.extend(batch.entries().map(|entry| matches!(entry, Entry::Delta { .. })));
            assert_eq!(store.apply(&batch).expect("room").missing, []);
        }
    }
    assert_eq!(kinds, [false, false, true, true]);
    let page = PageAt { space: SpaceId(0), index: PageIndex(3) };
    assert!(holds(store.get(page), Some((1, 3))));
}

#[test]
fn the_checksum_finds_every_bit_of_a_small_frame() {
    let write = Step::Write { space: 0, start: 0, count: 1, content: (1, 0) };
    let zero = Step::Write { space: 0, start: 1, count: 3, content: (0, 0) };
    for frame in frames(&[write, zero], 0) {
        for bit in 0..frame.len() * 8 {
            let mut bytes = frame.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(bytes.into()).is_err(), "bit {bit}");
        }
    }
}
