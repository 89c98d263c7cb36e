//! Followed by the tracker, a hostile program's memory is copied exactly; and
//! the harness would notice if it were not.

use crate::child::{Program, arm};
use crate::hostile::Dice;
use crate::shadow::Shadow;
use blip_engine::track::runs::Runs;
use blip_engine::track::{Hash, Scan, SpaceScan, Stop, Tracker, WriteProtect};
use blip_transport::page::SpaceId;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to do wrong.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    None,
    /// Forget one page that has changed, from then on: a kernel may report it
    /// again although it was not written again.
    SkipOne,
    /// Read the bytes first, and scan afterwards.
    ReadThenScan,
    /// Forget what a glance in the middle of a round has found.
    ForgetGlances,
}

/// Follows a hostile program for some rounds, stops it, and compares.
fn follow(
    tracker: &mut dyn Tracker,
    seed: u64,
    rounds: usize,
    fault: Fault,
) -> Result<u64, String> {
    follow_program(Program::start(&format!("hostile {seed}")), tracker, seed, rounds, fault)
}

pub(crate) fn follow_program(
    mut program: Program,
    tracker: &mut dyn Tracker,
    seed: u64,
    rounds: usize,
    fault: Fault,
) -> Result<u64, String> {
    let calm: Vec<u64> =
        program.line().split(' ').map(|n| u64::from_str_radix(n, 16).unwrap()).collect();
    let calm = calm[0]..calm[0] + calm[1];
    let mut shadow = Shadow::default();
    let mut dice = Dice::new(seed);
    let mut before: Option<Scan> = None;
    let mut skipped = None;
    let own = program.pid();
    // A page that was read before it was found written is none to forget.
    let mut forget = |space: SpaceId, page, replaces| {
        let pick = fault == Fault::SkipOne && space.0 as i32 == own && calm.contains(&page);
        if pick && skipped.is_none() && replaces {
            skipped = Some(page);
        }
        pick && skipped == Some(page)
    };
    for _ in 0..rounds {
        if let (Fault::ReadThenScan, Some(mut known)) = (fault, before.take()) {
            for space in &mut known.spaces {
                space.dirty = space.resident.clone();
                space.restarted = false;
            }
            shadow.apply(&known, Stop::Live);
            before = Some(tracker.scan_against(&program.tasks(), Stop::Live, &shadow).unwrap());
        } else {
            let scan = tracker.scan_against(&program.tasks(), Stop::Live, &shadow).unwrap();
            // What is still to be read is no debt.
            glance(tracker, &scan, fault, |space| Runs::from(space.dirty.as_slice()));
            shadow.apply_from(Some(tracker), &scan, Stop::Live, &mut forget);
            glance(tracker, &scan, fault, |_| Runs::default());
            before = Some(scan);
        }
        std::thread::sleep(Duration::from_millis(5 + dice.roll(30) as u64));
    }
    let tasks = program.stop();
    let scan = tracker.scan_against(&tasks, Stop::Frozen, &shadow).unwrap();
    shadow.apply_from(None, &scan, Stop::Frozen, &mut forget);
    let forgot = skipped.is_some();
    assert_eq!(forgot, fault == Fault::SkipOne, "nothing was written to the calm region");
    let result = shadow.verify(&tasks);
    // A program that crashed would be followed with ease.
    assert!(!matches!(result, Ok(..8_000)), "too little was compared: {result:?}");
    println!(
        "seed {seed}: {result:?}, {} copied, {} tasks, {:?}",
        shadow.copied,
        tasks.len(),
        tracker.stats()
    );
    result
}

/// Glances into a round and gives back what it will not read any more.
fn glance(
    tracker: &mut dyn Tracker,
    scan: &Scan,
    fault: Fault,
    will_read: impl Fn(&SpaceScan) -> Runs,
) {
    for space in &scan.spaces {
        let Some(written) = tracker.glance(space.space).unwrap() else { continue };
        if fault != Fault::ForgetGlances {
            let owed = written.subtract(&will_read(space));
            tracker.give_back(space.space, owed.as_slice());
        }
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_hostile_program_is_copied_exactly() {
    for seed in 1..=runs(3) {
        follow(&mut WriteProtect::new().unwrap(), seed, 12, Fault::None).unwrap();
    }
}

/// How often the test that must never fail is done; `BLIP_HOSTILE_RUNS` says
/// otherwise.
pub(crate) fn runs(usually: u64) -> u64 {
    std::env::var("BLIP_HOSTILE_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(usually)
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_hostile_program_is_copied_exactly_by_hashes() {
    for seed in 1..=runs(2) {
        follow(&mut Hash::new(), seed, 8, Fault::None).unwrap();
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn one_copy_forgotten_is_noticed_with_hashes() {
    let result = follow(&mut Hash::new(), 5, 8, Fault::SkipOne);
    assert!(result.unwrap_err().contains("stale copy"));
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn one_copy_forgotten_is_noticed() {
    let result = follow(&mut WriteProtect::new().unwrap(), 5, 8, Fault::SkipOne);
    assert!(result.unwrap_err().contains("stale copy"));
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_glance_forgotten_is_noticed() {
    let result = follow(&mut WriteProtect::new().unwrap(), 5, 12, Fault::ForgetGlances);
    assert!(result.is_err(), "nobody noticed: {result:?}");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn reading_before_scanning_is_noticed() {
    let mut tries = 6..16;
    assert!(tries.any(|seed| {
        follow(&mut WriteProtect::new().unwrap(), seed, 5, Fault::ReadThenScan).is_err()
    }));
}

/// Devices write into memory without a page fault; what they wrote is copied
/// all the same.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn what_a_device_writes_is_copied() {
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let content: Vec<u8> = (0..4 << 20).map(|at: usize| ((at * 31) >> 7) as u8).collect();
    file.write_all(&content).unwrap();
    file.as_file().sync_all().unwrap();
    let program = Program::start(&format!("direct {}", file.path().display()));
    let mut tracker = WriteProtect::new().unwrap();
    let mut shadow = Shadow::default();
    shadow.apply(&arm(&mut tracker, &program), Stop::Live);
    for _ in 0..40 {
        let scan = tracker.scan(&program.tasks(), Stop::Live).unwrap();
        shadow.apply(&scan, Stop::Live);
        std::thread::sleep(Duration::from_millis(3));
    }
    let stops = tracker.stats().worst.stop_max;
    assert!(stops > Duration::ZERO, "scanned without stopping it");
    let tasks = program.stop();
    shadow.apply(&tracker.scan(&tasks, Stop::Frozen).unwrap(), Stop::Frozen);
    println!("{:?}, {} copied, {:?}", shadow.verify(&tasks), shadow.copied, tracker.stats());
    assert!(shadow.verify(&tasks).unwrap() > 1000);
}

/// A process that executes another program, or whose number is given to
/// another, is begun anew.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn another_program_is_another_space() {
    let mut program = Program::start("turncoat");
    let mut tracker = WriteProtect::new().unwrap();
    let mut shadow = Shadow::default();
    shadow.apply(&arm(&mut tracker, &program), Stop::Live);
    let scan = tracker.scan(&program.tasks(), Stop::Live).unwrap();
    assert!(!scan.spaces[0].restarted);
    program.signal(libc::SIGUSR1);
    assert_eq!(program.line(), "ready");
    let scan = tracker.scan(&program.tasks(), Stop::Live).unwrap();
    assert!(scan.spaces[0].restarted);
    assert_eq!(scan.spaces[0].dirty, scan.spaces[0].resident);
    shadow.apply(&scan, Stop::Live);
    let tasks = program.stop();
    shadow.apply(&tracker.scan(&tasks, Stop::Frozen).unwrap(), Stop::Frozen);
    assert!(shadow.verify(&tasks).unwrap() > 10);
}

/// Frozen in a cgroup, a process can be scanned, though not armed; and a scan
/// that believes it runs does not hang.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_frozen_process_is_scanned_without_a_stop() {
    let program = Program::start("turncoat");
    let group = Freezer::around(program.pid());
    let mut tracker = WriteProtect::new().unwrap();
    for stop in [Stop::Frozen, Stop::Live, Stop::Frozen] {
        let scan = tracker.scan(&program.tasks(), stop).unwrap();
        assert_eq!(scan.spaces[0].dirty, scan.spaces[0].resident, "{stop:?}");
        let mut shadow = Shadow::default();
        shadow.apply(&scan, Stop::Frozen);
        assert!(shadow.verify(&program.tasks()).unwrap() > 10);
    }
    drop(group);
    arm(&mut tracker, &program);
}

/// A cgroup with one frozen process; thawed, emptied and removed when dropped.
struct Freezer {
    group: PathBuf,
    home: PathBuf,
    pid: i32,
    v1: bool,
}

impl Freezer {
    fn around(pid: i32) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/freezer").is_dir();
        let root = Path::new(if v1 { "/sys/fs/cgroup/freezer" } else { "/sys/fs/cgroup" });
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let marker = if v1 { ":freezer:" } else { "0::" };
        let home = cgroups.lines().find_map(|line| line.split_once(marker)).unwrap().1;
        let home = root.join(home.trim_start_matches('/'));
        let group = home.join(format!("blip-tracker-{pid}"));
        std::fs::create_dir(&group).unwrap();
        std::fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
        let freezer = Self { group, home, pid, v1 };
        freezer.set(true);
        freezer
    }

    fn set(&self, frozen: bool) {
        let (file, words, state) = if self.v1 {
            ("freezer.state", ["THAWED", "FROZEN"], "freezer.state")
        } else {
            ("cgroup.freeze", ["0", "1"], "cgroup.events")
        };
        std::fs::write(self.group.join(file), words[usize::from(frozen)]).unwrap();
        let done = [["THAWED", "FROZEN"], ["frozen 0", "frozen 1"]][usize::from(!self.v1)];
        for _ in 0..1000 {
            let now = std::fs::read_to_string(self.group.join(state)).unwrap();
            if now.contains(done[usize::from(frozen)]) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.set(false);
        let _ = std::fs::write(self.home.join("cgroup.procs"), self.pid.to_string());
        let _ = std::fs::remove_dir(&self.group);
    }
}
