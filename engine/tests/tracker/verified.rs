//! Followed by the tracker, a hostile program's memory is copied exactly; and
//! the harness would notice if it were not.

use crate::child::Program;
use crate::hostile::Dice;
use crate::shadow::Shadow;
use blip_engine::track::{Scan, Stop, Tracker, WriteProtect};
use std::time::Duration;

/// What to do wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Forget to copy one page, once.
    SkipOne,
    /// Read the bytes first, and scan afterwards.
    ReadThenScan,
}

/// Follows a hostile program for some rounds, stops it, and compares.
fn follow(
    tracker: &mut dyn Tracker,
    seed: u64,
    rounds: usize,
    fault: Fault,
) -> Result<u64, String> {
    let mut program = Program::start(&format!("hostile {seed}"));
    let calm: Vec<u64> =
        program.line().split(' ').map(|n| u64::from_str_radix(n, 16).unwrap()).collect();
    let calm = calm[0]..calm[0] + calm[1];
    let mut shadow = Shadow::default();
    let mut dice = Dice::new(seed);
    let mut before: Option<Scan> = None;
    let mut skipped = false;
    for round in 0..rounds {
        if let (Fault::ReadThenScan, Some(mut known)) = (fault, before.take()) {
            for space in &mut known.spaces {
                space.dirty = space.resident.clone();
                space.restarted = false;
            }
            shadow.apply(&known, Stop::Live);
            before = Some(tracker.scan(&program.tasks(), Stop::Live).unwrap());
        } else {
            let scan = tracker.scan(&program.tasks(), Stop::Live).unwrap();
            let forget = fault == Fault::SkipOne && round == rounds / 2;
            shadow.apply_but(&scan, Stop::Live, |space, page| {
                let pick = forget && !skipped && space.0 as i32 == program.pid();
                let pick = pick && calm.contains(&page);
                skipped |= pick;
                pick
            });
            before = Some(scan);
        }
        std::thread::sleep(Duration::from_millis(5 + dice.roll(30) as u64));
    }
    assert_eq!(skipped, fault == Fault::SkipOne, "nothing was written to the calm region");
    let tasks = program.stop();
    let scan = tracker.scan(&tasks, Stop::Frozen).unwrap();
    shadow.apply(&scan, Stop::Frozen);
    let result = shadow.verify(&tasks);
    // A program that crashed would be followed with ease.
    assert!(!matches!(result, Ok(..20_000)), "too little was compared: {result:?}");
    println!(
        "seed {seed}: {result:?}, {} copied, {} tasks, {:?}",
        shadow.copied,
        tasks.len(),
        tracker.stats()
    );
    result
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_hostile_program_is_copied_exactly() {
    for seed in 1..=4 {
        follow(&mut WriteProtect::new().unwrap(), seed, 30, Fault::None).unwrap();
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn one_copy_forgotten_is_noticed() {
    let result = follow(&mut WriteProtect::new().unwrap(), 5, 12, Fault::SkipOne);
    assert!(result.unwrap_err().contains("stale copy"));
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn reading_before_scanning_is_noticed() {
    let tries = (6..16)
        .map(|seed| follow(&mut WriteProtect::new().unwrap(), seed, 12, Fault::ReadThenScan));
    assert!(tries.into_iter().any(|result| result.is_err()));
}

#[test]
#[ignore]
fn hunt() {
    let from: u64 = std::env::var("SEED").unwrap().parse().unwrap();
    for seed in from..from + 15 {
        let r = follow(&mut WriteProtect::new().unwrap(), seed, 12, Fault::None);
        if r.is_err() {
            println!("HUNT {r:?}");
        }
    }
}
