//! Pipes as large as CRIU's lazy pages want them.
//!
//! It serves each page out of a pipe of 3.2 MiB, and takes no notice if it does not
//! get one: then no page behind the first 64 KiB can be served. Root may make such
//! pipes, unless it lacks `CAP_SYS_RESOURCE`, as in many containers and sandboxes.
//!
//! The limit is the whole machine's. What it was stands in the lab's folder while it
//! is raised, so that a lab whose user was killed puts it back when it goes.

use super::error::Context as _;
use super::paths::Paths;
use super::{Lab, Result};
use std::fs;
use std::io;

/// The largest pipe that may be made without that capability, in bytes.
const LIMIT: &str = "/proc/sys/fs/pipe-max-size";
const WANTED: u64 = 4 << 20;

/// Large pipes may be made while this lives.
#[derive(Debug)]
pub struct LargePipes(Option<Paths>);

impl Lab {
    /// Raises the machine's limit of a pipe, if it is too low.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn allow_large_pipes(&self) -> Result<LargePipes> {
        let before = fs::read_to_string(LIMIT).on("reading", LIMIT)?;
        if before.trim().parse::<u64>().is_ok_and(|limit| limit >= WANTED) {
            return Ok(LargePipes(None));
        }
        let paths = Paths::new(self.name());
        let record = paths.pipe_limit();
        fs::write(&record, before).on("writing", record)?;
        fs::write(LIMIT, WANTED.to_string()).on("raising", LIMIT)?;
        Ok(LargePipes(Some(paths)))
    }
}

impl Drop for LargePipes {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.as_ref().map(put_back) {
            tracing::warn!("the limit of pipes stays raised: {error}");
        }
    }
}

/// Puts back what a lab has raised, if it has.
pub(super) fn put_back(paths: &Paths) -> Result<()> {
    let record = paths.pipe_limit();
    let before = match fs::read_to_string(&record) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.on("reading", &record)?,
    };
    fs::write(LIMIT, before.trim()).on("putting back", LIMIT)?;
    fs::remove_file(&record).on("removing", record)
}
