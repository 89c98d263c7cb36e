//! The reading of one round under virtual time.

use super::{Band, World, count};
use crate::plan::glances::{Glances, KEPT};
use crate::plan::{Look, Watched};
use blip_transport::units::PageCount;
use std::time::Duration;

/// How often a round under way is looked at.
const TICK: Duration = Duration::from_millis(250);

/// A round under way.
#[derive(Clone, Debug)]
pub struct Reading {
    hold_back: bool,
    /// It is about the pages that waited for its end.
    late: bool,
    glances: Option<Glances>,
    /// When, after how long, and how many pages were written.
    looks: Vec<(Duration, Duration, PageCount)>,
    begun: Duration,
    last_look: Duration,
    /// Pages sent.
    pub sent: f64,
    /// Bytes over the link.
    pub wire: f64,
}

impl Reading {
    /// A round whose scan was made at `now`; `watched`: it is glanced into.
    pub fn begin(now: Duration, hold_back: bool, watched: bool) -> Self {
        Self {
            hold_back,
            late: false,
            glances: watched.then(|| Glances::begin(now, hold_back)),
            looks: Vec::new(),
            begun: now,
            last_look: now,
            sent: 0.0,
            wire: 0.0,
        }
    }

    /// Reads for a moment, in which the container goes on; `false`: there is no
    /// more to read.
    pub fn go_on(&mut self, world: &mut dyn World, now: &mut Duration, throttle: u8) -> bool {
        let left = self.left(world, *now);
        if left < 0.5 {
            let waiting = !self.late && world.bands().iter().any(Band::waits);
            let due = self.glances.is_some_and(|glances| glances.is_due(*now));
            if waiting || due {
                self.glance(world, *now);
            }
            self.late = true;
            return waiting;
        }
        let page = PageCount(1).bytes().0 as f64;
        let pages_a_second = world.pace().0 / page;
        let glance = self.glances.map_or(TICK, |glances| glances.wait(*now));
        let step = Duration::from_secs_f64(left / pages_a_second).min(TICK).min(glance);
        // A step is at least a nanosecond: time goes on.
        let step = step.max(Duration::from_nanos(1));
        let pages = (pages_a_second * step.as_secs_f64()).min(left);
        world.run(step, throttle);
        *now += step;
        let (now, late) = (*now, self.late);
        world.bands().iter_mut().for_each(|band| band.read(now, late, pages / left));
        self.sent += pages;
        self.wire += pages * page * world.squeeze();
        if self.glances.is_some_and(|glances| glances.is_due(now)) {
            self.glance(world, now);
        }
        true
    }

    /// Pages that are still to be read before anything is decided anew.
    pub fn left(&self, world: &mut dyn World, now: Duration) -> f64 {
        world.bands().iter().map(|band| band.left(now, self.late)).sum()
    }

    /// Ends it, or breaks it off: what has not been read is held back, or, if it
    /// was never seen written, undone. Answers the latter.
    pub fn end(&self, world: &mut dyn World, now: Duration) -> PageCount {
        let undone = world.bands().iter().map(|band| band.left(now, false)).sum();
        world.bands().iter_mut().for_each(Band::settle);
        count(undone)
    }

    fn glance(&mut self, world: &mut dyn World, now: Duration) {
        let waits = self.hold_back;
        let written = world.bands().iter_mut().map(|band| band.glance(now, waits)).sum();
        self.looks.push((now, now - self.last_look, count(written)));
        self.last_look = now;
        if let Some(glances) = &mut self.glances {
            glances.made(now);
        }
    }

    /// What the glances have told.
    pub(super) fn watched(&self, world: &mut dyn World, now: Duration) -> Watched {
        if self.looks.is_empty() {
            return Watched::default();
        }
        let bands = world.bands();
        let latest = &self.looks[self.looks.len().saturating_sub(KEPT)..];
        let looks = latest.iter().map(|&(at, time, written)| {
            let outside = count(bands.iter().map(|band| band.outside(at)).sum());
            Look { time, written, outside }
        });
        let mut looks: Vec<_> = looks.collect();
        if let [.., last] = looks[..] {
            let ever = bands.iter().map(Band::ever);
            let ever = ever.fold((0.0, 0.0), |sum, band| (sum.0 + band.0, sum.1 + band.1));
            let time = self.last_look - self.begun;
            let long = Look { time, written: count(ever.0), outside: count(ever.1) };
            let before = looks.len() - 1;
            looks.splice(before.., (before > 0).then_some(long).into_iter().chain([last]));
        }
        let due = bands.iter().map(|band| band.due(now));
        let (again, hot) = due.fold((0.0, 0.0), |sum, due| (sum.0 + due.0, sum.1 + due.1));
        Watched { looks, again: count(again), hot: count(hot), since: now - self.last_look }
    }
}
