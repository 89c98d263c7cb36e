//! The host a container leaves: `blip migrate`.
//!
//! [`migrate`] is the whole migration on one screen. What can fail before the
//! freeze returns an error and has touched nothing but the target's stage; from
//! the freeze on the [`handover`](crate::handover) decides.

pub mod addresses;
mod ahead;
mod farewell;
pub mod files;
pub mod freeze;
mod gauge;
pub mod hand;
mod in_memory;
pub mod known;
pub mod measure;
pub mod newcomers;
pub mod peer;
pub mod pump;
pub mod resolve;
pub mod subject;
pub mod volumes;
pub mod written;

use crate::connections;
use crate::docker::Docker;
use crate::event::{
    Event, Events, FilesReport, Forecast, GoalReport, LazyReport, Phase, PhaseTime, Report,
    RoundReport, TrackingReport, Versions, millis,
};
use crate::experience::Experience;
use crate::external::{self, Departure, Restore};
use crate::forward;
use crate::handover::{Outcome, Ticket};
use crate::history::{History, Side};
use crate::image::{self, Held, ImageOrder};
use crate::kept::KeepLimit;
use crate::ledger::{Ledger, TargetRecord};
use crate::plan::{Decision, Goal, LinkFacts, Planner};
use crate::protocol::{Finding, HostFacts, StageRequest, ToSource, ToTarget};
use crate::target::check;
use crate::throttle::Throttle;
use crate::track::{self, TrackerChoice};
use blip_transport::units::{ByteSize, Round};
use files::{Log, Trees};
use freeze::Standby;
use hand::Handover;
use known::Known;
use newcomers::Unaccepted;
use peer::Peer;
use pump::Pump;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use subject::Subject;
use tokio::sync::watch;
use volumes::{Choice, Probes};

/// How long a target may take to take in that nothing comes of it.
const FAREWELL_LIMIT: Duration = Duration::from_millis(300);

/// Between two words on an image that is on its way.
const IMAGE_NEWS: Duration = Duration::from_secs(2);

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// The container, by name or ID.
    pub container: String,
    /// The target, `HOST[:PORT]`.
    pub target: String,
    /// What the user wants of the migration.
    pub goal: Goal,
    /// Another name for the container on the target.
    pub rename: Option<String>,
    /// How to tell which memory changes between rounds.
    pub tracker: TrackerChoice,
    /// What becomes of mounts that do not travel by themselves.
    pub binds: Vec<Choice>,
    /// Who restores it on the target.
    pub restore: Restore,
    /// What becomes of its established TCP connections.
    pub tcp: connections::Choice,
    /// For how long its published ports are forwarded from here.
    pub forward: Option<Duration>,
    /// Addresses on bridge networks move too.
    pub keep_address: bool,
    /// What becomes of connections that nobody has accepted yet.
    pub unaccepted: Unaccepted,
    /// Remove the source's container once it has moved, instead of keeping it
    /// stopped under another name.
    pub remove_source: bool,
    /// How much of its memory stays here for a while, should it come back.
    pub keep: KeepLimit,
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
    /// Copying the image.
    #[error(transparent)]
    Image(#[from] image::ImageError),
    /// Stopping the container.
    #[error(transparent)]
    Freeze(#[from] freeze::FreezeError),
    /// Slowing the container down.
    #[error(transparent)]
    Throttle(#[from] crate::throttle::ThrottleError),
    /// The container's cgroup.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// The target could not do its part.
    #[error("the target gave up: {0}")]
    Target(String),
    /// The user wanted it.
    #[error("interrupted; the container runs here as before")]
    Interrupted,
    /// The goal cannot be met, and the user wants it rather not than so.
    #[error("gave up: {0}; the container runs here as before")]
    GivenUp(String),
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
    if let Err(error) = forward::all() {
        tracing::warn!("what an earlier forwarder left stays: {error}");
    }
    let run = Run { order, events, docker, begun };
    let (subject, mut peer, facts, notes) = run.phase(Phase::Preflight, run.preflight()).await?;
    let ticket = new_ticket();
    peer.link.limit(run.order.goal.bandwidth);
    run.keep_a_journal(ticket, &subject);
    let staged = run.phase(Phase::Stage, run.stage(&subject, &mut peer, ticket)).await;
    let (target_id, known) = staged.map_err(MigrateError::under_way)?;
    if run.order.restore == Restore::Docker {
        let record = hand::record(&run, &subject, &peer, ticket);
        let departure = Departure::new(&run, &subject, peer, record).await?;
        let ended = departure.run().await.map_err(MigrateError::under_way)?;
        let report = run.report(&subject, ended, target_id, facts, notes);
        run.events.send(Event::Finished(Box::new(report.clone())));
        return Ok(report);
    }
    let mut experience = Experience::open(&run.order.state, &peer.link.peer());
    let planner = run.planner(&subject, &peer, &experience);
    let scratch = Scratch(run.order.work_directory(ticket));
    let directory = &scratch.0;
    let copying = run.copy_ahead(&subject, &mut peer, planner, known, directory);
    let copying = run.phase(Phase::PreCopy, copying);
    let loading = Standby::load(&subject, directory, run.order.unaccepted);
    let (copied, standby) = match tokio::join!(copying, loading) {
        (Ok(copied), Ok(standby)) => (copied, standby),
        (Ok(_), Err(error)) => return Err(run.call_off(peer, error.into()).await),
        (Err(error), standby) => {
            if let Ok(standby) = standby {
                standby.cancel().await;
            }
            return Err(run.call_off(peer, error.under_way()).await);
        }
    };
    let prepared = async { standby.prepare(&subject, run.order.unaccepted) };
    let (known, prepared) = tokio::join!(subject.neighbours(), prepared);
    let ready = match prepared {
        Ok(ready) => ready,
        Err(error) => return Err(run.call_off(peer, error.into()).await),
    };
    let handover = Handover::new(&run, &subject, peer, ticket, copied);
    let ended = handover.run(ready, known).await.map_err(MigrateError::under_way)?;
    drop(scratch);
    let seen = ended.link;
    let report = run.report(&subject, ended, target_id, facts, notes);
    run.learn(&mut experience, &report, seen);
    run.events.send(Event::Finished(Box::new(report.clone())));
    Ok(report)
}

/// The directory for images; gone when dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // There may be none.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What one migration works with.
pub struct Run {
    order: Order,
    events: Events,
    docker: Docker,
    begun: Instant,
}

/// What has been copied ahead, and what the freeze is to do with the rest.
pub struct Copied {
    /// Absent while a round is running.
    pump: Option<Pump>,
    /// Absent while a round is running.
    trees: Option<Trees>,
    log: Option<Log>,
    rounds: Vec<RoundReport>,
    next: Round,
    tracker: String,
    planner: Planner,
    manner: Manner,
    forecast: Forecast,
    /// Slows the container down until it is frozen.
    throttle: Option<Throttle>,
    throttled: u8,
}

/// What the freeze does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Pages the target lacks stay here until the container runs there.
    leaves: bool,
    /// All memory is in the processes before they run.
    resident: bool,
}

impl Manner {
    /// What is left follows after the resume.
    const LAZY: Self = Self { leaves: true, resident: false };
}

/// How a handover ended.
pub struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) rounds: Vec<RoundReport>,
    pub(crate) files: FilesReport,
    pub(crate) downtime: Vec<PhaseTime>,
    pub(crate) lazy: LazyReport,
    pub(crate) memory: ByteSize,
    pub(crate) sent: ByteSize,
    pub(crate) received: ByteSize,
    pub(crate) tracker: String,
    pub(crate) tracking: TrackingReport,
    pub(crate) forecast: Forecast,
    /// Whether somebody foretold that before.
    pub(crate) foretold: bool,
    pub(crate) throttled: u8,
    pub(crate) link: LinkFacts,
}

impl Run {
    pub(crate) fn docker(&self) -> &Docker {
        &self.docker
    }

    pub(crate) fn state(&self) -> &std::path::Path {
        &self.order.state
    }

    pub(crate) fn identity(&self) -> &std::path::Path {
        &self.order.identity
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    pub(crate) fn note(&self, text: String) {
        self.events.send(Event::Note { text });
    }

    pub(crate) fn begin(&self, phase: Phase) {
        self.events.send(Event::Begin { phase });
    }

    pub(crate) fn end(&self, phase: Phase, ms: f64) {
        self.events.send(Event::End { phase, ms });
    }

    /// Runs one phase and says when it begins and ends.
    pub(crate) async fn phase<T, E>(
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
        let order = &self.order;
        let mut subject =
            Subject::find(&self.docker, &order.container, &order.binds, order.keep_address).await?;
        if order.restore == Restore::Docker {
            // In Docker's checkpoint.
            subject.tmpfs.clear();
        }
        let probes = Probes::write(&mut subject.plan);
        let source = check::facts(&self.docker).await?;
        let mut findings = check::equipment(&source, "source");
        findings.extend(subject.settle_connections(self.order.tcp));
        if self.order.forward.is_some() {
            findings.extend(forward::findings(&subject.inspection, subject.keep_addresses));
            forward::pin_ports(&mut subject.inspection);
        }
        findings.extend(subject.findings()?);
        if let Err(error) = track::kind_for(self.order.tracker) {
            findings.push(Finding::blocker(error.to_string(), "or leave the choice to blip"));
        }
        let peer = Peer::connect(&self.order.target, &self.order.identity).await;
        let mut peer = match peer {
            Ok(peer) => peer,
            Err(error) if findings.iter().any(|f| f.blocks) => {
                findings.push(Finding::blocker(error.to_string(), "then try again"));
                return Err(MigrateError::Blocked(findings));
            }
            Err(error) => return Err(error.into()),
        };
        peer.say(&ToTarget::Check(Box::new(
            subject.requirements(&source, self.order.rename.as_deref())?,
        )))
        .await?;
        let target = match peer.hear().await? {
            ToSource::Checked { findings: theirs, target, image } => {
                findings.extend(theirs);
                subject.image_there = image;
                target
            }
            other => return Err(out_of_turn(&other).into()),
        };
        drop(probes);
        if self.order.restore == Restore::Docker {
            let networks = subject.inspection.networks().keys().any(|name| name != "none");
            findings.extend(external::finding(&source, "source", networks));
            findings.extend(external::finding(&target, "target", networks));
        }
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

    /// A planner that knows what this container and this pair of hosts cost
    /// before.
    fn planner(&self, subject: &Subject, peer: &Peer, experience: &Experience) -> Planner {
        let rtt = peer.link.stats().rtt;
        let bandwidth = experience.link().and_then(|link| link.bandwidth);
        let costs = experience.costs(&subject.inspection.name).at(rtt);
        Planner::new(self.order.goal, costs, LinkFacts { rtt, bandwidth })
    }

    /// What this migration taught is of use to the next one only: not worth an
    /// error.
    fn learn(&self, experience: &mut Experience, report: &Report, link: LinkFacts) {
        experience.learn_link(link);
        experience.learn(&report.container, report);
        if let Err(error) = experience.save() {
            tracing::warn!("what this migration cost is not remembered: {error}");
        }
    }

    fn keep_a_journal(&self, ticket: Ticket, subject: &Subject) {
        let (name, target) = (&subject.inspection.name, &self.order.target);
        let history = History::of(&self.order.state);
        self.events.record_in(history.began(ticket, Side::Source, name, target));
    }

    /// Nothing was frozen: the target is told to forget it, and need not find
    /// out by our silence.
    async fn call_off(&self, mut peer: Peer, error: MigrateError) -> MigrateError {
        let why = error.to_string();
        self.events.send(Event::CalledOff { why: why.clone() });
        let abort = ToTarget::Abort { why };
        let farewell = async {
            if peer.say(&abort).await.is_ok() {
                peer.part().await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL_LIMIT, farewell).await;
        error
    }

    /// Sends the image that the target lacks.
    async fn ship_image(
        &self,
        subject: &Subject,
        peer: &mut Peer,
        held: u32,
    ) -> Result<(), MigrateError> {
        let order = ImageOrder {
            id: subject.inspection.image.clone(),
            name: subject.inspection.image_name(),
        };
        let note = |text: String| self.events.send(Event::Note { text });
        let of = subject.layers.len();
        note(format!("the target lacks the image {}; it has {held} of {of} layers", order.name));
        peer.say(&ToTarget::Image(order.clone())).await?;
        let mut said = Instant::now();
        let tell = |wire: ByteSize| {
            if said.elapsed() > IMAGE_NEWS {
                said = Instant::now();
                note(format!("image: {wire} sent"));
            }
        };
        let link = peer.link.clone();
        let sending = image::send(&self.docker, &link, &order.id, held as usize, tell);
        let sent = async { Ok::<_, MigrateError>(self.unless_interrupted(sending).await??) };
        // A target that fails says so while it is still being sent to.
        let (plain, wire) = tokio::select! {
            sent = sent => sent?,
            said = peer.hear() => return Err(unexpected(said?)),
        };
        match self.hear(peer).await? {
            ToSource::ImageLoaded => {
                note(format!("image: {plain} sent as {wire}"));
                Ok(())
            }
            other => Err(unexpected(other)),
        }
    }

    async fn stage(
        &self,
        subject: &Subject,
        peer: &mut Peer,
        ticket: Ticket,
    ) -> Result<(String, Known), MigrateError> {
        if let Held::Layers(held) = subject.image_there {
            self.ship_image(subject, peer, held).await?;
        }
        let request = StageRequest {
            ticket,
            container: subject.copy_of(self.order.rename.as_deref()).to_json(),
            keep_addresses: subject.keep_addresses,
            keep_connections: subject.keep_connections,
            descriptors: subject.bundle.descriptors.clone(),
            memory: subject.memory()?,
            mounts: subject.plan.told(),
            came_by: self.came_by(subject),
            tmpfs: subject.tmpfs.iter().map(|tmpfs| tmpfs.told.clone()).collect(),
        };
        let request = Box::new(request);
        peer.say(&match self.order.restore {
            Restore::Staged => ToTarget::Stage(request),
            Restore::Docker => ToTarget::Create(request),
        })
        .await?;
        match peer.hear().await? {
            ToSource::Staged { container, remembered } => {
                let known = Known::receive(remembered, &peer.link).await?;
                if !known.is_nothing() {
                    let text = format!(
                        "the target still has an earlier state; the list of it took {}",
                        known.lists
                    );
                    self.events.send(Event::Note { text });
                }
                Ok((container, known))
            }
            ToSource::Failed { why } => Err(MigrateError::Target(why)),
            other => Err(out_of_turn(&other).into()),
        }
    }

    /// The handover by which the container came here, if it came.
    fn came_by(&self, subject: &Subject) -> Option<Ticket> {
        let arrivals = Ledger::open(&self.order.state.join("arrivals")).ok()?;
        let records = arrivals.all::<TargetRecord>().ok()?;
        let id = &subject.inspection.id;
        records.into_iter().find(|r| r.container.as_ref() == Some(id)).map(|r| r.ticket)
    }

    /// The target's next word, unless the user has had enough.
    pub(crate) async fn hear(&self, peer: &mut Peer) -> Result<ToSource, MigrateError> {
        Ok(self.unless_interrupted(peer.hear()).await??)
    }

    /// What comes of `work`, unless the user has had enough before.
    async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, MigrateError> {
        let mut interrupt = self.order.interrupt.clone();
        tokio::select! {
            done = work => Ok(done),
            _ = interrupt.wait_for(|stop| *stop) => Err(MigrateError::Interrupted),
        }
    }

    fn announce(&self, decision: &Decision) {
        self.decide(decision.what(), decision.why().to_owned());
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
        let downtime = ended.downtime.iter().map(|part| part.ms).sum();
        let both = |of: fn(&HostFacts) -> &String| [of(&facts[0]).clone(), of(&facts[1]).clone()];
        Report {
            container: subject.inspection.name.clone(),
            target_id: moved.then_some(target_id),
            downtime_ms: downtime,
            downtime: ended.downtime,
            total_ms: millis(self.begun.elapsed()),
            rounds: ended.rounds,
            files: ended.files,
            bytes_sent: ended.sent,
            bytes_received: ended.received,
            memory_bytes: ended.memory,
            lazy: ended.lazy,
            goal: GoalReport::from(&self.order.goal),
            method: ended.forecast.method,
            met: self
                .order
                .goal
                .downtime
                .filter(|_| moved)
                .map(|target| downtime <= millis(target)),
            predicted: ended.foretold.then_some(ended.forecast),
            throttled_percent: ended.throttled,
            unknowns: unknowns(),
            tracker: ended.tracker,
            tracking: ended.tracking,
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

/// What the source cannot see of a move.
fn unknowns() -> Vec<String> {
    [
        "the client gap: how long clients went without an answer; it adds their route's delay \
         and their own timers to the downtime (measure it at a client)",
        "whether every switch on the way learned the new place at the first announcement",
    ]
    .map(str::to_owned)
    .into()
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
