//! What tracking costs: figures to read, not to assert. Run with
//! `cargo test --test tracker measured -- --ignored --nocapture`.

use crate::child::{Program, arm};
use blip_engine::track::read::Reader;
use blip_engine::track::{Stop, Tracker, WriteProtect};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const GIB: usize = 1 << 30;

/// The child. `dense`: 1 GiB of small pages. `pieces`: as many mappings. And
/// `threads`: as many threads.
pub(crate) fn run(argument: &str) {
    let numbers: Vec<usize> = argument.split(' ').map(|n| n.parse().unwrap()).collect();
    let [bytes, pieces, threads, huge] = numbers[..] else { panic!("four numbers") };
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new mappings disturb nothing; only they are written to.
    let start = unsafe {
        let start = libc::mmap(std::ptr::null_mut(), bytes, prot, flags, -1, 0);
        let advice = if huge == 1 { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        libc::madvise(start, bytes, advice);
        for at in (0..bytes).step_by(PAGE) {
            start.cast::<u8>().add(at).write_volatile(at as u8 | 1);
        }
        for piece in 0..pieces {
            // Every other one is protected, so that they do not merge.
            let prot = if piece % 2 == 0 { prot } else { libc::PROT_READ };
            let at = start.add(piece * 8 * PAGE);
            libc::mprotect(at, 8 * PAGE, prot);
        }
        start as usize
    };
    for _ in 1..threads {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1000));
            }
        });
    }
    println!("ready");
    // Maps and unmaps all the time, and counts how long that took at most.
    let (mut worst, mut begin) = (Duration::ZERO, Instant::now());
    loop {
        let one = Instant::now();
        // SAFETY: as above.
        unsafe {
            let page = libc::mmap(std::ptr::null_mut(), PAGE, prot, flags, -1, 0);
            page.cast::<u8>().write_volatile(1);
            libc::munmap(page, PAGE);
        }
        worst = worst.max(one.elapsed());
        if begin.elapsed() > Duration::from_millis(100) {
            println!("{}", worst.as_micros());
            (worst, begin) = (Duration::ZERO, Instant::now());
            // SAFETY: inside the large mapping, whose even pieces are writable.
            unsafe { (start as *mut u8).write_volatile(2) };
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

#[test]
#[ignore = "a measurement"]
fn cost_of_tracking() {
    let gib = GIB.to_string();
    for (what, how) in [
        ("1 GiB of small pages, 1 thread", format!("{gib} 0 1 0")),
        ("1 GiB of small pages, 64 threads", format!("{gib} 0 64 0")),
        ("1 GiB of huge pages, 1 thread", format!("{gib} 0 1 1")),
        ("10,000 mappings of 32 KiB, 1 thread", format!("{} 10000 1 0", 10_000 * 8 * PAGE)),
    ] {
        println!("{what}");
        let mut program = Program::start(&format!("large {how}"));
        let stalls = |program: &mut Program| {
            // The first line may be from before.
            (0..3).map(|_| program.line().parse::<u64>().unwrap()).max().unwrap_or(0)
        };
        println!("  map+write+unmap at most {} us untracked", stalls(&mut program));
        let mut tracker = WriteProtect::new().unwrap();
        let first = arm(&mut tracker, &program);
        let stop = tracker.stats().last.stop_max;
        println!("  stopped {stop:?}, first scan {:?}", first.took);
        let mut idle: Vec<Duration> = Vec::new();
        for _ in 0..10 {
            idle.push(tracker.scan(&program.tasks(), Stop::Live).unwrap().took);
        }
        idle.sort();
        println!("  live scans, idle: median {:?}, worst {:?}", idle[5], idle[9]);
        println!("  map+write+unmap at most {} us meanwhile", stalls(&mut program));
        let tasks = program.stop();
        let mut frozen: Vec<Duration> =
            (0..10).map(|_| tracker.scan(&tasks, Stop::Frozen).unwrap().took).collect();
        frozen.sort();
        println!("  frozen scans, idle: median {:?}, worst {:?}", frozen[5], frozen[9]);
        let begin = Instant::now();
        let mut bytes = 0;
        let resident = tracker.scan(&tasks, Stop::Frozen).unwrap().spaces.remove(0).resident;
        let mut reader = Reader::new();
        reader.each(program.pid(), &resident, Stop::Frozen, |_, b| bytes += b.len()).unwrap();
        println!("  read {} MiB in {:?}", bytes >> 20, begin.elapsed());
        program.signal(libc::SIGCONT);
        let begin = Instant::now();
        tracker.disarm();
        println!("  disarmed in {:?}", begin.elapsed());
        println!("  map+write+unmap at most {} us meanwhile", stalls(&mut program));
    }
}
