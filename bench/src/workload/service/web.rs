//! A web application in Python: a thread for each connection, sessions and a
//! cache in its memory, nothing on disk.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, anyhow};

use super::{Container, Holdings, Service, again, ready};
use crate::probe::dialect::Dialect;
use crate::probe::dialect::http::Http;

/// The image both applications run in.
pub(super) const IMAGE: &str = "blip/python:latest";

/// Where they listen.
pub(super) const PORT: u16 = 8000;

/// The application; handed over on the command line, so that it needs no image
/// of its own.
const PROGRAM: &str = include_str!("web.py");

/// An application with this many bytes in its cache.
#[derive(Clone, Copy, Debug)]
pub struct WebApp {
    /// Bytes of its cache.
    pub bytes: u64,
}

impl Service for WebApp {
    fn describe(&self) -> String {
        format!("Python web app with {} cached", blip_transport::units::ByteSize(self.bytes))
    }

    fn memory(&self) -> u64 {
        self.bytes
    }

    fn container(&self) -> Container {
        let bytes = self.bytes.to_string();
        Container::of(IMAGE, &["python3", "-c", PROGRAM, &bytes], PORT)
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

/// What an application says of itself: which process it is, and the digest of
/// what it holds, worked out when it is asked.
pub(super) struct Itself(pub(super) String);

impl Holdings for Itself {
    fn changed(&self, addr: SocketAddr) -> Result<Vec<String>> {
        let (before, now) = (&self.0, told(addr)?);
        if *before == now {
            return Ok(Vec::new());
        }
        Ok(vec![format!("the application says `{}`, and before `{}`", now.trim(), before.trim())])
    }
}

/// What it says of itself now.
pub(super) fn told(addr: SocketAddr) -> Result<String> {
    let said = again(&Http, addr)?.ask(&Http.read("self"));
    match said.map_err(|why| anyhow!("asking the application at {addr}: {why}"))? {
        crate::probe::dialect::Answer::Content(text) => {
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        other => Err(anyhow!("the application at {addr} says {other:?}")),
    }
}
