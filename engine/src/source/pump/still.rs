//! Shared memory of the frozen container: CRIU is kept from it, and what changed
//! since it was sent ahead goes in a round of its own, while the target restores
//! the rest.

use super::sink::{Ahead, Sink};
use super::{Pump, PumpError, RoundDone};
use crate::track::Task;
use crate::track::shared::{Inode, Still};
use blip_transport::link::quic::Connection;
use blip_transport::page::PageAt;
use blip_transport::units::{PageCount, Round};

impl Pump {
    /// Finds the shared objects of `tasks`, which stand still now, that are
    /// [sent](Self::send_still) here, so that CRIU need not look at them.
    pub fn find_still(&mut self, tasks: &[Task]) -> Vec<Inode> {
        self.still = self.shared.still(tasks);
        self.still.iter().map(|object| object.inode).collect()
    }

    /// The objects that were found.
    pub fn still(&self) -> &[Still] {
        &self.still
    }

    /// Sends those of their pages that the target was not sent as they are.
    pub async fn send_still(
        self,
        round: Round,
        link: &Connection,
    ) -> Result<(Self, RoundDone), PumpError> {
        let pages = PageCount(self.still.iter().map(|object| object.pages.pages().0).sum());
        let work = move |pump: &mut Self, out: &Sink| {
            pump.encoder.begin_round(round);
            let mut ahead = Ahead { encoder: &mut pump.encoder, out, offered: PageCount(0) };
            for object in &pump.still {
                object.send(&mut ahead).map_err(PumpError::Shared)?;
            }
            Ok(pump.finish(out))
        };
        let (pump, mut done) = self.extra(round, pages, link, work).await?;
        done.report.dirty = done.report.sent + done.report.zero + done.report.deduplicated;
        Ok((pump, done))
    }

    /// Sends a page of theirs once more, if it is one.
    pub(super) fn resend_still(&mut self, page: PageAt, out: &Sink) -> Result<bool, PumpError> {
        let object = self.still.iter().find(|object| object.space == page.space);
        let Some(object) = object else { return Ok(false) };
        let encoder = &mut self.encoder;
        let mut take = |run, bytes: &[u8]| encoder.pages(page.space, run, bytes);
        object.page(page.index, &mut take).map_err(PumpError::Shared)?;
        out.take_from(encoder);
        Ok(true)
    }
}
