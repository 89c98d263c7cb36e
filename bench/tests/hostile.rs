//! A program that does its worst with its memory moves, and all of it is
//! compared byte for byte while both copies stand still: the source is frozen,
//! the target holds, and the grant is held back.
//!
//! `BLIP_HOSTILE_MOVES=50,20` does it as often, by write protection and by
//! hashes.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;
#[allow(dead_code, reason = "the tracker's own tests use the rest of it")]
#[path = "../../engine/tests/tracker/hostile.rs"]
mod program;
mod twins;

use blip_bench::lab::{CgroupMode, Suite};
use hosts::{Hosts, Migration};
use std::process::Command;
use std::time::{Duration, Instant};
use twins::Family;

const IMAGE: &str = "blip/hostile:latest";
/// What the program is told to be; not set where this is a test.
const ROLE: &str = "BLIP_CHILD";
/// While it is there, no grant is given.
const HOLD: &str = "/run/blip-hold";
/// Moves that may be called off in a row: CRIU gives up a process that it meets
/// between `vfork` and `exec`.
const TRIES: u32 = 5;

/// Runs instead of the test harness in the container.
extern "C" fn become_program() {
    // glibc has set up its environment by now; Rust's runtime needs nothing.
    let Ok(role) = std::env::var(ROLE) else { return };
    let (name, argument) = role.split_once(' ').unwrap_or((&role, ""));
    match name {
        "family" => family(argument),
        "hostile" => program::run(argument),
        "direct" => program::direct(argument),
        "scribbler" => program::scribble(),
        _ => {}
    }
    std::process::exit(0);
}

#[used]
#[unsafe(link_section = ".init_array")]
static BECOME_PROGRAM: extern "C" fn() = become_program;

/// The container's first process: starts the others, and buries the dead.
#[allow(clippy::zombie_processes, reason = "it waits for all that die, whoever they are")]
fn family(seed: &str) {
    let file = "/data/direct";
    std::fs::write(file, vec![0x5b; 4 << 20]).expect("a file to read from");
    let own = std::env::current_exe().expect("this program");
    for role in [format!("hostile {seed}"), format!("direct {file}")] {
        Command::new(&own).env(ROLE, role).spawn().expect("a child");
    }
    loop {
        // SAFETY: asks for no status.
        unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
    }
}

/// Starts it on the source; gives the address of pages that are hardly written.
fn start(hosts: &Hosts, seed: u64) -> u64 {
    let name = std::env::current_exe().expect("this program");
    let name = name.file_name().expect("a name").to_string_lossy().into_owned();
    let role = format!("{ROLE}=family {seed}");
    let words = ["docker", "run", "--detach", "--name", "hostile", "--network", "blipnet"];
    let words = [&words[..], &["--env", &role, IMAGE, &name]];
    hosts.a().run(&words.concat()).expect("docker run");
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let said = hosts.docker(hosts.a(), "logs hostile");
        let lines: Vec<&str> = said.lines().collect();
        if lines.iter().filter(|line| **line == "ready").count() == 2 {
            let calm = lines.iter().find_map(|line| line.split_once(' ')).expect("an address");
            return u64::from_str_radix(calm.0, 16).expect("hexadecimal") * 4096;
        }
        assert!(Instant::now() < until, "the program does not begin: {said}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A move that is held: the target has everything in place, and the grant waits
/// for a file to go.
fn held(hosts: &Hosts, tracker: &str) -> Migration {
    for _ in 0..TRIES {
        hosts.a().run(&["touch", HOLD]).expect("touch");
        // All memory is in place before the hold.
        let flags = format!("--method pre-copy --tracker {tracker}");
        let mut migration = hosts.start_migration_with("hostile", &flags);
        match migration.comes_to_note("held: ") {
            Ok(()) => return migration,
            Err(said) => {
                let (code, _, err) = migration.end();
                eprintln!("called off ({code:?}): {err}");
                assert_eq!(code, Some(1), "{said}");
            }
        }
    }
    panic!("called off {TRIES} times in a row");
}

/// Moves it once; `distorted` changes a page behind blip's back first, which must
/// be found.
fn moves(hosts: &Hosts, tracker: &str, seed: u64, distorted: bool) -> u64 {
    let calm = start(hosts, seed);
    let migration = held(hosts, tracker);
    let source = Family::of(hosts.a());
    let wrong = distorted.then(|| source.distort(calm + 4096 * 1234));
    let compared = source.compare(&Family::of(hosts.b()));
    hosts.a().run(&["rm", HOLD]).expect("rm");
    match &wrong {
        None => assert!(compared.differences.is_empty(), "{tracker}, seed {seed}: {compared:#?}"),
        Some(place) => {
            let told = compared.differences.len() == 1
                && compared.differences[0].starts_with(place.as_str());
            assert!(told, "{tracker}: a wrong page at {place}, and it found {compared:#?}");
        }
    }
    assert!(compared.processes >= 3 && compared.pages > 12_000, "{compared:?}");
    let (code, lines, err) = migration.end();
    assert_eq!(code, Some(0), "{err}\n{}", lines.join("\n"));
    let alive = hosts.inspect(hosts.b(), "hostile", ".State.Status");
    assert_eq!(alive, "running");
    eprintln!(
        "{tracker}, seed {seed}: {} pages of {} processes compared{}",
        compared.pages,
        compared.processes,
        if distorted { ", the wrong one found" } else { "" },
    );
    hosts.docker(hosts.b(), "rm --force hostile");
    hosts.docker(hosts.a(), &format!("rm {}", hosts.docker(hosts.a(), "ps --all --quiet")));
    compared.pages
}

/// How often, by write protection and by hashes.
fn times() -> [u64; 2] {
    let text = std::env::var("BLIP_HOSTILE_MOVES").unwrap_or_else(|_| "2,1".into());
    let (protect, hash) = text.split_once(',').expect("two numbers");
    [protect, hash].map(|text| text.parse().expect("a number"))
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_hostile_program_moves_byte_for_byte() {
    let mut hosts = Hosts::up("hostile", CgroupMode::V2, Suite::Forky);
    hosts.be_patient(&["BLIP_HOLD_WHILE=/run/blip-hold"]);
    let own = std::env::current_exe().expect("this program");
    hosts.lab.add_image(IMAGE, &own).expect("the image");
    let first = std::env::var("BLIP_HOSTILE_SEED").ok().and_then(|text| text.parse().ok());
    let first: u64 = first.unwrap_or(1);
    for (tracker, times) in ["write-protect", "hash"].into_iter().zip(times()) {
        for seed in first..first + times {
            moves(&hosts, tracker, seed, false);
        }
        if times > 0 {
            moves(&hosts, tracker, 99, true);
        }
    }
}
