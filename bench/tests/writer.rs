//! The memory writer as a program of its own, and the probe against it: what
//! it holds is checked, and a page changed behind its back is found.

mod memory;

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use blip_bench::probe::verify::WriterVerdict;
use blip_bench::probe::{Here, Probe, Spec};
use blip_bench::workload::writer::client::Writer;
use blip_bench::workload::writer::page::Damage;
use blip_bench::workload::writer::{Rate, WriterSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const MIB: u64 = 1 << 20;

/// A writer on a free loopback port; it ends with the test.
struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    fn start(spec: &WriterSpec) -> Server {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let addr = free.expect("a free loopback port");
        let child = Command::new(env!("CARGO_BIN_EXE_blip-bench"))
            .arg("writer")
            .args(spec.words())
            .args(["--listen", &addr.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .expect("the writer starts");
        let server = Server { child, addr };
        server.ask().wait_ready(Duration::from_secs(20)).expect("the writer answers");
        server
    }

    fn ask(&self) -> Writer {
        Writer::at(self.addr)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Its folder below `/proc`.
    fn process(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.pid()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn busy() -> WriterSpec {
    let rate = Rate::Bytes(20_000_000);
    WriterSpec { size: 16 * MIB, hot: Some(4 * MIB), rate, threads: 2, ..WriterSpec::default() }
}

/// Probes a writer while `meanwhile` happens.
fn probe(server: &Server, meanwhile: impl FnOnce()) -> WriterVerdict {
    let before = server.ask().identity().expect("its identity");
    let spec = Spec { rate: 500, counters: 50, ..Spec::new(server.addr) };
    let probe = Probe::start(spec, &Here).expect("a probe");
    std::thread::sleep(Duration::from_millis(200));
    meanwhile();
    std::thread::sleep(Duration::from_millis(200));
    let report = probe.stop().expect("its report");
    report.verify_writer(&Here, server.addr, &before).expect("a verdict")
}

#[test]
fn a_busy_writer_is_whole_and_a_standstill_loses_nothing() {
    let server = Server::start(&busy());
    let verdict = probe(&server, || {
        kill(server.pid(), Signal::SIGSTOP).expect("ours");
        std::thread::sleep(Duration::from_millis(300));
        kill(server.pid(), Signal::SIGCONT).expect("ours");
    });
    assert_eq!(verdict.objections(), Vec::<String>::new());
    assert_eq!(verdict.checked.pages, 16 * MIB / 4096);
    assert!(verdict.writes.acked > 150 && verdict.writes.found == verdict.writes.acked);
    let stats = server.ask().stats().expect("stats");
    assert!(stats.written > 500 && stats.wanted == Some(20_000_000), "{stats:?}");
}

#[test]
fn a_changed_page_and_an_old_page_are_found() {
    let server = Server::start(&busy());
    let (cold, stale) = (3_000, 5);
    let at = memory::find(&server.process(), cold);
    let old_at = memory::find(&server.process(), stale);
    let verdict = probe(&server, || {
        let memory = memory::of(&server.process());
        memory.write_all_at(&[0x5a], at + 1_234).expect("writing its memory");
        // A hot page as it was some writes ago: whole in itself.
        kill(server.pid(), Signal::SIGSTOP).expect("ours");
        let mut old = [0; 4096];
        memory.read_exact_at(&mut old, old_at).expect("reading its memory");
        kill(server.pid(), Signal::SIGCONT).expect("ours");
        std::thread::sleep(Duration::from_millis(600));
        kill(server.pid(), Signal::SIGSTOP).expect("ours");
        memory.write_all_at(&old, old_at).expect("writing its memory");
        kill(server.pid(), Signal::SIGCONT).expect("ours");
    });
    let objections = verdict.objections().join("; ");
    assert!(verdict.checked.first.iter().any(|b| b.page == cold && b.damage == Damage::Torn));
    // The old page is met by its next write, or by the check.
    let met = verdict.checked.faults > 0 || verdict.checked.first.iter().any(|b| b.page == stale);
    assert!(met, "{objections}");
    assert_eq!(verdict.writes.missing, 0, "{objections}");
}

#[test]
fn a_restarted_writer_is_not_taken_for_the_same() {
    let mut server = Server::start(&busy());
    let before = server.ask().identity().expect("its identity");
    server = Server::start(&busy());
    assert_ne!(before, server.ask().identity().expect("its identity"));
}
