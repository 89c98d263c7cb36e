//! Pages of the frozen container outside of rounds: those that were asked for,
//! left behind, or written by CRIU.

use super::reading::STRETCH;
use super::sink::{Sink, tallied};
use super::{Pump, PumpError, RoundDone};
use crate::event::{RoundReport, millis};
use crate::plan::Watched;
use crate::sys::sched::Claim;
use crate::track::read::Reader;
use crate::track::runs::Runs;
use crate::track::{Stop, shared};
use blip_transport::encode::RoundTally;
use blip_transport::link::quic::Connection;
use blip_transport::page::{PageAt, PageIndex, PageRun, SpaceId};
use blip_transport::units::{PAGE_SIZE, PageCount, Round};
use std::collections::BTreeMap;
use std::fs::File;
use std::time::Instant;

impl Pump {
    /// Sends the given pages of the frozen container, whatever is known of
    /// them: those the target asked for, or that CRIU left out unexpectedly.
    pub async fn patch(
        self,
        round: Round,
        pages: Vec<PageAt>,
        link: &Connection,
    ) -> Result<(Self, RoundDone), PumpError> {
        let count = PageCount(pages.len() as u64);
        let work = move |pump: &mut Self, out: &Sink| pump.read_again(round, &pages, out);
        self.extra(round, count, link, work).await
    }

    /// Sends every page of the frozen container that the target does not hold,
    /// those dirtied last first. It runs there already: pages that it asks for
    /// are read and sent before these, which get what is left of the processors.
    pub async fn push(
        self,
        round: Round,
        link: &Connection,
    ) -> Result<(Self, RoundDone), PumpError> {
        let owed = self.owed();
        let count = PageCount(owed.iter().map(|(_, runs)| runs.pages().0).sum());
        let mark = |(pump, mut done): (Self, RoundDone)| {
            done.report.pushed = true;
            (pump, done)
        };
        let work = move |pump: &mut Self, out: &Sink| {
            pump.encoder.begin_round(round);
            for (space, runs) in &owed {
                for stretch in runs.stretches(STRETCH) {
                    pump.read(*space, &stretch, Stop::Frozen, out)?;
                }
            }
            Ok(pump.finish(out))
        };
        self.claiming(Claim::Rest, round, count, link, work).await.map(mark)
    }

    pub(super) async fn extra(
        self,
        round: Round,
        count: PageCount,
        link: &Connection,
        work: impl FnOnce(&mut Self, &Sink) -> Result<RoundTally, PumpError> + Send + 'static,
    ) -> Result<(Self, RoundDone), PumpError> {
        self.claiming(Claim::Share, round, count, link, work).await
    }

    async fn claiming(
        self,
        claim: Claim,
        round: Round,
        count: PageCount,
        link: &Connection,
        work: impl FnOnce(&mut Self, &Sink) -> Result<RoundTally, PumpError> + Send + 'static,
    ) -> Result<(Self, RoundDone), PumpError> {
        let begun = Instant::now();
        let (pump, tally, wire) = self.stream(round, claim, link, work).await?;
        let report = RoundReport {
            frozen: true,
            scanned: count,
            dirty: count,
            bytes_wire: wire,
            ms: millis(begun.elapsed()),
            ..tallied(round, &tally)
        };
        let batches = tally.batches;
        Ok((
            pump,
            RoundDone {
                report,
                batches,
                resident: count,
                due: count,
                hot: PageCount(0),
                watched: Watched::default(),
                left: false,
            },
        ))
    }

    /// Sends the pages of images of CRIU's, `count` in all, by name where the
    /// target has their content.
    pub async fn images(
        self,
        round: Round,
        images: Vec<(SpaceId, File)>,
        count: PageCount,
        link: &Connection,
    ) -> Result<(Self, RoundDone), PumpError> {
        let work = move |pump: &mut Self, out: &Sink| {
            pump.encoder.begin_round(round);
            for (space, file) in &images {
                let encoder = &mut pump.encoder;
                let offer = |run, bytes: &[u8]| {
                    encoder.pages(*space, run, bytes);
                    out.take_from(encoder);
                };
                shared::each_page_of(file, offer).map_err(PumpError::Copy)?;
            }
            Ok(pump.finish(out))
        };
        self.extra(round, count, link, work).await
    }

    fn read_again(
        &mut self,
        round: Round,
        pages: &[PageAt],
        out: &Sink,
    ) -> Result<RoundTally, PumpError> {
        self.encoder.begin_round(round);
        for &page in pages {
            self.encoder.resend(page);
            if self.resend_still(page, out)? {
                continue;
            }
            let run = PageRun { start: page.index, count: PageCount(1) };
            let run = Runs::from([run].as_slice());
            self.read(page.space, &run, Stop::Frozen, out)?;
        }
        Ok(self.finish(out))
    }

    /// Reads pages of the frozen container for a target that asks.
    pub fn fetch(&self) -> Fetcher {
        Fetcher { owners: self.books.owners.clone(), reader: Reader::new() }
    }
}

/// Reads single pages of frozen processes.
pub struct Fetcher {
    owners: BTreeMap<SpaceId, i32>,
    reader: Reader,
}

impl Fetcher {
    /// The page's bytes, or `None` if this host has no such page.
    pub fn page(&self, at: PageAt) -> Option<Vec<u8>> {
        let &pid = self.owners.get(&at.space)?;
        let mut bytes = vec![0; PAGE_SIZE];
        let run = PageRun { start: PageIndex(at.index.0), count: PageCount(1) };
        self.reader.read(pid, run, Stop::Frozen, &mut bytes).ok()?;
        Some(bytes)
    }
}
