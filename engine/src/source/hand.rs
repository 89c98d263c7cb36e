//! From the freeze to the end: carries out what the pure
//! [`Source`] says, and times the downtime's phases.

use super::freeze::{Frozen, Ready, Still};
use super::gauge::Gauge;
use super::peer::Peer;
use super::pump::{self, Pump, PumpError, RoundDone, Take};
use super::resolve;
use super::subject::Subject;
use super::{Copied, Ended, Manner, MigrateError, Run};
use crate::docker::never_restart;
use crate::event::{Event, LazyReport, Phase, PhaseTime, millis};
use crate::handover::{Outcome, Source, SourceAction, SourceEvent, Ticket, Verdict};
use crate::lazy::LazyPlan;
use crate::ledger::{Ledger, SourceRecord};
use crate::plan::LinkFacts;
use crate::protocol::{MissingPages, PageRequest, RestoreRequest, StoredImage, ToSource, ToTarget};
use crate::target::intake::{INVENTORY, LOG};
use crate::target::pages::tag;
use crate::throttle::Throttle;
use crate::track::runs::Runs;
use crate::track::shared::image_space;
use crate::track::{Stop, Task};
use blip_transport::files::Pace;
use blip_transport::link::quic::{BlobName, Connection, Priority};
use blip_transport::page::PageAt;
use blip_transport::units::{Bandwidth, ByteSize, PAGE_SIZE, PageCount, Round};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::{JoinError, JoinHandle};

/// How long blip goes on asking a target it has lost after the grant, before it
/// leaves the matter to `blip resolve`.
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);
/// How long the target may take to restore, once it has everything.
const HOLD_LIMIT: Duration = Duration::from_secs(90);
/// A round of fewer bytes tells more of latencies than of the link's rate.
const LINK_SAMPLE: ByteSize = ByteSize(16 << 20);
/// Images that stay here.
const NOT_SENT: [&str; 3] = ["dump.log", "criu.conf", "descriptors.json"];

/// One handover on its way.
pub struct Handover<'a> {
    run: &'a Run,
    subject: &'a Subject,
    peer: Peer,
    ticket: Ticket,
    copied: Copied,
    machine: Source,
    frozen: Option<Frozen>,
    /// Rounds the target has not confirmed yet.
    unconfirmed: u32,
    held: bool,
    /// Sends what was left behind, once the container runs.
    pushing: Option<JoinHandle<Result<(Pump, RoundDone), PumpError>>>,
    /// The round it is sent in.
    pushed: Option<Round>,
    clock: Clock,
    lazy: LazyReport,
    memory: ByteSize,
}

/// Cuts the downtime into its phases.
struct Clock {
    last: Instant,
    parts: Vec<PhaseTime>,
    /// The memory is being put into the restored processes.
    filling: bool,
}

impl Clock {
    fn end(&mut self, run: &Run, phase: Phase) {
        let now = Instant::now();
        let ms = millis(now - self.last);
        self.last = now;
        self.parts.push(PhaseTime { phase, ms });
        run.events.send(Event::End { phase, ms });
    }
}

impl<'a> Handover<'a> {
    /// A handover of what has been copied ahead.
    pub fn new(
        run: &'a Run,
        subject: &'a Subject,
        peer: Peer,
        ticket: Ticket,
        copied: Copied,
    ) -> Self {
        Self {
            run,
            subject,
            peer,
            ticket,
            copied,
            machine: Source::Running,
            frozen: None,
            unconfirmed: 0,
            held: false,
            pushing: None,
            pushed: None,
            clock: Clock { last: Instant::now(), parts: Vec::new(), filling: false },
            lazy: LazyReport::default(),
            memory: ByteSize(0),
        }
    }

    /// Sees it through. `Err`: the container was never frozen, or runs again.
    pub async fn run(mut self, ready: Ready) -> Result<Ended, MigrateError> {
        if let Err(error) = self.save_ticket() {
            ready.cancel().await;
            return Err(error);
        }
        // A duty cycle would thaw what is about to be frozen.
        if let Some(Err(error)) = self.copied.throttle.as_mut().map(Throttle::before_freeze) {
            ready.cancel().await;
            self.forget_ticket();
            return Err(error.into());
        }
        self.clock.last = Instant::now();
        self.run.events.send(Event::Begin { phase: Phase::Freeze });
        let still = match ready.freeze().await {
            Ok(still) => still,
            Err(error) => {
                self.forget_ticket();
                return Err(error.into());
            }
        };
        self.give_back_the_cpu();
        self.clock.end(self.run, Phase::Freeze);
        self.on(SourceEvent::Frozen).await;
        if let Err(error) = self.ship(still).await {
            self.on(SourceEvent::Failed(error.to_string())).await;
        }
        let mut interrupt = self.run.order.interrupt.clone();
        while self.machine.outcome().is_none() {
            let event = self.next_event(&mut interrupt).await;
            self.on(event).await;
        }
        if let Source::InDoubt { .. } = self.machine {
            self.ask_what_became_of_it().await;
        }
        self.finish().await
    }

    /// Frozen it writes nothing, and CRIU must not take the low limit for the
    /// container's own.
    fn give_back_the_cpu(&mut self) {
        if let Some(mut throttle) = self.copied.throttle.take() {
            match throttle.lift() {
                Ok(()) if self.copied.throttled > 0 => {
                    self.run.events.send(Event::Throttle { percent: 0 });
                }
                Ok(()) => {}
                Err(error) => tracing::error!("{error}"),
            }
        }
    }

    /// Dumps and sends everything the target needs, and orders the restore.
    async fn ship(&mut self, still: Still) -> Result<(), MigrateError> {
        let tasks = self.subject.tasks()?;
        let round = self.next_round();
        let trees = self.copied.trees.take();
        let link = self.peer.link.clone();
        let pump = self.take_pump()?;
        let gauge = Gauge::default();
        let order = self.frozen_round(round, &tasks);
        let _interrupted = self.cut_short_at_interrupt(&gauge);
        // CRIU writes its images while the last pages are on their way.
        // Everything the scan reads stands still.
        let (frozen, pages) = tokio::join!(still.dump(&tasks), pump.round(order, &gauge, &link),);
        // First of all what the way back needs.
        self.frozen = Some(frozen?);
        tracing::debug!(since_freeze = ?self.clock.last.elapsed(), "dumped, last pages read");
        let (pump, done) = pages?;
        self.copied.pump = Some(pump);
        if *self.run.order.interrupt.borrow() {
            return Err(MigrateError::Interrupted);
        }
        self.confirm(round, done.batches).await?;
        self.copied.rounds.push(done.report.clone());
        self.run.events.send(Event::Round(done.report));
        // After the dump: CRIU gives deleted files that are open a name again.
        if let Some(trees) = trees {
            let (trees, _) = trees.round(Pace::Frozen, &link).await?;
            self.peer.say(&ToTarget::FilesEnd { streams: trees.streams() }).await?;
            self.unconfirmed += 1;
            // Kept: to let go of the kernel's write log takes tens of milliseconds.
            self.copied.trees = Some(trees);
            tracing::debug!(since_freeze = ?self.clock.last.elapsed(), "files sent");
        }
        self.copy_what_criu_touched(tasks).await?;
        tracing::debug!(since_freeze = ?self.clock.last.elapsed(), "looked at again");
        self.clock.end(self.run, Phase::Dump);
        let request = self.complete().await?;
        self.serve_missing_pages();
        self.send_images(request).await?;
        self.clock.end(self.run, Phase::Ship);
        Ok(())
    }

    /// CRIU has run code in the tasks and put everything back; pages it wrote
    /// to on the way count as written.
    async fn copy_what_criu_touched(&mut self, tasks: Vec<Task>) -> Result<(), MigrateError> {
        let round = self.next_round();
        let link = self.peer.link.clone();
        let order = self.frozen_round(round, &tasks);
        let (pump, done) = self.take_pump()?.round(order, &Gauge::default(), &link).await?;
        self.copied.pump = Some(pump);
        self.confirm(round, done.batches).await
    }

    /// The last scan and what becomes of the pages it finds.
    fn frozen_round(&self, round: Round, tasks: &[Task]) -> pump::Order {
        let take = if self.copied.manner.leaves { Take::Nothing } else { Take::All };
        pump::Order { round, tasks: tasks.to_vec(), stop: Stop::Frozen, take }
    }

    /// Ends a long last round if the user has had enough.
    fn cut_short_at_interrupt(&self, gauge: &Gauge) -> AbortOnDrop {
        let (gauge, mut interrupt) = (gauge.clone(), self.run.order.interrupt.clone());
        AbortOnDrop(tokio::spawn(async move {
            if interrupt.wait_for(|stop| *stop).await.is_ok() {
                gauge.cut_short();
            }
        }))
    }

    /// Every page that the images leave out must be with the target, unless it
    /// is to follow: what CRIU calls lazy, or was kept from seeing, and the
    /// target does not hold is read now.
    async fn complete(&mut self) -> Result<RestoreRequest, MigrateError> {
        let images = self.images()?;
        let mut plan = LazyPlan::from_images(&images)
            .map_err(|e| MigrateError::Target(format!("CRIU's images are unusable: {e}")))?;
        self.add_hidden(&mut plan)?;
        let pump = self.copied.pump.as_ref();
        let absent: Vec<_> = plan
            .tasks()
            .flat_map(|(space, task)| {
                pump.map(|pump| pump.absent(space, &task.missing)).unwrap_or_default()
            })
            .collect();
        let tasks = plan
            .tasks()
            .map(|(space, task)| MissingPages {
                space,
                missing: task.missing.clone(),
                wiped_on_fork: task.wiped_on_fork.clone(),
                hot: pump.map(|pump| pump.hot(space)).unwrap_or_default(),
            })
            .collect();
        self.memory = plan.pages().bytes();
        let Manner { leaves, resident } = self.copied.manner;
        if !leaves && !absent.is_empty() {
            tracing::debug!(pages = absent.len(), "pages only CRIU knew of");
            self.patch(absent).await?;
        }
        let stored = self.send_page_images().await?;
        Ok(RestoreRequest { tasks, images: 0, stored, resident, pushed: leaves })
    }

    /// Images of pages go as pages: what was sent ahead of them goes by name.
    async fn send_page_images(&mut self) -> Result<Vec<StoredImage>, MigrateError> {
        let directory = self.images()?;
        let state = |source| MigrateError::State { path: directory.clone(), source };
        let (mut stored, mut files) = (Vec::new(), Vec::new());
        for (number, path) in page_images(&directory).map_err(state)? {
            let file = File::open(&path).map_err(state)?;
            let pages = PageCount(file.metadata().map_err(state)?.len() / PAGE_SIZE as u64);
            let space = image_space(number);
            stored.push(StoredImage { number, space, pages });
            files.push((space, file));
        }
        if !files.is_empty() {
            let round = self.next_round();
            let link = self.peer.link.clone();
            let (pump, done) = self.take_pump()?.images(round, files, &link).await?;
            self.copied.pump = Some(pump);
            let (raw, wire) = (done.report.dirty.bytes(), done.report.bytes_wire);
            let text = format!("images hold {} bytes of pages, {} crossed the link", raw.0, wire.0);
            self.run.events.send(Event::Note { text });
            self.confirm(round, done.batches).await?;
        }
        Ok(stored)
    }

    /// The pages that CRIU was kept from seeing are those the last scan found.
    fn add_hidden(&self, plan: &mut LazyPlan) -> Result<(), MigrateError> {
        let hidden = self.frozen.iter().flat_map(|frozen| &frozen.hidden);
        for (space, hidden) in hidden {
            let resident = self.copied.pump.as_ref().and_then(|pump| pump.resident().get(space));
            // Its pages would be nowhere.
            let resident = resident.ok_or_else(|| {
                MigrateError::Target(format!("the last scan did not see process {}", space.0))
            })?;
            let added = Runs::from(resident.as_slice()).intersect(hidden);
            if !plan.add(*space, &added) {
                let what = format!("CRIU's images do not hold process {}", space.0);
                return Err(MigrateError::Target(what));
            }
        }
        Ok(())
    }

    async fn patch(&mut self, pages: Vec<PageAt>) -> Result<(), MigrateError> {
        let round = self.next_round();
        let link = self.peer.link.clone();
        let (pump, done) = self.take_pump()?.patch(round, pages, &link).await?;
        self.copied.pump = Some(pump);
        self.confirm(round, done.batches).await
    }

    async fn send_images(&mut self, mut request: RestoreRequest) -> Result<(), MigrateError> {
        let directory = self.images()?;
        let mut blobs = self
            .peer
            .link
            .open_blobs(Priority::AHEAD)
            .await
            .map_err(super::peer::PeerError::from)?;
        if let (Some(log), Some(name)) = (&mut self.copied.log, BlobName::new(LOG)) {
            let added = log.added();
            blobs.send_file(&name, added).await.map_err(super::peer::PeerError::from)?;
        }
        for (name, bytes) in read_images(&directory)? {
            blobs.send_file(&name, bytes).await.map_err(super::peer::PeerError::from)?;
            request.images += 1;
        }
        blobs.finish();
        self.peer.say(&ToTarget::Restore(request)).await?;
        self.run.events.send(Event::Begin { phase: Phase::Restore });
        Ok(())
    }

    /// What was left behind goes after the container without being asked for.
    /// Not before it runs: the restore needs the processors of both hosts.
    fn push_the_rest(&mut self) {
        let pump = self.copied.manner.leaves.then(|| self.copied.pump.take()).flatten();
        if let Some(pump) = pump {
            let (round, link) = (self.next_round(), self.peer.link.clone());
            self.pushed = Some(round);
            self.pushing = Some(tokio::spawn(async move { pump.push(round, &link).await }));
        }
    }

    /// The rest is on its way; the target hears that nothing more will come.
    async fn rest_is_sent(
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
    fn serve_missing_pages(&self) {
        let Some(pump) = &self.copied.pump else { return };
        tokio::spawn(serve_pages(pump.fetch(), self.peer.link.clone()));
    }

    async fn next_event(
        &mut self,
        interrupt: &mut tokio::sync::watch::Receiver<bool>,
    ) -> SourceEvent {
        if self.held && self.unconfirmed == 0 && self.machine == Source::Shipping {
            let phase = if self.clock.filling { Phase::Fill } else { Phase::Restore };
            self.clock.end(self.run, phase);
            return SourceEvent::Held;
        }
        let granted = self.machine.past_the_grant();
        let heard = tokio::select! {
            heard = self.peer.hear() => heard,
            sent = finished(&mut self.pushing) => return self.rest_is_sent(sent).await,
            _ = interrupt.wait_for(|stop| *stop), if !granted => {
                return SourceEvent::Failed("interrupted".into());
            }
            () = tokio::time::sleep(HOLD_LIMIT), if !granted => {
                return SourceEvent::Failed(format!("the target did not hold a restore within {HOLD_LIMIT:?}"));
            }
        };
        match heard {
            Ok(message) => self.heard(message).await,
            Err(error) => SourceEvent::LinkLost(error.to_string()),
        }
    }

    /// What the target's message means for the protocol. A message that means
    /// nothing to it is repeated as an event that changes nothing.
    async fn heard(&mut self, message: ToSource) -> SourceEvent {
        match message {
            ToSource::RoundApplied { round, missing } if Some(round) == self.pushed => {
                self.pushed = None;
                self.send_whole(missing).await
            }
            ToSource::RoundApplied { .. } | ToSource::FilesApplied { .. }
                if self.unconfirmed == 0 =>
            {
                SourceEvent::Failed("the target confirmed a round twice".into())
            }
            ToSource::RoundApplied { missing, .. } => {
                self.unconfirmed -= 1;
                self.send_whole(missing).await
            }
            ToSource::FilesApplied { .. } => {
                self.unconfirmed -= 1;
                SourceEvent::Frozen
            }
            ToSource::Filling => {
                self.clock.end(self.run, Phase::Restore);
                self.clock.filling = true;
                self.run.events.send(Event::Begin { phase: Phase::Fill });
                SourceEvent::Frozen
            }
            ToSource::Held => {
                self.held = true;
                SourceEvent::Frozen
            }
            ToSource::Resumed => {
                self.clock.end(self.run, Phase::Grant);
                self.send_late_frames();
                self.push_the_rest();
                self.run.events.send(Event::Begin { phase: Phase::Drain });
                SourceEvent::Resumed
            }
            ToSource::Drained(report) => {
                self.lazy = report;
                SourceEvent::Drained
            }
            // Past the grant the target says so only if it never ran.
            ToSource::Failed { .. } if self.machine.past_the_grant() => {
                SourceEvent::Verdict(Verdict::NeverRan)
            }
            ToSource::Failed { why } => SourceEvent::Failed(why),
            other => SourceEvent::Failed(format!("the target answered out of turn: {other:?}")),
        }
    }

    /// Sends pages the target could make nothing of.
    async fn send_whole(&mut self, missing: Vec<PageAt>) -> SourceEvent {
        if missing.is_empty() {
            return SourceEvent::Frozen;
        }
        let sent = self.patch(missing).await;
        sent.err().map_or(SourceEvent::Frozen, |error| SourceEvent::Failed(error.to_string()))
    }

    async fn on(&mut self, event: SourceEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.machine.on(event) {
                events.extend(self.act(action).await);
            }
        }
    }

    /// Carries out an action; what comes of it at once is the next event.
    async fn act(&mut self, action: SourceAction) -> Option<SourceEvent> {
        match action {
            SourceAction::Thaw => {
                if let Some(frozen) = self.frozen.take() {
                    frozen.thaw().await;
                }
                None
            }
            // It is on disk since before the freeze: a disk that is slow to
            // sync costs no downtime. The guard must be gone before the grant.
            SourceAction::SaveTicket => match self.dismiss_guard() {
                Ok(()) => Some(SourceEvent::TicketSaved),
                Err(error) => Some(SourceEvent::Failed(error.to_string())),
            },
            SourceAction::SendGrant => {
                self.run.events.send(Event::Begin { phase: Phase::Grant });
                let said = self.peer.say(&ToTarget::Grant(self.ticket)).await;
                said.err().map(|error| SourceEvent::LinkLost(error.to_string()))
            }
            SourceAction::SendAbort => {
                let why = format!("{:?}", self.machine);
                // A link that hangs must not prolong the freeze.
                let abort = ToTarget::Abort { why };
                let say = self.peer.say(&abort);
                let _ = tokio::time::timeout(Duration::from_millis(20), say).await;
                None
            }
            SourceAction::Retire => {
                self.retire().await;
                None
            }
        }
    }

    fn save_ticket(&self) -> Result<(), MigrateError> {
        let state = |source| MigrateError::State { path: self.run.order.state.clone(), source };
        self.ledger()?.save(self.ticket, &self.record()).map_err(state)
    }

    fn forget_ticket(&self) {
        // What stays is answered by `blip resolve`: it never ran there.
        let _ = self.ledger().map(|ledger| ledger.remove(self.ticket));
    }

    fn dismiss_guard(&mut self) -> std::io::Result<()> {
        self.frozen.as_mut().map_or(Ok(()), Frozen::dismiss_guard)
    }

    /// What clients sent during the downtime reaches the container late, not
    /// never.
    fn send_late_frames(&self) {
        let (Some(frozen), [parent]) = (&self.frozen, &self.subject.parents[..]) else { return };
        match frozen.forward_in_flight(parent) {
            Ok(count) => tracing::debug!(count, "frames sent on"),
            Err(error) => tracing::warn!("frames in flight are lost, clients repeat them: {error}"),
        }
    }

    /// Docker must not start it again, and then it ends.
    async fn retire(&mut self) {
        let id = &self.subject.inspection.id;
        if let Err(error) = self.run.docker.set_restart_policy(id, never_restart()).await {
            tracing::error!("{error}");
        }
        if let Some(frozen) = self.frozen.take() {
            frozen.retire().await;
        }
        let remove = self.run.order.remove_source;
        if let Err(error) = resolve::put_away(&self.run.docker, &self.record(), remove).await {
            tracing::error!("{error}");
        }
        if !remove {
            resolve::remember(&self.run.order.state, &self.record());
        }
        self.forget_ticket();
        let _ = self.peer.say(&ToTarget::Retired).await;
    }

    /// The link broke after the grant: a new connection may tell.
    async fn ask_what_became_of_it(&mut self) {
        let until = Instant::now() + RESOLVE_LIMIT;
        while Instant::now() < until && matches!(self.machine, Source::InDoubt { .. }) {
            let order = &self.run.order;
            match resolve::ask(&order.target, &order.identity, self.ticket).await {
                Ok(Some(Verdict::Lost)) => {
                    return self.on(SourceEvent::Verdict(Verdict::Lost)).await;
                }
                Ok(Some(verdict)) => self.on(SourceEvent::Verdict(verdict)).await,
                Ok(None) | Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn finish(mut self) -> Result<Ended, MigrateError> {
        let outcome = self.machine.outcome().unwrap_or(Outcome::Moved);
        if let Outcome::Kept { .. } = outcome {
            self.forget_ticket();
        }
        if let Some(frozen) = self.frozen.take() {
            frozen.leave();
        }
        let stats = self.peer.link.stats();
        let link = LinkFacts { rtt: stats.rtt, bandwidth: self.observed_bandwidth() };
        self.peer.part().await;
        Ok(Ended {
            outcome,
            rounds: self.copied.rounds,
            downtime: self.clock.parts,
            lazy: self.lazy,
            memory: self.memory,
            sent: stats.sent,
            link,
            tracker: self.copied.tracker,
            forecast: self.copied.forecast,
            throttled: self.copied.throttled,
        })
    }

    fn record(&self) -> SourceRecord {
        let inspection = &self.subject.inspection;
        SourceRecord {
            ticket: self.ticket,
            container: inspection.id.clone(),
            name: inspection.name.clone(),
            init: self.subject.init(),
            freezer: self.subject.freezer.path.clone(),
            unified: self.subject.freezer.version == crate::cgroup::Version::V2,
            target: self.run.order.target.clone(),
            remove_source: self.run.order.remove_source,
            at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        }
    }

    /// What the link carried in the longest round. A round that the container
    /// or this host held up, and a user's limit, say nothing of the link.
    fn observed_bandwidth(&self) -> Option<Bandwidth> {
        let longest = self.copied.rounds.iter().max_by_key(|round| round.bytes_wire)?;
        let took = Duration::from_secs_f64(longest.ms / 1e3);
        let enough = longest.bytes_wire >= LINK_SAMPLE && self.run.order.goal.bandwidth.is_none();
        enough.then(|| Bandwidth::over(longest.bytes_wire, took))
    }

    fn ledger(&self) -> Result<Ledger, MigrateError> {
        let path = self.run.order.state.join("departures");
        Ledger::open(&path).map_err(|source| MigrateError::State { path, source })
    }

    fn images(&self) -> Result<std::path::PathBuf, MigrateError> {
        let frozen = self.frozen.as_ref();
        frozen.map(|frozen| frozen.images.clone()).ok_or(MigrateError::Interrupted)
    }

    async fn confirm(&mut self, round: Round, batches: u32) -> Result<(), MigrateError> {
        self.peer.say(&ToTarget::RoundEnd { round, batches }).await?;
        self.unconfirmed += 1;
        Ok(())
    }

    /// The pump is lost with the round that failed.
    fn take_pump(&mut self) -> Result<Pump, MigrateError> {
        let lost = || MigrateError::Target("an earlier round had failed".into());
        self.copied.pump.take().ok_or_else(lost)
    }

    fn next_round(&mut self) -> Round {
        let round = self.copied.next;
        self.copied.next = round.next();
        round
    }
}

/// A helping task that ends with whoever started it.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for a task, for ever if there is none.
async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

/// The number in the name of an image of pages.
fn page_image(name: &str) -> Option<u32> {
    name.strip_prefix("pages-")?.strip_suffix(".img")?.parse().ok()
}

/// The images of pages.
fn page_images(directory: &Path) -> std::io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if let Some(number) = entry.file_name().to_str().and_then(page_image) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Every image but those, the inventory last: it lets the waiting restore go on.
fn read_images(directory: &Path) -> Result<Vec<(BlobName, Bytes)>, MigrateError> {
    let state = |source| MigrateError::State { path: directory.into(), source };
    let mut images = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(state)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if NOT_SENT.contains(&name.as_str()) || name == LOG || page_image(&name).is_some() {
            continue;
        }
        let Some(blob) = BlobName::new(&name) else { continue };
        images.push((blob, std::fs::read(entry.path()).map_err(state)?.into()));
    }
    images.sort_by_key(|(name, _)| name.as_str() == INVENTORY);
    Ok(images)
}

async fn serve_pages(fetcher: super::pump::Fetcher, link: Connection) {
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

fn answer(fetcher: &super::pump::Fetcher, request: &PageRequest) -> Bytes {
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
