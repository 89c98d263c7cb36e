//! The target's side.

use super::{directory, start};
use crate::docker::{Copy, Inspection};
use crate::event::{LazyReport, Phase};
use crate::handover::{Target, TargetAction, TargetEvent};
use crate::history::{End, Journal, Side};
use crate::ledger::{Made, TargetRecord, TargetStep};
use crate::protocol::{Remembered, StageRequest, ToSource, ToTarget};
use crate::source::files::LAYER;
use crate::target::arrival::Question;
use crate::target::intake::{INVENTORY, Intake, IntakeError, Places};
use crate::target::stage::{docker_own, log_file};
use crate::target::{Agent, mounts};
use anyhow::Context as _;
use blip_transport::files::{ApplyOptions, Exclude, Room};
use blip_transport::link::quic::{Connection, ControlReceiver, ControlSender};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Where roots of containers that are not running yet are mounted.
const ROOTS: &str = "/run/blip/roots";

/// One container on its way in.
struct Arrival {
    agent: Arc<Agent>,
    link: Connection,
    to_source: ControlSender,
    request: StageRequest,
    machine: Target,
    intake: Arc<Intake>,
    id: String,
    made: Made,
    root: Root,
    checkpoint: PathBuf,
    failure: String,
    journal: Journal,
}

/// Creates the container and sees it through to its end.
///
/// # Errors
/// If the source is gone before it is told anything.
pub async fn run(
    agent: Arc<Agent>,
    link: Connection,
    mut to_source: ControlSender,
    mut from_source: ControlReceiver,
    request: StageRequest,
    mut questions: mpsc::Receiver<Question>,
) -> anyhow::Result<()> {
    let original = Inspection::from_json(&request.container)?;
    let peer = link.remote_addr().ip().to_canonical().to_string();
    let journal = agent.history.began(request.ticket, Side::Target, &original.name, &peer);
    journal.phase(Phase::Stage);
    let intake = Intake::new(agent.memory_limit(request.memory));
    let prepared = prepare(&agent, &link, &request, &original, &intake).await;
    let (id, made, root, checkpoint) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            agent.ledger.remove(request.ticket)?;
            let why = format!("{error:#}");
            journal.ended_as(End::Kept, Some(why.clone()));
            to_source.send(&ToSource::Failed { why }).await?;
            return Ok(to_source.finish().await?);
        }
    };
    to_source
        .send(&ToSource::Staged { container: id.clone(), remembered: Remembered::default() })
        .await?;
    let (broke, mut broken) = mpsc::channel(1);
    let working = intake.clone().run(link.clone());
    let taking = tokio::spawn(async move { broke.send(working.await).await });
    let (machine, failure) = (Target::Staged, "the migration was given up".to_owned());
    let mut arrival = Arrival {
        agent,
        link,
        to_source,
        request,
        machine,
        intake,
        id,
        made,
        root,
        checkpoint,
        failure,
        journal,
    };
    loop {
        tokio::select! {
            said = from_source.recv() => match said {
                Ok(ToTarget::Retired) => break,
                Ok(message) => arrival.message(message).await,
                Err(error) => {
                    arrival.failure = format!("the source is gone: {error}");
                    arrival.on(TargetEvent::LinkLost).await;
                    break;
                }
            },
            Some(question) = questions.recv() => arrival.asked(question).await,
            Some(error) = broken.recv() => match error {
                // The control stream tells that, too.
                IntakeError::Link(_) => {}
                other => arrival.fail(other.to_string()).await,
            },
        }
        if arrival.machine == Target::Gone {
            break;
        }
    }
    taking.abort();
    // What was said last must arrive before the connection goes.
    let _ = arrival.to_source.finish().await;
    Ok(())
}

type Prepared = (String, Made, Root, PathBuf);

/// Creates the container, as Docker does, and lays its places open.
async fn prepare(
    agent: &Agent,
    link: &Connection,
    request: &StageRequest,
    original: &Inspection,
    intake: &Intake,
) -> anyhow::Result<Prepared> {
    let mut made = Made::default();
    let record = |container: Option<String>, made: &Made| TargetRecord {
        ticket: request.ticket,
        container,
        step: TargetStep::Staged,
        source: link.peer().to_string(),
        made: made.clone(),
    };
    agent.ledger.save(request.ticket, &record(None, &made))?;
    crate::forward::make_way(original);
    let mut copy = Copy::staged(original, request.keep_addresses)?;
    if let Some(host) = &mut copy.body.host_config {
        host.runtime = None;
    }
    let placed = mounts::make(&agent.docker, &request.mounts, &mut made).await;
    agent.ledger.save(request.ticket, &record(None, &made))?;
    let created = match placed {
        Ok(()) => agent.docker.create(copy).await.map_err(anyhow::Error::from),
        Err(error) => Err(error.into()),
    };
    let opened = match created {
        Ok(id) => {
            agent.ledger.save(request.ticket, &record(Some(id.clone()), &made))?;
            let opened = open_places(agent, request, original, intake, &id).await;
            if opened.is_err() {
                let _ = agent.docker.discard(&id).await;
            }
            opened.map(|(root, checkpoint)| (id, root, checkpoint))
        }
        Err(error) => Err(error),
    };
    match opened {
        Ok((id, root, checkpoint)) => Ok((id, made, root, checkpoint)),
        Err(error) => {
            mounts::undo(&agent.docker, &made).await;
            Err(error)
        }
    }
}

async fn open_places(
    agent: &Agent,
    request: &StageRequest,
    original: &Inspection,
    intake: &Intake,
    id: &str,
) -> anyhow::Result<(Root, PathBuf)> {
    let docker_root = agent.docker.root().await?;
    let created = agent.docker.inspect(id).await?;
    let root = Root::mount(&created, &request.ticket.to_string())?;
    let checkpoint = directory(&docker_root, id, request.ticket);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&checkpoint)
        .with_context(|| format!("making {checkpoint:?}"))?;
    let destinations = created.all.mounts.iter().flatten();
    let bound: Vec<PathBuf> =
        destinations.filter_map(|mount| Some(mount.destination.clone()?.into())).collect();
    let options = |keep| ApplyOptions { allow_devices: true, room: Room::UNLIMITED, keep };
    let mut trees: std::collections::BTreeMap<_, _> = mounts::places(&created, &request.mounts)?
        .into_iter()
        .map(|(tree, path)| (tree, (path, options(Exclude::default()))))
        .collect();
    trees.insert(LAYER, (root.0.clone(), options(docker_own(&bound))));
    let log = log_file(original, &docker_root, id);
    if let Some(path) = &log {
        // Docker makes it when the container starts, and goes on with what is
        // there.
        let mut new = fs::OpenOptions::new();
        let made = new.append(true).create(true).mode(0o640).open(path);
        made.with_context(|| format!("making {path:?}"))?;
    }
    intake.place(Places { images: checkpoint.clone(), trees, log });
    Ok((root, checkpoint))
}

impl Arrival {
    async fn message(&mut self, message: ToTarget) {
        match message {
            ToTarget::FilesEnd { streams } => match self.intake.files_applied(streams).await {
                Some(()) => self.tell(ToSource::FilesApplied { streams }).await,
                None => self.fail("the container's files could not be written".into()).await,
            },
            ToTarget::Restore(order) => {
                self.on(TargetEvent::RestoreOrdered).await;
                match self.everything_is_here(order.images).await {
                    Ok(()) => self.on(TargetEvent::RestoreHeld).await,
                    Err(error) => self.fail(format!("{error:#}")).await,
                }
            }
            ToTarget::Grant(ticket) if ticket == self.request.ticket => {
                self.on(TargetEvent::Grant).await;
            }
            ToTarget::Abort { why } => {
                self.failure = why;
                self.on(TargetEvent::Abort).await;
            }
            other => self.fail(format!("the source said {other:?} out of turn")).await,
        }
    }

    /// The checkpoint is complete, and Docker may mount the root itself.
    async fn everything_is_here(&mut self, images: u32) -> anyhow::Result<()> {
        let inventory = self.intake.images(images).await.context("the checkpoint did not come")?;
        fs::write(self.checkpoint.join(INVENTORY), inventory).context("writing the checkpoint")?;
        self.root.unmount()
    }

    async fn asked(&mut self, question: Question) {
        let mut answer = None;
        for action in self.machine.on(TargetEvent::Asked) {
            match action {
                TargetAction::Answer(verdict) => answer = Some(verdict),
                other => drop(self.act(other).await),
            }
        }
        let _ = question.send(answer);
    }

    async fn fail(&mut self, why: String) {
        tracing::error!(ticket = %self.request.ticket, "{why}");
        self.failure = why;
        self.on(TargetEvent::Failed).await;
    }

    async fn on(&mut self, event: TargetEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.machine.on(event) {
                events.extend(self.act(action).await);
            }
        }
    }

    async fn act(&mut self, action: TargetAction) -> Option<TargetEvent> {
        match action {
            TargetAction::Restore | TargetAction::Answer(_) => {}
            TargetAction::SendHeld => self.tell(ToSource::Held).await,
            TargetAction::SaveGrant => {
                let saved = self.record(TargetStep::Granted);
                return Some(saved.map_or(TargetEvent::Failed, |()| TargetEvent::GrantSaved));
            }
            TargetAction::Resume => return Some(self.resume().await),
            TargetAction::SendResumed => {
                self.tell(ToSource::Resumed).await;
                // Docker has read all of its memory by now.
                return Some(TargetEvent::PagesComplete);
            }
            TargetAction::SendDrained => {
                let _ = self.record(TargetStep::Complete);
                self.journal.ended_as(End::Moved, None);
                self.settle().await;
                self.tell(ToSource::Drained(LazyReport::default())).await;
            }
            TargetAction::SendFailed => {
                let why = self.failure.clone();
                self.tell(ToSource::Failed { why }).await;
            }
            TargetAction::Discard => self.discard().await,
        }
        None
    }

    /// A start that failed has run nothing, if Docker says so too.
    async fn resume(&mut self) -> TargetEvent {
        let Err(error) = start(&self.id, &self.checkpoint).await else {
            return TargetEvent::Resumed;
        };
        match self.agent.docker.inspect(&self.id).await {
            Ok(found) if found.running => TargetEvent::Resumed,
            Ok(_) => {
                self.failure = error;
                TargetEvent::Failed
            }
            // Nobody knows: to say nothing keeps the source stopped.
            Err(_) => TargetEvent::Asked,
        }
    }

    /// It is Docker's now.
    async fn settle(&mut self) {
        let original = Inspection::from_json(&self.request.container).ok();
        let host = original.and_then(|original| original.all.host_config);
        if let Some(policy) = host.and_then(|host| host.restart_policy)
            && let Err(error) = self.agent.docker.set_restart_policy(&self.id, policy).await
        {
            tracing::warn!("{error}");
        }
        let _ = fs::remove_dir_all(&self.checkpoint);
    }

    async fn discard(&mut self) {
        let _ = self.root.unmount();
        if let Err(error) = self.agent.docker.discard(&self.id).await {
            tracing::warn!("the container stays: {error}");
        }
        mounts::undo(&self.agent.docker, &self.made).await;
        let _ = self.record(TargetStep::Burned);
        self.journal.ended_as(End::Kept, Some(self.failure.clone()));
    }

    fn record(&self, step: TargetStep) -> std::io::Result<()> {
        let record = TargetRecord {
            ticket: self.request.ticket,
            container: Some(self.id.clone()),
            step,
            source: self.link.peer().to_string(),
            made: self.made.clone(),
        };
        self.agent.ledger.save(self.request.ticket, &record)
    }

    async fn tell(&mut self, message: ToSource) {
        if let Err(error) = self.to_source.send(&message).await {
            tracing::warn!("cannot tell the source: {error}");
        }
    }
}

/// The root of a container that does not run, mounted as Docker will mount it.
struct Root(PathBuf);

impl Root {
    fn mount(created: &Inspection, name: &str) -> anyhow::Result<Self> {
        let data = created.all.graph_driver.clone().context("Docker names no storage driver")?.data;
        let part = |key: &str| {
            data.get(key).cloned().with_context(|| format!("its storage driver names no {key}"))
        };
        let (lower, upper, work) = (part("LowerDir")?, part("UpperDir")?, part("WorkDir")?);
        let at = Path::new(ROOTS).join(name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&at)?;
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let kind = Some("overlay");
        mount(kind, &at, kind, MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("mounting the root of the container at {at:?}"))?;
        Ok(Self(at))
    }

    /// Fine if it is not mounted any more.
    fn unmount(&mut self) -> anyhow::Result<()> {
        unmount(&self.0)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = unmount(&self.0);
    }
}

/// Never removes more than an empty directory: what is mounted is a container's.
fn unmount(at: &Path) -> anyhow::Result<()> {
    match umount2(at, MntFlags::empty()) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("unmounting {at:?}")),
    }
    match fs::remove_dir(at) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {at:?}"))
        }
        _ => Ok(()),
    }
}

/// Lets go of what an agent that died has left mounted.
pub fn remove_leftovers() {
    for entry in fs::read_dir(ROOTS).into_iter().flatten().flatten() {
        if let Err(error) = unmount(&entry.path()) {
            tracing::warn!("{error:#}");
        }
    }
}
