//! Pipes as large as CRIU's lazy pages want them.
//!
//! It serves each page out of a pipe of 3.2 MiB, and takes no notice if it does not
//! get one: then no page behind the first 64 KiB can be served. Root may make such
//! pipes, unless it lacks `CAP_SYS_RESOURCE`, as in many containers and sandboxes.

use std::fs;

use anyhow::{Context as _, Result};

/// The largest pipe that may be made without that capability, in bytes.
const LIMIT: &str = "/proc/sys/fs/pipe-max-size";
const WANTED: u64 = 4 << 20;

/// Large pipes may be made while this lives.
pub(super) struct LargePipes(Option<u64>);

impl LargePipes {
    /// Raises the machine's limit, if it is too low.
    pub(super) fn allow() -> Result<Self> {
        let text = fs::read_to_string(LIMIT).context("reading the limit of pipes")?;
        let before = text.trim().parse().context("the limit of pipes is a number")?;
        if before >= WANTED {
            return Ok(Self(None));
        }
        fs::write(LIMIT, WANTED.to_string()).with_context(|| format!("raising {LIMIT}"))?;
        Ok(Self(Some(before)))
    }
}

impl Drop for LargePipes {
    fn drop(&mut self) {
        if let Some(before) = self.0
            && let Err(error) = fs::write(LIMIT, before.to_string())
        {
            tracing::warn!("{LIMIT} stays at {WANTED}, it was {before}: {error}");
        }
    }
}
