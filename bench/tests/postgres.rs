//! PostgreSQL moves under its clients, its shared buffers full and written to:
//! no connection breaks, no acknowledged transaction is lost, no block is
//! damaged.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;
mod ledger;

use blip_bench::lab::{CgroupMode, POSTGRESQL, Suite};
use hosts::Hosts;
use ledger::Ledger;
use serde_json::Value;
use std::io;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// More than the buffers hold: 15 MB of accounts each. `BLIP_POSTGRES_SCALE`
/// asks for another one: 128 makes a data directory of 2 GiB.
const SCALE: &str = "36";
const BUFFERS: u64 = (512 << 20) / 8192;
/// How long the server may take to make its cluster.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server on the source, and how clients reach it.
struct Server<'a> {
    hosts: &'a Hosts,
    address: String,
}

impl<'a> Server<'a> {
    /// Starts one with 512 MiB of shared buffers, and fills them.
    fn start(hosts: &'a Hosts) -> Self {
        hosts.lab.add_application(&POSTGRESQL, None).expect("the image");
        let address = hosts.lab.container_address(1).to_string();
        let options = format!("--network blipnet --ip {address} --volume cluster:/data");
        let words = "postgresql-server -c shared_buffers=512MB -c huge_pages=off \
                     -c max_wal_size=4GB -c logging_collector=off";
        let words: Vec<&str> = words.split_whitespace().collect();
        hosts.run("postgres", &options, "blip/postgresql:latest", &words);
        let server = Self { hosts, address };
        let until = Instant::now() + PATIENCE;
        while server.try_ask("SELECT 1").is_err() {
            let log = || hosts.docker(hosts.a(), "logs postgres");
            assert!(Instant::now() < until, "the server does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(200));
        }
        let scale = std::env::var("BLIP_POSTGRES_SCALE").unwrap_or_else(|_| SCALE.into());
        server.program(&["pgbench", "--initialize", "--quiet", "--scale", &scale]);
        for extension in ["pg_prewarm", "pg_buffercache", "amcheck"] {
            server.ask(&format!("CREATE EXTENSION {extension}"));
        }
        server.ask("SELECT sum(pg_prewarm(c::regclass)) FROM unnest(ARRAY['pgbench_accounts_pkey', 'pgbench_accounts']) c");
        server
    }

    fn command(&self, words: &[&str]) -> std::process::Command {
        let mut command = self.hosts.lab.client_program(&POSTGRESQL, words);
        command
            .env("PGHOST", &self.address)
            .envs([("PGUSER", "postgres"), ("PGDATABASE", "postgres")]);
        command
    }

    /// Runs a client to its end, which must be a good one.
    fn program(&self, words: &[&str]) -> String {
        let output = self.command(words).output().expect("a client");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn try_ask(&self, sql: &str) -> Result<String, String> {
        let words = ["psql", "-qtAX", "-v", "ON_ERROR_STOP=1", "-c", sql];
        let output = self.command(&words).output().expect("psql");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn ask(&self, sql: &str) -> String {
        self.try_ask(sql).unwrap_or_else(|said| panic!("{sql}: {said}"))
    }

    /// Buffers that hold something, and those that are dirty.
    fn buffers(&self) -> (u64, u64) {
        let said = self
            .ask("SELECT count(relfilenode), count(*) FILTER (WHERE isdirty) FROM pg_buffercache");
        let (used, dirty) = said.split_once('|').expect("two numbers");
        (used.parse().expect("a number"), dirty.parse().expect("a number"))
    }
}

/// `pgbench`, at work until it is stopped.
struct Bench(Child);

impl Bench {
    fn start(server: &Server<'_>) -> Self {
        let words =
            ["pgbench", "--client", "4", "--time", "3600", "--progress", "1", "--no-vacuum"];
        let mut command = server.command(&words);
        Self(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("pgbench"))
    }

    /// Ends it; answers what it said of each second.
    fn stop(mut self) -> Vec<String> {
        assert!(self.0.try_wait().expect("a status").is_none(), "pgbench has ended by itself");
        self.0.kill().expect("killing pgbench");
        let said = io::read_to_string(self.0.stderr.take().expect("stderr")).expect("its words");
        let _ = self.0.wait();
        said.lines().map(str::to_owned).collect()
    }
}

/// Every transaction of pgbench adds one number to an account, a teller, a
/// branch, and writes it down.
fn books_balance(server: &Server<'_>) -> u64 {
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
    let until = Instant::now() + PATIENCE;
    while server.ask(idle) != "0" {
        assert!(Instant::now() < until, "pgbench's connections stay");
        std::thread::sleep(Duration::from_millis(100));
    }
    let sums = server.ask(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
         (SELECT sum(bbalance) FROM pgbench_branches), sum(delta), count(*) FROM pgbench_history",
    );
    let sums: Vec<&str> = sums.split('|').collect();
    assert!(sums[..4].iter().all(|sum| *sum == sums[0]), "the books do not balance: {sums:?}");
    sums[4].parse().expect("a number")
}

/// Bytes of memory that crossed the link while the container stood still.
fn memory_sent_frozen(report: &Value) -> u64 {
    let rounds = report["rounds"].as_array().expect("rounds");
    let frozen = rounds.iter().filter(|round| round["frozen"] == true);
    frozen.map(|round| round["bytes_wire"].as_u64().expect("a number")).sum()
}

/// Bytes in the server's data directory, on this host.
fn data_directory(hosts: &Hosts, host: &blip_bench::lab::Host) -> u64 {
    let said = hosts.docker(host, "exec postgres du --summarize --bytes /data");
    said.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

#[test]
#[cfg_attr(not(blip_long), ignore = "needs root, and BLIP_LONG=1 when it is built")]
fn postgresql_moves_with_full_buffers_under_load() {
    let hosts = Hosts::up("postgres", CgroupMode::V2, Suite::Forky);
    let server = Server::start(&hosts);
    let begun = server.ask("SELECT pg_postmaster_start_time()");
    server.ask("CREATE TABLE ledger (number bigint PRIMARY KEY)");
    let ledger = Ledger::start(server.command(&["psql", "-qtAX", "-v", "ON_ERROR_STOP=1"]));
    let bench = Bench::start(&server);
    std::thread::sleep(Duration::from_secs(2));
    let (used, dirty) = server.buffers();
    eprintln!("{used} of {BUFFERS} buffers used, {dirty} dirty");
    assert!(used * 100 >= BUFFERS * 95 && dirty > 100, "{used} used, {dirty} dirty");
    let size = data_directory(&hosts, hosts.a());

    let (code, lines, err) = hosts.start_migration("postgres").end();
    assert_eq!(code, Some(0), "{err}\n{}", lines.join("\n"));
    std::thread::sleep(Duration::from_secs(3));
    let said = bench.stop();
    let written = ledger.stop();

    let report: Value = serde_json::from_str(lines.last().expect("a report")).expect("JSON");
    let notes = lines.iter().filter(|line| line.contains(" crossed the link"));
    eprintln!("{}", notes.cloned().collect::<Vec<_>>().join("\n"));
    eprintln!(
        "downtime {} ms: {}; {} bytes of memory sent in the freeze; longest wait for an insert {:?}",
        report["downtime_ms"],
        report["downtime"],
        memory_sent_frozen(&report),
        written.longest,
    );
    eprintln!("{size} bytes of data; files: {}", report["files"]);
    let frozen = report["files"]["frozen"]["bytes_wire"].as_u64().expect("a number");
    assert!(frozen * 100 <= size, "{frozen} bytes of files of {size} were sent in the freeze");
    assert!(said.last().is_some_and(|line| !line.contains(" 0.0 tps")), "{said:?}");
    assert!(said.iter().all(|line| line.contains(", 0 failed")), "{said:?}");
    assert_eq!(server.ask("SELECT pg_postmaster_start_time()"), begun, "it was started anew");
    let count = books_balance(&server);
    // The last one may have been committed and not been acknowledged.
    let found = server.ask("SELECT count(*), max(number) FROM ledger");
    let counted = |more: u64| format!("{0}|{0}", written.acknowledged + more);
    assert!([counted(0), counted(1)].contains(&found), "{found}, {written:?}");
    assert_eq!(written.servers.0, written.servers.1, "one connection, one server process");
    eprintln!("{count} transactions of pgbench, {} inserts acknowledged", written.acknowledged);
    let check = ["pg_amcheck", "--all", "--heapallindexed", "--parent-check"];
    let said = server.program(&check);
    assert_eq!(said, "", "pg_amcheck finds something");
}
