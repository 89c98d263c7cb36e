//! The probe against a real Redis: what it measures, and that it cannot be
//! fooled. Every way to lose or double a write that can be made by hand is
//! made here and must be caught.

mod server;

use std::net::SocketAddr;
use std::time::Duration;

use blip_bench::demo::report::DemoReport;
use blip_bench::demo::{self, Options, Stage};
use blip_bench::probe::ledger::Fault;
use blip_bench::probe::verify::{Expected, Verdict};
use blip_bench::probe::{Here, Place, Probe, ProbeReport, Spec};
use nix::sys::signal::Signal;
use server::{DATA, Server};

/// Fills the server, lets the probe write, does `meanwhile`, stops the probe.
fn run(spec: Spec, server: &mut Server, meanwhile: impl FnOnce(&mut Server, &Probe)) -> Run {
    let redis = server.redis();
    let filled = redis.fill(DATA).expect("the server takes the data");
    let expected = Expected::ask(&redis).expect("the server answers");
    assert_eq!(expected.digest, filled.digest, "read back as generated");
    let probe = Probe::start(spec, &Here).expect("the probe starts");
    meanwhile(server, &probe);
    let report = probe.stop().expect("the probe reports");
    Run { report, expected }
}

struct Run {
    report: ProbeReport,
    expected: Expected,
}

impl Run {
    fn verdict(&self, server: &Server) -> Verdict {
        let verdict = self.report.verify(&Here, server.addr, &self.expected);
        verdict.expect("the server can be asked")
    }
}

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

#[test]
fn an_undisturbed_run_is_verified_to_the_last_write() {
    let mut server = Server::start();
    let run = run(Spec::new(server.addr), &mut server, |_, probe| {
        pause(1000);
        probe.mark("middle");
        pause(1000);
    });
    let report = &run.report;
    // Two seconds were asked for; a slow machine may have taken longer, but
    // the schedule is kept whatever happens.
    let due = report.duration_ms / 1e3 * 5_000.0;
    assert!((report.scheduled as f64 - due).abs() <= 2.0);
    assert!(report.scheduled >= 10_000);
    assert_eq!(report.acked, report.scheduled);
    assert_eq!((report.unsent, report.unanswered, report.refused), (0, 0, 0));
    assert_eq!((report.reconnects, report.connections.len()), (0, 1));
    assert_eq!(report.latency.count, report.acked);
    assert!(report.longest_gap.ms >= 0.2, "writes are 0.2 ms apart");
    assert!(report.stall.ticks > 100);
    assert!(report.marked_ms("middle").expect("it was marked") >= 1000.0);

    let verdict = run.verdict(&server);
    assert_eq!(verdict.objections(), Vec::<String>::new());
    assert_eq!(verdict.writes.found, report.acked);
    assert_eq!(verdict.server_agrees, Some(true));

    let json = serde_json::to_string(report).expect("a report is plain data");
    let back: ProbeReport = serde_json::from_str(&json).expect("and comes back");
    assert_eq!(back.timeline, report.timeline);
}

#[test]
fn a_stopped_server_is_a_gap_and_nothing_worse() {
    let mut server = Server::start();
    let run = run(Spec::new(server.addr), &mut server, |server, probe| {
        pause(300);
        probe.mark("stop");
        server.signal(Signal::SIGSTOP);
        pause(300);
        server.signal(Signal::SIGCONT);
        probe.mark("continue");
        pause(300);
    });
    let report = &run.report;
    assert!(report.longest_gap.ms >= 299.0, "{:?}", report.longest_gap);
    let stopped = report.marked_ms("stop").expect("it was marked");
    let continued = report.marked_ms("continue").expect("it was marked");
    assert!(report.longest_gap.from_ms < continued);
    assert!(report.longest_gap.to_ms > stopped + 299.0);
    // Every write that came due in the silence was charged for it.
    let inside = report.recorded.latency_between(stopped + 10.0, stopped + 290.0);
    assert!(inside.count >= 1_350, "{inside:?}");
    assert!(inside.p50_us >= 100_000, "{inside:?}");
    assert_eq!(report.reconnects, 0);
    assert_eq!(run.verdict(&server).objections(), Vec::<String>::new());
}

#[test]
fn a_server_that_forgot_everything_is_never_verified() {
    let mut server = Server::start();
    let run = run(Spec::new(server.addr), &mut server, |server, probe| {
        pause(300);
        server.replace();
        let acked = probe.acked();
        while probe.acked() < acked + 100 {
            pause(5);
        }
    });
    assert!(run.report.reconnects >= 1);
    assert!(run.report.connections[0].why.is_some());
    assert!(matches!(run.report.faults[0], Fault::Lost { .. }));
    let verdict = run.verdict(&server);
    assert!(!verdict.verified());
    assert!(!verdict.same_process);
    assert_ne!(verdict.before.blake3, verdict.after.blake3);
}

#[test]
fn a_server_that_forgot_after_the_run_is_caught_by_its_counters() {
    let mut server = Server::start();
    let run = run(Spec::new(server.addr), &mut server, |_, _| pause(300));
    for counter in 0..1_000 {
        server.ask(&["DEL", &format!("counter:{counter}")]);
    }
    let verdict = run.verdict(&server);
    assert_eq!(verdict.writes.missing, run.report.acked);
    assert_eq!(verdict.writes.found, 0);
    assert!(!verdict.verified());
}

#[test]
fn one_write_taken_back_is_caught_during_and_after_the_run() {
    let mut server = Server::start();
    let during = run(Spec::new(server.addr), &mut server, |server, _| {
        pause(300);
        server.ask(&["DECR", "counter:7"]);
        pause(300);
    });
    let wrong = Fault::Lost { counter: 7, expected: 0, got: 0 };
    let [Fault::Lost { counter, .. }] = during.report.faults[..] else {
        panic!("one fault like {wrong:?}, not {:?}", during.report.faults);
    };
    assert_eq!(counter, 7);
    assert!(!during.verdict(&server).verified());

    let after = run(Spec::new(server.addr), &mut server, |_, _| pause(300));
    assert!(after.verdict(&server).verified());
    server.ask(&["DECR", "counter:7"]);
    let verdict = after.verdict(&server);
    assert_eq!((verdict.writes.missing, verdict.writes.surplus), (1, 0));
    assert!(!verdict.verified());
}

#[test]
fn one_write_done_twice_is_caught() {
    let mut server = Server::start();
    let run = run(Spec::new(server.addr), &mut server, |server, _| {
        pause(300);
        server.ask(&["INCR", "counter:3"]);
        pause(300);
    });
    let faults = &run.report.faults;
    assert!(matches!(faults[..], [Fault::Repeated { counter: 3, .. }]), "{faults:?}");
    assert!(!run.verdict(&server).verified());
}

#[test]
fn one_byte_changed_in_the_dataset_is_caught() {
    let mut server = Server::start();
    let run = run(Spec::new(server.addr), &mut server, |_, _| pause(100));
    server.ask(&["SETRANGE", "data:00000005", "3", "\u{1}"]);
    let verdict = run.verdict(&server);
    assert_eq!(verdict.writes.missing, 0);
    assert_eq!(verdict.server_agrees, Some(false));
    assert_ne!(verdict.before.blake3, verdict.after.blake3);
    assert!(!verdict.verified());
}

#[test]
fn broken_connections_leave_writes_ambiguous_but_none_wrong() {
    let mut server = Server::start();
    let run = run(Spec::new(server.addr), &mut server, |server, _| {
        for _ in 0..10 {
            pause(50);
            server.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        }
        pause(100);
    });
    let report = &run.report;
    assert!(report.reconnects >= 5, "{}", report.reconnects);
    assert_eq!(report.acked + report.unanswered, report.scheduled);
    assert_eq!(run.verdict(&server).objections(), Vec::<String>::new());
}

#[test]
fn the_probe_follows_the_server_to_another_address() {
    let mut server = Server::start();
    let elsewhere = Server::start();
    let run = run(Spec::new(server.addr), &mut server, |_, probe| {
        pause(200);
        probe.set_target(elsewhere.addr);
        pause(200);
    });
    let connections = &run.report.connections;
    assert_eq!(connections.len(), 2, "{connections:?}");
    assert_eq!(connections[1].to, elsewhere.addr);
    // It is another server, with none of the writes: of course that is seen.
    assert!(run.report.fault_count > 0);
}

#[test]
fn a_server_that_moves_between_two_known_addresses_is_found() {
    let mut server = Server::start();
    let elsewhere = Server::start();
    let spec = Spec { targets: vec![server.addr, elsewhere.addr], ..Spec::new(server.addr) };
    let run = run(spec, &mut server, |server, probe| {
        pause(200);
        server.end();
        let acked = probe.acked();
        while probe.acked() < acked + 100 {
            pause(5);
        }
    });
    let last = run.report.connections.last().expect("a connection");
    assert_eq!(last.to, elsewhere.addr);
}

#[test]
fn silence_without_end_is_reported_as_a_gap_and_as_unanswered_writes() {
    let mut server = Server::start();
    let spec = Spec {
        silence: Duration::from_millis(100),
        drain: Duration::from_millis(200),
        ..Spec::new(server.addr)
    };
    let run = run(spec, &mut server, |server, _| {
        pause(200);
        server.signal(Signal::SIGSTOP);
        pause(350);
    });
    server.signal(Signal::SIGCONT);
    let report = &run.report;
    assert!(report.longest_gap.ms >= 349.0, "{:?}", report.longest_gap);
    assert!(report.unanswered > 0);
    assert!(report.reconnects >= 1);
    assert_eq!(report.connections[0].why.as_deref(), Some("silent for too long"));
    // Once awake it carries out what waits in its sockets: all of it allowed.
    pause(200);
    assert_eq!(run.verdict(&server).objections(), Vec::<String>::new());
}

/// A stage on which nothing moves: the server stands still for a while, as in
/// a migration, or what is asked for happens to it.
struct Pretend {
    server: Server,
    lines: Vec<&'static str>,
    mishap: fn(&mut Server),
}

impl Stage for Pretend {
    fn place(&self) -> &dyn Place {
        &Here
    }

    fn start_redis(&mut self) -> anyhow::Result<SocketAddr> {
        self.server.replace();
        Ok(self.server.addr)
    }

    fn migrate(&mut self, line: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        line(r#"{"event":"begin","phase":"freeze"}"#);
        self.server.signal(Signal::SIGSTOP);
        pause(60);
        self.server.signal(Signal::SIGCONT);
        (self.mishap)(&mut self.server);
        self.lines.iter().for_each(|l| line(l));
        Ok(())
    }

    fn redis_now(&mut self) -> anyhow::Result<SocketAddr> {
        Ok(self.server.addr)
    }

    fn describe(&self) -> String {
        "no hosts at all".into()
    }
}

const MOVED: &str = r#"{"event":"finished","outcome":"moved","downtime_ms":1.5,"rounds":[]}"#;

fn play(lines: Vec<&'static str>, mishap: fn(&mut Server)) -> anyhow::Result<DemoReport> {
    let mut stage = Pretend { server: Server::start(), lines, mishap };
    let options =
        Options { memory: DATA.bytes, margin: Duration::from_millis(200), ..Options::default() };
    demo::run(&mut stage, &options, &mut |_| {})
}

#[test]
fn the_demo_believes_the_client_and_not_the_engine() {
    let report = play(vec!["a word of log", MOVED], |_| {}).expect("the script plays");
    assert!(report.succeeded(), "{:?}", report.objections);
    assert_eq!(report.migration.downtime_ms, 1.5);
    assert!(report.client_gap_ms >= 59.0, "{:?}", report.client_gap);
    let freeze = report.probe.marked_ms("freeze").expect("it was told as it began");
    assert!(report.client_gap.to_ms >= freeze + 59.0);
    assert!(report.usual_gap_ms > 0.0);
}

#[test]
fn the_demo_says_no_when_a_write_or_the_server_is_lost() {
    let lost = |server: &mut Server| server.ask(&["DECR", "counter:9"]);
    let report = play(vec![MOVED], lost).expect("the script plays");
    assert!(!report.verified && !report.succeeded());

    let report = play(vec![MOVED], Server::replace).expect("the script plays");
    assert!(!report.verified);
    assert!(report.objections.iter().any(|o| o.contains("restarted")), "{:?}", report.objections);

    let report = play(vec![MOVED], Server::end).expect("the script plays");
    assert!(!report.verified && report.proof.is_none());
    assert!(report.client_gap_ms >= 200.0, "it was gone until the end: {:?}", report.client_gap);
}

#[test]
fn a_container_that_was_kept_may_be_verified_but_is_no_success() {
    let kept = r#"{"event":"finished","outcome":"kept","why":"no room"}"#;
    let report = play(vec![kept], |_| {}).expect("the script plays");
    assert!(report.verified && !report.succeeded());
    assert!(play(vec!["nothing of note"], |_| {}).is_err(), "no report, no demo");
}

#[test]
fn a_series_starts_afresh_each_time() {
    let mut stage = Pretend { server: Server::start(), lines: vec![MOVED], mishap: |_| {} };
    let options =
        Options { memory: 1 << 20, margin: Duration::from_millis(100), ..Options::default() };
    let mut told = 0;
    let series = demo::series(&mut stage, &options, 3, &mut |_| {}, &mut |_| told += 1);
    let series = series.expect("the script plays");
    assert_eq!((told, series.runs.len()), (3, 3));
    assert!(series.verified && series.client_gap_ms >= 59.0);
}
