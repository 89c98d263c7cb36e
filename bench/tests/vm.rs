//! blip on a kernel that keeps soft-dirty bits, in a virtual machine.
//!
//! Emulated, this takes minutes and a quiet machine: only `BLIP_VM=1` asks for
//! it.

use blip_bench::demo::blip_beside;
use blip_bench::vm::{VmError, VmSpec};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const BENCH: &str = env!("CARGO_BIN_EXE_blip-bench");
/// What is done in the machine.
const MOVE: &str = include_str!("vm/move.sh");

fn is_left_out() -> bool {
    let asked_for = std::env::var_os("BLIP_VM").is_some_and(|value| value != "0");
    if !asked_for {
        eprintln!("left out: BLIP_VM=1 asks for it");
    }
    !asked_for
}

/// Output and exit code come out of the machine as the command made them.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_command_runs_on_the_other_kernel() {
    if is_left_out() {
        return;
    }
    let script = "uname -r; cat /sys/kernel/mm/transparent_hugepage/enabled; echo \"$0\"; exit 7";
    let output = Command::new(BENCH)
        .args(["vm", "--limit", "120", "--", "sh", "-c", script, "it's $HOME"])
        .output()
        .expect("blip-bench vm");
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(lines[0].starts_with("6.12."), "{said}");
    assert_eq!(lines[1..], ["always madvise [never]", "it's $HOME"]);
}

/// A machine that does not come to an end is a failure that says so.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_machine_that_says_nothing_is_a_failure_of_its_own() {
    if is_left_out() {
        return;
    }
    let mut spec = VmSpec::new(vec!["sleep".into(), "1000".into()]);
    spec.limit = Duration::from_secs(3);
    let error = blip_bench::vm::run(&spec).expect_err("a limit");
    assert!(matches!(error, VmError::Silent { .. }), "{error}");
    assert!(error.to_string().contains("3s"), "{error}");
}

/// The whole way with CRIU's pre-dumps; nothing is lost.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_redis_moves_by_pre_dumps() {
    if is_left_out() {
        return;
    }
    let blip = blip_beside(Path::new(BENCH)).expect("the program blip");
    let folder = tempfile::tempdir().expect("a folder");
    let lean = |program: &Path, name: &str| {
        // Debugging information would only make the disk larger.
        let to = folder.path().join(name);
        let stripped = Command::new("strip").arg("-o").arg(&to).arg(program).status();
        if !stripped.is_ok_and(|status| status.success()) {
            std::fs::copy(program, &to).expect("copied");
        }
        to.to_string_lossy().into_owned()
    };
    let (bench, blip) = (lean(Path::new(BENCH), "blip-bench"), lean(&blip, "blip"));
    let output = Command::new(BENCH)
        .args(["vm", "--limit", "480", "--with", &bench, "--with", &blip, "--"])
        .args(["sh", "-c", MOVE, "move", &bench, &blip, "soft-dirty"])
        .output()
        .expect("blip-bench vm");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(said.lines().last().unwrap_or("")).expect("JSON");
    eprintln!("{report:#}");
    assert_eq!(report["outcome"], "moved");
    assert!(report["tracker"].as_str().is_some_and(|t| t.starts_with("soft-dirty")), "{report}");
    let rounds = report["rounds"].as_array().expect("rounds");
    let dirty = |round: &Value| round["dirty"].as_u64().expect("a number");
    assert!(rounds.len() >= 3, "{report}");
    // Frozen or not, later rounds find what was written since, and no more.
    let first = dirty(&rounds[0]);
    assert!(rounds[1..].iter().all(|round| dirty(round) * 2 < first), "{report}");
    assert!(rounds[0]["stall_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
}
