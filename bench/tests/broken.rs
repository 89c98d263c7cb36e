//! Migrations that are broken on purpose must not pass: the bench is run as
//! always, on real hosts, and something is broken behind its back.

mod memory;

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use blip_bench::demo::blip_beside;
use blip_bench::lab::{Host, Lab, LabSpec};
use blip_bench::report::ReportCommand;
use blip_bench::rig::Rig;
use blip_bench::run::environment::Environment;
use blip_bench::run::sample::Ended;
use blip_bench::run::{MOVED, Plan, Record, Runner, Sample};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BINARY: &str = env!("CARGO_BIN_EXE_blip-bench");

/// What is added to a downtime.
const SLEEP: Duration = Duration::from_millis(500);

const PLAN: &str = "
    scenarios = ['SCENARIO']
    repeats = 1
    probe-rate = 500
    margin = '800ms'
";

/// A lab with blip; it goes when this is dropped, also by a panic.
struct Hosts(Option<Rig>, String);

impl Hosts {
    fn up() -> Hosts {
        let name = format!("broken-{}", std::process::id());
        let blip = blip_beside(Path::new(BINARY)).expect("the program blip");
        let program = Some(BINARY.into());
        let spec = LabSpec { name: name.clone(), program, progress: |_| {}, ..LabSpec::default() };
        let mut hosts = Hosts(None, name);
        hosts.0 = Some(Rig::start(&spec, &blip, &["a", "b"]).expect("a lab"));
        hosts
    }

    /// Runs the bench while `meddler` breaks something when it is time. Gives
    /// the samples of nothing moved and of blip, and what the report says.
    fn bench(&self, scenario: &str, mut meddler: impl FnMut(&Rig, &str)) -> ([Sample; 2], String) {
        let rig = self.0.as_ref().expect("up");
        let plan = Plan::parse(&PLAN.replace("SCENARIO", scenario)).expect("a plan");
        let dir = tempfile::tempdir().expect("a folder");
        let mut record = Record::open(dir.path(), &plan, &Environment::default()).expect("new");
        let mut runner = Runner::new(rig, &plan, Path::new(BINARY))
            .broken_by(|rig, moment| meddler(rig, moment));
        runner.run(&mut record, &mut |_, _| {}).expect("written down");
        runner.clean().expect("cleaned");
        let samples = blip_bench::run::record::samples(dir.path()).expect("readable");
        ReportCommand::of(dir.path().to_owned(), "broken").run().expect("a report");
        let summary = std::fs::read_to_string(dir.path().join("summary.md")).expect("a summary");
        (samples.try_into().expect("two samples"), summary)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.0.take();
        let _ = Lab::remove(&self.1);
    }
}

/// Does `work` on the target after the move.
fn after_the_move(mut work: impl FnMut(&Host)) -> impl FnMut(&Rig, &str) {
    move |rig, moment| {
        if moment == MOVED {
            work(rig.host("b").expect("the target"));
        }
    }
}

/// Breaks nothing: what is caught below is not caught here.
fn nothing_is_wrong_with_an_honest_run(hosts: &Hosts) {
    let ([nothing, moved], summary) = hosts.bench("tiny", |_, _| {});
    assert_eq!((nothing.ended, moved.ended), (Ended::Nothing, Ended::Moved), "{:?}", moved.why);
    assert!(nothing.verified && moved.verified, "{:?}", moved.objections);
    let told = moved.migration.expect("a report").downtime_ms;
    assert!(told > 0.0 && moved.client.gap_ms > nothing.client.usual_gap_ms);
    assert!(summary.contains("| 1 of 1 |"), "{summary}");
    assert!(summary.contains("With nothing moved the client's longest gap is"), "{summary}");
}

fn a_corrupted_page_is_caught(hosts: &Hosts) {
    let ([_, moved], summary) = hosts.bench(
        "tiny",
        after_the_move(|target| {
            let pid = target.run(&["pgrep", "-f", "blip-bench writer"]).expect("the writer");
            let process = target.root().join("proc").join(pid.trim());
            // Of the cold pages: nobody but the check looks at it.
            let at = memory::find(&process, 4_000);
            memory::of(&process).write_all_at(&[0x5a], at + 3_000).expect("written");
        }),
    );
    assert_eq!(moved.ended, Ended::Moved, "{:?}", moved.why);
    assert!(!moved.verified, "a wrong byte went unnoticed");
    assert!(moved.objections[0].contains("page 4000 is Torn"), "{:?}", moved.objections);
    assert!(summary.contains("not verified: 1 of ") && summary.contains("| 0 of 1 |"), "{summary}");
}

fn a_dropped_write_is_caught(hosts: &Hosts) {
    let mut small = None;
    let ([_, moved], summary) = hosts.bench(
        "tiny-redis",
        after_the_move(|target| {
            // Of a counter that was written to.
            let take_back = "for key in $(redis-cli --scan --pattern 'counter:*'); do \
                 [ \"$(redis-cli GET $key)\" -gt 0 ] && exec redis-cli DECR $key; done; exit 1";
            let take_back = ["docker", "exec", "workload", "sh", "-c", take_back];
            small = target.run(&take_back).ok();
        }),
    );
    assert!(small.is_some(), "the write was taken back");
    assert!(!moved.verified, "a lost write went unnoticed");
    let text = moved.objections.join("; ");
    assert!(text.contains("showed lost or repeated") || text.contains("missing"), "{text}");
    assert!(summary.contains("not verified: ") && summary.contains("| 0 of 1 |"), "{summary}");
}

/// The mover does not know of it: its clock stands still.
fn half_a_second_that_nobody_tells_is_caught(hosts: &Hosts) {
    let ([_, moved], _) = hosts.bench(
        "tiny",
        after_the_move(|target| {
            target.run(&["docker", "pause", "workload"]).expect("paused");
            std::thread::sleep(SLEEP);
            target.run(&["docker", "unpause", "workload"]).expect("goes on");
        }),
    );
    assert!(moved.verified, "a sleep loses nothing: {:?}", moved.objections);
    assert!(moved.client.gap_ms >= 500.0, "the client was told of {}", moved.client.gap_ms);
    let remarked = moved.noise.warnings.iter().any(|w| w.contains("no answer for"));
    let told = moved.migration.expect("a report").downtime_ms;
    // On a machine so busy that a move takes that long anyway, the gap alone tells.
    assert!(remarked || told > 240.0, "blip told of {told} ms: {:?}", moved.noise.warnings);
}

/// `nsenter`, which has started blip, stops when that does, and does not notice
/// that it goes on.
fn wake_children() {
    for task in std::fs::read_dir("/proc/self/task").expect("threads").flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let child = Pid::from_raw(child.parse().expect("a number"));
            let _ = kill(child, Signal::SIGCONT);
        }
    }
}

/// blip itself sleeps while the container is frozen.
fn half_a_second_in_the_freeze_is_caught(hosts: &Hosts) {
    let mut slept = 0;
    let ([_, moved], summary) = hosts.bench("tiny", |rig, moment| {
        if moment == "restore" {
            let source = rig.host("a").expect("the source");
            let pids = source.run(&["pgrep", "-f", "blip migrate workload"]).expect("blip");
            let pids: Vec<_> = pids.split_whitespace().collect();
            source.run(&[&["kill", "-STOP"], &pids[..]].concat()).expect("it sleeps");
            std::thread::sleep(SLEEP);
            source.run(&[&["kill", "-CONT"], &pids[..]].concat()).expect("it goes on");
            wake_children();
            slept += 1;
        }
    });
    assert_eq!((slept, moved.ended), (1, Ended::Moved), "{:?}", moved.why);
    assert!(moved.verified, "a sleep loses nothing: {:?}", moved.objections);
    assert!(moved.client.gap_ms >= 500.0, "the client was told of {}", moved.client.gap_ms);
    let report = moved.migration.expect("a report");
    assert!(report.downtime_ms >= 500.0, "{}", report.downtime_ms);
    let predicted = report.predicted.expect("a prediction").downtime_ms;
    assert!(predicted < report.downtime_ms, "nobody foresees a sleep: {predicted}");
    let error = (predicted - report.downtime_ms).abs() / report.downtime_ms;
    assert!(summary.contains(&format!("the median error is {:.0} %", error * 100.0)), "{summary}");
}

/// Each is a test of its own, and they take turns: a lab each.
static TURN: Mutex<()> = Mutex::new(());

fn in_turn(test: fn(&Hosts)) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    test(&Hosts::up());
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn an_honest_run_passes_and_a_corrupted_page_does_not() {
    in_turn(|hosts| {
        nothing_is_wrong_with_an_honest_run(hosts);
        a_corrupted_page_is_caught(hosts);
    });
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_dropped_write_does_not_pass() {
    in_turn(a_dropped_write_is_caught);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn half_a_second_shows() {
    in_turn(|hosts| {
        half_a_second_that_nobody_tells_is_caught(hosts);
        half_a_second_in_the_freeze_is_caught(hosts);
    });
}
