//! Every way to move memory, on the lab's real hosts: each moves a busy Redis
//! whole, and does with its memory what its name says.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;

use blip_bench::lab::{CgroupMode, Suite};
use blip_bench::probe::{Probe, Spec};
use blip_bench::workload::redis::Redis;
use blip_transport::units::Bandwidth;
use hosts::{AtClient, Hosts};
use serde_json::Value;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// While it exists, no container is frozen.
const HOLD: &str = "/run/blip-hold";

/// Moves a Redis that a client writes to; answers the report.
fn move_a_busy_redis(hosts: &Hosts, method: &str) -> Value {
    let (addr, expected) = hosts.redis("redis", 1, 48 * MIB);
    let place = AtClient(hosts.lab.client());
    let spec = Spec { rate: 1000, counters: 2000, ..Spec::new(addr) };
    let probe = Probe::start(spec, &place).expect("a probe");
    std::thread::sleep(Duration::from_millis(300));
    let report = hosts.migrate_with("redis", &format!("--method {method} --remove-source"));
    std::thread::sleep(Duration::from_millis(300));
    let seen = probe.stop().expect("the probe's report");
    eprintln!("{method}: downtime {} ms, gap {:.0} ms", report["downtime_ms"], seen.longest_gap.ms);
    eprintln!("{method}: {} {}", report["downtime"], report["lazy"]);
    assert_eq!(report["outcome"], "moved", "{report}");
    assert_eq!(report["method"], method, "{report}");
    assert_eq!(seen.reconnects, 0, "the connection moved along: {:?}", seen.connections);
    let verdict = seen.verify(&place, addr, &expected).expect("a verdict");
    assert!(verdict.verified(), "{method}: {:?}", verdict.objections());
    hosts.docker(hosts.b(), "rm --force redis");
    hosts.source_is_clean(method, None);
    hosts.target_is_empty(method);
    report
}

/// What is written after the decision to freeze is found by the last scan only.
fn leaves_what_grew_unseen(hosts: &Hosts) {
    let (addr, _) = hosts.redis("redis", 1, 8 * MIB);
    let say = |command: redis::Cmd| {
        let asking = hosts.lab.client().spawn(move || {
            let mut connection = Redis::at(addr).connect().expect("a connection");
            command.query::<redis::Value>(&mut connection).expect("an answer")
        });
        asking.join().expect("thread").expect("the client's network")
    };
    let text: String = (0..32 * MIB / 8).map(|n| format!("{n:08x}")).collect();
    hosts.a().run(&["touch", HOLD]).expect("touch");
    let mut migration = hosts.start_migration_with("redis", "--remove-source");
    migration.comes_to_note("held: no freeze").expect("it waits");
    say(redis::cmd("SET").arg("grown").arg(&text).clone());
    hosts.a().run(&["rm", HOLD]).expect("rm");
    let (code, lines, err) = migration.end();
    assert_eq!(code, Some(0), "{err}");
    let said = lines.join("\n");
    assert!(said.contains("more than was expected: they follow after the resume"), "{said}");
    let report: Value = serde_json::from_str(lines.last().expect("a report")).expect("JSON");
    eprintln!("grown: downtime {} ms, {}", report["downtime_ms"], report["lazy"]);
    let followed = report["lazy"]["from_source"].as_u64().expect("pages");
    assert!(followed >= 32 * MIB / 4096, "{report}");
    let found = say(redis::cmd("GET").arg("grown").clone());
    assert!(found == redis::Value::BulkString(text.into_bytes()), "it is not what was written");
    hosts.docker(hosts.b(), "rm --force redis");
}

fn rounds(report: &Value, frozen: bool) -> Vec<&Value> {
    let rounds = report["rounds"].as_array().expect("rounds");
    rounds.iter().filter(|round| round["frozen"] == frozen).collect()
}

fn fills_before_it_runs(report: &Value) -> bool {
    let phases = report["downtime"].as_array().expect("phases");
    let fill = phases.iter().find(|part| part["phase"] == "fill");
    assert_eq!(report["lazy"]["drain_ms"], 0.0, "nothing is missing when it runs: {report}");
    assert_eq!(report["lazy"]["from_source"], 0, "{report}");
    fill.is_some()
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn every_method_moves_a_redis_whole() {
    let mut hosts = Hosts::up("methods", CgroupMode::V2, Suite::Forky);

    let report = move_a_busy_redis(&hosts, "stop-and-copy");
    assert_eq!(rounds(&report, false).len(), 0, "{report}");
    // Small memory may be in place by the time that CRIU is done.
    eprintln!("filled after the restore: {}", fills_before_it_runs(&report));

    let report = move_a_busy_redis(&hosts, "pre-copy");
    assert!(rounds(&report, false).len() >= 2, "{report}");
    eprintln!("filled after the restore: {}", fills_before_it_runs(&report));

    let report = move_a_busy_redis(&hosts, "post-copy");
    assert_eq!(rounds(&report, false).len(), 0, "{report}");
    let memory = report["memory_bytes"].as_u64().expect("bytes") / 4096;
    let pulled = report["lazy"]["from_source"].as_u64().expect("pages");
    assert!(pulled >= memory * 9 / 10, "{pulled} of {memory} pages followed");

    let report = move_a_busy_redis(&hosts, "hybrid");
    assert!(rounds(&report, false).len() >= 2, "{report}");
    let pulled = report["lazy"]["from_source"].as_u64().expect("pages");
    assert!((1..memory / 2).contains(&pulled), "{pulled} of {memory} pages followed");

    hosts.be_patient(&["BLIP_HOLD_FREEZE_WHILE=/run/blip-hold"]);
    // No host is so quick that this much goes within the dump.
    hosts.lab.rate_limit("b", Some(Bandwidth(125e6))).expect("a limit");
    leaves_what_grew_unseen(&hosts);
}
