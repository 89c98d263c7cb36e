//! Pages that the target lacks once it restores: those left behind, which are
//! pushed, and those it asks for.

use super::Handover;
use crate::event::Event;
use crate::handover::SourceEvent;
use crate::protocol::{PageRequest, ToTarget};
use crate::source::pump::{Fetcher, Pump, PumpError, RoundDone};
use crate::target::pages::tag;
use blip_transport::link::quic::Connection;
use blip_transport::page::PageAt;
use blip_transport::units::PAGE_SIZE;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::task::{JoinError, JoinHandle};

impl Handover<'_> {
    /// What was left behind goes after the container without being asked for.
    /// Not before it runs: the restore needs the processors of both hosts.
    pub(super) fn push_the_rest(&mut self) {
        let pump = self.copied.manner.leaves.then(|| self.copied.pump.take()).flatten();
        if let Some(pump) = pump {
            let (round, link) = (self.next_round(), self.peer.link.clone());
            self.pushed = Some(round);
            self.pushing = Some(tokio::spawn(async move { pump.push(round, &link).await }));
        }
    }

    /// The rest is on its way; the target hears that nothing more will come.
    pub(super) async fn rest_is_sent(
        &mut self,
        sent: Result<Result<(Pump, RoundDone), PumpError>, JoinError>,
    ) -> SourceEvent {
        self.pushing = None;
        let done = match sent {
            Ok(Ok((pump, done))) => {
                self.copied.pump = Some(pump);
                done
            }
            // The target asks for what it lacks, one by one, and hears of a
            // link that is gone by itself.
            Ok(Err(error)) => return self.push_failed(error.to_string()),
            Err(error) => return self.push_failed(error.to_string()),
        };
        self.run.events.send(Event::Round(done.report.clone()));
        self.copied.rounds.push(done.report.clone());
        let (round, batches) = (done.report.round, done.batches);
        let said = self.peer.say(&ToTarget::RoundEnd { round, batches }).await;
        said.err().map_or(SourceEvent::Frozen, |error| SourceEvent::LinkLost(error.to_string()))
    }

    fn push_failed(&self, why: String) -> SourceEvent {
        tracing::warn!("the rest of the memory is sent on demand only: {why}");
        if self.machine.past_the_grant() { SourceEvent::Frozen } else { SourceEvent::Failed(why) }
    }

    /// Answers a target that lacks pages. Nothing can change them any more.
    pub(super) fn serve_missing_pages(&self) {
        let Some(pump) = &self.copied.pump else { return };
        tokio::spawn(serve_pages(pump.fetch(), self.peer.link.clone()));
    }

    /// Sends pages the target could make nothing of.
    pub(super) async fn send_whole(&mut self, missing: Vec<PageAt>) -> SourceEvent {
        if missing.is_empty() {
            return SourceEvent::Frozen;
        }
        let sent = self.patch(missing).await;
        sent.err().map_or(SourceEvent::Frozen, |error| SourceEvent::Failed(error.to_string()))
    }
}

/// Waits for a task, for ever if there is none.
pub(super) async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

async fn serve_pages(fetcher: Fetcher, link: Connection) {
    while let Ok(mut stream) = link.accept_urgent().await {
        let replies = stream.replies();
        while let Ok(Some(asked)) = stream.next::<PageRequest>().await {
            let answer = answer(&fetcher, &asked.what);
            if replies.reply(asked.id, answer).await.is_err() {
                return;
            }
        }
    }
}

fn answer(fetcher: &Fetcher, request: &PageRequest) -> Bytes {
    let mut answer =
        BytesMut::with_capacity(request.pages.len().min(PageRequest::LIMIT) * (PAGE_SIZE + 1));
    for &page in request.pages.iter().take(PageRequest::LIMIT) {
        match fetcher.page(page) {
            None => answer.put_u8(tag::GONE),
            Some(bytes) if bytes.iter().all(|&byte| byte == 0) => answer.put_u8(tag::ZERO),
            Some(bytes) => {
                answer.put_u8(tag::DATA);
                answer.extend_from_slice(&bytes);
            }
        }
    }
    answer.freeze()
}
