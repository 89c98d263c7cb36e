//! The writer's ear: Redis' protocol, so that Redis' clients can ask.
//!
//! | command | answer |
//! |---|---|
//! | `PING` | `PONG` |
//! | `INCR key` | the counter's new value |
//! | `MGET key …` | their values, or nil |
//! | `INFO …` | `run_id` and `redis_version`, as Redis has them |
//! | `STATS` | [`Stats`] as JSON |
//! | `CHECK` | [`Checked`] as JSON, when all memory has been looked at |
//!
//! A thread for each client: there are few.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use redis::Value;

use super::share::Share;
use super::{Checked, Rate, Stats, WriterSpec};

/// What all clients share.
struct Writer {
    shares: Vec<Share>,
    began: Instant,
    wanted: Option<u64>,
    run_id: String,
    counters: Mutex<HashMap<Vec<u8>, u64>>,
}

/// Serves clients for ever.
pub(super) fn serve(
    listener: &TcpListener,
    shares: Vec<Share>,
    spec: WriterSpec,
) -> io::Result<()> {
    let wanted = match spec.rate {
        Rate::Bytes(bytes) => Some(bytes),
        Rate::Max => None,
    };
    let writer = Arc::new(Writer {
        shares,
        began: Instant::now(),
        wanted,
        run_id: run_id(),
        counters: Mutex::default(),
    });
    loop {
        let (stream, _) = listener.accept()?;
        let writer = Arc::clone(&writer);
        // A client that breaks off is its own affair.
        std::thread::spawn(move || writer.talk(stream));
    }
}

impl Writer {
    fn talk(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut parser = redis::Parser::new();
        loop {
            let Ok(asked) = parser.parse_value(&mut stream) else { return Ok(()) };
            let words = words(asked);
            let mut answer = Vec::with_capacity(64);
            self.answer(&words, &mut answer)?;
            stream.write_all(&answer)?;
        }
    }

    fn answer(&self, words: &[Vec<u8>], out: &mut Vec<u8>) -> io::Result<()> {
        let verb = words.first().map(|w| w.to_ascii_uppercase()).unwrap_or_default();
        let keys = words.get(1..).unwrap_or_default();
        match (verb.as_slice(), keys) {
            (b"PING", _) => out.write_all(b"+PONG\r\n"),
            (b"INCR", [key]) => {
                let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
                let counter = counters.entry(key.clone()).or_default();
                *counter += 1;
                write!(out, ":{counter}\r\n")
            }
            (b"MGET", keys) => {
                let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
                write!(out, "*{}\r\n", keys.len())?;
                keys.iter().try_for_each(|key| match counters.get(key) {
                    Some(value) => bulk(out, &value.to_string()),
                    None => out.write_all(b"$-1\r\n"),
                })
            }
            (b"INFO", _) => {
                let version = env!("CARGO_PKG_VERSION");
                let text = format!("run_id:{}\r\nredis_version:writer {version}\r\n", self.run_id);
                bulk(out, &text)
            }
            (b"STATS", _) => json(out, &self.stats()),
            (b"CHECK", _) => match self.check() {
                Some(checked) => json(out, &checked),
                None => out.write_all(b"-ERR a writing thread has died\r\n"),
            },
            // Clients introduce themselves and do not mind the answer.
            _ => out.write_all(b"-ERR unknown command\r\n"),
        }
    }

    fn stats(&self) -> Stats {
        let (written, faults) = self
            .shares
            .iter()
            .map(Share::told)
            .fold((0, 0), |sum, told| (sum.0 + told.0, sum.1 + told.1));
        let elapsed_ms = self.began.elapsed().as_secs_f64() * 1e3;
        Stats { elapsed_ms, written, wanted: self.wanted, faults }
    }

    /// All threads look at the same time; `None` if one of them is dead.
    fn check(&self) -> Option<Checked> {
        let asked: Vec<_> = self.shares.iter().map(Share::check).collect();
        let mut all = Checked::default();
        for answer in asked {
            all.add(answer.recv().ok()?);
        }
        Some(all)
    }
}

fn words(asked: Value) -> Vec<Vec<u8>> {
    let word = |value| match value {
        Value::BulkString(word) => word,
        Value::SimpleString(word) => word.into_bytes(),
        _ => Vec::new(),
    };
    match asked {
        Value::Array(words) => words.into_iter().map(word).collect(),
        _ => Vec::new(),
    }
}

fn bulk(out: &mut Vec<u8>, text: &str) -> io::Result<()> {
    write!(out, "${}\r\n{text}\r\n", text.len())
}

fn json(out: &mut Vec<u8>, value: &impl serde::Serialize) -> io::Result<()> {
    bulk(out, &serde_json::to_string(value)?)
}

/// Forty digits that another process would not have.
fn run_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let own = format!("{} {}", now.as_nanos(), std::process::id());
    blake3::hash(own.as_bytes()).to_hex()[..40].to_owned()
}
