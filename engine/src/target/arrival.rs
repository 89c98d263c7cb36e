//! One migration, seen from the target: everything that happens is put in a
//! row, fed to the pure [`Target`], and its actions are carried out.

use super::brownout::Brownout;
use super::intake::{Intake, IntakeError};
use super::pages::StoredPages;
use super::recall::{self, Recalled};
use super::stage::Staged;
use super::{Agent, announcer, shared};
use crate::docker::Inspection;
use crate::event::{LazyReport, Phase, millis};
use crate::guard::{Charge, Guard};
use crate::handover::{Target, TargetAction, TargetEvent, Ticket, Verdict};
use crate::history::{End, Journal, Side};
use crate::lazy::{LazyEvent, LazyHandle, LazyOptions, LazyPlan, TaskPlan};
use crate::ledger::{Made, TargetRecord, TargetStep};
use crate::network::{self, Lift, Silence};
use crate::protocol::{
    MemoryPlan, Remembered, RestoreOrder, SharedObject, StageRequest, StoredImage, ToSource,
    ToTarget,
};
use crate::runtime::stage::{Report, StageDir, StageEvent};
use crate::sys::sched::Claim;
use crate::timers;
use blip_transport::link::quic::{Connection, ControlReceiver, ControlSender};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// How long CRIU may take from the last image to the hold, and from the grant
/// to the first instruction.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// Something that happened, from wherever.
enum Input {
    Message(ToTarget),
    LinkLost(String),
    Intake(IntakeError),
    Stage(StageEvent),
    Lazy(LazyEvent),
    Asked(oneshot::Sender<Option<Verdict>>),
}

/// A question from another connection about this handover's ticket.
pub type Question = oneshot::Sender<Option<Verdict>>;

/// One migration on its way in.
pub struct Arrival {
    agent: Arc<Agent>,
    link: Connection,
    to_source: Option<ControlSender>,
    machine: Target,
    ticket: Ticket,
    /// How it came to the source.
    came_by: Option<Ticket>,
    intake: Arc<Intake>,
    staged: Option<Staged>,
    lazy: Option<LazyHandle>,
    brownout: Option<Brownout>,
    lifts: Vec<Lift>,
    guard: Option<Guard>,
    serving_since: Option<Instant>,
    /// The grant's record, on its way to the disk.
    recording: Option<JoinHandle<std::io::Result<()>>>,
    init: i32,
    /// Its TCP connections did not come along.
    closes: bool,
    resumed_at: Option<Instant>,
    drained: bool,
    /// All memory must be in place before the hold is told.
    resident: bool,
    /// The restore is held, its memory not all in place.
    filling: bool,
    failure: Option<String>,
    /// Shared memory to be filled before the hold is told.
    shared: Vec<SharedObject>,
    questions: Vec<Question>,
    journal: Journal,
    inputs: mpsc::UnboundedSender<Input>,
}

impl Arrival {
    /// Stages what the source asks for and sees it through to its end.
    pub async fn run(
        agent: Arc<Agent>,
        link: Connection,
        mut to_source: ControlSender,
        from_source: ControlReceiver,
        request: StageRequest,
        mut questions: mpsc::Receiver<Question>,
    ) -> anyhow::Result<()> {
        let limit = agent.memory_limit(request.memory);
        let intake = Intake::new(limit);
        let (came_by, into) = (request.came_by, intake.clone());
        let recalling = tokio::task::spawn_blocking(move || recall::pages(&into, came_by, limit));
        let record = |container: Option<String>, made: &Made| TargetRecord {
            ticket: request.ticket,
            container,
            step: TargetStep::Staged,
            source: link.peer().to_string(),
            made: made.clone(),
        };
        agent.ledger.save(request.ticket, &record(None, &Made::default()))?;
        let name = Inspection::from_json(&request.container).map(|found| found.name);
        let peer = link.remote_addr().ip().to_canonical().to_string();
        let name = name.unwrap_or_default();
        let journal = agent.history.began(request.ticket, Side::Target, &name, &peer);
        journal.phase(Phase::Stage);
        let departed = recall::remains(&agent.docker, &agent.state, came_by).await;
        let staged = Staged::prepare(&agent.docker, &request, departed, &intake, |id, made| {
            let id = id.map(str::to_owned);
            let _ = agent.ledger.save(request.ticket, &record(id, made));
        })
        .await;
        let pages = recalling.await.unwrap_or(false);
        let mut staged = match staged {
            Ok(staged) => staged,
            Err(error) => {
                agent.ledger.remove(request.ticket)?;
                journal.ended_as(End::Kept, Some(format!("cannot stage: {error}")));
                tracing::warn!(ticket = %request.ticket, "cannot stage: {error}");
                to_source.send(&ToSource::Failed { why: error.to_string() }).await?;
                to_source.finish().await?;
                return Ok(());
            }
        };
        let recalled = Recalled { pages, trees: std::mem::take(&mut staged.trees) };
        let remembered = Remembered { pages, trees: recalled.trees.len() as u32 };
        let container = staged.id.clone();
        let told = to_source.send(&ToSource::Staged { container, remembered }).await;
        tokio::spawn(say_what_is_here(recalled, intake.clone(), link.clone()));
        if let Err(error) = told {
            staged.discard("the source is gone").await;
            agent.ledger.remove(request.ticket)?;
            return Err(error.into());
        }
        journal.phase(Phase::PreCopy);
        let (inputs, mut row) = mpsc::unbounded_channel();
        tokio::spawn(listen(from_source, inputs.clone()));
        tokio::spawn(watch_intake(intake.clone(), link.clone(), inputs.clone()));
        let mut arrival = Self {
            agent,
            link,
            to_source: Some(to_source),
            machine: Target::Staged,
            ticket: request.ticket,
            came_by,
            intake,
            staged: Some(staged),
            lazy: None,
            brownout: None,
            lifts: Vec::new(),
            guard: None,
            serving_since: None,
            recording: None,
            init: 0,
            closes: !request.keep_connections,
            resumed_at: None,
            drained: false,
            resident: false,
            filling: false,
            failure: None,
            shared: Vec::new(),
            questions: Vec::new(),
            journal,
            inputs,
        };
        while !arrival.is_over() {
            let input = tokio::select! {
                Some(input) = row.recv() => input,
                Some(event) = arrival.next_stage_event() => Input::Stage(event),
                Some(question) = questions.recv() => Input::Asked(question),
            };
            arrival.take(input).await;
        }
        arrival.settle().await
    }

    /// Over when it is gone, or complete and Docker's.
    fn is_over(&self) -> bool {
        self.machine == Target::Gone || (self.drained && self.to_source.is_none())
    }

    async fn next_stage_event(&mut self) -> Option<StageEvent> {
        match &mut self.staged {
            Some(staged) => staged.server.next().await,
            None => std::future::pending().await,
        }
    }

    async fn take(&mut self, input: Input) {
        match input {
            Input::Message(message) => self.message(message).await,
            Input::LinkLost(why) => self.link_lost(why).await,
            Input::Intake(error) => match error {
                IntakeError::Link(_) => {}
                other => self.fail(other.to_string()).await,
            },
            Input::Stage(event) => self.stage_event(event).await,
            Input::Lazy(event) => self.lazy_event(event).await,
            Input::Asked(question) => {
                self.questions.push(question);
                self.on(TargetEvent::Asked).await;
                // No answer now means: ask again.
                self.answer(None);
            }
        }
    }

    async fn message(&mut self, message: ToTarget) {
        match message {
            ToTarget::RoundEnd { round, batches } => {
                // Nothing came: the reason is in the row already.
                if let Some(missing) = self.intake.round_applied(round, batches).await {
                    if let Some(lazy) = &self.lazy {
                        // What the store still lacks nobody will send unasked.
                        lazy.ask_for_all();
                    }
                    self.tell(ToSource::RoundApplied { round, missing }).await;
                }
                self.journal.round(round);
            }
            ToTarget::FilesEnd { streams } => {
                if self.intake.files_applied(streams).await.is_some() {
                    self.tell(ToSource::FilesApplied { streams }).await;
                }
            }
            ToTarget::Neighbours(neighbours) => {
                let Some(staged) = &self.staged else { return };
                if let Err(error) = network::introduce(staged.holder.pid, &neighbours).await {
                    tracing::warn!("the container will have to ask for its neighbours: {error}");
                }
            }
            ToTarget::Restore(order) => {
                self.on(TargetEvent::RestoreOrdered).await;
                if self.machine == Target::Restoring {
                    self.restore(order).await;
                }
            }
            ToTarget::Memory(plan) if self.machine == Target::Restoring => {
                self.serve_memory(plan).await;
            }
            ToTarget::Grant(ticket) if ticket == self.ticket => self.on(TargetEvent::Grant).await,
            ToTarget::Abort { why } => {
                self.failure = Some(why);
                self.on(TargetEvent::Abort).await;
            }
            ToTarget::Retired => self.to_source = None,
            other => self.fail(format!("the source said {other:?} out of turn")).await,
        }
    }

    async fn link_lost(&mut self, why: String) {
        self.failure.get_or_insert(format!("the source is gone: {why}"));
        self.to_source = None;
        self.on(TargetEvent::LinkLost).await;
    }

    async fn stage_event(&mut self, event: StageEvent) {
        match event {
            StageEvent::Said(Report::Held { init_pid }) => {
                self.init = init_pid;
                // Otherwise CRIU was faster than the source's last look.
                if self.lazy.is_some() {
                    self.held().await;
                }
            }
            StageEvent::Said(Report::Failed { why, log_tail }) => {
                self.fail(format!("{why} {log_tail}").trim().to_owned()).await;
            }
            StageEvent::HolderGone | StageEvent::HookGone if !self.machine.runs() => {
                self.fail("the runtime's holder ended".into()).await;
            }
            _ => {}
        }
    }

    /// Everything is restored, and the source has said what of the memory.
    async fn held(&mut self) {
        if self.closes {
            crate::connections::mark_closed(self.init);
        }
        timers::set_again(self.init);
        self.before_the_hold_is_told();
        if let Err(error) = self.fill_shared().await {
            return self.fail(error).await;
        }
        if self.resident && !self.drained {
            self.filling = true;
            self.tell(ToSource::Filling).await;
        } else {
            self.on(TargetEvent::RestoreHeld).await;
        }
    }

    async fn lazy_event(&mut self, event: LazyEvent) {
        match event {
            LazyEvent::Drained => {
                self.drained = true;
                if std::mem::take(&mut self.filling) {
                    self.on(TargetEvent::RestoreHeld).await;
                }
                if self.machine.runs() {
                    self.on(TargetEvent::PagesComplete).await;
                }
            }
            LazyEvent::Lost { space, page, why } => {
                let why = format!("page {page:#x} of process {} is lost: {why}", space.0);
                self.fail(why).await;
            }
            LazyEvent::Failed(error) => self.fail(error.to_string()).await,
            _ => {}
        }
    }

    /// Something broke. Before the grant that undoes the arrival; after it the
    /// container runs on with what it has, and the log says what is wrong.
    async fn fail(&mut self, why: String) {
        tracing::error!(ticket = %self.ticket, "{why}");
        self.failure = Some(why);
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

    /// Carries out an action; what comes of it at once is the next event.
    async fn act(&mut self, action: TargetAction) -> Option<TargetEvent> {
        match action {
            TargetAction::Restore => None,
            TargetAction::SendHeld => {
                self.tell(ToSource::Held).await;
                None
            }
            TargetAction::SaveGrant => match self.granted_on_record().await {
                Ok(()) => Some(TargetEvent::GrantSaved),
                Err(error) => {
                    self.failure = Some(format!("cannot record the grant: {error}"));
                    Some(TargetEvent::Failed)
                }
            },
            TargetAction::Resume => Some(self.resume().await),
            TargetAction::SendResumed => {
                self.tell(ToSource::Resumed).await;
                self.journal.phase(Phase::Drain);
                self.drained.then_some(TargetEvent::PagesComplete)
            }
            TargetAction::SendDrained => {
                // The guard first: it would kill a container that the record
                // calls complete, if this process died in between.
                if let Some(guard) = self.guard.take() {
                    let _ = guard.dismiss();
                }
                let _ = self.record(TargetStep::Complete);
                self.journal.ended_as(End::Moved, None);
                self.tell(ToSource::Drained(self.lazy_report())).await;
                None
            }
            TargetAction::SendFailed => {
                let why = self.failure.clone().unwrap_or_default();
                self.tell(ToSource::Failed { why }).await;
                None
            }
            TargetAction::Discard => {
                self.discard().await;
                None
            }
            TargetAction::Answer(verdict) => {
                self.answer(Some(verdict));
                None
            }
        }
    }

    /// The images are on their way: lets the waiting restore go on when they
    /// are there.
    async fn restore(&mut self, order: RestoreOrder) {
        self.journal.phase(Phase::Restore);
        self.record_ahead();
        let Some(staged) = &self.staged else { return };
        let Some(inventory) = self.intake.images(order.images).await else { return };
        let images = staged.images.clone();
        if let Err(error) = self.write_page_images(&images, &order.stored).await {
            return self.fail(error).await;
        }
        let released = tokio::task::spawn_blocking(move || {
            StageDir::release_inventory(&images, &inventory, STEP_LIMIT)
        });
        match released.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(error.to_string()).await,
            Err(error) => self.fail(error.to_string()).await,
        }
    }

    /// The store holds all it is to hold: memory is served from it. CRIU's
    /// requests have waited at the socket if it was faster.
    async fn serve_memory(&mut self, mut request: MemoryPlan) {
        self.shared = std::mem::take(&mut request.shared);
        let Some(staged) = &mut self.staged else { return };
        let Some(server) = staged.lazy.take() else { return };
        let inbox = server.inbox();
        // What is pushed comes while the container runs.
        let claim = if request.pushed { Claim::Rest } else { Claim::Share };
        self.intake.tell(inbox.clone(), claim);
        self.resident = request.resident;
        let wait_for_push = request.pushed;
        let source = StoredPages::new(self.intake.clone(), self.link.clone(), inbox);
        let inputs = self.inputs.clone();
        let (plan, hot) = plan(request);
        let options = LazyOptions { hot, wait_for_push, ..LazyOptions::default() };
        let observer = move |event| drop(inputs.send(Input::Lazy(event)));
        match server.serve(plan, source, options, observer) {
            Ok(handle) => {
                let intake = self.intake.clone();
                let late = move || intake.late_pages();
                self.brownout = Some(Brownout::watch(handle.meter(), late));
                self.lazy = Some(handle);
                self.serving_since = Some(Instant::now());
            }
            Err(error) => return self.fail(error.to_string()).await,
        }
        if self.init != 0 {
            self.held().await;
        }
    }

    /// Images that came as pages are laid out as files, for CRIU to read.
    async fn write_page_images(
        &self,
        directory: &Path,
        stored: &[StoredImage],
    ) -> Result<(), String> {
        let (intake, directory) = (self.intake.clone(), directory.to_owned());
        let stored = stored.to_vec();
        let writing = tokio::task::spawn_blocking(move || {
            stored.iter().try_for_each(|image| intake.write_page_image(&directory, image))
        });
        let written = writing.await.map_err(|error| error.to_string())?;
        written.map_err(|error| error.to_string())
    }

    /// Puts the content of shared memory into the objects that CRIU restored.
    async fn fill_shared(&mut self) -> Result<(), String> {
        let objects = std::mem::take(&mut self.shared);
        if objects.is_empty() {
            return Ok(());
        }
        let (intake, init, begun) = (self.intake.clone(), self.init, Instant::now());
        let filling = tokio::task::spawn_blocking(move || shared::fill(init, &objects, &intake));
        let filled = filling.await.map_err(|error| error.to_string())?;
        let bytes = filled.map_err(|error| error.to_string())?;
        tracing::debug!(%bytes, took = ?begun.elapsed(), "shared memory filled");
        Ok(())
    }

    /// That the container may run here from now on goes to the disk while CRIU
    /// works, so that syncing it costs no downtime. Should the agent die in
    /// between, the hook's own mark tells whether the word was given.
    fn record_ahead(&mut self) {
        let (ledger, ticket) = (self.agent.ledger.clone(), self.ticket);
        let record = self.record_of(TargetStep::Granted);
        self.recording = Some(tokio::task::spawn_blocking(move || ledger.save(ticket, &record)));
    }

    async fn granted_on_record(&mut self) -> std::io::Result<()> {
        match self.recording.take() {
            Some(recording) => recording.await.map_err(std::io::Error::other)?,
            None => self.record(TargetStep::Granted),
        }
    }

    /// What the grant will need is made ready while it is on its way.
    fn before_the_hold_is_told(&mut self) {
        let Some(staged) = &self.staged else { return };
        let lifts = staged.silences.iter().map(Silence::prime_lift).collect::<Result<_, _>>();
        match lifts {
            Ok(lifts) => self.lifts = lifts,
            Err(error) => tracing::warn!("lifting the silence will take longer: {error}"),
        }
        let keepsakes = self.lazy.as_ref().map_or(Ok(Vec::new()), LazyHandle::keepsakes);
        let charge = Charge::Target { init: self.init };
        match keepsakes.and_then(|keepsakes| Guard::start(&charge, &keepsakes)) {
            Ok(guard) => self.guard = Some(guard),
            Err(error) => tracing::warn!("cannot start the guard: {error}"),
        }
    }

    /// The grant is on disk: this host owns the container.
    async fn resume(&mut self) -> TargetEvent {
        let Some(staged) = &self.staged else { return TargetEvent::Failed };
        let begun = Instant::now();
        if let Err(error) = staged.server.go().await {
            self.failure = Some(format!("the restored container is gone: {error}"));
            return TargetEvent::Failed;
        }
        // The silence ends while CRIU lets go, which takes several milliseconds.
        self.lift_silences(staged).await;
        announcer::announce(staged.holder.pid, &staged.moving);
        let let_go = is_let_go(self.init).await;
        tracing::debug!(took = ?begun.elapsed(), "resumed");
        if !let_go {
            // The word was given: it may run any moment, or have run and died.
            // Saying nothing keeps the source frozen, which is the safe side.
            tracing::error!(init = self.init, "CRIU does not let the container go");
            return TargetEvent::RestoreHeld;
        }
        self.resumed_at = Some(Instant::now());
        TargetEvent::Resumed
    }

    /// Nothing keeps the address from speaking any more. Where the quick way
    /// fails there is the thorough one.
    async fn lift_silences(&self, staged: &Staged) {
        for (number, silence) in staged.silences.iter().enumerate() {
            let quick = self.lifts.get(number).map(Lift::now);
            if matches!(quick, Some(Ok(()))) {
                continue;
            }
            tracing::warn!("a silence was not lifted at once: {quick:?}");
            if let Err(error) = silence.remove().await {
                tracing::error!("{error}");
            }
        }
    }

    async fn discard(&mut self) {
        if let Some(guard) = self.guard.take() {
            let _ = guard.dismiss();
        }
        let why = self.failure.clone().unwrap_or_else(|| "the migration was given up".into());
        if let Some(staged) = self.staged.take() {
            staged.discard(&why).await;
        }
        if let Some(lazy) = self.lazy.take() {
            // Joins a thread: off the async ones.
            let _ = tokio::task::spawn_blocking(move || lazy.abort()).await;
        }
        if let Some(recording) = self.recording.take() {
            // It must not overtake what follows.
            let _ = recording.await;
        }
        let _ = self.record(TargetStep::Burned);
        self.journal.ended_as(End::Kept, Some(why.clone()));
        tracing::info!(ticket = %self.ticket, %why, "discarded");
    }

    /// After the end: Docker owns what runs; what never ran is on record.
    async fn settle(self) -> anyhow::Result<()> {
        if let Some(to_source) = self.to_source {
            // What was said last must arrive before the connection goes.
            let _ = to_source.finish().await;
        }
        if let Some(staged) = self.staged {
            staged.settle().await?;
            recall::superseded(&self.agent.docker, &self.agent.state, self.came_by).await;
        }
        Ok(())
    }

    fn record(&self, step: TargetStep) -> std::io::Result<()> {
        self.agent.ledger.save(self.ticket, &self.record_of(step))
    }

    fn record_of(&self, step: TargetStep) -> TargetRecord {
        TargetRecord {
            ticket: self.ticket,
            container: self.staged.as_ref().map(|staged| staged.id.clone()),
            step,
            source: self.link.peer().to_string(),
            made: self.staged.as_ref().map(|staged| staged.made.clone()).unwrap_or_default(),
        }
    }

    async fn tell(&mut self, message: ToSource) {
        let Some(to_source) = &mut self.to_source else { return };
        if let Err(error) = to_source.send(&message).await {
            tracing::warn!("cannot tell the source: {error}");
        }
    }

    fn answer(&mut self, verdict: Option<Verdict>) {
        for question in self.questions.drain(..) {
            let _ = question.send(verdict);
        }
    }

    fn lazy_report(&self) -> LazyReport {
        let Some(lazy) = &self.lazy else { return LazyReport::default() };
        let stats = lazy.stats();
        let finished = self.serving_since.zip(stats.finished).map(|(since, took)| since + took);
        let drain = finished
            .zip(self.resumed_at)
            .map(|(end, resumed)| end.saturating_duration_since(resumed));
        let mut latency = stats.local_latency.clone();
        let _ = latency.add(&stats.remote_latency);
        let late = self.intake.late_pages();
        LazyReport {
            faults: stats.faults,
            from_store: (stats.prefilled + stats.from_store).saturating_sub(late),
            from_source: stats.from_source + late,
            p50_us: latency.value_at_quantile(0.5) / 1000,
            p99_us: latency.value_at_quantile(0.99) / 1000,
            drain_ms: drain.map(millis).unwrap_or(0.0),
            samples: self
                .brownout
                .as_ref()
                .zip(self.resumed_at)
                .map(|(brownout, resumed)| brownout.samples(resumed))
                .unwrap_or_default(),
        }
    }
}

/// CRIU has detached from a process when nobody traces it any more.
async fn is_let_go(pid: i32) -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if status.contains("TracerPid:\t0\n") {
            return true;
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    false
}

fn plan(
    request: MemoryPlan,
) -> (LazyPlan, Vec<(blip_transport::page::SpaceId, Vec<blip_transport::page::PageRun>)>) {
    let mut hot = Vec::new();
    let tasks = request.tasks.into_iter().map(|task| {
        hot.push((task.space, task.hot));
        (task.space, TaskPlan { missing: task.missing, wiped_on_fork: task.wiped_on_fork })
    });
    let plan = LazyPlan::new(tasks.collect::<Vec<_>>());
    (plan, hot)
}

async fn listen(mut from_source: ControlReceiver, inputs: mpsc::UnboundedSender<Input>) {
    loop {
        let input = match from_source.recv().await {
            Ok(message) => Input::Message(message),
            Err(error) => {
                let _ = inputs.send(Input::LinkLost(error.to_string()));
                return;
            }
        };
        if inputs.send(input).is_err() {
            return;
        }
    }
}

/// A source that does not hear it does not go on.
async fn say_what_is_here(recalled: Recalled, intake: Arc<Intake>, link: Connection) {
    if let Err(error) = recall::tell(recalled, intake, link).await {
        tracing::warn!("the source does not hear what is here: {error}");
    }
}

async fn watch_intake(intake: Arc<Intake>, link: Connection, inputs: mpsc::UnboundedSender<Input>) {
    let error = intake.run(link).await;
    let _ = inputs.send(Input::Intake(error));
}
