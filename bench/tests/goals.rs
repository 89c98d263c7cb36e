//! Goals, on the lab's real hosts, with a container that writes faster than the
//! link carries: what cannot be met is given up in time and without a trace,
//! what can be met is; a ceiling on the link holds.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;

use blip_bench::lab::{CgroupMode, Suite};
use blip_bench::workload::writer::client::{PORT, Writer};
use blip_transport::units::Bandwidth;
use hosts::Hosts;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const NAME: &str = "writer";
const IMAGE: &str = "blip/writer:latest";
/// Half of its memory again and again, four times faster than the link.
const HABITS: &str = "--size 96MiB --hot 48MiB --rate 100MB/s --fill random";
/// 200 Mbit/s.
const LINK: Bandwidth = Bandwidth(25e6);

/// Starts the writer on the source.
fn start(hosts: &Hosts) -> SocketAddr {
    let ip = hosts.lab.container_address(1);
    let mut command = vec!["blip-bench", "writer"];
    command.extend(HABITS.split(' '));
    hosts.run(NAME, &format!("--network blipnet --ip {ip}"), IMAGE, &command);
    let addr = SocketAddr::from((ip, PORT));
    ask(hosts, move || Writer::at(addr).wait_ready(Duration::from_secs(30)).expect("it answers"));
    addr
}

/// Asks from where clients are.
fn ask<T: Send + 'static>(hosts: &Hosts, question: impl FnOnce() -> T + Send + 'static) -> T {
    hosts.lab.client().spawn(question).join().expect("thread").expect("the client's network")
}

/// Bytes a second that it writes now.
fn rate(hosts: &Hosts, addr: SocketAddr) -> f64 {
    ask(hosts, move || {
        let before = Writer::at(addr).stats().expect("stats");
        std::thread::sleep(Duration::from_secs(1));
        Writer::at(addr).stats().expect("stats").rate_since(&before)
    })
}

/// It writes as before. The machine has other things to do than this now and
/// then; what is still held back after ten seconds has been kept.
fn regains(hosts: &Hosts, addr: SocketAddr, before: f64) {
    let mut tried = Vec::new();
    let regained = (0..10).any(|_| {
        let now = rate(hosts, addr);
        tried.push(now);
        now > 0.8 * before
    });
    assert!(regained, "it writes {tried:.0?} B/s, before {before:.0}");
}

/// Every page is what it must be.
fn is_whole(hosts: &Hosts, addr: SocketAddr) {
    let checked = ask(hosts, move || Writer::at(addr).check().expect("a check"));
    assert_eq!(checked.bad, 0, "{checked:?}");
}

/// A migration that gives up, in time, and leaves all as it was.
fn gives_up(hosts: &Hosts, addr: SocketAddr, flags: &str, limit: Duration) -> Vec<String> {
    let (identity, before) = (hosts.identity(NAME), rate(hosts, addr));
    let begun = Instant::now();
    let (code, events, err) = hosts.start_migration_with(NAME, flags).end();
    let took = begun.elapsed();
    eprintln!("{flags}: {took:.1?}: {err}");
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("gave up") && err.contains("runs here as before"), "{err}");
    assert!(took < limit, "{took:?}");
    assert_eq!(hosts.identity(NAME), identity, "untouched");
    regains(hosts, addr, before);
    is_whole(hosts, addr);
    hosts.source_is_clean(flags, Some(NAME));
    hosts.target_is_empty(flags);
    events
}

fn events<'a>(lines: &'a [String], name: &'a str) -> impl Iterator<Item = Value> + 'a {
    let all = lines.iter().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    all.filter(move |event| event["event"] == name)
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_writer_that_outruns_the_link() {
    let hosts = Hosts::up("goals", CgroupMode::V2, Suite::Forky);
    let program = Path::new(env!("CARGO_BIN_EXE_blip-bench"));
    hosts.lab.add_image(IMAGE, program).expect("the writer's image");
    hosts.lab.rate_limit("b", Some(LINK)).expect("a limit");
    let addr = start(&hosts);

    // All of it takes four seconds to cross, and half of it is written meanwhile.
    let flags = "--method pre-copy --deadline 5s --on-miss abort";
    let said = gives_up(&hosts, addr, flags, Duration::from_secs(6));
    assert!(events(&said, "round").count() >= 1, "{said:#?}");

    // With its CPU time taken from it and given back.
    let flags = "--method pre-copy --downtime 300ms --on-miss abort --throttle 60% --max-rounds 8";
    let said = gives_up(&hosts, addr, flags, Duration::from_secs(60));
    let steps: Vec<_> = events(&said, "throttle").map(|event| event["percent"].clone()).collect();
    assert!(!steps.is_empty(), "it was slowed down: {said:#?}");

    // Left to itself blip resumes it in time and lets the rest follow.
    let report = hosts.migrate_with(NAME, "--downtime 800ms --remove-source --bandwidth 150Mbit");
    assert_eq!(report["method"], "hybrid", "{report}");
    assert!(report["lazy"]["from_source"].as_u64() > Some(1000), "{report}");
    let first = &report["rounds"][0];
    let wire = first["bytes_wire"].as_f64().expect("bytes");
    let carried = wire / first["ms"].as_f64().expect("ms") * 1e3 * 8.0;
    eprintln!("{:.1} Mbit/s of 150", carried / 1e6);
    assert!(carried < 1.1 * 150e6, "a ceiling is a ceiling: {carried}");
    is_whole(&hosts, addr);
    hosts.source_is_clean("after the move", None);
}
