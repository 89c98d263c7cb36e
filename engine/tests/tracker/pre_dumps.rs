//! The tracker that CRIU's pre-dumps are, on kernels that keep soft-dirty bits:
//! the bench runs these tests in its virtual machine (`bench/tests/vm.rs`).

use crate::child::Program;
use crate::shadow::Shadow;
use crate::verified::{Fault, follow_program, runs};
use blip_engine::criu::image::{Kind, PageMapHead, encode};
use blip_engine::criu::predump::{Mode, PreDumpSpec};
use blip_engine::track::{SoftDirty, Stop, TrackStats, Tracker};
use std::path::Path;
use std::time::Duration;

/// Rounds before the last look.
const ROUNDS: usize = 6;

/// Tracks a program with images in `directory`.
fn track(program: &Program, mode: Mode, directory: &Path) -> SoftDirty {
    let spec = PreDumpSpec {
        pid: program.pid(),
        rootfs: "/".into(),
        external: Vec::new(),
        directory: directory.join("pre-dumps"),
    };
    SoftDirty::by(mode, spec)
}

/// Follows a hostile program, and looks whether anything is left over.
fn follow(mode: Mode, seed: u64, fault: Fault) -> (Result<u64, String>, TrackStats) {
    let program = Program::start(&format!("hostile {seed}"));
    let directory = tempfile::tempdir().unwrap();
    let mut tracker = track(&program, mode, directory.path());
    let result = follow_program(program, &mut tracker, seed, ROUNDS, fault);
    let stats = tracker.stats();
    drop(tracker);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "images are left");
    (result, stats)
}

#[test]
#[ignore = "needs soft-dirty bits: run in a virtual machine by the bench"]
fn a_hostile_program_is_copied_exactly_by_pre_dumps() {
    for seed in 1..=runs(2) {
        follow(Mode::Read, seed, Fault::None).0.unwrap();
    }
}

#[test]
#[ignore = "needs soft-dirty bits: run in a virtual machine by the bench"]
fn a_hostile_program_is_copied_exactly_by_pre_dumps_that_splice() {
    for seed in 11..=10 + runs(2) {
        follow(Mode::Splice, seed, Fault::None).0.unwrap();
    }
}

#[test]
#[ignore = "needs soft-dirty bits: run in a virtual machine by the bench"]
fn one_copy_forgotten_is_noticed_with_pre_dumps() {
    let (result, _) = follow(Mode::Read, 5, Fault::SkipOne);
    assert!(result.unwrap_err().contains("stale copy"));
}

/// CRIU refuses to leave pages to a parent that lacks them: the round takes all
/// pages then, and the next one only what was written again.
#[test]
#[ignore = "needs soft-dirty bits: run in a virtual machine by the bench"]
fn a_pre_dump_that_fails_costs_a_full_round() {
    let program = Program::start("still plain");
    let directory = tempfile::tempdir().unwrap();
    let mut tracker = track(&program, Mode::Read, directory.path());
    let mut shadow = Shadow::default();
    let mut found = Vec::new();
    for round in 0..4 {
        if round == 2 {
            forget_pages(&directory.path().join("pre-dumps"), program.pid());
        }
        let scan = tracker.scan(&program.tasks(), Stop::Live).unwrap();
        found.push(scan.spaces[0].dirty.iter().map(|run| run.count.0).sum::<u64>());
        shadow.apply_from(Some(&mut tracker), &scan, Stop::Live, |_, _, _| false);
    }
    assert_eq!(tracker.stats().fell_back, 1, "{found:?}");
    let [first, second, failed, after] = found[..] else { panic!("{found:?}") };
    assert!(failed + 16 > first, "not a full round: {found:?}");
    assert!(second * 4 < first && after * 4 < first, "{found:?}");
    let tasks = program.stop();
    let scan = tracker.scan(&tasks, Stop::Frozen).unwrap();
    shadow.apply(&scan, Stop::Frozen);
    assert!(shadow.verify(&tasks).unwrap() > 50);
}

/// A huge page has one bit for 512 pages, unless it is split.
#[test]
#[ignore = "needs soft-dirty bits: run in a virtual machine by the bench"]
fn huge_pages_are_tracked_page_by_page() {
    let program = Program::start(&format!("large {} 0 1 1", 64 << 20));
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", program.pid())).unwrap();
    let huge = rollup.lines().find(|line| line.starts_with("AnonHugePages:")).unwrap();
    assert!(!huge.ends_with(" 0 kB"), "there are no huge pages: {huge}");
    let directory = tempfile::tempdir().unwrap();
    let mut tracker = track(&program, Mode::Read, directory.path());
    let mut found = Vec::new();
    for _ in 0..3 {
        let scan = tracker.scan(&program.tasks(), Stop::Live).unwrap();
        found.push(scan.spaces[0].dirty.iter().map(|run| run.count.0).sum::<u64>());
        // It writes to one page of them in this time, and to its stack.
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(found[0] >= 16_384 && found[2] < 256, "{found:?}");
}

/// Empties the pagemap of the last pre-dump of a process.
fn forget_pages(images: &Path, pid: i32) {
    let mut emptied = 0;
    for image in std::fs::read_dir(images).unwrap().flatten() {
        let pagemap = image.path().join(format!("pagemap-{pid}.img"));
        if pagemap.is_file() {
            let head = encode(Kind::PageMap, &[PageMapHead { pages_id: 1 }]);
            std::fs::write(&pagemap, head).unwrap();
            emptied += 1;
        }
    }
    assert_eq!(emptied, 1, "one pre-dump is kept");
}
