//! How fast the server fills and answers. Prints, and asserts nothing about
//! time: `cargo test --release -p blip-engine --test lazy speed -- --ignored --nocapture`

use crate::harness::{BASE, FIRST, RIGHT, TASK, end_of, outcome, start_peer};
use blip_engine::lazy::{
    LazyEvent, LazyOptions, LazyPlan, LazyServer, Local, PageSource, TaskPlan, Urgency,
};
use blip_engine::sys::uffd_peer::Arena;
use blip_transport::page::{PageAt, PageBytes, PageRun};
use blip_transport::units::{PAGE_SIZE, PageCount};
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

/// 1 GiB.
const LENGTH: u64 = 1 << 18;

/// A store as plain as can be: one array, as large as the caches are not.
struct Array(Vec<PageBytes>);

impl PageSource for Array {
    fn local(&self, at: PageAt, into: &mut PageBytes) -> Local {
        into.copy_from_slice(&self.0[(at.index.0 - FIRST) as usize]);
        Local::Data
    }

    fn request_remote(&self, at: PageAt, _: Urgency) {
        panic!("{at:?} is here");
    }
}

/// The restored process: touches pages `step` apart, and says what it felt.
pub(crate) fn touch(memory: Arena, step: u64) -> bool {
    let mut felt = hdrhistogram::Histogram::<u64>::new_with_max(10_000_000_000, 2).expect("bounds");
    let began = Instant::now();
    let mut page = 0;
    for _ in 0..if step == 0 { 1 } else { 20_000 } {
        let start = Instant::now();
        memory.read(page as usize * PAGE_SIZE);
        let took = start.elapsed().as_nanos() as u64;
        // Less is a page that was there.
        if took > 2_000 {
            felt.saturating_record(took);
        }
        page = (page + step) % LENGTH;
    }
    if step > 0 {
        let us = |q| felt.value_at_quantile(q) as f64 / 1e3;
        let line = format!(
            "    felt: {:6} waits, p50 {:6.1} µs p99 {:6.1} µs, {:?} in all\n",
            felt.len(),
            us(0.5),
            us(0.99),
            began.elapsed()
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    true
}

fn measure(what: &str, scenario: &str, options: LazyOptions) {
    let dir = tempfile::tempdir().unwrap();
    let plan = TaskPlan { missing: vec![PageRun::new(FIRST, LENGTH)], ..TaskPlan::default() };
    let store = Arc::new(Array(vec![[7; PAGE_SIZE]; LENGTH as usize]));
    let server = LazyServer::listen(dir.path()).unwrap();
    let (tell, told) = mpsc::channel();
    let handle = server
        .serve(LazyPlan::new([(TASK, plan)]), store, options, move |event| {
            if matches!(event, LazyEvent::RestoreFinished | LazyEvent::Drained) {
                tell.send(Instant::now()).unwrap();
            }
        })
        .unwrap();
    let mut child = start_peer(scenario, dir.path());
    let began = told.recv().unwrap();
    let drained = told.recv().unwrap();
    let stats = end_of(handle).unwrap();
    assert_eq!(outcome(&mut child).unwrap().code(), Some(RIGHT));
    let late = stats.prefilled - stats.prefilled_early + stats.faults;
    let rate = (late * PAGE_SIZE as u64) as f64 / (drained - began).as_secs_f64() / 1e9;
    let s = stats.summary();
    println!(
        "{what:40} {rate:5.2} GB/s  faults {:6} p50 {:6.1} µs p99 {:6.1} µs",
        s.faults, s.local_p50_us, s.local_p99_us
    );
}

#[test]
#[ignore = "measures; run by hand on a quiet machine"]
fn speed() {
    assert_eq!(BASE % PAGE_SIZE as u64, 0);
    for chunk in [4, 16, 32, 64, 128, 256, 512, 64] {
        let options =
            LazyOptions { chunk: PageCount(chunk), early: false, ..LazyOptions::default() };
        measure(&format!("idle, chunks of {chunk}"), "wait", options);
    }
    // In turns, so that a busy moment of the machine does not fall on one value.
    for _ in 0..5 {
        for chunk in [1, 4, 8, 16, 32, 64] {
            let options =
                LazyOptions { chunk_under_faults: PageCount(chunk), ..LazyOptions::default() };
            measure(&format!("random touches, chunks of {chunk}"), "touch-random", options);
        }
    }
    for window in [1, 4, 16, 64] {
        let options = LazyOptions { fault_around: PageCount(window), ..LazyOptions::default() };
        measure(&format!("stream, window of {window}"), "touch-stream", options.clone());
        measure(&format!("random, window of {window}"), "touch-random", options);
    }
}
