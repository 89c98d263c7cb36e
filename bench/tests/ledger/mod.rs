//! A client of PostgreSQL that writes number after number over one connection,
//! and knows which of them were acknowledged.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// At work.
pub(crate) struct Ledger {
    enough: Arc<AtomicBool>,
    writing: JoinHandle<Written>,
}

/// What it did.
#[derive(Debug)]
pub(crate) struct Written {
    /// The numbers from 1 to this were acknowledged.
    pub(crate) acknowledged: u64,
    /// The longest wait for an answer.
    pub(crate) longest: Duration,
    /// The server's process at the begin and at the end.
    pub(crate) servers: (String, String),
}

impl Ledger {
    /// Starts to write into the table `ledger` by this `psql`.
    pub(crate) fn start(mut psql: Command) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let stop = enough.clone();
        let child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql");
        Self { enough, writing: std::thread::spawn(move || write(child, &stop)) }
    }

    /// Ends it, when the insert under way is answered.
    pub(crate) fn stop(self) -> Written {
        self.enough.store(true, Ordering::Relaxed);
        self.writing.join().expect("every insert is answered")
    }
}

fn write(mut psql: Child, enough: &AtomicBool) -> Written {
    let mut to = psql.stdin.take().expect("stdin");
    let mut from = BufReader::new(psql.stdout.take().expect("stdout"));
    let mut ask = |sql: &str| {
        writeln!(to, "{sql};").expect("psql listens");
        let mut line = String::new();
        let read = from.read_line(&mut line).expect("an answer");
        assert!(read > 0, "psql ended at: {sql}");
        line.trim().to_owned()
    };
    let server = "SELECT pg_backend_pid()";
    let first = ask(server);
    let (mut number, mut longest) = (0, Duration::ZERO);
    while !enough.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answer = ask(&format!("INSERT INTO ledger VALUES ({}) RETURNING number", number + 1));
        longest = longest.max(begun.elapsed());
        number += 1;
        assert_eq!(answer, number.to_string());
        std::thread::sleep(Duration::from_millis(2));
    }
    let servers = (first, ask(server));
    drop(to);
    let _ = psql.wait();
    Written { acknowledged: number, longest, servers }
}
