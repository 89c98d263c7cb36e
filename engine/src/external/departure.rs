//! The source's side.

use super::{checkpoint, directory, docker, start};
use crate::docker::{Docker, never_restart};
use crate::event::{FilesReport, Forecast, LazyReport, Phase, PhaseTime, TrackingReport, millis};
use crate::guard::{Charge, Guard};
use crate::handover::{Outcome, Source, SourceAction, SourceEvent, Verdict};
use crate::ledger::{Ledger, SourceRecord};
use crate::plan::{LinkFacts, Method};
use crate::protocol::{RestoreOrder, ToSource, ToTarget};
use crate::source::files::{Log, Trees};
use crate::source::hand::forward;
use crate::source::peer::{Peer, PeerError};
use crate::source::subject::Subject;
use crate::source::{Ended, MigrateError, Run, resolve};
use crate::target::intake::{INVENTORY, LOG};
use blip_transport::files::Pace;
use blip_transport::link::quic::{BlobName, Priority};
use blip_transport::units::ByteSize;
use bollard::models::RestartPolicy;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long blip goes on asking a target it has lost after the grant.
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);

/// One container on its way out.
pub struct Departure<'a> {
    run: &'a Run,
    subject: &'a Subject,
    peer: Peer,
    record: SourceRecord,
    ledger: Ledger,
    checkpoint: PathBuf,
    machine: Source,
    guard: Option<Guard>,
    begun: Instant,
    parts: Vec<PhaseTime>,
    memory: ByteSize,
    files: FilesReport,
    /// Why it could not be started again here, if it could not.
    stranded: Option<String>,
}

impl<'a> Departure<'a> {
    /// A departure of `subject`, which the target is ready for.
    pub async fn new(
        run: &'a Run,
        subject: &'a Subject,
        peer: Peer,
        record: SourceRecord,
    ) -> Result<Self, MigrateError> {
        let path = run.state().join("departures");
        let ledger = Ledger::open(&path).map_err(|source| MigrateError::State { path, source })?;
        let root = run.docker().root().await?;
        let checkpoint = directory(&root, &record.container, record.ticket);
        Ok(Self {
            run,
            subject,
            peer,
            record,
            ledger,
            checkpoint,
            machine: Source::Running,
            guard: None,
            begun: Instant::now(),
            parts: Vec::new(),
            memory: ByteSize(0),
            files: FilesReport::default(),
            stranded: None,
        })
    }

    /// Sees it through. `Err`: the container has not been stopped.
    pub async fn run(mut self) -> Result<Ended, MigrateError> {
        let trees = Trees::open(self.subject, BTreeMap::new())?;
        let (trees, _) =
            self.run.phase(Phase::PreCopy, trees.round(Pace::Live, &self.peer.link)).await?;
        self.files_applied(trees.streams()).await?;
        let log = Log::of(self.subject.inspection.all.log_path.as_deref());
        self.freeze().await?;
        let event = match self.ship(trees, log).await {
            Ok(()) => SourceEvent::Held,
            Err(error) => SourceEvent::Failed(error.to_string()),
        };
        self.end(Phase::Ship);
        self.on(event).await;
        while self.machine.outcome().is_none() {
            let event = match self.peer.hear().await {
                Ok(ToSource::Resumed) => {
                    self.end(Phase::Grant);
                    SourceEvent::Resumed
                }
                Ok(ToSource::Drained(_)) => SourceEvent::Drained,
                Ok(ToSource::Failed { why }) => {
                    self.run.note(format!("the target could not start it: {why}"));
                    SourceEvent::Verdict(Verdict::NeverRan)
                }
                Ok(other) => SourceEvent::LinkLost(format!("the target said {other:?}")),
                Err(error) => SourceEvent::LinkLost(error.to_string()),
            };
            self.on(event).await;
        }
        if let Source::InDoubt { .. } = self.machine {
            self.ask_what_became_of_it().await;
        }
        self.finish().await
    }

    /// Ends the container with a checkpoint. The record is first: whatever
    /// becomes of blip, `blip resolve` knows how to start it again.
    async fn freeze(&mut self) -> Result<(), MigrateError> {
        let state = |source| MigrateError::State { path: "the ledger".into(), source };
        self.ledger.save(self.record.ticket, &self.record).map_err(state)?;
        let id = self.record.container.clone();
        let policy = self.run.docker().set_restart_policy(&id, never_restart()).await;
        let charge = Charge::Stopped { container: id.clone(), checkpoint: self.checkpoint.clone() };
        self.guard = Guard::start(&charge, &[]).ok();
        self.begun = Instant::now();
        let done = match policy {
            Ok(()) => docker(&["checkpoint", "create", &id, &checkpoint(self.record.ticket)]).await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = done {
            // CRIU lets go of a container that it cannot dump.
            self.dismiss_guard();
            restore_policy(self.run.docker(), &self.record).await;
            let _ = self.ledger.remove(self.record.ticket);
            return Err(MigrateError::GivenUp(why));
        }
        self.end(Phase::Dump);
        self.on(SourceEvent::Frozen).await;
        Ok(())
    }

    /// Sends the last changes of the files, the log and the checkpoint; returns
    /// when the target has them.
    async fn ship(&mut self, trees: Trees, log: Option<Log>) -> Result<(), MigrateError> {
        self.run.docker().wait_ended(&self.record.container).await?;
        let (trees, _) = trees.round(Pace::Frozen, &self.peer.link).await?;
        self.files = trees.report();
        self.files_applied(trees.streams()).await?;
        let mut blobs =
            self.peer.link.open_blobs(Priority::AHEAD).await.map_err(PeerError::from)?;
        if let (Some(mut log), Some(name)) = (log, BlobName::new(LOG)) {
            blobs.send_file(&name, log.added()).await.map_err(PeerError::from)?;
        }
        let mut images = 0;
        for path in files(&self.checkpoint)? {
            let name = path.file_name().and_then(|name| BlobName::new(name.to_str()?));
            let Some(name) = name else { continue };
            let state = |source| MigrateError::State { path: path.clone(), source };
            let bytes = fs::read(&path).map_err(state)?;
            self.memory += ByteSize(bytes.len() as u64);
            blobs.send_file(&name, bytes.into()).await.map_err(PeerError::from)?;
            images += 1;
        }
        blobs.finish();
        let order = RestoreOrder { images, stored: Vec::new() };
        self.peer.say(&ToTarget::Restore(order)).await?;
        match self.run.hear(&mut self.peer).await? {
            ToSource::Held => Ok(()),
            ToSource::Failed { why } => Err(MigrateError::Target(why)),
            other => Err(MigrateError::Target(format!("it answered out of turn: {other:?}"))),
        }
    }

    async fn files_applied(&mut self, streams: u32) -> Result<(), MigrateError> {
        self.peer.say(&ToTarget::FilesEnd { streams }).await?;
        match self.run.hear(&mut self.peer).await? {
            ToSource::FilesApplied { .. } => Ok(()),
            ToSource::Failed { why } => Err(MigrateError::Target(why)),
            other => Err(MigrateError::Target(format!("it answered out of turn: {other:?}"))),
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

    async fn act(&mut self, action: SourceAction) -> Option<SourceEvent> {
        match action {
            // On disk since before the freeze. The guard must be gone before the
            // grant.
            SourceAction::SaveTicket => {
                self.dismiss_guard();
                return Some(SourceEvent::TicketSaved);
            }
            SourceAction::SendGrant => {
                self.run.begin(Phase::Grant);
                let said = self.peer.say(&ToTarget::Grant(self.record.ticket)).await;
                return said.err().map(|error| SourceEvent::LinkLost(error.to_string()));
            }
            SourceAction::SendAbort => {
                let abort = ToTarget::Abort { why: format!("{:?}", self.machine) };
                let _ =
                    tokio::time::timeout(Duration::from_millis(20), self.peer.say(&abort)).await;
            }
            SourceAction::Thaw => {
                self.dismiss_guard();
                if let Err(error) = thaw(self.run.docker(), &self.record).await {
                    self.stranded = Some(error);
                }
            }
            SourceAction::Retire => {
                let forwarder = forward::start(self.record.forward.as_ref()).await;
                let remove = self.record.remove_source;
                if let Err(error) = resolve::put_away(self.run.docker(), &self.record, remove).await
                {
                    tracing::error!("{error}");
                }
                forward::opened(forwarder, self.record.forward.as_ref(), Some(self.run.events()))
                    .await;
                if !remove {
                    resolve::remember(self.run.state(), &self.record);
                }
                let _ = fs::remove_dir_all(&self.checkpoint);
                let _ = self.ledger.remove(self.record.ticket);
                let _ = self.peer.say(&ToTarget::Retired).await;
            }
        }
        None
    }

    fn dismiss_guard(&mut self) {
        if let Some(Err(error)) = self.guard.take().map(Guard::dismiss) {
            tracing::warn!("the guard: {error}");
        }
    }

    async fn ask_what_became_of_it(&mut self) {
        let until = Instant::now() + RESOLVE_LIMIT;
        while Instant::now() < until && matches!(self.machine, Source::InDoubt { .. }) {
            let ticket = self.record.ticket;
            match resolve::ask(&self.record.target, self.run.identity(), ticket).await {
                Ok(Some(Verdict::Lost)) => {
                    return self.on(SourceEvent::Verdict(Verdict::Lost)).await;
                }
                Ok(Some(verdict)) => self.on(SourceEvent::Verdict(verdict)).await,
                Ok(None) | Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn finish(mut self) -> Result<Ended, MigrateError> {
        let outcome = match self.stranded.take() {
            Some(why) => Outcome::InDoubt { why },
            None => self.machine.outcome().unwrap_or(Outcome::Moved),
        };
        if let Outcome::Kept { .. } = outcome {
            let _ = self.ledger.remove(self.record.ticket);
        }
        let stats = self.peer.link.stats();
        self.peer.part().await;
        let downtime_ms = self.parts.iter().map(|part| part.ms).sum();
        Ok(Ended {
            outcome,
            rounds: Vec::new(),
            files: self.files,
            forecast: Forecast {
                method: Method::StopAndCopy,
                rounds: 1,
                bytes: stats.sent,
                total_ms: downtime_ms,
                downtime_ms,
                downtime: self.parts.clone(),
                brownout_ms: 0.0,
                met: None,
                confidence: 0.0,
            },
            foretold: false,
            downtime: self.parts,
            lazy: LazyReport::default(),
            memory: self.memory,
            sent: stats.sent,
            received: stats.received,
            tracking: TrackingReport::default(),
            tracker: "none: Docker's own checkpoint".into(),
            throttled: 0,
            link: LinkFacts { rtt: stats.rtt, bandwidth: None },
        })
    }

    fn end(&mut self, phase: Phase) {
        let now = Instant::now();
        let ms = millis(now - self.begun);
        self.begun = now;
        self.parts.push(PhaseTime { phase, ms });
        self.run.end(phase, ms);
    }
}

/// Starts a container from its checkpoint where it was.
pub async fn thaw(docker: &Docker, record: &SourceRecord) -> Result<(), String> {
    let root = docker.root().await.map_err(|error| error.to_string())?;
    let checkpoint = directory(&root, &record.container, record.ticket);
    start(&record.container, &checkpoint).await.map_err(|error| {
        format!(
            "container '{}' is stopped here and could not be started from its checkpoint: {error}; \
             to try again: blip resolve",
            record.name
        )
    })?;
    restore_policy(docker, record).await;
    let _ = fs::remove_dir_all(checkpoint);
    Ok(())
}

async fn restore_policy(docker: &Docker, record: &SourceRecord) {
    let policy = record.by_docker.as_ref().and_then(|text| serde_json::from_str(text).ok());
    let policy: RestartPolicy = policy.unwrap_or_else(never_restart);
    if let Err(error) = docker.set_restart_policy(&record.container, policy).await {
        tracing::warn!("{error}");
    }
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, MigrateError> {
    let state = |source| MigrateError::State { path: directory.into(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(state)? {
        files.push(entry.map_err(state)?.path());
    }
    files.retain(|path| path.is_file());
    // It says that the images are complete.
    files.sort_by_key(|path| path.file_name().is_some_and(|name| name == INVENTORY));
    Ok(files)
}

/// What `blip resolve` needs of the restart policy.
pub(crate) fn remembered(policy: Option<&RestartPolicy>) -> Option<String> {
    let policy = policy.cloned().unwrap_or_else(never_restart);
    serde_json::to_string(&policy).ok()
}
