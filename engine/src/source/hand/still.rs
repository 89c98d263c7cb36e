//! Bringing the container to a stand at a good moment.

use super::Handover;
use crate::event::{Event, Phase, millis};
use crate::patience::{Hold, silence_limit};
use crate::protocol::{ToSource, ToTarget};
use crate::source::freeze::{Attempt, FreezeError, Ready, Still};
use crate::source::gauge::Gauge;
use crate::source::pump::{self, Take};
use crate::source::{MigrateError, unexpected};
use crate::throttle::Throttle;
use crate::track::Stop;
use blip_transport::link::quic::Vigil;
use std::time::{Duration, Instant};

/// How often a container is thawed again because somebody connected to it from
/// within in the very moment of the freeze, and how long it runs in between.
const ATTEMPTS: u32 = 20;
const STEP: Duration = Duration::from_millis(1);
/// A wait after which the rounds are worth another one.
const LONG: Duration = Duration::from_millis(200);

impl Handover<'_> {
    /// Waits for the moment and freezes. `Err`: it runs, and CRIU is gone.
    pub(super) async fn stand_still(&mut self, ready: Ready) -> Result<Still, MigrateError> {
        let held = self.wait_while_held(Hold::Freeze);
        if let Err(interrupted) = self.run.unless_interrupted(held).await {
            ready.cancel().await;
            return Err(interrupted);
        }
        let since = Instant::now();
        let mut ready = self.settle(ready).await?;
        if since.elapsed() > LONG
            && self.copied.forecast.method.copies_ahead()
            && let Err(error) = self.catch_up().await
        {
            ready.cancel().await;
            return Err(error);
        }
        for attempt in 1..=ATTEMPTS {
            ready = self.settle(ready).await?;
            self.vigil = Some(Vigil::keep(&self.peer.link, silence_limit()));
            self.clock.last = Instant::now();
            self.run.events.send(Event::Begin { phase: Phase::Freeze });
            // A duty cycle would thaw what is about to be frozen, and CRIU take a
            // low limit for the container's own.
            if let Some(Err(error)) = self.copied.throttle.as_mut().map(Throttle::before_freeze) {
                ready.cancel().await;
                return Err(error.into());
            }
            match ready.freeze().await? {
                Attempt::Still(still) => return Ok(*still),
                Attempt::Again(again) => ready = *again,
            }
            self.vigil = None;
            let ms = millis(self.clock.last.elapsed());
            self.run.events.send(Event::End { phase: Phase::Freeze, ms });
            let text = "somebody connected in that moment, whom nobody has accepted: it runs on \
                        for a moment";
            self.run.events.send(Event::Note { text: text.into() });
            tokio::time::sleep(STEP * attempt).await;
        }
        ready.cancel().await;
        Err(FreezeError::Restless { attempts: ATTEMPTS }.into())
    }

    /// What was dirtied while it was waited for goes ahead of the freeze.
    async fn catch_up(&mut self) -> Result<(), MigrateError> {
        let round = self.next_round();
        let tasks = self.subject.tasks()?;
        let take = Take::All;
        let order = pump::Order { round, tasks, stop: Stop::Live, take, watch: false };
        let (pump, link) = (self.take_pump()?, self.peer.link.clone());
        let gauge = Gauge::default();
        let copying = pump.round(order, &gauge, &link);
        let (mut pump, done) = self.run.unless_interrupted(copying).await??;
        self.peer.say(&ToTarget::RoundEnd { round, batches: done.batches }).await?;
        match self.run.hear(&mut self.peer).await? {
            ToSource::RoundApplied { missing, .. } => pump.take_back(&missing),
            other => return Err(unexpected(other)),
        }
        pump.confirm();
        self.copied.pump = Some(pump);
        self.copied.rounds.push(done.report.clone());
        self.run.events.send(Event::Round(done.report));
        Ok(())
    }

    /// An interrupt ends the wait.
    async fn settle(&self, mut ready: Ready) -> Result<Ready, MigrateError> {
        let say = |text| self.run.events.send(Event::Note { text });
        let settled = match self.run.unless_interrupted(ready.settle(say)).await {
            Ok(settled) => settled.map_err(MigrateError::from),
            Err(interrupted) => Err(interrupted),
        };
        match settled {
            Ok(()) => Ok(ready),
            Err(error) => {
                ready.cancel().await;
                Err(error)
            }
        }
    }
}
