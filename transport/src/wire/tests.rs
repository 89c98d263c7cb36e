use super::batch::CHECKSUM_AT;
use super::plan::{Item, Kind};
use super::*;
use crate::page::{ContentHash, PageAt, PageIndex, PageRun, SpaceId};
use crate::units::{PAGE_SIZE, Round};
use bytes::Bytes;

const PAGES_AT: usize = 12;
const PAYLOAD_AT: usize = 16;
const PLAN_AT: usize = 20;
const ENCODING_AT: usize = 24;

fn at(index: u64) -> PageAt {
    PageAt { space: SpaceId(1), index: PageIndex(index) }
}

fn batch(pages: u8) -> RawBatch {
    let mut raw = RawBatch::new(BatchId { round: Round(2), number: 7 });
    for index in 0..pages {
        let bytes = [index + 1; PAGE_SIZE];
        raw.data(at(index.into()), ContentHash::of(&bytes), &bytes);
    }
    raw
}

/// The frame with one header field replaced.
fn with_field(frame: &Bytes, field: usize, value: u32) -> Bytes {
    let mut bytes = frame.to_vec();
    bytes[field..field + 4].copy_from_slice(&value.to_le_bytes());
    bytes.into()
}

#[test]
fn data_that_shrinks_is_compressed_and_other_data_is_not() {
    let small = batch(16).compress(1);
    assert!(small.wire_size() < crate::units::ByteSize(1024));
    assert_eq!(small.raw_size(), crate::units::PageCount(16).bytes());
    assert!(batch(16).compress(0).wire_size() > small.raw_size());
    let mut raw = RawBatch::new(BatchId::default());
    let mut noise = [0; PAGE_SIZE];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    raw.data(at(0), ContentHash::of(&noise), &noise);
    let frame = raw.compress(19).into_bytes();
    assert_eq!(frame[ENCODING_AT], 0);
    assert!(decode(frame).is_ok());
}

#[test]
fn an_empty_batch_and_one_without_data_are_batches() {
    let id = BatchId { round: Round(1), number: 0 };
    let empty = decode(RawBatch::new(id).compress(1).into_bytes()).expect("decodes");
    assert_eq!((empty.id(), empty.entries().count()), (id, 0));
    let mut raw = RawBatch::new(id);
    raw.drop_run(SpaceId(3), PageRun::new(5, 6));
    let drops = decode(raw.compress(1).into_bytes()).expect("decodes");
    let expected = Entry::Drop { space: SpaceId(3), run: PageRun::new(5, 6) };
    assert_eq!(drops.entries().collect::<Vec<_>>(), [expected]);
}

#[test]
fn the_largest_batch_is_within_the_frame_limit() {
    let mut raw = RawBatch::new(BatchId::default());
    let mut index = 0;
    while !raw.is_full(usize::MAX) {
        let mut bytes = [0; PAGE_SIZE];
        blake3::Hasher::new().update(&[index as u8]).finalize_xof().fill(&mut bytes);
        raw.data(at(2 * index), ContentHash::of(&bytes), &bytes);
        index += 1;
    }
    assert_eq!(raw.data_pages().0, MAX_DATA_PAGES as u64);
    let frame = raw.compress(1).into_bytes();
    assert!(frame.len() <= MAX_FRAME_BYTES);
    assert!(decode(frame).is_ok());
}

#[test]
fn a_payload_that_grows_beyond_its_claim_is_refused() {
    let frame = batch(200).compress(1).into_bytes();
    assert_eq!(frame[ENCODING_AT], 1);
    for claim in [1, 199, 201, 256] {
        let lie = with_field(&frame, PAGES_AT, claim);
        assert!(matches!(decode(lie), Err(WireError::Payload { .. })), "{claim}");
    }
}

#[test]
fn sizes_beyond_the_limits_are_refused_before_they_are_believed() {
    let frame = batch(2).compress(0).into_bytes();
    for (field, value) in [
        (PAGES_AT, MAX_DATA_PAGES as u32 + 1),
        (PAGES_AT, u32::MAX),
        (PAYLOAD_AT, 2 * PAGE_SIZE as u32 + 1),
        (PAYLOAD_AT, u32::MAX),
        (PLAN_AT, MAX_PLAN_BYTES as u32 + 1),
        (PLAN_AT, u32::MAX),
    ] {
        let error = decode(with_field(&frame, field, value)).expect_err("too large");
        assert!(matches!(error, WireError::TooLarge { .. }), "{error}");
    }
    let error = decode(with_field(&frame, ENCODING_AT, 9)).expect_err("unknown");
    assert_eq!(error, WireError::Encoding(9));
    let error = decode(with_field(&frame, 0, 9)).expect_err("unknown");
    assert!(matches!(error, WireError::Format { found: 9, .. }));
    let error = decode(with_field(&frame, CHECKSUM_AT, 9)).expect_err("changed");
    assert!(matches!(error, WireError::Checksum { .. }));
}

#[test]
fn a_plan_that_does_not_match_its_payload_is_refused() {
    for count in [1, 3] {
        let mut raw = RawBatch::new(BatchId::default());
        raw.reference(at(9), ContentHash([3; 32]));
        let bytes = [1; PAGE_SIZE];
        raw.data(at(0), ContentHash::of(&bytes), &bytes);
        raw.data(at(1), ContentHash::of(&bytes), &bytes);
        // The checksum is right: it is the sender that is wrong.
        raw.replace_last(Item { kind: Kind::Data, space: SpaceId(1), run: PageRun::new(0, count) });
        let error = decode(raw.compress(1).into_bytes()).expect_err("mismatch");
        assert!(matches!(error, WireError::Plan { .. }), "{error}");
    }
}
