//! From the freeze to the end: carries out what the pure
//! [`Source`] says, and times the downtime's phases.

pub(crate) mod forward;
mod keep;
mod rest;
mod ship;
mod still;

use super::files::Trees;
use super::freeze::{Frozen, Ready};
use super::peer::Peer;
use super::pump::{Pump, PumpError, RoundDone};
use super::subject::Subject;
use super::{Copied, Ended, MigrateError, Run};
use super::{farewell, resolve};
use crate::docker::never_restart;
use crate::event::{Event, LazyReport, Phase, PhaseTime, TrackingReport, millis};
use crate::external::{Restore, remembered};
use crate::forward::Forward;
use crate::handover::{Outcome, Source, SourceAction, SourceEvent, Ticket, Verdict};
use crate::ledger::{Ledger, SourceRecord};
use crate::network::Neighbour;
use crate::patience::{Hold, silence_limit, until_gone};
use crate::plan::LinkFacts;
use crate::protocol::{ToSource, ToTarget};
use blip_transport::link::quic::Vigil;
use blip_transport::units::{Bandwidth, ByteSize, Round};
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinHandle;

/// How long blip goes on asking a target it has lost after the grant, before it
/// leaves the matter to `blip resolve`.
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);
/// How long the target may take to restore, once it has everything.
const HOLD_LIMIT: Duration = Duration::from_secs(90);
/// A round of fewer bytes tells more of latencies than of the link's rate.
const LINK_SAMPLE: ByteSize = ByteSize(16 << 20);

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
    /// Kept from the freeze until the container runs on the target.
    vigil: Option<Vigil>,
    lazy: LazyReport,
    memory: ByteSize,
    /// What tracking took, once the pump is gone.
    tracking: TrackingReport,
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
            vigil: None,
            lazy: LazyReport::default(),
            memory: ByteSize(0),
            tracking: TrackingReport::default(),
        }
    }

    /// Sees it through; `neighbours` are the container's. `Err`: it was never
    /// frozen, or runs again.
    pub async fn run(
        mut self,
        ready: Ready,
        neighbours: Vec<Neighbour>,
    ) -> Result<Ended, MigrateError> {
        if let Err(error) = self.begin(neighbours).await {
            ready.cancel().await;
            return Err(error);
        }
        let still = match self.stand_still(ready).await {
            Ok(still) => still,
            Err(error) => {
                self.forget_ticket();
                return Err(error);
            }
        };
        if self.copied.throttle.take().is_some() && self.copied.throttled > 0 {
            self.run.events.send(Event::Throttle { percent: 0 });
        }
        self.clock.end(self.run, Phase::Freeze);
        self.on(SourceEvent::Frozen).await;
        if let Err(error) = self.ship(still).await {
            let why = self.silence().unwrap_or_else(|| error.to_string());
            self.on(SourceEvent::Failed(why)).await;
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
            sent = rest::finished(&mut self.pushing) => return self.rest_is_sent(sent).await,
            _ = interrupt.wait_for(|stop| *stop), if !granted => {
                return SourceEvent::Failed("interrupted".into());
            }
            () = tokio::time::sleep(HOLD_LIMIT), if !granted => {
                return SourceEvent::Failed(format!("the target did not hold a restore within {HOLD_LIMIT:?}"));
            }
        };
        match heard {
            Ok(message) => self.heard(message).await,
            Err(error) => {
                SourceEvent::LinkLost(self.silence().unwrap_or_else(|| error.to_string()))
            }
        }
    }

    /// The reason why the link is closed, if it is that nothing was heard.
    fn silence(&self) -> Option<String> {
        let silent = self.vigil.as_ref().is_some_and(Vigil::saw_silence);
        silent.then(|| format!("nothing was heard from the target for {:?}", silence_limit()))
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
                self.vigil = None;
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
            SourceAction::SaveTicket => {
                self.wait_while_held(Hold::Grant).await;
                match self.dismiss_guard() {
                    Ok(()) => Some(SourceEvent::TicketSaved),
                    Err(error) => Some(SourceEvent::Failed(error.to_string())),
                }
            }
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

    /// Only where somebody asks for it; the grant is waited for in the downtime.
    async fn wait_while_held(&self, step: Hold) {
        if let Some(path) = step.file() {
            self.run.note(format!("held: no {} while {path:?} exists", step.name()));
            until_gone(&path).await;
        }
    }

    async fn begin(&mut self, neighbours: Vec<Neighbour>) -> Result<(), MigrateError> {
        if self.subject.keep_addresses {
            self.peer.say(&ToTarget::Neighbours(neighbours)).await?;
        }
        self.save_ticket()
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
        let place = self.subject.addresses.place();
        let (Some(frozen), Some(place)) = (&self.frozen, place) else { return };
        match frozen.forward_in_flight(place.uplink()) {
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
        let record = self.record();
        let forwarder = forward::start(record.forward.as_ref()).await;
        farewell::say(&record);
        self.keep_memory().await;
        if let Some(frozen) = self.frozen.take() {
            frozen.retire(self.subject.closes_here()).await;
        }
        let remove = self.run.order.remove_source;
        if let Err(error) = resolve::put_away(&self.run.docker, &record, remove).await {
            tracing::error!("{error}");
        }
        forward::opened(forwarder, record.forward.as_ref(), Some(&self.run.events)).await;
        if !remove {
            resolve::remember(&self.run.order.state, &record);
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
            files: self.copied.trees.as_ref().map(Trees::report).unwrap_or_default(),
            downtime: self.clock.parts,
            lazy: self.lazy,
            memory: self.memory,
            sent: stats.sent,
            received: stats.received,
            link,
            tracker: self.copied.tracker,
            tracking: self.copied.pump.as_ref().map_or(self.tracking, Pump::tracking),
            forecast: self.copied.forecast,
            foretold: true,
            throttled: self.copied.throttled,
        })
    }

    fn record(&self) -> SourceRecord {
        record(self.run, self.subject, &self.peer, self.ticket)
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
}

/// What `blip resolve` needs to know of a container that leaves.
pub(super) fn record(run: &Run, subject: &Subject, peer: &Peer, ticket: Ticket) -> SourceRecord {
    let inspection = &subject.inspection;
    let target = peer.link.remote_addr().ip().to_canonical();
    let order = &run.order;
    let by_docker = order.restore == Restore::Docker;
    let policy = inspection.all.host_config.as_ref().and_then(|host| host.restart_policy.as_ref());
    SourceRecord {
        ticket,
        container: inspection.id.clone(),
        name: inspection.name.clone(),
        init: subject.init(),
        freezer: subject.freezer.path.clone(),
        unified: subject.freezer.version == crate::cgroup::Version::V2,
        target: order.target.clone(),
        remove_source: order.remove_source,
        close_connections: subject.closes_here(),
        forward: order.forward.map(|time| Forward::of(inspection, ticket, target, time)),
        by_docker: by_docker.then(|| remembered(policy)).flatten(),
        remains: keep::remains(subject),
        at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    }
}
