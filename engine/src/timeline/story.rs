//! What the events tell, put in order for drawing.

use crate::event::{Event, Phase, Progress, Report, RoundReport, Timed};

/// A phase and when it was, in milliseconds since the command began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) phase: Phase,
    pub(super) from: f64,
    pub(super) to: f64,
    /// Whether its end was told.
    pub(super) ended: bool,
}

/// Decisions of the same kind in a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decided {
    pub(super) at: Vec<f64>,
    pub(super) what: String,
    /// The reason of the last.
    pub(super) why: String,
}

/// One migration.
#[derive(Clone, Debug, Default)]
pub(super) struct Story {
    pub(super) end: f64,
    pub(super) phases: Vec<Span>,
    /// Each with its beginning and end.
    pub(super) rounds: Vec<(f64, f64, RoundReport)>,
    pub(super) progress: Vec<(f64, Progress)>,
    pub(super) decisions: Vec<Decided>,
    /// From when on how much CPU time was taken, in percent.
    pub(super) throttle: Vec<(f64, u8)>,
    pub(super) called_off: Option<String>,
    pub(super) report: Option<Report>,
}

impl Story {
    pub(super) fn of(events: &[Timed]) -> Self {
        let mut story = Self::default();
        let mut open: Vec<(Phase, f64)> = Vec::new();
        for Timed { at_ms, event } in events {
            let at = *at_ms;
            story.end = story.end.max(at);
            match event {
                Event::Begin { phase } => open.push((*phase, at)),
                Event::End { phase, ms } => {
                    open.retain(|(other, _)| other != phase);
                    story.phases.push(Span { phase: *phase, from: at - ms, to: at, ended: true });
                }
                Event::Round(round) => story.rounds.push((at - round.ms, at, round.clone())),
                Event::Progress(progress) => story.progress.push((at, *progress)),
                Event::Decision { what, why } => story.decided(at, what, why),
                Event::Throttle { percent } => story.throttle.push((at, *percent)),
                Event::CalledOff { why } => story.called_off = Some(why.clone()),
                Event::Finished(report) => story.report = Some((**report).clone()),
                Event::Forecast(_) | Event::Note { .. } => {}
            }
        }
        let drain = story.report.as_ref().map_or(0.0, |report| report.lazy.drain_ms);
        for (phase, from) in open {
            let drained = phase == Phase::Drain && story.report.is_some();
            let to = if drained { (from + drain).min(story.end) } else { story.end };
            story.phases.push(Span { phase, from, to, ended: drained });
        }
        story.phases.sort_by(|a, b| a.from.total_cmp(&b.from));
        story
    }

    fn decided(&mut self, at: f64, what: &str, why: &str) {
        match self.decisions.last_mut() {
            Some(last) if last.what == what => {
                last.at.push(at);
                last.why = why.to_owned();
            }
            _ => self.decisions.push(Decided { at: vec![at], what: what.into(), why: why.into() }),
        }
    }

    /// The parts of the downtime in order.
    pub(super) fn stops(&self) -> Vec<Span> {
        let stands = |span: &&Span| Phase::DOWNTIME.contains(&span.phase);
        self.phases.iter().filter(stands).copied().collect()
    }

    /// From the freeze to the resume, or to where the events end.
    pub(super) fn downtime(&self) -> Option<(f64, f64)> {
        let stops = self.stops();
        let from = stops.iter().map(|span| span.from).min_by(f64::total_cmp)?;
        let to = stops.iter().map(|span| span.to).max_by(f64::total_cmp)?;
        Some((from, to.max(from)))
    }

    /// When it ran again on the target.
    pub(super) fn resumed(&self) -> Option<f64> {
        let grant = |span: &&Span| span.phase == Phase::Grant && span.ended;
        self.phases.iter().find(grant).map(|span| span.to)
    }

    /// The downtime that was measured, in milliseconds.
    pub(super) fn observed(&self) -> Option<f64> {
        let told = self.report.as_ref().filter(|report| !report.downtime.is_empty());
        told.map(|report| report.downtime_ms).or(self.downtime().map(|(from, to)| to - from))
    }

    /// The downtime wanted, in milliseconds.
    pub(super) fn target(&self) -> Option<f64> {
        self.report.as_ref().and_then(|report| report.goal.downtime_ms)
    }

    /// The downtime that was expected when it was frozen.
    pub(super) fn predicted(&self) -> Option<f64> {
        let report = self.report.as_ref()?;
        report.predicted.as_ref().map(|forecast| forecast.downtime_ms)
    }
}
