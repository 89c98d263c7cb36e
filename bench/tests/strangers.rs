//! Clients that make a new connection for every request, and clients that read,
//! against a real Redis: what they meet is told, and nothing wrong passes.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod server;

use std::sync::Arc;
use std::time::Duration;

use blip_bench::probe::ledger::Fault;
use blip_bench::probe::{Content, Here, Probe, ProbeReport, Spec};
use nix::sys::signal::Signal;
use server::{DATA, Server};

const PATIENCE: Duration = Duration::from_secs(5);

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Fills the server, has clients ask it, does `meanwhile`.
fn run(spec: Spec, server: &mut Server, meanwhile: impl FnOnce(&mut Server)) -> ProbeReport {
    server.redis().fill(DATA).expect("the server takes the data");
    let probe = Probe::start(spec, &Here).expect("the probe starts");
    meanwhile(server);
    probe.stop().expect("the probe reports")
}

fn strangers(server: &Server) -> Spec {
    Spec { rate: 500, fresh_rate: 100, drain: PATIENCE, ..Spec::new(server.addr) }
}

#[test]
fn strangers_wait_while_the_server_stands_still_and_none_is_lost() {
    let mut server = Server::start();
    let report = run(strangers(&server), &mut server, |server| {
        pause(300);
        server.signal(Signal::SIGSTOP);
        pause(400);
        server.signal(Signal::SIGCONT);
        pause(300);
    });
    let seen = report.fresh.as_ref().expect("strangers came");
    assert!(seen.scheduled >= 95, "they come whatever the server does: {seen:?}");
    assert_eq!((seen.answered, seen.failed), (seen.scheduled, 0), "{:?}", seen.reasons);
    // Everyone who came while it stood still was charged for it.
    assert!(seen.longest_gap.ms >= 395.0, "{:?}", seen.longest_gap);
    let waited = seen.recorded.samples.iter().filter(|s| s.latency_us > 50_000).count();
    assert!(waited >= 30, "{waited} waited");
    assert_eq!(report.account(server.addr, PATIENCE), Ok(Vec::new()));
}

#[test]
fn strangers_who_find_nobody_have_failed() {
    let mut server = Server::start();
    let report = run(strangers(&server), &mut server, |server| {
        pause(300);
        server.end();
        pause(300);
    });
    let seen = report.fresh.as_ref().expect("strangers came");
    assert_eq!(seen.answered + seen.failed, seen.scheduled);
    assert!(seen.failed >= 25 && seen.answered >= 25, "{seen:?}");
    assert_eq!(seen.failed_ms.len() as u64, seen.failed);
    assert!(seen.reasons.iter().any(|why| why.contains("refused")), "{:?}", seen.reasons);
}

#[test]
fn a_write_of_a_stranger_that_is_taken_back_is_caught() {
    let mut server = Server::start();
    let report = run(strangers(&server), &mut server, |_| pause(500));
    server.ask(&["DECR", "fresh-counter:7"]);
    let said = report.account(server.addr, PATIENCE).expect("it answers");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("over new connections: 1 of"), "{said:?}");
}

#[test]
fn reads_are_compared_with_what_is_kept() {
    let mut server = Server::start();
    let mut content = Content::default();
    for entry in DATA.entries().take(50) {
        content.add(entry.key, &entry.value);
    }
    let spec = Spec { reads: 50, content: Some(Arc::new(content)), ..strangers(&server) };
    let report = run(spec.clone(), &mut server, |_| pause(500));
    assert_eq!(report.acked + report.reads, report.scheduled);
    assert!(report.reads.abs_diff(report.acked) <= 10, "half of each: {}", report.reads);
    assert_eq!(report.account(server.addr, PATIENCE), Ok(Vec::new()));

    let report = run(spec, &mut server, |server| {
        server.ask(&["SETRANGE", "data:00000005", "3", "\u{1}"]);
        pause(500);
    });
    let changed = report.faults.iter().all(|f| *f == Fault::Changed { key: 5 });
    assert!(changed && report.fault_count > 0, "{:?}", report.faults);
    let said = report.account(server.addr, PATIENCE).expect("it answers");
    assert!(!said.is_empty(), "a wrong answer is not forgotten");
}
