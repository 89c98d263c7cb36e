//! A glance: what was written since the last scan or glance, and forgotten.
//!
//! **Why it is sound.** A glance clears pages of mappings that the last scan has
//! looked at and that are still armed (the kernel skips others), and answers
//! every page it has cleared. So the clean pages of the next scan are those that
//! were written neither since nor before, as far as the caller keeps what it was
//! told; see [`Tracker::glance`](crate::track::Tracker::glance). New mappings
//! are left to the next scan, which finds them dirty as a whole.

use super::super::super::TrackError;
use super::super::super::direct_io::DirectIo;
use super::super::super::identity::{Identity, is_gone};
use super::super::super::maps::Mappings;
use super::super::super::resident::Content;
use super::super::super::runs::Runs;
use super::super::walk::{Pace, walk};
use super::Space;
use crate::sys::pagemap::{Pagemap, Query, WRITTEN};
use std::io;

impl Space {
    /// `None` if it cannot be told now: the process is not armed, is not what
    /// it was, or has devices write into its memory.
    pub(in super::super) fn glance(
        &mut self,
        content: Content,
    ) -> Result<Option<Runs>, TrackError> {
        if !self.is_armed() || self.direct_io != DirectIo::None {
            return Ok(None);
        }
        match self.written(content) {
            Ok(written) => Ok(written),
            Err(error) if is_gone(&error) => Ok(None),
            Err(source) => {
                Err(TrackError::Look { what: "glance at the pages", pid: self.pid, source })
            }
        }
    }

    fn written(&mut self, content: Content) -> io::Result<Option<Runs>> {
        // Opened before the look at who it is: it stays with what it was then.
        let mut pagemap = Pagemap::open(self.pid)?;
        if Identity::read(self.pid)? != self.identity {
            return Ok(None);
        }
        let query = Query { all: WRITTEN, ..content.query(true) };
        let mut written = Runs::default();
        let found = |from, to, _| written.push(from, to);
        let walked = walk(&mut pagemap, &self.armed, query, Pace::Considerate, found);
        let direct = walked.and_then(|()| {
            let aio = Mappings::read(self.pid)?.aio;
            DirectIo::of(self.pid, aio)
        });
        match direct {
            Ok(DirectIo::None) => Ok(Some(written)),
            // One that was opened since the last scan may have been at work
            // while pages were cleared: no clean page can be trusted.
            Ok(found) => {
                (self.direct_io, self.distrust) = (found, true);
                Ok(Some(written))
            }
            Err(error) => {
                self.give_back(written.as_slice());
                Err(error)
            }
        }
    }
}
