//! Asking a writer. To be called at the client's place, as with Redis.

use std::net::SocketAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Checked, Stats};
use crate::workload::redis::{Identity, Redis, RedisError};

/// Where a writer listens unless it is told otherwise.
pub const PORT: u16 = 6390;

/// A writer, and how long to wait for it.
#[derive(Clone, Copy, Debug)]
pub struct Writer(Redis);

impl Writer {
    /// The writer at `addr`. A check of many gigabytes may take a minute.
    pub fn at(addr: SocketAddr) -> Writer {
        Writer(Redis { addr, timeout: Duration::from_secs(60) })
    }

    /// Waits until it has filled its memory and answers.
    ///
    /// # Errors
    /// The last failure, once `patience` is over.
    pub fn wait_ready(&self, patience: Duration) -> Result<(), RedisError> {
        self.0.wait_ready(patience)
    }

    /// What it has done so far.
    ///
    /// # Errors
    /// When it does not answer, or is no writer.
    pub fn stats(&self) -> Result<Stats, RedisError> {
        self.ask("STATS", "ask the writer what it did")
    }

    /// Has it look at all its memory.
    ///
    /// # Errors
    /// When it does not answer, or is no writer.
    pub fn check(&self) -> Result<Checked, RedisError> {
        self.ask("CHECK", "have the writer check its memory")
    }

    /// Which process answers.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn identity(&self) -> Result<Identity, RedisError> {
        self.0.identity()
    }

    /// The values of counters; a missing one counts 0.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn counters(&self, keys: &[String]) -> Result<Vec<u64>, RedisError> {
        self.0.counters(keys)
    }

    fn ask<T: DeserializeOwned>(&self, verb: &str, what: &'static str) -> Result<T, RedisError> {
        let failed = |source| RedisError::Talk { what, addr: self.0.addr, source };
        let mut connection = self.0.connect()?;
        let text: String = redis::cmd(verb).query(&mut connection).map_err(failed)?;
        serde_json::from_str(&text).map_err(|e| {
            let kind = redis::ErrorKind::UnexpectedReturnType;
            failed(redis::RedisError::from((kind, "no such answer", e.to_string())))
        })
    }
}
