//! The host a container arrives on: `blip agent`.
//!
//! One connection is one migration, or one question about an earlier one. The
//! agent keeps on disk what it must remember ([`crate::ledger`]); all else it
//! can forget: what was staged and never ran is removed when it starts again.

mod announcer;
mod apparmor;
pub mod arrival;
mod brownout;
pub mod check;
pub mod intake;
pub mod mounts;
pub mod pages;
mod probe;
pub mod recall;
pub mod segment;
mod shared;
pub mod stage;

use crate::docker::{Docker, DockerError, Inspection, register_runtime};
use crate::external;
use crate::handover::{Ticket, Verdict};
use crate::history::History;
use crate::image;
use crate::kept::Keeper;
use crate::ledger::{Ledger, Made, TargetRecord, TargetStep};
use crate::network;
use crate::patience::link_settings;
use crate::protocol::{StageRequest, ToSource, ToTarget};
use crate::runtime::stage::{Fate, STAGE_ROOT, StageDir};
use arrival::{Arrival, Question};
use blip_transport::identity::Fingerprint;
use blip_transport::link::quic::{Connection, ControlReceiver, ControlSender, Session};
use blip_transport::units::ByteSize;
use mounts::Remains;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How long it may take to remove what was staged for a source that is gone.
const CLEARING_UP: Duration = Duration::from_secs(3);

/// The target's part of blip, for all migrations that come in.
pub struct Agent {
    pub(crate) docker: Docker,
    pub(crate) ledger: Ledger,
    /// What must survive a crash.
    state: PathBuf,
    pub(crate) history: History,
    /// Allows memory of containers that leave to be kept here.
    keeper: Mutex<Option<Arc<Keeper>>>,
    /// The handovers that are under way.
    under_way: Mutex<HashMap<Ticket, UnderWay>>,
}

/// A handover that is under way.
struct UnderWay {
    /// Answers questions about it.
    ask: mpsc::Sender<Question>,
    source: Fingerprint,
    /// The container's name here.
    name: String,
}

impl Agent {
    /// Readies this host: registers the runtime and removes what an earlier
    /// agent left half done.
    pub async fn start(docker: Docker, state: &Path, blip: &Path) -> anyhow::Result<Arc<Self>> {
        register_runtime(&docker, blip).await?;
        let ledger = Ledger::open(&state.join("arrivals"))?;
        clean_up(&docker, &ledger).await?;
        let under_way = Mutex::default();
        let (state, history) = (state.to_owned(), History::of(state));
        let keeper = Mutex::new(keep());
        Ok(Arc::new(Self { docker, ledger, state, history, keeper, under_way }))
    }

    /// Serves one connection to its end.
    pub async fn serve(self: Arc<Self>, session: Session) {
        let Session { connection, control } = session;
        let peer = connection.remote_addr();
        let (to_source, from_source) = control.split();
        if let Err(error) = self.converse(connection, to_source, from_source).await {
            tracing::warn!(%peer, "{error:#}");
        }
    }

    async fn converse(
        self: Arc<Self>,
        link: Connection,
        mut to_source: ControlSender,
        mut from_source: ControlReceiver,
    ) -> anyhow::Result<()> {
        loop {
            match from_source.recv().await? {
                ToTarget::Check(request) => {
                    let gone = self.wait_for_earlier(&request.name, &link).await;
                    let remains = Remains::read(&self.state);
                    // Anew each time: a host's equipment changes while its agent runs.
                    let target = check::facts(&self.docker).await?;
                    let findings = match gone {
                        true => check::target(&self.docker, &target, &remains, &request).await?,
                        false => vec![check::under_way(&request.name)],
                    };
                    let image = check::image(&self.docker, &request).await?;
                    to_source.send(&ToSource::Checked { findings, target, image }).await?;
                }
                ToTarget::Image(order) => {
                    let answer = match image::receive(&self.docker, &link, &order).await {
                        Ok(()) => ToSource::ImageLoaded,
                        Err(error) => ToSource::Failed { why: error.to_string() },
                    };
                    to_source.send(&answer).await?;
                }
                ToTarget::Ask(ticket) => {
                    let verdict = self.verdict(ticket, &link).await?;
                    to_source.send(&ToSource::Answer(verdict)).await?;
                }
                ToTarget::Probe => {
                    let report = probe::receive(&link).await?;
                    to_source.send(&ToSource::Probed(report)).await?;
                }
                ToTarget::Create(request) => {
                    let (ticket, questions) = (request.ticket, self.enter(&request, &link));
                    let agent = self.clone();
                    let done =
                        external::arrive(agent, link, to_source, from_source, *request, questions)
                            .await;
                    self.lock().remove(&ticket);
                    return done;
                }
                ToTarget::Stage(request) => {
                    let (ticket, questions) = (request.ticket, self.enter(&request, &link));
                    let agent = self.clone();
                    let done =
                        Arrival::run(agent, link, to_source, from_source, *request, questions)
                            .await;
                    self.lock().remove(&ticket);
                    return done;
                }
                other => anyhow::bail!("the source said {other:?} before anything was staged"),
            }
        }
    }

    /// Puts a handover on the list of those that are under way.
    fn enter(&self, request: &StageRequest, link: &Connection) -> mpsc::Receiver<Question> {
        let (ask, questions) = mpsc::channel(4);
        let name = Inspection::from_json(&request.container).map(|found| found.name);
        let entry = UnderWay { ask, source: link.peer(), name: name.unwrap_or_default() };
        self.lock().insert(request.ticket, entry);
        questions
    }

    /// A source that was killed is missed only when its link has been silent for
    /// a while, and until then what it had staged is here. If it asks for the same
    /// container again, that need not be in its way: answers whether it has gone.
    async fn wait_for_earlier(&self, name: &str, link: &Connection) -> bool {
        let until = Instant::now() + link_settings().idle_timeout + CLEARING_UP;
        let is_it = |other: &UnderWay| other.name == name && other.source == link.peer();
        while self.lock().values().any(is_it) {
            if Instant::now() > until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        true
    }

    /// What became of a ticket. Only the source that made it may ask: asking
    /// burns a ticket that has not run.
    async fn verdict(&self, ticket: Ticket, link: &Connection) -> anyhow::Result<Option<Verdict>> {
        let asker = link.peer().to_string();
        let owned_by_another = |record: &TargetRecord| record.source != asker;
        if self.ledger.load(ticket)?.as_ref().is_some_and(owned_by_another) {
            anyhow::bail!("ticket {ticket} belongs to another source");
        }
        let under_way = self.lock().get(&ticket).map(|found| found.ask.clone());
        if let Some(ask) = under_way {
            let (question, answer) = oneshot::channel();
            if ask.send(question).await.is_ok() {
                return Ok(answer.await.unwrap_or(None));
            }
        }
        // Read only now: an arrival that has just ended wrote its last word.
        let Some(mut record) = self.ledger.load::<TargetRecord>(ticket)? else {
            // Never heard of: make sure that it stays so.
            let step = TargetStep::Burned;
            let made = Made::default();
            let record = TargetRecord { ticket, container: None, step, source: asker, made };
            self.ledger.save(ticket, &record)?;
            return Ok(Some(Verdict::NeverRan));
        };
        let alive = match &record.container {
            Some(id) => match self.docker.inspect(id).await {
                Ok(found) => found.running,
                Err(DockerError::NoContainer { .. }) => false,
                // Docker's silence is no proof of death.
                Err(error) => return Err(error.into()),
            },
            None => false,
        };
        // "Granted" is written ahead: that the word was really given, only the
        // hook's mark tells, which is gone once Docker has the container.
        if record.step == TargetStep::Granted && never_granted(&record) {
            record.step = TargetStep::Staged;
        }
        let verdict = record.verdict(alive);
        if verdict == Verdict::NeverRan && record.step != TargetStep::Burned {
            record.step = TargetStep::Burned;
            self.ledger.save(ticket, &record)?;
        }
        Ok(Some(verdict))
    }

    /// Waits until no arrival is left that has not been granted: their
    /// connections end with the process, and what they staged with it.
    pub async fn shut_down(&self) {
        let waiting: Vec<_> = self.lock().values().map(|found| found.ask.clone()).collect();
        for ask in waiting {
            // A question burns what has not been granted and cleans it up.
            let (question, answer) = oneshot::channel();
            if ask.send(question).await.is_ok() {
                let _ = answer.await;
            }
            let gone = ask.closed();
            let _ = tokio::time::timeout(Duration::from_secs(15), gone).await;
        }
        self.forget_kept();
    }

    /// Frees the memory that is kept of containers that left.
    fn forget_kept(&self) {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            keeper.end();
        }
    }

    /// How much a store may take: twice the container's memory, and not more
    /// than half of what is free here now.
    pub(crate) fn memory_limit(&self, memory: ByteSize) -> ByteSize {
        let wanted = memory.0.saturating_mul(2).max(256 << 20);
        ByteSize(wanted.min(crate::memory::available().0 / 4 * 3))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Ticket, UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets memory be kept here, and removes it when it is too old.
fn keep() -> Option<Arc<Keeper>> {
    match Keeper::start() {
        Ok(keeper) => {
            let keeper = Arc::new(keeper);
            let tidy = keeper.clone();
            tokio::spawn(async move { tidy.tidy().await });
            Some(keeper)
        }
        Err(error) => {
            tracing::info!("no memory of containers that leave is kept here: {error}");
            None
        }
    }
}

/// Whether the stage of a container that may have been granted is still there
/// and says that it was not.
fn never_granted(record: &TargetRecord) -> bool {
    let root = Path::new(STAGE_ROOT);
    let stage = record.container.as_deref().and_then(|id| StageDir::at(root, id));
    record.step == TargetStep::Granted
        && stage.is_some_and(|stage| stage.path().is_dir() && stage.fate() == Fate::NotGranted)
}

/// Removes what never ran. What was granted is left alone: it may run.
async fn clean_up(docker: &Docker, ledger: &Ledger) -> anyhow::Result<()> {
    external::remove_leftovers();
    for mut record in ledger.all::<TargetRecord>()? {
        if record.step == TargetStep::Staged || never_granted(&record) {
            if let Some(id) = &record.container {
                stage::remove_leftover(docker, id).await;
            }
            mounts::undo(docker, &record.made).await;
            record.step = TargetStep::Burned;
            ledger.save(record.ticket, &record)?;
            tracing::info!(ticket = %record.ticket, "removed what an earlier agent had staged");
        }
    }
    stage::remove_leftover_files();
    crate::forward::all()?;
    network::remove_leftovers().await?;
    Ok(())
}
