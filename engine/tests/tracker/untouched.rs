//! What the tracker must leave alone, and leave behind: nothing.

use crate::child::{Program, arm};
use crate::oracle;
use crate::shadow::Shadow;
use blip_engine::track::{Hash, Scan, SpaceScan, Stop, Tracker, WriteProtect};
use blip_transport::page::PageRun;
use std::ptr;
use std::time::Duration;

const PAGE: usize = 4096;
const MAP_DROPPABLE: i32 = 0x08;
const MADV_GUARD_INSTALL: i32 = 102;

/// The child: maps one area of each kind, tells where, and writes no more.
pub(crate) fn run(how: &str) {
    match how {
        "seccomp" => forbid_userfaultfd(),
        "locked" => {
            let locked = map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 16);
            // SAFETY: locks an area of ours.
            unsafe { libc::mlock(locked, 16 * PAGE) };
        }
        _ => {}
    }
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: opens a device by a valid name.
    let zero = unsafe { libc::open(c"/dev/zero".as_ptr(), libc::O_RDWR) };
    let plain = map(anonymous, -1, 64);
    let sparse = map(anonymous, -1, 1 << 16);
    // SAFETY: all within areas of ours; later none of them is touched.
    unsafe {
        libc::madvise(sparse, PAGE << 16, libc::MADV_DONTNEED);
        for page in (0..1 << 16).step_by(7777) {
            sparse.cast::<u8>().add(page * PAGE).write_volatile(1);
        }
        libc::madvise(plain.add(8 * PAGE), 8 * PAGE, MADV_GUARD_INSTALL);
        libc::mprotect(plain.add(24 * PAGE), 8 * PAGE, libc::PROT_NONE);
        libc::madvise(plain.add(40 * PAGE), 8 * PAGE, libc::MADV_DONTNEED);
        // The shared page of zeros.
        plain.cast::<u8>().add(41 * PAGE).read_volatile();
    }
    let areas = [
        ("plain", plain, 64),
        ("sparse", sparse, 1 << 16),
        ("droppable", map(MAP_DROPPABLE | libc::MAP_ANONYMOUS, -1, 16), 16),
        ("device", map(libc::MAP_PRIVATE, zero, 16), 16),
        ("shared", map(libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 16), 16),
    ];
    println!("ready");
    for (name, start, pages) in areas {
        println!("{name} {:x} {pages:x}", start as usize / PAGE);
    }
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

/// Maps an area and writes to every page of it; null if the kernel cannot.
fn map(flags: i32, file: i32, pages: usize) -> *mut libc::c_void {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping disturbs nothing; only it is written to.
    unsafe {
        let start = libc::mmap(ptr::null_mut(), pages * PAGE, prot, flags, file, 0);
        if start == libc::MAP_FAILED {
            return ptr::null_mut();
        }
        for page in 0..pages {
            start.cast::<u8>().add(page * PAGE).write_volatile(page as u8 | 1);
        }
        start
    }
}

/// Has the kernel kill us, unprivileged, should we ever call `userfaultfd`.
fn forbid_userfaultfd() {
    let statement = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let program = [
        statement(0x20, 0, 0),                              // load the number
        statement(0x15, 1, libc::SYS_userfaultfd as u32),   // is it this one?
        statement(0x06, 0, libc::SECCOMP_RET_KILL_PROCESS), // then die
        statement(0x06, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the filter is valid through the call; we only lose rights.
    unsafe {
        assert_eq!(libc::setresuid(65534, 65534, 65534), 0);
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter), 0);
    }
}

struct Area {
    name: String,
    run: PageRun,
}

/// Starts the child and reads where its areas are.
fn start(how: &str) -> (Program, Vec<Area>) {
    let mut program = Program::start(&format!("still {how}"));
    let areas = (0..5).map(|_| {
        let line = program.line();
        let fields: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| u64::from_str_radix(fields[at], 16).unwrap();
        Area { name: fields[0].to_owned(), run: PageRun::new(number(1), number(2)) }
    });
    let areas = areas.collect();
    // Until it sleeps, at the end of `run`.
    let asleep = || {
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", program.pid()));
        call.is_ok_and(|call| call.starts_with(&format!("{} ", libc::SYS_clock_nanosleep)))
    };
    while !asleep() {
        std::thread::sleep(Duration::from_millis(5));
    }
    (program, areas)
}

/// Arms the child, and waits until it has gone back to sleep: on its way there
/// the kernel itself writes to its memory (`rseq`). Returns the first scan.
fn arm_and_settle(tracker: &mut dyn Tracker, program: &Program) -> Scan {
    let first = arm(tracker, program);
    let mut quiet = 0;
    for _ in 0..500 {
        let scan = tracker.scan(&program.tasks(), Stop::Live).unwrap();
        quiet = if only(&scan).dirty.is_empty() { quiet + 1 } else { 0 };
        if quiet == 3 {
            return first;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the child does not keep still, or is always reported dirty");
}

fn only(scan: &Scan) -> &SpaceScan {
    assert_eq!(scan.spaces.len(), 1);
    &scan.spaces[0]
}

fn pages(runs: &[PageRun]) -> Vec<u64> {
    runs.iter().flat_map(|run| run.start.0..run.end()).collect()
}

fn inside(area: &Area, runs: &[PageRun]) -> usize {
    pages(runs).iter().filter(|page| (area.run.start.0..area.run.end()).contains(page)).count()
}

/// Descriptors of the process that are userfaultfds.
fn userfaultfds(pid: i32) -> usize {
    let listing = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = listing.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().contains("userfaultfd")).count()
}

fn registered(pid: i32) -> usize {
    oracle::mappings(pid).iter().filter(|mapping| mapping.flags.contains(" uw ")).count()
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn exactly_the_lazy_pages_are_reported_and_holes_stay_holes() {
    for how in ["", "locked"] {
        let (program, areas) = start(how);
        let mut tracker = WriteProtect::new().unwrap();
        let mut scan = arm_and_settle(&mut tracker, &program);
        for round in 0..3 {
            let found = only(&scan);
            let truth: Vec<u64> = oracle::truth(program.pid()).into_keys().collect();
            assert_eq!(pages(&found.resident), truth, "{how} round {round}");
            let expected = if round == 0 { truth.len() } else { 0 };
            assert_eq!(pages(&found.dirty).len(), expected, "{how} round {round}: it is idle");
            for area in &areas {
                // 64, but for 8 guards and 8 holes; and one in 7777.
                let expected = match area.name.as_str() {
                    "plain" => 48,
                    "sparse" => 9,
                    _ => 0,
                };
                assert_eq!(inside(area, &found.resident), expected, "{}", area.name);
            }
            scan = tracker.scan(&program.tasks(), Stop::Live).unwrap();
        }
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn nothing_is_left_behind() {
    let (program, _) = start("");
    assert_eq!(registered(program.pid()), 0);
    for drop_it in [false, true] {
        let mut tracker = WriteProtect::new().unwrap();
        arm(&mut tracker, &program);
        assert!(registered(program.pid()) > 3);
        assert_eq!(userfaultfds(program.pid()), 0, "CRIU cannot dump a userfaultfd");
        if drop_it {
            drop(tracker);
        } else {
            tracker.disarm();
        }
        assert_eq!(registered(program.pid()), 0, "CRIU must find it as it was");
        assert_eq!(userfaultfds(program.pid()), 0);
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_seccomp_filter_does_not_mind() {
    let (program, _) = start("seccomp");
    let mut tracker = WriteProtect::new().unwrap();
    arm(&mut tracker, &program);
    let scan = tracker.scan(&program.tasks(), Stop::Live).unwrap();
    assert_eq!(only(&scan).pid, program.pid());
    assert!(registered(program.pid()) > 3);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn pages_given_back_are_reported_again() {
    let (program, areas) = start("");
    let mut tracker = WriteProtect::new().unwrap();
    let space = program.tasks()[0].space;
    arm_and_settle(&mut tracker, &program);
    let owed = PageRun::new(areas[0].run.start.0 + 2, 3);
    tracker.give_back(space, &[owed]);
    // A scan of frozen processes forgets nothing, so it pays no debt either.
    for (stop, expected) in [(Stop::Frozen, 3), (Stop::Live, 3), (Stop::Live, 0)] {
        let scan = tracker.scan(&program.tasks(), stop).unwrap();
        assert_eq!(inside(&areas[0], &only(&scan).dirty), expected, "{stop:?}");
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn the_gone_are_told_once() {
    let (program, _) = start("");
    let tasks = program.tasks();
    let mut tracker = WriteProtect::new().unwrap();
    assert_eq!(tracker.scan(&tasks, Stop::Live).unwrap().gone, []);
    drop(program);
    let scan = tracker.scan(&tasks, Stop::Live).unwrap();
    assert_eq!((scan.gone, scan.spaces.len()), (vec![tasks[0].space], 0));
    assert_eq!(tracker.scan(&tasks, Stop::Live).unwrap().gone, []);
}

/// If one process cannot be tracked, the scan fails, and what it has cleared in
/// another is not lost.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_debugger_is_named_and_a_failed_scan_forgets_nothing() {
    let (program, _) = start("");
    let (traced, _) = start("");
    let mut tracker = WriteProtect::new().unwrap();
    arm_and_settle(&mut tracker, &program);
    let idle = tracker.scan(&program.tasks(), Stop::Live).unwrap();
    assert_eq!(only(&idle).dirty, []);
    let owed = only(&idle).resident[1];
    tracker.give_back(only(&idle).space, &[owed]);

    // SAFETY: seizes our own child; no memory is touched.
    unsafe { assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, traced.pid(), 0, 0), 0) };
    let both = [program.tasks(), traced.tasks()].concat();
    let error = tracker.scan(&both, Stop::Live).unwrap_err();
    let named = format!("traced by process {}", nix::unistd::gettid());
    assert!(error.to_string().contains(&named), "{error}");

    for expected in [&[owed][..], &[]] {
        let scan = tracker.scan(&program.tasks(), Stop::Live).unwrap();
        assert_eq!(only(&scan).dirty, expected);
        assert!(!only(&scan).restarted && scan.gone.is_empty());
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn hashes_find_the_same_pages_and_believe_only_what_was_sent() {
    let (program, areas) = start("");
    let mut tracker = Hash::new();
    let tasks = program.tasks();
    let truth = oracle::truth(program.pid());
    let mut shadow = Shadow::default();
    for _ in 0..2 {
        let scan = tracker.scan_against(&tasks, Stop::Live, &shadow).unwrap();
        let found = only(&scan);
        assert!(pages(&found.resident).iter().eq(truth.keys()));
        assert_eq!(found.dirty, found.resident, "nothing was sent yet");
    }
    let run = areas[0].run;
    let scan = tracker.scan_against(&tasks, Stop::Live, &shadow).unwrap();
    let missed = run.start.0 + 5;
    shadow.apply(&scan, Stop::Live);
    shadow.distort(tasks[0].space, missed);
    tracker.give_back(tasks[0].space, &[PageRun::new(run.start.0, 2)]);
    let scan = tracker.scan_against(&tasks, Stop::Frozen, &shadow).unwrap();
    assert_eq!(only(&scan).dirty, [PageRun::new(run.start.0, 2), PageRun::new(missed, 1)]);
    let scan = tracker.scan_against(&tasks, Stop::Frozen, &shadow).unwrap();
    assert_eq!(only(&scan).dirty, [PageRun::new(missed, 1)]);
}
