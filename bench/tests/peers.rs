//! Peers are held to the same proofs as blip: one is run as always, on real
//! hosts, and a write is taken back behind its back.

use std::path::Path;

use blip_bench::demo::blip_beside;
use blip_bench::lab::{Lab, LabSpec};
use blip_bench::rig::Rig;
use blip_bench::run::environment::Environment;
use blip_bench::run::sample::Ended;
use blip_bench::run::{MOVED, Plan, Record, Runner, Sample};

const BINARY: &str = env!("CARGO_BIN_EXE_blip-bench");

/// A lab with blip; it goes when this is dropped, also by a panic.
struct Hosts(Option<Rig>, String);

impl Hosts {
    fn up() -> Hosts {
        let name = format!("peers-{}", std::process::id());
        let blip = blip_beside(Path::new(BINARY)).expect("the program blip");
        let program = Some(BINARY.into());
        let spec = LabSpec { name: name.clone(), program, progress: |_| {}, ..LabSpec::default() };
        let mut hosts = Hosts(None, name);
        hosts.0 = Some(Rig::start(&spec, &blip, &[]).expect("a lab"));
        hosts
    }

    /// Has peers move a small Redis, and gives their samples. `meddler` breaks
    /// something after each move.
    fn moved_by(&self, peers: &[&str], mut meddler: impl FnMut(&Rig)) -> Vec<Sample> {
        let rig = self.0.as_ref().expect("up");
        let text = format!(
            "scenarios = ['redis-64m']\nmethods = {peers:?}\nrepeats = 1\nprobe-rate = 500\n\
             margin = '800ms'"
        );
        let plan = Plan::parse(&text).expect("a plan");
        let dir = tempfile::tempdir().expect("a folder");
        let mut record = Record::open(dir.path(), &plan, &Environment::default()).expect("new");
        let mut runner = Runner::new(rig, &plan, Path::new(BINARY)).broken_by(|rig, when| {
            if when == MOVED {
                meddler(rig);
            }
        });
        runner.run(&mut record, &mut |_, _| {}).expect("written down");
        runner.clean().expect("cleaned");
        let mut samples = blip_bench::run::record::samples(dir.path()).expect("readable");
        samples.retain(|sample| sample.cell.arm != "none");
        samples
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.0.take();
        let _ = Lab::remove(&self.1);
    }
}

fn a_peer_moves_a_redis_and_says_what_it_is(hosts: &Hosts) {
    let samples = hosts.moved_by(&["runc", "criu-pre-dump"], |_| {});
    let [runc, ahead] = samples.try_into().expect("two samples");
    assert_eq!(runc.ended, Ended::Moved, "{:?}", runc.why);
    assert!(runc.verified, "{:?}", runc.objections);
    assert!(runc.client.gap_ms > runc.client.usual_gap_ms);
    let peer = runc.peer.expect("its version");
    assert!(peer.starts_with("runc version 1.") && peer.contains("CRIU 4."), "{peer}");
    // Which of the two is right is the kernel's to say.
    match ahead.ended {
        Ended::Moved => assert!(ahead.verified, "{:?}", ahead.objections),
        Ended::Impossible => assert!(ahead.why.expect("why").contains("soft-dirty")),
        other => panic!("{other:?}: {:?}", ahead.why),
    }
}

fn a_write_that_a_peer_lost_is_caught(hosts: &Hosts) {
    let mut small = None;
    let samples = hosts.moved_by(&["runc"], |rig| {
        let target = rig.host("b").expect("the target");
        let words = ["ip", "netns", "exec", "peer", "redis-cli", "DECR", "counter:7"];
        small = target.run(&words).ok();
    });
    assert!(small.is_some(), "the write was taken back");
    let [runc] = samples.try_into().expect("one sample");
    assert_eq!(runc.ended, Ended::Moved, "{:?}", runc.why);
    assert!(!runc.verified, "a lost write went unnoticed");
    let text = runc.objections.join("; ");
    assert!(text.contains("showed lost or repeated") || text.contains("missing"), "{text}");
}

#[test]
#[cfg_attr(not(blip_long), ignore = "needs root, and BLIP_LONG=1 when it is built")]
fn peers_are_proved_as_blip_is() {
    let hosts = Hosts::up();
    a_peer_moves_a_redis_and_says_what_it_is(&hosts);
    a_write_that_a_peer_lost_is_caught(&hosts);
}
