//! The memory writer, which checks itself.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};

use super::{Container, Holdings, PATIENCE, Service};
use crate::probe::dialect::Dialect;
use crate::probe::dialect::resp::Resp;
use crate::workload::redis::Identity;
use crate::workload::writer::client::{PORT, Writer};
use crate::workload::writer::{Stats, WriterSpec};

/// The image that holds it; the lab makes it of this program.
pub const IMAGE: &str = "blip/writer:latest";

/// A writer of these habits.
#[derive(Clone, Copy, Debug)]
pub struct MemoryWriter(pub WriterSpec);

impl Service for MemoryWriter {
    fn describe(&self) -> String {
        format!("memory writer `{}`", self.0.words().join(" "))
    }

    fn memory(&self) -> u64 {
        self.0.size
    }

    fn container(&self) -> Container {
        let mut container = Container::of(IMAGE, &["blip-bench", "writer"], PORT);
        container.command.extend(self.0.words());
        container
    }

    fn dialect(&self) -> Arc<dyn Dialect> {
        Arc::new(Resp)
    }

    fn settle(&self, addr: SocketAddr, _: &[String]) -> Result<Arc<dyn Holdings>> {
        let writer = Writer::at(addr);
        writer.wait_ready(PATIENCE)?;
        ensure!(writer.check()?.bad == 0, "the writer is wrong before anything moved");
        Ok(Arc::new(Process(writer.identity()?)))
    }
}

/// Which process it was.
struct Process(Identity);

impl Holdings for Process {
    fn changed(&self, addr: SocketAddr) -> Result<Vec<String>> {
        let writer = Writer::at(addr);
        let mut all = writer.check()?.objections();
        if writer.identity()? != self.0 {
            all.push("another server process answers: it was restarted, not moved".to_owned());
        }
        Ok(all)
    }

    fn stats(&self, addr: SocketAddr) -> Option<Stats> {
        // Whether it answers is found out by others.
        Writer::at(addr).stats().ok()
    }
}
