//! `--restore docker`: by Docker's own checkpoints, where that Docker can.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;

use blip_bench::lab::{CgroupMode, Suite};
use hosts::Hosts;
use std::time::{Duration, Instant};

const COUNTER: &str = "
import time
n = 0
while True:
    print(n, flush=True)
    n += 1
    time.sleep(0.05)
";

fn last(hosts: &Hosts, host: &blip_bench::lab::Host) -> u64 {
    let log = hosts.docker(host, "logs counter");
    log.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0)
}

fn counts_on(hosts: &Hosts, host: &blip_bench::lab::Host, from: u64) {
    let until = Instant::now() + Duration::from_secs(10);
    while last(hosts, host) <= from {
        assert!(Instant::now() < until, "it does not count on after {from}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn docker_26_restores_from_its_own_checkpoint() {
    let mut hosts = Hosts::up("ext", CgroupMode::V2, Suite::Trixie);
    let options = "--restart unless-stopped --publish 8080:80 --volume kept:/kept";
    hosts.run("counter", options, "blip/python:latest", &["python3", "-c", COUNTER]);
    let write = "set -e; echo layer >/root/note; echo volume >/kept/note; rm /bin/vi";
    hosts.a().run(&["docker", "exec", "counter", "sh", "-c", write]).expect("docker exec");
    counts_on(&hosts, hosts.a(), 10);

    // A target that lacks CRIU, and one that loses it on the way: it learns after
    // the grant that it cannot start the container.
    let criu_goes = "mv /usr/sbin/criu /usr/sbin/criu.away";
    let criu_comes = "mv /usr/sbin/criu.away /usr/sbin/criu";
    hosts.b().run(&["sh", "-c", criu_goes]).expect("mv");
    let (code, _, said) = hosts.start_migration_with("counter", "--restore docker").end();
    assert!(code == Some(3) && said.contains("CRIU is missing"), "{code:?} {said}");
    hosts.b().run(&["sh", "-c", criu_comes]).expect("mv");
    let before = last(&hosts, hosts.a());
    let mut migration = hosts.start_migration_with("counter", "--restore docker");
    migration.wait_for("end preflight");
    hosts.b().run(&["sh", "-c", criu_goes]).expect("mv");
    let (code, events, said) = migration.end();
    assert_eq!(code, Some(1), "{said}");
    let report = events.last().expect("a report");
    assert!(report.contains("kept") && report.contains("criu"), "{report}");
    hosts.b().run(&["sh", "-c", criu_comes]).expect("mv");
    counts_on(&hosts, hosts.a(), before);
    hosts.target_is_empty("without CRIU there");

    let mut migration = hosts.start_migration_with("counter", "--restore docker");
    migration.wait_for("end dump");
    hosts.kill_agent();
    let (code, _, said) = migration.end();
    assert_eq!(code, Some(1), "{said}");
    counts_on(&hosts, hosts.a(), last(&hosts, hosts.a()));
    let policy = ".HostConfig.RestartPolicy.Name";
    assert_eq!(hosts.inspect(hosts.a(), "counter", policy), "unless-stopped");
    hosts.start_agent();
    hosts.target_is_empty("after the agent was killed");
    hosts.source_is_clean("after the agent was killed", Some("counter"));

    let report = hosts.migrate_with("counter", "--restore docker --forward 2s");
    eprintln!("downtime {} ms {}", report["downtime_ms"], report["downtime"]);
    assert_eq!(report["outcome"], "moved");
    counts_on(&hosts, hosts.b(), before);
    assert_eq!(hosts.docker(hosts.b(), "exec counter cat /root/note /kept/note"), "layer\nvolume");
    let gone = ["docker", "exec", "counter", "ls", "/bin/vi"];
    assert!(hosts.b().run(&gone).is_err(), "a file that was removed is back");
    assert_eq!(hosts.inspect(hosts.b(), "counter", policy), "unless-stopped");
    let numbers = hosts.docker(hosts.b(), "logs counter");
    for (expected, line) in numbers.lines().enumerate() {
        assert_eq!(line, expected.to_string(), "of {}", numbers.lines().count());
    }
    std::thread::sleep(Duration::from_secs(3));
    hosts.source_is_clean("after the move", None);
    hosts.target_is_clean("after the move");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn docker_28_is_refused_beforehand() {
    let hosts = Hosts::up("ext28", CgroupMode::V2, Suite::Forky);
    hosts.run("counter", "", "blip/python:latest", &["python3", "-c", COUNTER]);
    let to = hosts.b().address().to_string();
    let said = hosts.blip(&[], &["migrate", "counter", "--to", &to, "--restore", "docker"]);
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(
        said.err.contains("/proc/0/ns/net") && said.err.contains("--restore staged"),
        "{said:?}"
    );
    counts_on(&hosts, hosts.a(), last(&hosts, hosts.a()));
}
