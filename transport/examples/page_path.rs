//! How fast the page path is on one core of this machine, stage by stage.
//!
//! `cargo run --release -p blip-transport --example page_path [MiB] [level]`
//!
//! The memory is a mixture: a fifth zero, a tenth copies of other pages, a
//! fifth noise, the rest structured enough to compress about 4 : 1. The second
//! round changes a few bytes of every tenth page, the third does so again.
//! `encode` counts the memory looked at, the other stages the page data in
//! their batches. Each rate is the median over steps of 1 MiB, so that what
//! else the machine does hardly shows.

use blip_transport::encode::{EncodeOptions, Encoder};
use blip_transport::page::{PageIndex, PageRun, SpaceId};
use blip_transport::store::PageStore;
use blip_transport::units::{Bandwidth, ByteSize, PAGE_SIZE, PageCount, Round};
use blip_transport::wire::{RawBatch, decode};
use std::fmt;
use std::hint::black_box;
use std::time::Instant;

const SPACE: SpaceId = SpaceId(1);
/// Pages read at a time, as the reader does: 1 MiB.
const READ: u64 = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mib: u64 = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let level: i32 = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let pages = mib * (1 << 20) / PAGE_SIZE as u64;
    let mut memory = mixture(pages);
    let options = EncodeOptions { delta_cache: ByteSize(64 << 20), ..EncodeOptions::default() };
    let mut encoder = Encoder::new(options);
    let mut store = PageStore::new(ByteSize(64 << 30));
    println!("{mib} MiB, zstd level {level}");

    round(0, PageRun::new(0, pages), &memory, &mut encoder, &mut store, level)?;
    round(1, PageRun::new(0, pages), &memory, &mut encoder, &mut store, level)?;
    for number in 2..5 {
        for page in (5..pages as usize).step_by(10) {
            memory[page * PAGE_SIZE + 64..][..8].copy_from_slice(&[number as u8; 8]);
        }
        round(number, PageRun::new(0, pages), &memory, &mut encoder, &mut store, level)?;
    }
    println!("source remembers in {}; store: {:?}", encoder.memory(), store.stats());

    let start = Instant::now();
    let mut sum = 0u64;
    for index in shuffled(pages) {
        let held = store.get(blip_transport::page::PageAt { space: SPACE, index });
        sum += u64::from(black_box(held).is_some());
    }
    println!("get, random order: {:?} a page ({sum} held)", start.elapsed() / pages as u32);
    let start = Instant::now();
    for index in shuffled(pages) {
        store.release(blip_transport::page::PageAt { space: SPACE, index });
    }
    println!("release, random order: {:?} a page", start.elapsed() / pages as u32);
    println!("left: {:?}", store.stats());
    Ok(())
}

/// Sends `run` as one round and prints what each stage took.
fn round(
    number: u32,
    run: PageRun,
    memory: &[u8],
    encoder: &mut Encoder,
    store: &mut PageStore,
    level: i32,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut target = Target { store, level, stages: Default::default(), wire: ByteSize(0) };
    let mut encode = Stage::default();
    encoder.begin_round(Round(number));
    for (read, bytes) in memory.chunks(READ as usize * PAGE_SIZE).enumerate() {
        let count = (bytes.len() / PAGE_SIZE) as u64;
        let run = PageRun::new(run.start.0 + read as u64 * READ, count);
        encode.time(run.count.bytes(), || encoder.pages(SPACE, run, bytes));
        while let Some(batch) = encoder.next_batch() {
            target.receive(batch)?;
        }
    }
    let tally = encoder.finish_round();
    while let Some(batch) = encoder.next_batch() {
        target.receive(batch)?;
    }
    let [compress, decode, apply] = &target.stages;
    println!(
        "round {number}: encode {encode}, compress {compress}, decode {decode}, apply {apply}"
    );
    println!(
        "  unchanged {}, zero {}, dedup {}, delta {}, data {}; {} of data as {} on the wire",
        tally.unchanged.0,
        tally.zero.0,
        tally.deduplicated.0,
        tally.delta.0,
        tally.data.0,
        tally.raw,
        target.wire
    );
    Ok(())
}

/// The way of a batch after it was collected.
struct Target<'a> {
    store: &'a mut PageStore,
    level: i32,
    /// Compress, decode, apply.
    stages: [Stage; 3],
    wire: ByteSize,
}

impl Target<'_> {
    fn receive(&mut self, raw: RawBatch) -> Result<(), Box<dyn std::error::Error>> {
        let size = raw.data_pages().bytes();
        let [compressing, decoding, applying] = &mut self.stages;
        let batch = compressing.time(size, || raw.compress(self.level));
        self.wire += batch.wire_size();
        let decoded = decoding.time(size, || decode(batch.into_bytes()))?;
        let applied = applying.time(size, || self.store.apply(&decoded))?;
        assert!(applied.missing.is_empty(), "batches were applied in order");
        Ok(())
    }
}

/// Rates of one stage, in bytes a second.
#[derive(Default)]
struct Stage(Vec<f64>);

impl Stage {
    fn time<T>(&mut self, size: ByteSize, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        // Small batches would tell the cost of a call, not the rate.
        if size.0 >= 64 << 10 {
            self.0.push(Bandwidth::over(size, start.elapsed()).0);
        }
        result
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rates = self.0.clone();
        rates.sort_by(f64::total_cmp);
        match rates.get(rates.len() / 2) {
            Some(median) => write!(f, "{:.0} MB/s", median / 1e6),
            None => f.write_str("-"),
        }
    }
}

fn mixture(pages: u64) -> Vec<u8> {
    let mut memory = vec![0; PageCount(pages).bytes().0 as usize];
    for (index, page) in memory.chunks_exact_mut(PAGE_SIZE).enumerate() {
        let seed = index as u64;
        match index % 10 {
            0 | 1 => {}
            2 => structured(seed % 7, page),
            3 | 4 => {
                blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(page);
            }
            _ => structured(seed, page),
        }
    }
    memory
}

/// Like a heap: pointers near each other, small numbers, some text.
fn structured(seed: u64, page: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for (place, word) in page.chunks_exact_mut(8).enumerate() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let value = match place % 4 {
            0 => 0x7f3a_0000_0000 + (state >> 44) * 16,
            1 => (state >> 60) & 7,
            2 => u64::from_le_bytes(*b"a string"),
            _ => seed,
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// Every page once, far from the one before.
fn shuffled(pages: u64) -> impl Iterator<Item = PageIndex> {
    let stride = (pages * 5 / 8) | 1;
    (0..pages).map(move |step| PageIndex(step * stride % pages))
}
