//! memcached, filled from a seed.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, anyhow};

use super::{Container, Holdings, Service, again, compare, ready};
use crate::lab::MEMCACHED;
use crate::probe::Content;
use crate::probe::dialect::Dialect;
use crate::probe::dialect::memcached::{Memcached, set};
use crate::workload::dataset::Dataset;

/// memcached with this many bytes of keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Cache(pub Dataset);

impl Service for Cache {
    fn describe(&self) -> String {
        format!("memcached with {} of data", blip_transport::units::ByteSize(self.0.bytes))
    }

    fn memory(&self) -> u64 {
        self.0.bytes
    }

    fn container(&self) -> Container {
        // Room for the slabs' waste; nothing may be evicted.
        let room = (self.0.bytes / (1 << 20) * 2 + 64).to_string();
        let words = ["memcached", "-u", "root", "-M", "-m", &room, "-t", "2", "-p", "11211"];
        Container::made_of(&MEMCACHED, &words, 11_211)
    }

    fn dialect(&self) -> Arc<dyn Dialect> {
        Arc::new(Memcached)
    }

    fn settle(&self, addr: SocketAddr, counters: &[String]) -> Result<Arc<dyn Holdings>> {
        let mut talk = ready(&Memcached, addr, b"version\r\n")?;
        let mut content = Content::default();
        let entries = self.0.entries().map(|entry| {
            content.add(entry.key.clone(), &entry.value);
            set(&entry.key, &entry.value)
        });
        let zeros = counters.iter().map(|key| set(key, b"0"));
        let stored = |_, answer| match answer {
            crate::probe::dialect::Answer::Content(_) => Ok(()),
            other => Err(format!("{other:?}")),
        };
        let filled = talk.ask_all(entries.chain(zeros), stored);
        filled.map_err(|why| anyhow!("filling memcached: {why}"))?;
        let process = process(addr)?;
        Ok(Arc::new(Held { content: Arc::new(content), process }))
    }
}

struct Held {
    content: Arc<Content>,
    /// What tells this process from one started later.
    process: String,
}

impl Holdings for Held {
    fn content(&self) -> Arc<Content> {
        Arc::clone(&self.content)
    }

    fn changed(&self, addr: SocketAddr) -> Result<Vec<String>> {
        let mut all = compare(&Memcached, addr, &self.content)?;
        if process(addr)? != self.process {
            all.push("memcached has evicted something, or is another version".to_owned());
        }
        Ok(all)
    }
}

/// Version and evictions: a process that began anew would have lost its data.
fn process(addr: SocketAddr) -> Result<String> {
    let mut talk = again(&Memcached, addr)?;
    let said = talk.ask(b"stats\r\n").map_err(|why| anyhow!("asking memcached: {why}"))?;
    let crate::probe::dialect::Answer::Content(said) = said else {
        return Err(anyhow!("memcached tells no statistics: {said:?}"));
    };
    let said = String::from_utf8_lossy(&said).into_owned();
    let told = ["STAT version ", "STAT pid ", "STAT evictions "];
    let lines = said.lines().filter(|l| told.iter().any(|name| l.starts_with(name)));
    Ok(lines.collect::<Vec<_>>().join(", "))
}
