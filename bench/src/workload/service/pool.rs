//! A pool of worker processes: one that takes requests, and others that do the
//! work, each with memory of its own that it rewrites all the time.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;

use super::web::{IMAGE, Itself, PORT, told};
use super::{Container, Holdings, Service, ready};
use crate::probe::dialect::Dialect;
use crate::probe::dialect::http::Http;

/// The pool, on the command line like the web application.
const PROGRAM: &str = include_str!("pool.py");

/// A pool.
#[derive(Clone, Copy, Debug)]
pub struct WorkerPool {
    /// How many workers.
    pub workers: u16,
    /// Bytes of memory of all of them together.
    pub bytes: u64,
}

impl Service for WorkerPool {
    fn describe(&self) -> String {
        let size = blip_transport::units::ByteSize(self.bytes);
        format!("pool of {} worker processes with {size} in all", self.workers)
    }

    fn memory(&self) -> u64 {
        self.bytes
    }

    fn container(&self) -> Container {
        let (workers, bytes) = (self.workers.to_string(), self.bytes.to_string());
        Container::of(IMAGE, &["python3", "-c", PROGRAM, &workers, &bytes], PORT)
    }

    fn dialect(&self) -> Arc<dyn Dialect> {
        Arc::new(Http)
    }

    fn most_requests(&self) -> Option<u32> {
        Some(200)
    }

    fn settle(&self, addr: SocketAddr, _: &[String]) -> Result<Arc<dyn Holdings>> {
        ready(&Http, addr, &Http.read("self"))?;
        Ok(Arc::new(Itself(told(addr)?)))
    }
}
