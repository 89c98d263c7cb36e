use super::*;
use crate::page::PageIndex;
use crate::wire::{DecodedBatch, Entry, decode};

fn at(index: u64) -> PageAt {
    PageAt { space: SpaceId(1), index: PageIndex(index) }
}

/// A page that starts with `number`; page 0 is all zero.
fn page(number: u64) -> PageBytes {
    let mut bytes = [0; PAGE_SIZE];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn batches(encoder: &mut Encoder) -> Vec<DecodedBatch> {
    std::iter::from_fn(|| encoder.next_batch())
        .map(|batch| decode(batch.compress(1).into_bytes()).expect("decodes"))
        .collect()
}

/// Sends pages as a round; returns the kinds of its entries, a letter each.
fn round(encoder: &mut Encoder, number: u32, pages: &[(u64, u64)]) -> String {
    encoder.begin_round(Round(number));
    for (index, content) in pages {
        encoder.page(at(*index), &page(*content));
    }
    encoder.finish_round();
    let batches = batches(encoder);
    batches.iter().flat_map(DecodedBatch::entries).map(letter).collect()
}

fn letter(entry: Entry<'_>) -> char {
    match entry {
        Entry::Zero { .. } => 'z',
        Entry::Data { .. } => 'D',
        Entry::Ref { .. } => 'r',
        Entry::Delta { .. } => 'x',
        Entry::Drop { .. } => 'd',
        Entry::DropSpace { .. } => 'S',
    }
}

#[test]
fn a_page_is_sent_once_and_its_content_once() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    assert_eq!(round(&mut encoder, 0, &[(0, 5), (10, 5), (20, 0)]), "Drz");
    assert_eq!(round(&mut encoder, 1, &[(0, 5), (10, 5), (20, 0)]), "");
    assert_eq!(encoder.tally.unchanged, PageCount(3));
}

#[test]
fn nothing_refers_to_a_content_that_no_page_has_any_more() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    assert_eq!(round(&mut encoder, 0, &[(0, 5)]), "D");
    assert_eq!(round(&mut encoder, 1, &[(0, 6), (1, 5)]), "D");
    assert_eq!(round(&mut encoder, 2, &[(9, 6), (8, 5)]), "rr");
}

#[test]
fn two_pages_that_swap_contents_never_refer_to_what_is_overwritten() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    round(&mut encoder, 0, &[(0, 5), (10, 6)]);
    assert_eq!(round(&mut encoder, 1, &[(0, 6), (10, 5)]), "rD");
}

#[test]
fn without_deduplication_every_page_travels_whole() {
    let mut encoder = Encoder::new(EncodeOptions { dedup: false, ..EncodeOptions::default() });
    assert_eq!(round(&mut encoder, 0, &[(0, 5), (10, 5), (20, 5)]), "DDD");
    assert_eq!(round(&mut encoder, 1, &[(0, 5), (10, 6)]), "D");
}

#[test]
fn a_page_is_held_when_its_round_is_finished() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    encoder.begin_round(Round(0));
    encoder.page(at(0), &page(1));
    assert!(!encoder.holds(at(0)));
    encoder.finish_round();
    assert!(encoder.holds(at(0)) && !encoder.holds(at(1)));
    encoder.begin_round(Round(1));
    assert!(encoder.holds(at(0)));
    encoder.page(at(0), &page(1));
    assert!(encoder.holds(at(0)), "an unchanged page stays held");
    encoder.page(at(0), &page(2));
    assert!(!encoder.holds(at(0)), "what is in flight is not held");
    encoder.forget(SpaceId(1), PageRun::new(0, 1));
    encoder.finish_round();
    assert!(!encoder.holds(at(0)));
}

#[test]
fn a_page_asked_for_again_travels_whole_and_vouches_for_its_content() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    assert_eq!(round(&mut encoder, 0, &[(0, 5), (10, 5)]), "Dr");
    encoder.resend(at(10));
    assert!(!encoder.holds(at(10)) && encoder.holds(at(0)));
    assert_eq!(round(&mut encoder, 1, &[(10, 5), (20, 5)]), "Dr");
}

#[test]
fn what_was_sent_of_a_page_is_known_until_it_is_lost_or_gone() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    round(&mut encoder, 0, &[(0, 5), (10, 5), (20, 0), (30, 6)]);
    let content = |number| Some(ContentHash::of(&page(number)));
    let known = |encoder: &Encoder| [0, 10, 20, 30, 40].map(|index| encoder.content(at(index)));
    assert_eq!(known(&encoder), [content(5), content(5), content(0), content(6), None]);
    encoder.resend(at(10));
    round(&mut encoder, 1, &[(30, 7)]);
    encoder.begin_round(Round(2));
    encoder.forget(SpaceId(1), PageRun::new(0, 1));
    encoder.finish_round();
    assert_eq!(known(&encoder), [None, None, content(0), content(7), None]);
}

#[test]
fn a_lost_page_that_became_a_hole_is_dropped() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    round(&mut encoder, 0, &[(0, 5)]);
    encoder.resend(at(0));
    encoder.begin_round(Round(1));
    encoder.retain(SpaceId(1), &[]);
    encoder.finish_round();
    assert_eq!(batches(&mut encoder)[0].entries().map(letter).collect::<String>(), "d");
}

#[test]
fn retain_drops_only_where_the_target_has_pages() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    round(&mut encoder, 0, &[(3, 1), (7, 2), (8, 3), (500, 4)]);
    encoder.begin_round(Round(1));
    encoder.retain(SpaceId(1), &[PageRun::new(0, 4), PageRun::new(8, 1), PageRun::new(90, 5)]);
    assert_eq!(encoder.finish_round().dropped, PageCount(2));
    let batches = batches(&mut encoder);
    let drops: Vec<_> = batches[0].entries().collect();
    assert_eq!(
        drops,
        [
            Entry::Drop { space: SpaceId(1), run: PageRun::new(4, 4) },
            Entry::Drop { space: SpaceId(1), run: PageRun::new(95, END_OF_SPACE - 95) },
        ]
    );
    encoder.begin_round(Round(2));
    encoder.retain(SpaceId(1), &[PageRun::new(3, 1), PageRun::new(8, 1)]);
    encoder.forget_space(SpaceId(2));
    assert_eq!(encoder.finish_round().batches, 0);
}

#[test]
fn batches_end_at_their_page_limit_and_count_up() {
    let mut encoder = Encoder::new(EncodeOptions { batch_pages: 3, ..EncodeOptions::default() });
    encoder.begin_round(Round(0));
    for index in 0..7 {
        encoder.page(at(index), &page(index + 1));
    }
    assert_eq!(encoder.finish_round().batches, 3);
    let ids: Vec<_> = batches(&mut encoder).iter().map(|batch| batch.id().number).collect();
    assert_eq!(ids, [0, 1, 2]);
    encoder.begin_round(Round(1));
    encoder.page(at(0), &page(99));
    encoder.finish_round();
    assert_eq!(batches(&mut encoder)[0].id(), BatchId { round: Round(1), number: 3 });
}

#[test]
fn many_zero_pages_and_many_drops_stay_within_what_a_receiver_accepts() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    encoder.begin_round(Round(0));
    for index in 0..150_000 {
        // Every other page, so that no two make a run.
        encoder.page(at(2 * index), &page(0));
    }
    encoder.finish_round();
    assert!(batches(&mut encoder).len() > 1);
    encoder.begin_round(Round(1));
    let kept: Vec<_> = (0..150_000).map(|index| PageRun::new(2 * index + 1, 1)).collect();
    encoder.retain(SpaceId(1), &kept);
    assert_eq!(encoder.finish_round().dropped, PageCount(150_000));
    let drops: usize = batches(&mut encoder).iter().map(|batch| batch.entries().count()).sum();
    assert_eq!(drops, 150_000);
}

#[test]
fn remembering_costs_little_more_than_the_hashes() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    encoder.begin_round(Round(0));
    const PAGES: u64 = 20_000;
    for index in 0..PAGES {
        encoder.page(at(index), &page(index + 1));
        encoder.ready.clear();
    }
    let per_page = encoder.memory().0 / PAGES;
    assert!((40..75).contains(&per_page), "{per_page} bytes a page");
}

#[test]
fn the_delta_cache_keeps_to_its_limit_and_to_what_is_used() {
    let mut recent = Recent::new(ByteSize(4 * PAGE_SIZE as u64));
    let hash = |number| ContentHash::of(&page(number));
    for number in 1..=4 {
        recent.put(at(number), hash(number), &page(number));
    }
    assert!(recent.delta(at(1), hash(1), &page(9)).is_some());
    recent.put(at(5), hash(5), &page(5));
    assert!(recent.memory() < ByteSize(5 * PAGE_SIZE as u64));
    assert!(recent.delta(at(1), hash(1), &page(9)).is_some(), "used pages stay");
    assert!(recent.delta(at(2), hash(2), &page(9)).is_none(), "the unused one went");
    assert!(recent.delta(at(5), hash(4), &page(9)).is_none(), "not the base asked for");
    assert!(recent.delta(at(5), hash(5), &[7; PAGE_SIZE]).is_none(), "all of it changed");
}

#[test]
#[should_panic(expected = "within a round")]
fn a_page_outside_a_round_is_a_bug() {
    Encoder::new(EncodeOptions::default()).page(at(0), &page(1));
}

#[test]
#[should_panic(expected = "round 3 after")]
fn a_round_that_is_not_newer_is_a_bug() {
    let mut encoder = Encoder::new(EncodeOptions::default());
    encoder.begin_round(Round(3));
    encoder.begin_round(Round(3));
}

#[test]
fn what_the_target_held_before_is_not_sent_and_what_it_lacks_is() {
    use crate::store::{PageStore, StoredPage};
    let memory = |contents: &[u64]| {
        let pages: Vec<_> = (0..).zip(contents.iter().copied()).collect();
        pages
    };
    // It left here with this, which is kept, and comes back with that.
    let mut kept = Encoder::new(EncodeOptions::default());
    round(&mut kept, 0, &[]);
    kept.begin_round(Round(1));
    for (index, content) in memory(&[1, 2, 2, 0, 5, 6]) {
        kept.page(at(index), &page(content));
    }
    kept.finish_round();
    let mut store = PageStore::new(ByteSize(64 << 20));
    for batch in batches(&mut kept) {
        store.recall(&batch).unwrap();
    }
    let mut encoder = Encoder::new(EncodeOptions::default());
    store.inventory(|batch| encoder.assume(&decode(batch.into_bytes()).unwrap()));
    let now = memory(&[1, 2, 9, 0, 6]);
    encoder.begin_round(Round(0));
    encoder.retain(SpaceId(1), &[PageRun::new(0, 5)]);
    for (index, content) in &now {
        encoder.page(at(*index), &page(*content));
    }
    let tally = encoder.finish_round();
    let sent = batches(&mut encoder);
    let letters: String = sent.iter().flat_map(DecodedBatch::entries).map(letter).collect();
    assert_eq!((letters.as_str(), tally.unchanged), ("dDD", PageCount(3)));
    for batch in sent {
        assert!(store.apply(&batch).unwrap().missing.is_empty());
    }
    for (index, content) in now {
        let held = match store.get(at(index)) {
            Some(StoredPage::Data(bytes)) => *bytes,
            Some(StoredPage::Zero) => ZERO,
            None => panic!("page {index} is gone"),
        };
        assert_eq!(held, page(content), "page {index}");
    }
    assert_eq!(store.get(at(5)), None);
}
