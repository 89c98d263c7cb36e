//! PostgreSQL under pgbench, with counters of the bench beside pgbench's own
//! tables. Every acknowledged transaction is one that was committed.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};

use super::{Container, Crowd, Holdings, Service, again, ready};
use crate::lab::POSTGRESQL;
use crate::probe::dialect::postgres::{Postgres, TABLES, query};
use crate::probe::dialect::{Answer, Dialect};

/// Bytes of data and indices in one of pgbench's units of scale, about.
const UNIT: u64 = 15 << 20;

/// pgbench's clients, and the transactions a second they are to make together.
const CLIENTS: &str = "4";
const RATE: &str = "100";

/// PostgreSQL with this many bytes of data, about, and shared buffers that hold
/// all of it.
#[derive(Clone, Copy, Debug)]
pub struct Database {
    /// Bytes of pgbench's tables.
    pub bytes: u64,
}

impl Database {
    fn scale(&self) -> u64 {
        (self.bytes / UNIT).max(1)
    }
}

impl Service for Database {
    fn describe(&self) -> String {
        let size = blip_transport::units::ByteSize(self.bytes);
        format!("PostgreSQL with {size} of data under pgbench at {RATE} transactions a second")
    }

    fn memory(&self) -> u64 {
        self.bytes
    }

    fn container(&self) -> Container {
        let buffers = format!("shared_buffers={}MB", (self.bytes >> 20) + 64);
        let words = [
            "postgresql-server",
            "-c",
            &buffers,
            "-c",
            "huge_pages=off",
            "-c",
            "max_connections=200",
        ];
        let mut container = Container::made_of(&POSTGRESQL, &words, 5432);
        container.options = vec!["--shm-size".to_owned(), "256m".to_owned()];
        container
    }

    fn dialect(&self) -> Arc<dyn Dialect> {
        Arc::new(Postgres)
    }

    fn most_requests(&self) -> Option<u32> {
        Some(100)
    }

    fn settle(&self, addr: SocketAddr, counters: &[String]) -> Result<Arc<dyn Holdings>> {
        let mut talk = ready(&Postgres, addr, &query("select 1"))?;
        let zeros: Vec<_> = counters.iter().map(|key| format!("('{key}', 0)")).collect();
        for sql in [TABLES.to_owned(), format!("insert into counters values {}", zeros.join(","))] {
            let said =
                talk.ask(&query(&sql)).map_err(|why| anyhow!("filling PostgreSQL: {why}"))?;
            ensure!(!matches!(said, Answer::Refused(_)), "filling PostgreSQL: {said:?}");
        }
        Ok(Arc::new(Books(started(addr)?)))
    }

    fn crowd(&self, addr: SocketAddr) -> Option<Crowd> {
        let (ip, port, scale) =
            (addr.ip().to_string(), addr.port().to_string(), self.scale().to_string());
        let to = ["--host", &ip, "--port", &port, "--username", "postgres"];
        let words = |more: &[&str]| {
            let all = ["pgbench"].iter().chain(&to).chain(more);
            all.map(|&word| word.to_owned()).collect::<Vec<_>>()
        };
        Some(Crowd {
            application: &POSTGRESQL,
            prepare: words(&["--initialize", "--quiet", "--scale", &scale, "postgres"]),
            run: words(&[
                "--client",
                CLIENTS,
                "--rate",
                RATE,
                "--time",
                "100000",
                "--progress",
                "1",
                "--no-vacuum",
                "postgres",
            ]),
        })
    }
}

/// When the server began.
struct Books(String);

/// pgbench moves money between three tables and writes each movement down in
/// the same transaction: the four sums are the same at any moment.
const SUMS: &str = "select (select sum(abalance) from pgbench_accounts) || ' ' || \
                    (select sum(tbalance) from pgbench_tellers) || ' ' || \
                    (select sum(bbalance) from pgbench_branches) || ' ' || \
                    (select coalesce(sum(delta), 0) from pgbench_history) || ' ' || \
                    (select count(*) from pgbench_history)";

impl Holdings for Books {
    fn changed(&self, addr: SocketAddr) -> Result<Vec<String>> {
        let mut all = Vec::new();
        let sums = answer(addr, SUMS)?;
        let numbers: Vec<&str> = sums.split(' ').collect();
        if numbers.len() != 5 || numbers[..4].windows(2).any(|two| two[0] != two[1]) {
            all.push(format!("pgbench's books do not agree: {sums}"));
        }
        if numbers.last() == Some(&"0") {
            all.push("pgbench made no transaction, so nothing is proved of it".to_owned());
        }
        if started(addr)? != self.0 {
            all.push("PostgreSQL was started anew".to_owned());
        }
        Ok(all)
    }
}

fn started(addr: SocketAddr) -> Result<String> {
    answer(addr, "select pg_postmaster_start_time()::text || ' ' || version()")
}

fn answer(addr: SocketAddr, sql: &str) -> Result<String> {
    match again(&Postgres, addr)?.ask(&query(sql)) {
        Ok(Answer::Content(text)) => Ok(String::from_utf8_lossy(&text).into_owned()),
        other => Err(anyhow!("asking PostgreSQL at {addr}: {other:?}")),
    }
}
