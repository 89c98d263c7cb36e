//! blip on kernels that keep soft-dirty bits, in a virtual machine.
//!
//! One boot of a kernel does several checks, as an emulated processor is slow;
//! each test here looks at its own part of what was said. What is done inside
//! is in [`inside`], and in the engine's tests of the tracker.
//!
//! One boot with a whole move is made with every run of the tests (`BLIP_VM=0`
//! leaves it out); it takes two minutes, and all processors: beside other tests,
//! even as the last in line, it makes those fail that watch the clock. All of
//! them,
//!
//! ```sh
//! cargo test --workspace --test vm -- --include-ignored --skip inside::
//! ```
//!
//! take a quarter of an hour.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;
#[path = "vm/inside.rs"]
mod inside;

use blip_bench::demo::blip_beside;
use blip_bench::vm::{VmError, VmSpec};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

const BENCH: &str = env!("CARGO_BIN_EXE_blip-bench");
/// What is done in the machine.
const CHECKS: &str = include_str!("vm/checks.sh");
/// What is looked at of the tracker; the last one with huge pages.
const OF_THE_TRACKER: [&str; 5] = [
    "tracker::a_hostile_program_is_copied_exactly_by_pre_dumps",
    "tracker::a_hostile_program_is_copied_exactly_by_pre_dumps_that_splice",
    "tracker::one_copy_forgotten_is_noticed_with_pre_dumps",
    "tracker::a_pre_dump_that_fails_costs_a_full_round",
    "huge::huge_pages_are_tracked_page_by_page",
];
/// A move in which a pre-dump fails.
const SPOILED: &str = "inside::redis_moves_although_a_pre_dump_fails";
/// A word that reaches the command as it is.
const WORD: &str = "it's $HOME";
/// The code that the checks end with.
const CODE: i32 = 7;

/// What was said in a machine, or why it did not come to its end.
type Said = Result<String, String>;

/// Linux 6.12, which can track in every way.
fn trixie(check: &str) -> &'static str {
    static SAID: OnceLock<Said> = OnceLock::new();
    let checks = ["words", "inside::redis_moves_by_pre_dumps"];
    part(SAID.get_or_init(|| boot("trixie", &checks)), check)
}

/// The same kernel in a boot of its own, for what takes long.
fn trixie_at_length(check: &str) -> &'static str {
    static SAID: OnceLock<Said> = OnceLock::new();
    let checks = [&OF_THE_TRACKER[..], &[SPOILED]].concat();
    part(SAID.get_or_init(|| boot("trixie", &checks)), check)
}

/// Linux 6.1, which has soft-dirty bits and nothing better.
fn bookworm(check: &str) -> &'static str {
    static SAID: OnceLock<Said> = OnceLock::new();
    let checks = ["words", "inside::redis_moves_by_the_best_there_is"];
    part(SAID.get_or_init(|| boot("bookworm", &checks)), check)
}

/// One machine at a time: each takes all processors.
static TURN: Mutex<()> = Mutex::new(());

/// Boots a kernel for the checks; answers what was said in it.
fn boot(kernel: &str, checks: &[&str]) -> Said {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let blip = blip_beside(Path::new(BENCH)).expect("the program blip");
    let this = std::env::current_exe().expect("this program");
    let tracker = test_of_the_tracker();
    let mut command = Command::new(BENCH);
    command.args(["vm", "--kernel", kernel, "--limit", "3000"]);
    for program in [Path::new(BENCH), &blip, &this, &tracker] {
        command.arg("--with").arg(program);
    }
    command.args(["--", "sh", "-c", CHECKS, "checks", WORD]).arg(this).arg(tracker).args(checks);
    let output = command.output().expect("blip-bench vm");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    println!("{said}\n{err}");
    let ended = output.status.code() == Some(CODE);
    if ended { Ok(said) } else { Err(format!("{said}\n{err}\n{}", output.status)) }
}

/// What was said in a check, which must have ended well.
fn part<'a>(said: &'a Said, check: &str) -> &'a str {
    let said = said.as_ref().unwrap_or_else(|why| panic!("{why}"));
    let begin = format!("@@ begins {check}\n");
    let (_, rest) = said.split_once(&begin).unwrap_or_else(|| panic!("no {check} in:\n{said}"));
    let (text, end) = rest.split_once("@@ ends ").unwrap_or((rest, ""));
    assert!(
        end.starts_with("0 "),
        "{check}:\n{text}\n@@ ends {}",
        end.lines().next().unwrap_or("")
    );
    text
}

/// The engine's tests of the tracker, as they were last built beside these: a
/// cargo that is called here would build everything anew, and under our feet.
fn test_of_the_tracker() -> PathBuf {
    let this = std::env::current_exe().expect("this program");
    let beside = this.parent().and_then(|dir| dir.read_dir().ok()).into_iter().flatten().flatten();
    let built = beside.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("tracker-") && path.extension().is_none()
    });
    let age = |path: &PathBuf| path.metadata().and_then(|data| data.modified()).ok();
    built.max_by_key(age).expect("the engine's test `tracker`: build all with --workspace")
}

/// How many tests passed, as their harness says.
fn passed(text: &str) -> u32 {
    let line = text.lines().find_map(|line| line.strip_prefix("test result: ok. "));
    line.and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or(0)
}

/// Output and exit code come out of the machine as the command made them.
#[test]
#[cfg_attr(not(blip_vm), ignore = "needs root, and BLIP_VM not 0")]
fn a_command_runs_on_the_other_kernel() {
    let said = trixie("words");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("6.12."), "{said}");
    assert_eq!(lines[1..], ["always madvise [never]", WORD]);
}

/// A machine that does not come to an end is a failure that says so.
#[test]
#[ignore = "takes root and minutes: run it with --ignored"]
fn a_machine_that_says_nothing_is_a_failure_of_its_own() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut spec = VmSpec::new(vec!["sleep".into(), "1000".into()]);
    spec.limit = Duration::from_secs(3);
    let error = blip_bench::vm::run(&spec).expect_err("a limit");
    assert!(matches!(error, VmError::Silent { .. }), "{error}");
    assert!(error.to_string().contains("3s"), "{error}");
}

/// A hostile program is followed exactly by CRIU's pre-dumps, in either mode,
/// one that fails included; and the control is caught.
#[test]
#[ignore = "takes root and minutes: run it with --ignored"]
fn pre_dumps_follow_a_hostile_program() {
    for check in OF_THE_TRACKER {
        assert_eq!(passed(trixie_at_length(check)), 1, "{check}");
    }
}

/// The whole way with CRIU's pre-dumps; nothing is lost.
#[test]
#[cfg_attr(not(blip_vm), ignore = "needs root, and BLIP_VM not 0")]
fn a_redis_moves_by_pre_dumps() {
    assert_eq!(passed(trixie("inside::redis_moves_by_pre_dumps")), 1);
}

/// A pre-dump that fails costs a full round, and never the move.
#[test]
#[ignore = "takes root and minutes: run it with --ignored"]
fn a_redis_moves_although_a_pre_dump_fails() {
    assert_eq!(passed(trixie_at_length(SPOILED)), 1);
}

/// On an older kernel pre-dumps are the best there is: they are taken unasked.
#[test]
#[ignore = "takes root and minutes: run it with --ignored"]
fn a_redis_moves_by_the_best_there_is() {
    assert!(bookworm("words").starts_with("6.1."));
    assert_eq!(passed(bookworm("inside::redis_moves_by_the_best_there_is")), 1);
}
