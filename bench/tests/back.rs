//! A busy Redis goes to the other host and comes back, again and again, over
//! one connection: what a host still has is not sent to it again.
//!
//! `BLIP_LEGS` sets how many moves, `BLIP_MIB` how much data, and `BLIP_OUT` a
//! file for what was measured.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod pair;

use blip_bench::probe::{Probe, Spec};
use pair::Pair;
use pair::hosts::AtClient;
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// One move.
#[derive(Serialize)]
struct Leg {
    leg: u64,
    bytes_sent: u64,
    /// Answers, and the list of what the target still had.
    bytes_received: u64,
    memory_bytes: u64,
    downtime_ms: f64,
    client_gap_ms: f64,
    total_ms: f64,
    rounds: usize,
}

impl Leg {
    fn of(leg: u64, report: &Value, gap: f64) -> Self {
        let count = |field: &str| report[field].as_u64().expect("a number");
        let ms = |field: &str| report[field].as_f64().expect("a number");
        Self {
            leg,
            bytes_sent: count("bytes_sent"),
            bytes_received: count("bytes_received"),
            memory_bytes: count("memory_bytes"),
            downtime_ms: ms("downtime_ms"),
            client_gap_ms: gap,
            total_ms: ms("total_ms"),
            rounds: report["rounds"].as_array().expect("rounds").len(),
        }
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_redis_goes_there_and_back_and_what_is_known_stays() {
    let (legs, data) = (number("BLIP_LEGS", 4), number("BLIP_MIB", 48) << 20);
    let pair = Pair::up("back");
    let hosts = &pair.hosts;
    let (addr, expected) = hosts.redis("redis", 1, data);
    let place = AtClient(hosts.lab.client());
    let spec = Spec { rate: 1000, counters: 1000, ..Spec::new(addr) };
    let probe = Probe::start(spec, &place).expect("a probe");
    std::thread::sleep(Duration::from_millis(300));
    let mut done = Vec::new();
    for leg in 1..=legs {
        let (from, to) = if leg % 2 == 1 { (hosts.a(), hosts.b()) } else { (hosts.b(), hosts.a()) };
        let begun = probe.elapsed().as_secs_f64() * 1e3;
        let report = pair.migrate(from, to, &["redis"]);
        std::thread::sleep(Duration::from_millis(500));
        done.push((begun, probe.elapsed().as_secs_f64() * 1e3, report));
    }
    let seen = probe.stop().expect("the probe's report");
    let gap = |from, to| seen.recorded.gap_between(from, to).ms;
    let legs: Vec<Leg> = (1..)
        .zip(&done)
        .map(|(leg, (from, to, report))| Leg::of(leg, report, gap(*from, *to)))
        .collect();
    for leg in &legs {
        eprintln!("{}", serde_json::to_string(leg).expect("JSON"));
    }
    assert_eq!(seen.reconnects, 0, "one connection for all: {:?}", seen.connections);
    assert_eq!((seen.refused, seen.unsent, seen.unanswered), (0, 0, 0));
    let verdict = seen.verify(&place, addr, &expected).expect("a verdict");
    assert!(verdict.verified(), "{:?}", verdict.objections());
    eprintln!("{} writes acknowledged, none lost or repeated", verdict.writes.acked);
    if let Ok(path) = std::env::var("BLIP_OUT") {
        let all = serde_json::json!({ "acknowledged": verdict.writes.acked, "legs": legs });
        std::fs::write(path, serde_json::to_vec_pretty(&all).expect("JSON")).expect("written");
    }
    for leg in &legs[1..] {
        let (first, now) = (legs[0].bytes_sent, leg.bytes_sent + leg.bytes_received);
        assert!(now < first / 3, "leg {}: {now} bytes, {first} in the first", leg.leg);
    }
    // Neither host is left with more than the last copy.
    for host in [hosts.a(), hosts.b()] {
        let all = hosts.docker(host, "ps --all --format {{.Names}}");
        assert_eq!(all.lines().count(), 1, "{all}");
    }
}
