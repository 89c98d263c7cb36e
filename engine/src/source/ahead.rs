//! Copying ahead: rounds of pages, and the files, while the container runs.
//!
//! The planner decides after every round, and may cut one short; what is done
//! here is to make the rounds, to measure them, and to carry its word out.

use super::files::{Ahead as FilesAhead, Log, Trees};
use super::gauge::Gauge;
use super::known::Known;
use super::peer::{Peer, PeerError};
use super::pump::{self, Pump, PumpError, RoundDone, Take};
use super::subject::Subject;
use super::{Copied, Manner, MigrateError, Run, unexpected};
use crate::event::{Event, Forecast, Progress, RoundReport};
use crate::plan::{Decision, Method, Planner, RoundFacts, RoundSoFar, Watched};
use crate::protocol::{ToSource, ToTarget};
use crate::target::intake::LOG;
use crate::throttle::Throttle;
use crate::track::{self, Stop};
use blip_transport::files::{Manifest, Pace};
use blip_transport::link::quic::{BlobName, Priority};
use blip_transport::page::PageAt;
use blip_transport::units::{Bandwidth, ByteSize, PAGE_SIZE, PageCount, Round, TreeId};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often progress is told, and the planner asked whether to go on.
const TICK: Duration = Duration::from_millis(200);

/// This long before a deadline nothing is waited for any more.
const HURRY: Duration = Duration::from_secs(1);

/// The rounds of one migration.
struct Ahead<'a> {
    run: &'a Run,
    subject: &'a Subject,
    peer: &'a mut Peer,
    planner: Planner,
    rounds: Vec<RoundReport>,
    next: Round,
    /// Hold pages back that are dirtied round after round.
    hold_back: bool,
    /// Slows the container down, if that is allowed.
    throttle: Option<Throttle>,
    /// The most that was taken from it, in percent.
    throttled: u8,
    /// How fast pages were dirtied in the last round.
    dirty_rate: Option<Bandwidth>,
}

/// How the copying ahead ended.
struct Verdict {
    manner: Manner,
    forecast: Forecast,
}

impl Run {
    /// Copies rounds of pages, and the files once, while the container runs,
    /// until the planner wants it frozen.
    pub(super) async fn copy_ahead(
        &self,
        subject: &Subject,
        peer: &mut Peer,
        planner: Planner,
        known: Known,
        work: &Path,
    ) -> Result<Copied, MigrateError> {
        let (tracker, why) =
            track::choose(self.order.tracker, subject.pre_dumps(work)).map_err(PumpError::from)?;
        self.decide("track".into(), why.clone());
        let files = self.files_ahead(subject, peer, known.trees).await?;
        let log = self.log_ahead(subject, peer).await?;
        let mut ahead = Ahead {
            run: self,
            subject,
            peer,
            planner,
            rounds: Vec::new(),
            next: Round(0),
            hold_back: false,
            throttle: self.throttle(subject)?,
            throttled: 0,
            dirty_rate: None,
        };
        let (mut pump, verdict) =
            ahead.until_the_freeze(Pump::new(tracker, &known.pages), &files).await?;
        pump.confirm();
        let trees = files.finish().await?;
        self.files_applied(ahead.peer, &trees).await?;
        self.events.send(Event::Forecast(verdict.forecast.clone()));
        Ok(Copied {
            pump: Some(pump),
            trees: Some(trees),
            log,
            rounds: ahead.rounds,
            next: ahead.next,
            throttle: ahead.throttle,
            throttled: ahead.throttled,
            tracker: why,
            planner: ahead.planner,
            manner: verdict.manner,
            forecast: verdict.forecast,
        })
    }

    /// The means to slow the container down, if the user allows it.
    fn throttle(&self, subject: &Subject) -> Result<Option<Throttle>, MigrateError> {
        if self.order.goal.throttle.percent() == 0 {
            return Ok(None);
        }
        Ok(Some(Throttle::of(subject.init(), &subject.freezer)?))
    }

    /// The first round of the files; the next ones go on by themselves.
    async fn files_ahead(
        &self,
        subject: &Subject,
        peer: &mut Peer,
        known: BTreeMap<TreeId, Manifest>,
    ) -> Result<FilesAhead, MigrateError> {
        let round = Trees::open(subject, known)?.round(Pace::Live, &peer.link);
        let (trees, done) = self.unless_interrupted(round).await??;
        self.files_applied(peer, &trees).await?;
        let text = format!("{} files sent, {} on the wire", done.changed, done.wire);
        self.events.send(Event::Note { text });
        Ok(FilesAhead::start(trees, &done, peer.link.clone()))
    }

    /// Waits until the target has everything in place that was sent of them.
    async fn files_applied(&self, peer: &mut Peer, trees: &Trees) -> Result<(), MigrateError> {
        peer.say(&ToTarget::FilesEnd { streams: trees.streams() }).await?;
        match self.hear(peer).await? {
            ToSource::FilesApplied { .. } => Ok(()),
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
}

impl Ahead<'_> {
    /// Makes rounds until the planner wants no more, and the files are there.
    async fn until_the_freeze(
        &mut self,
        mut pump: Pump,
        files: &FilesAhead,
    ) -> Result<(Pump, Verdict), MigrateError> {
        let memory = PageCount(self.subject.memory()?.0.div_ceil(PAGE_SIZE as u64));
        let mut decision = self.planner.begin(memory, self.run.events.elapsed());
        loop {
            if let Some(verdict) = self.follow(decision).await? {
                if files.calm() || !self.may_wait() {
                    return Ok((pump, verdict));
                }
                self.run.decide("wait".into(), "files are still on their way".into());
                self.wait_for(files).await?;
                if !verdict.forecast.method.copies_ahead() {
                    return Ok((pump, verdict));
                }
            }
            (pump, decision) = self.round(pump).await?;
        }
    }

    /// Whether there is time for files that are not calm yet.
    fn may_wait(&self) -> bool {
        let goal = &self.run.order.goal;
        let hurried = goal.deadline.is_some_and(|limit| self.run.events.elapsed() + HURRY > limit);
        !hurried && self.rounds.len() < goal.max_rounds as usize
    }

    /// Waits for the files, which have rounds of their own; no longer than the
    /// deadline allows.
    async fn wait_for(&self, files: &FilesAhead) -> Result<(), MigrateError> {
        let spent = self.run.events.elapsed() + HURRY;
        let left = self.run.order.goal.deadline.map(|limit| limit.saturating_sub(spent));
        let calm = async {
            match left {
                Some(left) => drop(tokio::time::timeout(left, files.until_calm()).await),
                None => files.until_calm().await,
            }
        };
        self.run.unless_interrupted(calm).await
    }

    /// Carries out what was decided; answers how to freeze, if that is it.
    async fn follow(&mut self, decision: Decision) -> Result<Option<Verdict>, MigrateError> {
        self.run.announce(&decision);
        match decision {
            Decision::CopyAgain { hold_back, .. } => {
                self.hold_back = hold_back;
                Ok(None)
            }
            Decision::Throttle { percent, .. } => {
                self.hold_back = false;
                self.slow_down(percent).await?;
                Ok(None)
            }
            Decision::Freeze { forecast, .. } => {
                let resident = matches!(forecast.method, Method::PreCopy | Method::StopAndCopy);
                Ok(Some(Verdict { manner: Manner { leaves: false, resident }, forecast }))
            }
            Decision::GoLazy { forecast, .. } => {
                Ok(Some(Verdict { manner: Manner::LAZY, forecast }))
            }
            Decision::GiveUp { why } => Err(MigrateError::GivenUp(why)),
        }
    }

    async fn slow_down(&mut self, percent: u8) -> Result<(), MigrateError> {
        let Some(mut throttle) = self.throttle.take() else { return Ok(()) };
        // It watches the container for a moment first.
        let setting = tokio::task::spawn_blocking(move || {
            let set = throttle.set(percent);
            (throttle, set)
        });
        let (throttle, set) =
            setting.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        self.throttle = Some(throttle);
        set?;
        self.throttled = self.throttled.max(percent);
        self.run.events.send(Event::Throttle { percent });
        Ok(())
    }

    /// One round, and what the planner makes of it.
    async fn round(&mut self, pump: Pump) -> Result<(Pump, Decision), MigrateError> {
        let begun = Instant::now();
        let round = self.next;
        self.next = round.next();
        let gauge = Gauge::default();
        let take = if self.hold_back { Take::Cool } else { Take::All };
        let tasks = self.subject.tasks()?;
        let watch = self.run.order.goal.hold_back;
        let order = pump::Order { round, tasks, stop: Stop::Live, take, watch };
        let link = self.peer.link.clone();
        let sent_before = link.stats().sent;
        let mut cut = None;
        let (mut pump, done) = {
            let copying = pump.round(order, &gauge, &link);
            tokio::pin!(copying);
            let mut interrupt = self.run.order.interrupt.clone();
            let mut tick = tokio::time::interval(TICK);
            loop {
                tokio::select! {
                    done = &mut copying => break done?,
                    _ = interrupt.wait_for(|stop| *stop) => return Err(MigrateError::Interrupted),
                    _ = tick.tick() => {
                        let sent = ByteSize(link.stats().sent.0 - sent_before.0);
                        self.tell_progress(round, &gauge, begun, sent);
                        if cut.is_none() {
                            cut = self.ask_in_between(&gauge, begun, sent)?;
                        }
                    }
                }
            }
        };
        let read = Instant::now();
        pump.take_back(&self.applied(round, done.batches).await?);
        let took = begun.elapsed();
        self.run.events.send(Event::Round(done.report.clone()));
        self.rounds.push(done.report.clone());
        let facts = self.facts_of(&done, took, read.elapsed());
        self.dirty_rate = Some(dirty_rate(&facts));
        let decision = match cut {
            Some(decision) => decision,
            None => self.planner.after_round(&facts),
        };
        Ok((pump, decision))
    }

    /// Asks the planner whether this round is still wanted; cuts it short if
    /// not. To give up needs no more than that.
    fn ask_in_between(
        &mut self,
        gauge: &Gauge,
        begun: Instant,
        wire: ByteSize,
    ) -> Result<Option<Decision>, MigrateError> {
        let so_far = RoundSoFar {
            took: begun.elapsed(),
            elapsed: self.run.events.elapsed(),
            done: gauge.done(),
            dirty: gauge.dirty(),
            wire,
        };
        match self.planner.during_round(&so_far) {
            Some(decision @ Decision::GiveUp { .. }) => {
                self.run.announce(&decision);
                Err(MigrateError::GivenUp(decision.why().to_owned()))
            }
            Some(decision) => {
                gauge.cut_short();
                Ok(Some(decision))
            }
            None => Ok(None),
        }
    }

    fn tell_progress(&self, round: Round, gauge: &Gauge, begun: Instant, wire: ByteSize) {
        self.run.events.send(Event::Progress(Progress {
            round,
            done: gauge.done(),
            dirty: gauge.dirty(),
            bytes_wire: self.peer.link.stats().sent,
            throughput: Bandwidth::over(wire, begun.elapsed()),
            dirty_rate: self.dirty_rate,
            predicted_downtime_ms: self.planner.forecast().map(|forecast| forecast.downtime_ms),
        }));
    }

    /// Waits until the target has put a round's pages into its store. Returns
    /// those it could make nothing of.
    async fn applied(&mut self, round: Round, batches: u32) -> Result<Vec<PageAt>, MigrateError> {
        self.peer.say(&ToTarget::RoundEnd { round, batches }).await?;
        match self.run.hear(self.peer).await? {
            ToSource::RoundApplied { missing, .. } => Ok(missing),
            other => Err(unexpected(other)),
        }
    }

    /// `took` is the whole round, `unseen` the end of it in which nothing was
    /// read any more.
    fn facts_of(&self, done: &RoundDone, took: Duration, unseen: Duration) -> RoundFacts {
        let watched = &done.watched;
        RoundFacts {
            watched: Watched { since: watched.since + unseen, ..watched.clone() },
            round: done.report.round,
            took,
            elapsed: self.run.events.elapsed(),
            resident: done.resident,
            dirty: done.due,
            hot: done.hot,
            held_back: done.report.held_back,
            wire: done.report.bytes_wire,
            throttle: self.throttle.as_ref().map_or(0, Throttle::percent),
        }
    }
}

/// How fast the container dirties pages, as the last look or the scan shows.
fn dirty_rate(facts: &RoundFacts) -> Bandwidth {
    match facts.watched.looks.last() {
        Some(look) => Bandwidth::over(look.written.bytes(), look.time),
        None => Bandwidth::over(facts.dirty.bytes(), facts.took),
    }
}
