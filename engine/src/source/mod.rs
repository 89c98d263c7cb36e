//! The host a container leaves: `blip migrate`.
//!
//! [`migrate`] is the whole migration on one screen. What can fail before the
//! freeze returns an error and has touched nothing but the target's stage; from
//! the freeze on the [`handover`](crate::handover) decides.

pub mod files;
pub mod freeze;
pub mod hand;
pub mod measure;
pub mod peer;
pub mod pump;
pub mod resolve;
pub mod subject;

use crate::docker::Docker;
use crate::event::{
    Event, Events, GoalReport, LazyReport, Phase, PhaseTime, Report, RoundReport, Versions, millis,
};
use crate::handover::{Outcome, Ticket};
use crate::network;
use crate::plan::{Costs, Decision, Goal, LinkFacts, Method, Planner, RoundFacts};
use crate::protocol::{Finding, HostFacts, StageRequest, ToSource, ToTarget};
use crate::target::check;
use crate::target::intake::LOG;
use crate::track::{self, Stop};
use blip_transport::files::Pace;
use blip_transport::link::quic::{BlobName, Priority};
use blip_transport::page::PageAt;
use blip_transport::units::{ByteSize, PageCount, Round};
use files::{Layer, Log};
use freeze::Ready;
use hand::Handover;
use peer::{Peer, PeerError};
use pump::{Pump, RoundDone};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use subject::Subject;
use tokio::sync::watch;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// The container, by name or ID.
    pub container: String,
    /// The target, `HOST[:PORT]`.
    pub target: String,
    /// What the user wants of the migration.
    pub goal: Goal,
    /// Time that the last pages may add to the downtime.
    pub budget: Duration,
    /// Remove the source's container once it has moved, instead of keeping it
    /// stopped under another name.
    pub remove_source: bool,
    /// Directory of this host's identity and peers.
    pub identity: PathBuf,
    /// Directory for what must survive a crash.
    pub state: PathBuf,
    /// Becomes true when the user wants it to stop.
    pub interrupt: watch::Receiver<bool>,
}

/// Why a migration did not begin, or was given up with the container running.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Something is in the way. Nothing was touched.
    #[error("{}", list(.0))]
    Blocked(Vec<Finding>),
    /// Docker.
    #[error(transparent)]
    Docker(#[from] crate::docker::DockerError),
    /// The container.
    #[error(transparent)]
    Subject(#[from] subject::SubjectError),
    /// The target.
    #[error(transparent)]
    Peer(#[from] peer::PeerError),
    /// The target went away once the move was under way.
    #[error("{0}; the container runs here as before")]
    Lost(peer::PeerError),
    /// Copying pages.
    #[error(transparent)]
    Pump(#[from] pump::PumpError),
    /// Copying files.
    #[error(transparent)]
    Files(#[from] files::FilesError),
    /// Stopping the container.
    #[error(transparent)]
    Freeze(#[from] freeze::FreezeError),
    /// The container's cgroup.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// The target could not do its part.
    #[error("the target gave up: {0}")]
    Target(String),
    /// The user wanted it.
    #[error("interrupted")]
    Interrupted,
    /// A file of ours.
    #[error("cannot use {path:?}: {source}")]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl MigrateError {
    /// The same error once the target has been staged: it no longer means that
    /// nothing was touched.
    fn under_way(self) -> Self {
        match self {
            Self::Peer(error) => Self::Lost(error),
            other => other,
        }
    }
}

fn list(findings: &[Finding]) -> String {
    let line = |finding: &Finding| format!("{}: {}", finding.what, finding.remedy);
    findings.iter().filter(|f| f.blocks).map(line).collect::<Vec<_>>().join("\n")
}

/// Moves a container. `Err` means that it runs here as before.
pub async fn migrate(order: Order, events: Events) -> Result<Report, MigrateError> {
    let begun = Instant::now();
    let docker = Docker::connect().await?;
    let run = Run { order, events, docker, begun };
    let (subject, mut peer, facts, notes) = run.phase(Phase::Preflight, run.preflight()).await?;
    let ticket = new_ticket();
    let staged = run.phase(Phase::Stage, run.stage(&subject, &mut peer, ticket)).await;
    let target_id = staged.map_err(MigrateError::under_way)?;
    let copied = run.phase(Phase::PreCopy, run.pre_copy(&subject, &mut peer)).await;
    let copied = copied.map_err(MigrateError::under_way)?;
    if subject.keep_addresses {
        let known = network::neighbours(subject.init()).await;
        peer.say(&ToTarget::Neighbours(known)).await?;
    }
    let directory = run.order.work_directory(ticket);
    let ended = match Ready::load(&subject, &directory).await {
        Ok(ready) => Handover::new(&run, &subject, peer, ticket, copied).run(ready).await,
        Err(error) => Err(error.into()),
    };
    let _ = std::fs::remove_dir_all(&directory);
    let ended = ended.map_err(MigrateError::under_way)?;
    let report = run.report(&subject, ended, target_id, facts, notes);
    run.events.send(Event::Finished(Box::new(report.clone())));
    Ok(report)
}

/// What one migration works with.
pub struct Run {
    order: Order,
    events: Events,
    docker: Docker,
    begun: Instant,
}

/// What has been copied ahead.
pub struct Copied {
    /// Absent while a round is running.
    pump: Option<Pump>,
    layer: Option<Layer>,
    log: Option<Log>,
    rounds: Vec<RoundReport>,
    next: Round,
    tracker: String,
}

/// How a handover ended.
pub struct Ended {
    outcome: Outcome,
    rounds: Vec<RoundReport>,
    downtime: Vec<PhaseTime>,
    lazy: LazyReport,
    memory: ByteSize,
    sent: ByteSize,
    tracker: String,
}

impl Run {
    /// Runs one phase and says when it begins and ends.
    async fn phase<T, E>(
        &self,
        phase: Phase,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.events.send(Event::Begin { phase });
        let begun = Instant::now();
        let done = work.await?;
        self.events.send(Event::End { phase, ms: millis(begun.elapsed()) });
        Ok(done)
    }

    /// Looks at both sides and names everything in the way at once.
    async fn preflight(
        &self,
    ) -> Result<(Subject, Peer, [HostFacts; 2], Vec<String>), MigrateError> {
        let subject = Subject::find(&self.docker, &self.order.container).await?;
        let source = check::facts(&self.docker).await?;
        let mut findings = check::equipment(&source, "source");
        findings.extend(subject.findings()?);
        let peer = Peer::connect(&self.order.target, &self.order.identity).await;
        let mut peer = match peer {
            Ok(peer) => peer,
            Err(error) if findings.iter().any(|f| f.blocks) => {
                findings.push(Finding::blocker(error.to_string(), "then try again"));
                return Err(MigrateError::Blocked(findings));
            }
            Err(error) => return Err(error.into()),
        };
        peer.say(&ToTarget::Check(Box::new(subject.requirements(&source)?))).await?;
        let target = match peer.hear().await? {
            ToSource::Checked { findings: theirs, target } => {
                findings.extend(theirs);
                target
            }
            other => return Err(out_of_turn(&other).into()),
        };
        if findings.iter().any(|finding| finding.blocks) {
            return Err(MigrateError::Blocked(findings));
        }
        let notes: Vec<String> =
            findings.into_iter().map(|f| format!("{} ({})", f.what, f.remedy)).collect();
        for text in &notes {
            self.events.send(Event::Note { text: text.clone() });
        }
        Ok((subject, peer, [source, target], notes))
    }

    async fn stage(
        &self,
        subject: &Subject,
        peer: &mut Peer,
        ticket: Ticket,
    ) -> Result<String, MigrateError> {
        let request = StageRequest {
            ticket,
            container: subject.inspection.to_json(),
            keep_addresses: subject.keep_addresses,
            descriptors: subject.bundle.descriptors.clone(),
            memory: subject.memory()?,
        };
        peer.say(&ToTarget::Stage(Box::new(request))).await?;
        match peer.hear().await? {
            ToSource::Staged { container } => Ok(container),
            ToSource::Failed { why } => Err(MigrateError::Target(why)),
            other => Err(out_of_turn(&other).into()),
        }
    }

    /// Copies rounds of pages, and the files once, while the container runs.
    async fn pre_copy(&self, subject: &Subject, peer: &mut Peer) -> Result<Copied, MigrateError> {
        let (tracker, why) = track::best();
        self.decide(format!("track by {}", tracker.kind()), why.clone());
        let mut pump = Pump::new(tracker);
        let mut planner = Planner::new(self.order.goal, Costs::default(), LinkFacts::default());
        let mut rounds = Vec::new();
        let mut next = Round(0);
        let layer = self.files_ahead(subject, peer, next).await?;
        let log = self.log_ahead(subject, peer).await?;
        loop {
            let (returned, done) =
                pump.round(next, subject.tasks()?, Stop::Live, &peer.link).await?;
            pump = returned;
            pump.take_back(&self.applied(peer, next, done.batches).await?);
            self.events.send(Event::Round(done.report.clone()));
            let decision = planner.after_round(&facts_of(&done, self.events.elapsed()));
            rounds.push(done.report);
            next = next.next();
            match decision {
                Decision::CopyAgain { .. } | Decision::Throttle { .. } => {
                    self.decide(decision.what(), decision.why().into());
                }
                Decision::GiveUp { why } => return Err(MigrateError::Target(why)),
                Decision::Freeze { .. } | Decision::GoLazy { .. } => {
                    self.decide(decision.what(), decision.why().into());
                    pump.confirm();
                    let pump = Some(pump);
                    return Ok(Copied { pump, layer, log, rounds, next, tracker: why });
                }
            }
        }
    }

    async fn files_ahead(
        &self,
        subject: &Subject,
        peer: &mut Peer,
        round: Round,
    ) -> Result<Option<Layer>, MigrateError> {
        let Some(upper) = &subject.upper else { return Ok(None) };
        let (layer, _) = Layer::open(upper)?.round(round, Pace::Live, &peer.link).await?;
        peer.say(&ToTarget::FilesEnd { round }).await?;
        match self.hear(peer).await? {
            ToSource::FilesApplied { .. } => Ok(Some(layer)),
            other => Err(unexpected(other)),
        }
    }

    /// What the container has said so far.
    async fn log_ahead(
        &self,
        subject: &Subject,
        peer: &mut Peer,
    ) -> Result<Option<Log>, MigrateError> {
        let Some(mut log) = Log::of(subject.inspection.all.log_path.as_deref()) else {
            return Ok(None);
        };
        let mut blobs = peer.link.open_blobs(Priority::BULK).await.map_err(PeerError::from)?;
        if let Some(name) = BlobName::new(LOG) {
            blobs.send_file(&name, log.added()).await.map_err(PeerError::from)?;
        }
        blobs.finish();
        Ok(Some(log))
    }

    /// Waits until the target has put a round's pages into its store. Returns
    /// those it could make nothing of.
    async fn applied(
        &self,
        peer: &mut Peer,
        round: Round,
        batches: u32,
    ) -> Result<Vec<PageAt>, MigrateError> {
        peer.say(&ToTarget::RoundEnd { round, batches }).await?;
        match self.hear(peer).await? {
            ToSource::RoundApplied { missing, .. } => Ok(missing),
            other => Err(unexpected(other)),
        }
    }

    /// The target's next word, unless the user has had enough.
    async fn hear(&self, peer: &mut Peer) -> Result<ToSource, MigrateError> {
        let mut interrupt = self.order.interrupt.clone();
        tokio::select! {
            message = peer.hear() => Ok(message?),
            _ = interrupt.wait_for(|stop| *stop) => Err(MigrateError::Interrupted),
        }
    }

    fn decide(&self, what: String, why: String) {
        self.events.send(Event::Decision { what, why });
    }

    fn report(
        &self,
        subject: &Subject,
        ended: Ended,
        target_id: String,
        facts: [HostFacts; 2],
        notes: Vec<String>,
    ) -> Report {
        let moved = ended.outcome == Outcome::Moved;
        let both = |of: fn(&HostFacts) -> &String| [of(&facts[0]).clone(), of(&facts[1]).clone()];
        Report {
            container: subject.inspection.name.clone(),
            target_id: moved.then_some(target_id),
            downtime_ms: ended.downtime.iter().map(|part| part.ms).sum(),
            downtime: ended.downtime,
            total_ms: millis(self.begun.elapsed()),
            rounds: ended.rounds,
            bytes_sent: ended.sent,
            memory_bytes: ended.memory,
            lazy: ended.lazy,
            goal: GoalReport::from(&self.order.goal),
            method: Method::Auto,
            predicted: None,
            met: None,
            throttled_percent: 0,
            unknowns: Vec::new(),
            tracker: ended.tracker,
            versions: Versions {
                blip: facts[0].blip.clone(),
                docker: both(|f| &f.docker),
                criu: both(|f| &f.criu),
                runc: both(|f| &f.runc),
                kernel: both(|f| &f.kernel),
            },
            notes,
            outcome: ended.outcome,
        }
    }
}

impl Order {
    /// Where images are written on the source: memory, gone with a reboot.
    fn work_directory(&self, ticket: Ticket) -> PathBuf {
        PathBuf::from("/run/blip/departures").join(ticket.to_string())
    }
}

fn facts_of(done: &RoundDone, elapsed: Duration) -> RoundFacts {
    let report = &done.report;
    RoundFacts {
        round: report.round,
        took: Duration::from_secs_f64(report.ms / 1e3),
        elapsed,
        resident: report.scanned,
        dirty: report.dirty,
        hot: PageCount(0),
        held_back: report.held_back,
        wire: report.bytes_wire,
        throttle: 0,
    }
}

fn out_of_turn(said: &ToSource) -> peer::PeerError {
    peer::PeerError::OutOfTurn(format!("{said:?}"))
}

fn unexpected(said: ToSource) -> MigrateError {
    match said {
        ToSource::Failed { why } => MigrateError::Target(why),
        other => out_of_turn(&other).into(),
    }
}

/// Unique for ever: 128 random bits of the kernel's.
fn new_ticket() -> Ticket {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    text.trim().replace('-', "").parse().unwrap_or(Ticket(0))
}
