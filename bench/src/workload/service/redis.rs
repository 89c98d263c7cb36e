//! Redis, filled from a seed.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;

use super::{Container, Holdings, PATIENCE, READ_KEYS, Service};
use crate::probe::Content;
use crate::probe::dialect::Dialect;
use crate::probe::dialect::resp::Resp;
use crate::probe::verify::Expected;
use crate::workload::dataset::Dataset;
use crate::workload::redis::{self, Redis};

/// Redis with this many bytes of keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Filled(pub Dataset);

impl Service for Filled {
    fn describe(&self) -> String {
        format!("Redis with {} of data", blip_transport::units::ByteSize(self.0.bytes))
    }

    fn memory(&self) -> u64 {
        self.0.bytes
    }

    fn container(&self) -> Container {
        Container::of(redis::IMAGE, &redis::COMMAND, redis::PORT)
    }

    fn dialect(&self) -> Arc<dyn Dialect> {
        Arc::new(Resp)
    }

    fn settle(&self, addr: SocketAddr, _: &[String]) -> Result<Arc<dyn Holdings>> {
        let redis = Redis::at(addr);
        redis.wait_ready(PATIENCE)?;
        // What it is to hold is known without asking it: it is read once, after
        // the run, and compared with what was made up.
        let digest = redis.fill(self.0)?.digest;
        let expected = Expected { digest, server_digest: None, identity: redis.identity()? };
        let mut content = Content::default();
        for entry in self.0.entries().take(READ_KEYS) {
            content.add(entry.key, &entry.value);
        }
        Ok(Arc::new(Held { expected, content: Arc::new(content) }))
    }
}

struct Held {
    expected: Expected,
    content: Arc<Content>,
}

impl Holdings for Held {
    fn content(&self) -> Arc<Content> {
        Arc::clone(&self.content)
    }

    fn changed(&self, addr: SocketAddr) -> Result<Vec<String>> {
        Ok(self.expected.changed(&Expected::ask_once(&Redis::at(addr))?))
    }
}
