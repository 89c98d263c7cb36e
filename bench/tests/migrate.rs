//! blip end to end, on the lab's real hosts: what moves, what a failure leaves
//! behind, and what is refused.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;

use blip_bench::lab::{CgroupMode, Suite};
use blip_bench::probe::{Probe, Spec};
use blip_engine::track::probe::soft_dirty;
use blip_transport::units::Bandwidth;
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
    let begun = Instant::now();
    let (addr, expected) = hosts.redis("redis", 1, 32 * MIB);
    eprintln!("filled after {:.1?}", begun.elapsed());
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
    // By its end only: Docker counts what it wrote to the log itself and reads
    // no further, so while the container runs a log that was brought along
    // hides as many of the newest bytes (Docker 26 breaks off within a line).
    let last = || hosts.docker(b, "logs --tail 1 counter");
    let (then, until) = (last(), Instant::now() + Duration::from_secs(5));
    while last() == then {
        assert!(Instant::now() < until, "no new line after {then}");
    }
    assert!(hosts.docker(b, "ps").contains("counter"));
    let top = hosts.docker(b, "top counter");
    assert!(top.contains("python3 -c") && top.lines().count() > 1, "{top}");
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

/// After a failure: as if nothing had been tried.
fn nothing_happened(hosts: &Hosts, step: &str, before: &str, clients: &mut Regular) {
    clients.is_served(step);
    assert_eq!(hosts.identity("redis"), before, "{step}");
    hosts.source_is_clean(step, Some("redis"));
    hosts.target_is_empty(step);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn after_a_failure_the_source_runs_on_and_nothing_is_left() {
    let mut hosts = Hosts::up("fail", CgroupMode::V2, Suite::Forky);
    let (addr, _) = hosts.redis("redis", 1, 32 * MIB);
    let clients = &mut Regular::of(&hosts, addr);
    let before = hosts.identity("redis");
    let slow = Some(Bandwidth(2e6));

    // In mid round: ten seconds' worth of pages are on their way.
    let mid_round = |hosts: &Hosts| {
        hosts.lab.rate_limit("b", slow).expect("limit");
        let mut migration = hosts.start_migration("redis");
        migration.wait_for("begin pre_copy");
        std::thread::sleep(Duration::from_millis(700));
        migration
    };
    let full_speed = |hosts: &Hosts| hosts.lab.rate_limit("b", None).expect("no limit");

    let step = "agent killed in mid round";
    let migration = mid_round(&hosts);
    hosts.kill_agent();
    clients.is_served(step);
    let (code, _, said) = migration.end();
    assert_eq!(code, Some(1), "{step}: {said}");
    full_speed(&hosts);
    hosts.start_agent();
    nothing_happened(&hosts, step, &before, clients);

    let step = "blip migrate killed in mid round";
    mid_round(&hosts).kill();
    // The next one waits until the target has missed the first.
    mid_round(&hosts).kill();
    clients.is_served(step);
    full_speed(&hosts);
    nothing_happened(&hosts, step, &before, clients);

    let step = "interrupted in mid round";
    let migration = mid_round(&hosts);
    let since = Instant::now();
    migration.interrupt();
    let (code, _, said) = migration.end();
    assert_eq!(code, Some(130), "{step}: {said}");
    eprintln!("{step}: ended after {:.0?}", since.elapsed());
    full_speed(&hosts);
    nothing_happened(&hosts, step, &before, clients);

    let step = "link cut in mid round";
    let migration = mid_round(&hosts);
    cut(&hosts, true);
    clients.is_served(step);
    let (code, _, said) = migration.end();
    assert_eq!(code, Some(1), "{step}: {said}");
    cut(&hosts, false);
    full_speed(&hosts);
    nothing_happened(&hosts, step, &before, clients);

    for sign in ["begin freeze", "end freeze", "end dump", "begin restore"] {
        let step = format!("blip migrate killed at {sign}");
        let mut migration = hosts.start_migration("redis");
        migration.wait_for(sign);
        migration.kill();
        nothing_happened(&hosts, &step, &before, clients);
    }

    let step = "agent killed during the restore";
    let mut migration = hosts.start_migration("redis");
    migration.wait_for("begin restore");
    hosts.kill_agent();
    clients.is_served(step);
    let (code, _, said) = migration.end();
    assert_eq!(code, Some(1), "{step}: {said}");
    hosts.start_agent();
    nothing_happened(&hosts, step, &before, clients);

    // After all that it still moves.
    hosts.migrate("redis");
    clients.is_served("moved at last");
}

/// Drops what the agent is sent.
fn cut(hosts: &Hosts, cut: bool) {
    let rules =
        "table inet test { chain i { type filter hook input priority 0; udp dport 4433 drop; }; }";
    let rules = if cut { rules } else { "delete table inet test" };
    hosts.b().run(&["nft", rules]).expect("nft");
}

/// What is refused, with which words, and that nothing was touched by it.
fn refused(hosts: &Hosts, environment: &[(&str, &str)], words: &[&str], with: &[&str]) {
    let said = hosts.blip(environment, &[&["migrate", "--json"], words].concat());
    eprintln!("{words:?} {environment:?}: {:?} {}", said.code, said.err.trim_end());
    assert_eq!(said.code, Some(3), "{words:?}: {said:?}");
    assert!(said.err.starts_with("blip: ") && said.err.lines().count() == 1, "{said:?}");
    for part in with {
        assert!(said.err.contains(part), "'{part}' is missing: {}", said.err);
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn what_cannot_move_is_refused_in_one_line_and_untouched() {
    let mut hosts = Hosts::up("bad", CgroupMode::V2, Suite::Forky);
    let (addr, _) = hosts.redis("redis", 1, MIB);
    let clients = &mut Regular::of(&hosts, addr);
    let before = hosts.identity("redis");
    let (a, b) = (hosts.a(), hosts.b());
    let busybox = "blip/busybox:latest";
    let sleep = ["sleep", "1000"];

    refused(&hosts, &[], &["nobody", "--to", "b"], &["no container 'nobody'", "docker ps"]);
    hosts.run("stopped", "", busybox, &["true"]);
    hosts.docker(a, "wait stopped");
    refused(&hosts, &[], &["stopped", "--to", "b"], &["not running", "docker start stopped"]);

    let nowhere = hosts.lab.container_address(99).to_string();
    refused(&hosts, &[], &["redis", "--to", &nowhere], &[&nowhere, "blip agent"]);
    refused(&hosts, &[], &["redis", "--to", "b:4444"], &["4444", "blip agent"]);
    refused(&hosts, &[], &["redis", "--to", "no.such.host"], &["no.such.host", "HOST[:PORT]"]);

    // Nobody is pinned here; then b is, but b does not know this key; then
    // what is pinned as b is not b.
    let stranger = [("BLIP_IDENTITY", "/tmp/stranger")];
    refused(&hosts, &stranger, &["redis", "--to", "b"], &["blip pair"]);
    let key = |name: &str| hosts.lab.host(name).expect("host").run(&["blip", "pair", "show"]);
    let pair = |key: &str| {
        let said = hosts.blip(&stranger, &["pair", "add", key.trim(), "b"]);
        assert_eq!(said.code, Some(0), "{said:?}");
    };
    pair(&key("b").expect("b's key"));
    refused(&hosts, &stranger, &["redis", "--to", "b"], &["blip pair"]);
    assert_eq!(hosts.blip(&stranger, &["pair", "remove", "b"]).code, Some(0));
    pair(&key("a").expect("a's key"));
    refused(&hosts, &stranger, &["redis", "--to", "b"], &["blip pair"]);

    let no_criu = [("BLIP_CRIU", "/nonexistent")];
    refused(&hosts, &no_criu, &["redis", "--to", "b"], &["CRIU is missing", "install"]);

    // The lab has this machine's kernel; where it has all, nothing is refused.
    if let Err(missing) = soft_dirty() {
        let words = ["redis", "--to", "b", "--tracker", "soft-dirty"];
        let missing = missing.to_string();
        let with = [&missing, "CONFIG_MEM_SOFT_DIRTY", "--tracker hash"];
        refused(&hosts, &[], &words, &with);
    }

    hosts.docker(b, "create --name redis blip/redis:latest");
    refused(&hosts, &[], &["redis", "--to", "b"], &["container named 'redis'", "docker rename"]);
    hosts.docker(b, "rm redis");

    hosts.run("bound", "--network blipnet --volume /srv:/things", busybox, &sleep);
    refused(&hosts, &[], &["bound", "--to", "b"], &["/srv at /things", "--bind copy=/things"]);
    hosts.run("shared", "--network host", busybox, &sleep);
    refused(&hosts, &[], &["shared", "--to", "b"], &["network of host"]);
    hosts.run("paused", "--network blipnet", busybox, &sleep);
    hosts.docker(a, "pause paused");
    refused(&hosts, &[], &["paused", "--to", "b"], &["paused", "docker unpause"]);

    // userfaultfd(UFFD_USER_MODE_ONLY), as programs that trap faults use.
    let number = if cfg!(target_arch = "x86_64") { 323 } else { 282 };
    let code = format!(
        "import ctypes, time; fd = ctypes.CDLL(None).syscall({number}, 1); \
         print(fd, flush=True); time.sleep(1000)"
    );
    let options = "--network blipnet --security-opt seccomp=unconfined";
    hosts.run("fault", options, "blip/python:latest", &["python3", "-c", &code]);
    let until = Instant::now() + Duration::from_secs(5);
    while hosts.docker(a, "logs fault").is_empty() {
        assert!(Instant::now() < until, "the program did not begin");
    }
    refused(&hosts, &[], &["fault", "--to", "b"], &["python3", "userfaultfd", "CRIU cannot"]);

    hosts.kill_agent();
    refused(&hosts, &[], &["redis", "--to", "b"], &["blip agent"]);
    hosts.start_agent();
    assert_eq!(hosts.blip(&[], &["migrate", "redis"]).code, Some(2), "no --to");
    nothing_happened(&hosts, "after all refusals", &before, clients);
}
