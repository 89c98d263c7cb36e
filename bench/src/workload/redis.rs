//! Redis as a workload: fill it, say who it is, and digest what it holds.
//!
//! Everything here opens ordinary blocking sockets in the calling thread, so
//! a caller whose client lives in another network namespace runs it there
//! (see [`crate::probe::Place`]).

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use redis::{Connection, Pipeline};
use serde::{Deserialize, Serialize};

use super::dataset::{Dataset, Digest, Digester, KEY_PREFIX};

/// The lab's image of it.
pub const IMAGE: &str = "blip/redis:latest";

/// Where it listens.
pub const PORT: u16 = 6379;

/// What a container of it runs: nothing is saved, everyone may ask, also for
/// digests.
pub const COMMAND: [&str; 9] = [
    "redis-server",
    "--save",
    "",
    "--appendonly",
    "no",
    "--protected-mode",
    "no",
    "--enable-debug-command",
    "yes",
];

/// Bytes of data written, or read back, per round trip.
const BATCH: usize = 1 << 20;

/// Batches that are made before they are asked for.
const BATCHES: usize = 4;

/// Why Redis could not be filled or read.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// No connection, or it broke.
    #[error(
        "could not {what} at redis {addr}: {source}; is the server up and reachable from here?"
    )]
    Talk {
        /// What was tried.
        what: &'static str,
        /// The server.
        addr: SocketAddr,
        /// What the client library says.
        source: redis::RedisError,
    },
}

/// What [`Redis::fill`] wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// Digest of the data as it was generated, before any server saw it.
    pub digest: Digest,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

/// What tells one Redis process from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Forty random digits the process drew when it began: a migrated Redis
    /// keeps them, a restarted one does not.
    pub run_id: String,
    /// Version of the server.
    pub version: String,
}

/// A server, and how long to wait for it.
#[derive(Clone, Copy, Debug)]
pub struct Redis {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Limit for connecting and for each answer.
    pub timeout: Duration,
}

impl Redis {
    /// The server at `addr`, given 10 s for each answer.
    pub fn at(addr: SocketAddr) -> Self {
        Redis { addr, timeout: Duration::from_secs(10) }
    }

    /// Opens a connection from the calling thread's network namespace.
    ///
    /// # Errors
    /// [`RedisError::Talk`] when the server does not answer in time.
    pub fn connect(&self) -> Result<Connection, RedisError> {
        let open = || {
            let client = redis::Client::open((self.addr.ip().to_string(), self.addr.port()))?;
            let connection = client.get_connection_with_timeout(self.timeout)?;
            connection.set_read_timeout(Some(self.timeout))?;
            connection.set_write_timeout(Some(self.timeout))?;
            Ok(connection)
        };
        open().map_err(self.failed("connect"))
    }

    /// Waits until the server answers a PING, trying every 20 ms.
    ///
    /// # Errors
    /// The last failure, once `patience` is over.
    pub fn wait_ready(&self, patience: Duration) -> Result<(), RedisError> {
        let began = Instant::now();
        loop {
            let answer = self.connect().and_then(|mut c| {
                let pong: Result<String, _> = redis::cmd("PING").query(&mut c);
                pong.map_err(self.failed("ping"))
            });
            match answer {
                Ok(_) => return Ok(()),
                Err(why) if began.elapsed() > patience => return Err(why),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Writes the whole dataset, pipelined; it is made in a thread of its own
    /// meanwhile. Keys that exist are overwritten.
    ///
    /// # Errors
    /// [`RedisError::Talk`] when the server refuses a write (memory limit) or
    /// goes away.
    pub fn fill(&self, dataset: Dataset) -> Result<Filled, RedisError> {
        let began = Instant::now();
        let mut connection = self.connect()?;
        let (batches, made) = sync_channel(BATCHES);
        let digest = std::thread::scope(|scope| {
            let making = scope.spawn(move || make(dataset, &batches));
            for batch in made {
                let written = batch.exec(&mut connection);
                // Nobody takes the next one then, and the other thread ends.
                written.map_err(self.failed("write"))?;
            }
            Ok(making.join().unwrap_or_else(|why| std::panic::resume_unwind(why)))
        })?;
        Ok(Filled { digest, ms: began.elapsed().as_millis() as u64 })
    }

    /// Reads every key of the dataset back and digests it. The probe's
    /// counters are not part of it, so this may run while they change.
    ///
    /// # Errors
    /// [`RedisError::Talk`] when the server goes away.
    pub fn digest(&self) -> Result<Digest, RedisError> {
        let (pages, read) = sync_channel(BATCHES);
        std::thread::scope(|scope| {
            let digesting = scope.spawn(move || digest_of(&read));
            self.scan("MGET", |keys, values: Vec<Option<Vec<u8>>>| {
                // The other thread ends only when there are no more.
                let _ = pages.send(keys.iter().cloned().zip(values).collect());
            })?;
            drop(pages);
            Ok(digesting.join().unwrap_or_else(|why| std::panic::resume_unwind(why)))
        })
    }

    /// The same question asked of Redis itself, through `DEBUG DIGEST-VALUE`:
    /// a second opinion that shares no code with [`Redis::digest`]. `None`
    /// when the server forbids `DEBUG`, as it does unless it was started with
    /// `--enable-debug-command`.
    ///
    /// # Errors
    /// [`RedisError::Talk`] when the server goes away.
    pub fn server_digest(&self) -> Result<Option<String>, RedisError> {
        let mut connection = self.connect()?;
        let mut probe = redis::cmd("DEBUG");
        let allowed: Result<Vec<String>, _> = probe.arg("DIGEST-VALUE").query(&mut connection);
        if allowed.is_err() {
            return Ok(None);
        }
        let mut digester = Digester::default();
        self.scan("DEBUG DIGEST-VALUE", |keys, digests: Vec<String>| {
            for (key, digest) in keys.iter().zip(digests) {
                digester.add(key, digest.as_bytes());
            }
        })?;
        Ok(Some(digester.finish().blake3))
    }

    /// Who the server is.
    ///
    /// # Errors
    /// [`RedisError::Talk`] when it does not answer.
    pub fn identity(&self) -> Result<Identity, RedisError> {
        let mut connection = self.connect()?;
        let info: String = redis::cmd("INFO")
            .arg("server")
            .query(&mut connection)
            .map_err(self.failed("ask who it is"))?;
        let field = |name: &str| {
            let line = info.lines().find_map(|l| l.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        Ok(Identity { run_id: field("run_id:"), version: field("redis_version:") })
    }

    /// The values of `keys`, in order; a missing key counts 0.
    ///
    /// # Errors
    /// [`RedisError::Talk`] when the server does not answer, or holds
    /// something else than integers there.
    pub fn counters(&self, keys: &[String]) -> Result<Vec<u64>, RedisError> {
        let mut connection = self.connect()?;
        let values: Vec<Option<u64>> = redis::cmd("MGET")
            .arg(keys)
            .query(&mut connection)
            .map_err(self.failed("read the counters"))?;
        Ok(values.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Bytes the server's allocator has handed out (`used_memory`).
    ///
    /// # Errors
    /// [`RedisError::Talk`] when it does not answer.
    pub fn used_memory(&self) -> Result<u64, RedisError> {
        let mut connection = self.connect()?;
        let info: String = redis::cmd("INFO")
            .arg("memory")
            .query(&mut connection)
            .map_err(self.failed("ask for its memory"))?;
        let line = info.lines().find_map(|l| l.strip_prefix("used_memory:"));
        Ok(line.and_then(|n| n.trim().parse().ok()).unwrap_or_default())
    }

    /// Walks the dataset's keys, asking `command key key …` for each page.
    fn scan<T: redis::FromRedisValue>(
        &self,
        command: &'static str,
        mut seen: impl FnMut(&[Vec<u8>], T),
    ) -> Result<(), RedisError> {
        let mut connection = self.connect()?;
        let mut cursor = 0_u64;
        loop {
            let page = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(format!("{KEY_PREFIX}*"))
                .arg("COUNT")
                .arg(500)
                .query::<(u64, Vec<Vec<u8>>)>(&mut connection);
            let (next, keys) = page.map_err(self.failed("scan the keys"))?;
            if !keys.is_empty() {
                let mut ask = redis::Cmd::new();
                command.split(' ').for_each(|word| {
                    ask.arg(word);
                });
                let values = ask.arg(&keys).query(&mut connection);
                seen(&keys, values.map_err(self.failed("read the dataset"))?);
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    fn failed(&self, what: &'static str) -> impl Fn(redis::RedisError) -> RedisError + use<> {
        let addr = self.addr;
        move |source| RedisError::Talk { what, addr, source }
    }
}

/// Keys, each with its value if it has one.
type Page = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Of what is read, until there is no more.
fn digest_of(read: &Receiver<Page>) -> Digest {
    let mut digester = Digester::default();
    for (key, value) in read.iter().flatten() {
        // A key that vanished between the scan and the read is missing.
        if let Some(value) = value {
            digester.add(&key, &value);
        }
    }
    digester.finish()
}

/// Makes a dataset as batches of writes, for as long as somebody takes them.
fn make(dataset: Dataset, batches: &SyncSender<Pipeline>) -> Digest {
    let mut digester = Digester::default();
    let mut pipe = redis::pipe();
    let mut pending = 0;
    for entry in dataset.entries() {
        digester.add(entry.key.as_bytes(), &entry.value);
        pending += entry.value.len();
        pipe.set(&entry.key, &entry.value).ignore();
        if pending >= BATCH {
            pending = 0;
            if batches.send(std::mem::replace(&mut pipe, redis::pipe())).is_err() {
                break;
            }
        }
    }
    let _ = batches.send(pipe);
    digester.finish()
}
