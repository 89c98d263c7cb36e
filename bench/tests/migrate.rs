//! blip end to end, on the lab's real hosts: what moves, what a failure leaves
//! behind, and what is refused.

mod hosts;

use blip_bench::lab::{CgroupMode, Suite};
use blip_bench::probe::{Probe, Spec};
use hosts::{AtClient, Hosts, Regular};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// Prints numbered lines, and ends with a code of its own when it is stopped.
const COUNTER: &str = "
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
n = 0
while True:
    print(n, flush=True)
    n += 1
    time.sleep(0.01)
";

/// A Redis with data, a busy client and a quiet one moves; both keep their
/// connections, and nothing is lost.
fn a_redis_moves_with_its_clients(hosts: &Hosts) {
    let (addr, expected) = hosts.redis("redis", 1, 32 * MIB);
    let (a, b) = (hosts.a(), hosts.b());
    let mut regular = Regular::of(hosts, addr);
    let place = AtClient(hosts.lab.client());
    let spec = Spec { rate: 500, counters: 100, ..Spec::new(addr) };
    let probe = Probe::start(spec, &place).expect("a probe");
    std::thread::sleep(Duration::from_millis(300));
    let report = hosts.migrate("redis");
    regular.is_served("after the move");
    std::thread::sleep(Duration::from_millis(300));
    let seen = probe.stop().expect("the probe's report");
    eprintln!("downtime {} ms, gap {:.0} ms", report["downtime_ms"], seen.longest_gap.ms);

    assert_eq!(report["outcome"], "moved");
    assert!(report["rounds"].as_array().expect("rounds").len() >= 2, "{report}");
    assert_eq!(seen.reconnects, 0, "the connection moved along: {:?}", seen.connections);
    assert_eq!((seen.refused, seen.unsent, seen.unanswered), (0, 0, 0));
    let verdict = seen.verify(&place, addr, &expected).expect("a verdict");
    assert!(verdict.verified(), "{:?}", verdict.objections());

    let moved = hosts.docker(a, "ps --all --format {{.Names}}");
    assert!(moved.starts_with("redis.moved-") && moved.lines().count() == 1, "{moved}");
    assert_eq!(hosts.inspect(a, &moved, ".State.Status"), "exited");
    assert_eq!(hosts.inspect(a, &moved, ".HostConfig.RestartPolicy.Name"), "no");
    assert_eq!(hosts.inspect(b, "redis", ".State.Status"), "running");
    assert_eq!(hosts.inspect(b, "redis", ".HostConfig.RestartPolicy.Name"), "unless-stopped");
    assert_eq!(report["target_id"], hosts.inspect(b, "redis", ".Id"));
    hosts.source_is_clean("after the move", None);
    hosts.target_is_clean("after the move");

    hosts.docker(b, "stop redis");
    assert_eq!(hosts.inspect(b, "redis", ".State.ExitCode"), "0", "Redis ends in order");
    hosts.docker(b, "rm redis");
    hosts.docker(a, &format!("rm {moved}"));
    hosts.target_is_empty("after the removal");
}

/// To the target's Docker the container is like any other.
fn docker_takes_a_counter_for_its_own(hosts: &Hosts) {
    let (a, b) = (hosts.a(), hosts.b());
    hosts.run("counter", "--network blipnet", "blip/python:latest", &["python3", "-c", COUNTER]);
    let write = "echo kept >/root/note; mkdir /tmp/made";
    a.run(&["docker", "exec", "counter", "sh", "-c", write]).expect("docker exec");
    std::thread::sleep(Duration::from_millis(200));
    hosts.migrate("counter");
    let count = || hosts.docker(b, "logs counter").lines().count();
    let (then, until) = (count(), Instant::now() + Duration::from_secs(5));
    while count() < then + 5 {
        assert!(Instant::now() < until, "no new line after {then}");
    }
    assert!(hosts.docker(b, "ps").contains("counter"));
    assert!(hosts.docker(b, "top counter").contains("signal.SIGTERM"));
    assert_eq!(hosts.docker(b, "exec counter cat /root/note"), "kept");
    assert_eq!(hosts.docker(b, "exec counter ls /tmp"), "made");
    hosts.docker(b, "stop counter");
    assert_eq!(hosts.inspect(b, "counter", ".State.ExitCode"), "42");
    // Old lines and new ones: none is missing, none is there twice.
    let lines = hosts.docker(b, "logs counter");
    for (expected, line) in lines.lines().enumerate() {
        assert_eq!(line, expected.to_string(), "of {}", lines.lines().count());
    }
    hosts.docker(b, "rm counter");
    hosts.target_is_empty("after the counter");
    hosts.docker(a, &format!("rm {}", hosts.docker(a, "ps --all --quiet")));
}

fn moves(hosts: &Hosts) {
    a_redis_moves_with_its_clients(hosts);
    docker_takes_a_counter_for_its_own(hosts);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn containers_move_on_cgroup_v2() {
    moves(&Hosts::up("v2", CgroupMode::V2, Suite::Forky));
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn containers_move_on_cgroup_v1() {
    moves(&Hosts::up("v1", CgroupMode::V1, Suite::Forky));
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn containers_move_with_docker_26() {
    moves(&Hosts::up("d26", CgroupMode::V2, Suite::Trixie));
}
