//! What is moved: a workload and the load on it, by name.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::quantity;
use crate::workload::dataset::Dataset;
use crate::workload::service::{self, Service};
use crate::workload::writer::WriterSpec;

/// A workload under load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// Its name, part of file names.
    pub name: String,
    /// Percentage of the client's requests that read, where it can do both.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reads: u8,
    /// What runs in the container.
    #[serde(flatten)]
    pub load: Load,
}

fn is_zero(number: &u8) -> bool {
    *number == 0
}

/// What runs in the container; in a plan, `redis = "256MiB"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Redis with this many bytes of data.
    Redis(Size),
    /// The memory writer; in a plan, `writer = "--size 1GiB --rate 200MB/s"`.
    Writer(Words),
    /// memcached with this many bytes of data.
    Memcached(Size),
    /// PostgreSQL with this many bytes of data, under pgbench.
    Postgres(Size),
    /// nginx with this many bytes of static files.
    Nginx(Size),
    /// A Python web application with this many bytes in its memory.
    Web(Size),
    /// Four worker processes with this many bytes of memory in all.
    Pool(Size),
}

/// How many workers a pool has.
const WORKERS: u16 = 4;

impl Load {
    /// The service this is.
    pub fn service(&self) -> Arc<dyn Service> {
        let data = |size: &Size| Dataset { bytes: size.bytes, seed: 1 };
        match self {
            Load::Redis(size) => Arc::new(service::redis::Filled(data(size))),
            Load::Writer(words) => Arc::new(service::writer::MemoryWriter(words.spec)),
            Load::Memcached(size) => Arc::new(service::memcached::Cache(data(size))),
            Load::Postgres(size) => Arc::new(service::postgres::Database { bytes: size.bytes }),
            Load::Nginx(size) => Arc::new(service::nginx::Files(data(size))),
            Load::Web(size) => Arc::new(service::web::WebApp { bytes: size.bytes }),
            Load::Pool(size) => {
                Arc::new(service::pool::WorkerPool { workers: WORKERS, bytes: size.bytes })
            }
        }
    }
}

/// A size as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    text: String,
    /// In bytes.
    pub bytes: u64,
}

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Ok(Self { bytes: quantity::size(&text)?, text })
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.text
    }
}

/// The writer's options, as on its command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Words {
    text: String,
    /// What they mean.
    pub spec: WriterSpec,
}

impl TryFrom<String> for Words {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Ok(Self { spec: WriterSpec::parse(&text)?, text })
    }
}

impl From<Words> for String {
    fn from(words: Words) -> String {
        words.text
    }
}

/// Name, kind, and what of it; a kind may say how much is read.
const BUILT_IN: [(&str, &str, &str); 21] = [
    ("redis-64m", "redis", "64MiB"),
    ("redis-256m", "redis", "256MiB"),
    ("redis-1g", "redis", "1GiB"),
    ("redis-4g", "redis", "4GiB"),
    ("redis-8g", "redis", "8GiB"),
    ("redis-256m-reads", "redis 90", "256MiB"),
    ("redis-256m-mixed", "redis 50", "256MiB"),
    ("memcached-256m", "memcached 50", "256MiB"),
    ("postgres-128m", "postgres", "128MiB"),
    ("nginx-64m", "nginx", "64MiB"),
    ("web-64m", "web", "64MiB"),
    ("pool-128m", "pool", "128MiB"),
    ("idle-1g", "writer", "--size 1GiB"),
    ("hot-64m-in-1g", "writer", "--size 1GiB --hot 64MiB --rate 200MB/s"),
    ("fast-1g", "writer", "--size 1GiB --hot 512MiB --rate 400MB/s --fill random"),
    ("sequential-1g", "writer", "--size 1GiB --rate 100MB/s --pattern sequential"),
    ("zipf-1g", "writer", "--size 1GiB --rate 200MB/s --pattern zipf"),
    ("phases-1g", "writer", "--size 1GiB --hot 64MiB --rate 200MB/s --pattern phases"),
    ("busy-256m", "writer", "--size 256MiB --hot 32MiB --rate 50MB/s --threads 2"),
    // Small and quick: for trying the bench out, not for numbers.
    ("tiny", "writer", "--size 16MiB --hot 4MiB --rate 20MB/s"),
    ("tiny-redis", "redis 50", "8MiB"),
];

impl Scenario {
    /// The built-in scenario of this name.
    ///
    /// # Errors
    /// The names there are.
    pub fn named(name: &str) -> Result<Scenario, String> {
        let Some((_, kind, what)) = BUILT_IN.iter().find(|(known, ..)| *known == name) else {
            let known: Vec<_> = BUILT_IN.iter().map(|(name, ..)| *name).collect();
            return Err(format!("there is no scenario `{name}`: there are {}", known.join(", ")));
        };
        let (kind, reads) = kind.split_once(' ').unwrap_or((kind, "0"));
        let reads: u8 = reads.parse().unwrap_or_default();
        let written = serde_json::json!({ "name": name, "reads": reads, kind: what });
        serde_json::from_value(written).map_err(|e| e.to_string())
    }

    /// What it is, in a few words.
    pub fn describe(&self) -> String {
        let what = match &self.load {
            // As it was written: 1GiB, not 1073741824.
            Load::Writer(words) => format!("memory writer `{}`", words.text),
            load => load.service().describe(),
        };
        match self.reads {
            0 => what,
            reads => format!("{what}, {reads} % of the requests read"),
        }
    }

    /// Bytes of data the workload holds.
    pub fn memory(&self) -> u64 {
        self.load.service().memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_scenario_is_well_formed_and_keeps_its_name() {
        for (name, ..) in BUILT_IN {
            let scenario = Scenario::named(name).expect(name);
            assert_eq!(scenario.name, name);
            assert!(scenario.memory() >= 8 << 20 && !scenario.describe().is_empty());
            assert!(scenario.load.service().container().port > 0);
        }
        let why = Scenario::named("redis").expect_err("no such");
        assert!(why.contains("redis-64m"), "{why}");
    }
}
