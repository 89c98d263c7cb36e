//! Migrations that are broken on purpose must not pass: the bench is run as
//! always, on real hosts, and something is broken behind its back.

mod memory;

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use blip_bench::demo::blip_beside;
use blip_bench::lab::{Host, Lab, LabSpec};
use blip_bench::rig::Rig;
use blip_bench::run::environment::Environment;
use blip_bench::run::sample::Ended;
use blip_bench::run::{Plan, Record, Runner, Sample};

const BINARY: &str = env!("CARGO_BIN_EXE_blip-bench");

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

    /// Runs the bench while `meddler` breaks something on the target after the
    /// move. Gives the samples of nothing moved and of blip.
    fn bench(&self, scenario: &str, meddler: impl FnMut(&Host)) -> [Sample; 2] {
        let rig = self.0.as_ref().expect("up");
        let plan = Plan::parse(&PLAN.replace("SCENARIO", scenario)).expect("a plan");
        let dir = tempfile::tempdir().expect("a folder");
        let mut record = Record::open(dir.path(), &plan, &Environment::default()).expect("new");
        let mut meddler = meddler;
        let mut runner = Runner::new(rig, &plan, Path::new(BINARY))
            .broken_by(|rig| meddler(rig.host("b").expect("the target")));
        runner.run(&mut record, &mut |_, _| {}).expect("written down");
        runner.clean().expect("cleaned");
        let samples = blip_bench::run::record::samples(dir.path()).expect("readable");
        samples.try_into().expect("two samples")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.0.take();
        let _ = Lab::remove(&self.1);
    }
}

/// Breaks nothing: what is caught below is not caught here.
fn nothing_is_wrong_with_an_honest_run(hosts: &Hosts) {
    let [nothing, moved] = hosts.bench("tiny", |_| {});
    assert_eq!((nothing.ended, moved.ended), (Ended::Nothing, Ended::Moved), "{:?}", moved.why);
    assert!(nothing.verified && moved.verified, "{:?}", moved.objections);
    let told = moved.migration.expect("a report").downtime_ms;
    assert!(told > 0.0 && moved.client.gap_ms > nothing.client.usual_gap_ms);
}

fn a_corrupted_page_is_caught(hosts: &Hosts) {
    let [_, moved] = hosts.bench("tiny", |target| {
        let pid = target.run(&["pgrep", "-f", "blip-bench writer"]).expect("the writer");
        let process = target.root().join("proc").join(pid.trim());
        // Of the cold pages: nobody but the check looks at it.
        let at = memory::find(&process, 4_000);
        memory::of(&process).write_all_at(&[0x5a], at + 3_000).expect("written");
    });
    assert_eq!(moved.ended, Ended::Moved, "{:?}", moved.why);
    assert!(!moved.verified, "a wrong byte went unnoticed");
    assert!(moved.objections[0].contains("page 4000 is Torn"), "{:?}", moved.objections);
}

fn a_dropped_write_is_caught(hosts: &Hosts) {
    let mut small = None;
    let [_, moved] = hosts.bench("redis-64m", |target| {
        let said = target.run(&["docker", "exec", "workload", "redis-cli", "DECR", "counter:7"]);
        small = said.ok();
    });
    assert!(small.is_some(), "the write was taken back");
    assert!(!moved.verified, "a lost write went unnoticed");
    let text = moved.objections.join("; ");
    assert!(text.contains("showed lost or repeated") || text.contains("missing"), "{text}");
}

fn half_a_second_of_sleep_is_caught(hosts: &Hosts) {
    let [_, moved] = hosts.bench("tiny", |target| {
        target.run(&["docker", "pause", "workload"]).expect("paused");
        std::thread::sleep(Duration::from_millis(500));
        target.run(&["docker", "unpause", "workload"]).expect("goes on");
    });
    assert!(moved.verified, "a sleep loses nothing: {:?}", moved.objections);
    assert!(moved.client.gap_ms >= 500.0, "the client was told of {}", moved.client.gap_ms);
    let remarked = moved.noise.warnings.iter().any(|w| w.contains("no answer for"));
    let told = moved.migration.expect("a report").downtime_ms;
    assert!(remarked, "blip told of {told} ms: {:?}", moved.noise.warnings);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn what_is_broken_is_caught_and_what_is_not_is_not() {
    let hosts = Hosts::up();
    nothing_is_wrong_with_an_honest_run(&hosts);
    a_corrupted_page_is_caught(&hosts);
    a_dropped_write_is_caught(&hosts);
    half_a_second_of_sleep_is_caught(&hosts);
}
