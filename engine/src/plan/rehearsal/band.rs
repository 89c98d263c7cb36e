//! Pages that are written to alike, in expectation: no page has a name. What a
//! scan, a glance and the reading of a round come to follows from how many pages
//! of a band are in which state.

use crate::plan::glances::{ALWAYS, COOLS, KEPT};
use std::collections::VecDeque;
use std::time::Duration;

/// Pages of the same habit.
#[derive(Clone, Debug)]
pub struct Band {
    pages: f64,
    /// Writes a second to any one page, or, if they are walked through, pages a
    /// second.
    rate: f64,
    walks: bool,
    /// Share of the pages written since the last look.
    dirty: f64,
    /// The shares that the last looks found, and when they were made.
    looks: VecDeque<(Duration, f64)>,
    scans: u32,
    /// Left out of rounds.
    held: f64,
    /// To be read in this round, and not seen written in it.
    todo: f64,
    /// To be read at its end.
    later: f64,
    /// Seen written in it after they had been read.
    again: f64,
    /// Share of the pages seen written in it at all.
    ever: f64,
}

/// What a scan found of a band, in pages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) dirty: f64,
    pub(super) hot: f64,
    pub(super) held: f64,
}

impl Band {
    /// `pages` that are written at random, `rate` writes a second in all.
    pub fn random(pages: f64, rate: f64) -> Self {
        Self::new(pages, rate / pages.max(1.0), false)
    }

    /// `pages` that are walked through, `rate` of them a second.
    pub fn walk(pages: f64, rate: f64) -> Self {
        Self::new(pages, rate, true)
    }

    fn new(pages: f64, rate: f64, walks: bool) -> Self {
        Self {
            pages,
            rate,
            walks,
            dirty: 0.0,
            looks: VecDeque::new(),
            scans: 0,
            held: 0.0,
            todo: 0.0,
            later: 0.0,
            again: 0.0,
            ever: 0.0,
        }
    }

    /// How many pages it has.
    pub fn pages(&self) -> f64 {
        self.pages
    }

    /// Lets so many seconds of writing go by.
    pub fn run(&mut self, seconds: f64) {
        if self.walks {
            self.dirty = (self.dirty + self.rate * seconds / self.pages.max(1.0)).min(1.0);
        } else {
            self.dirty = 1.0 - (1.0 - self.dirty) * (-self.rate * seconds).exp();
        }
    }

    /// A scan, with which a round begins. The first finds everything dirty.
    pub(super) fn scan(&mut self, now: Duration, hold_back: bool) -> Seen {
        self.scans += 1;
        self.ever = 0.0;
        if self.scans == 1 {
            self.dirty = 0.0;
            (self.todo, self.later, self.again, self.held) = (self.pages, 0.0, 0.0, 0.0);
            return Seen { dirty: self.pages, ..Seen::default() };
        }
        let open = self.pages - self.held - self.again;
        let fresh = open * self.dirty;
        let dirty = self.held + self.again + fresh;
        // Fresh pages are hot if another look has seen them, too.
        let before = self.heat(now).0;
        self.look_at(now);
        let heat = self.heat(now).1;
        let again = if self.walks { heat / self.dirty.max(1e-9) } else { before };
        let hot = self.held * heat.max(f64::from(self.walks))
            + self.again * self.hot_share(now)
            + fresh * again.min(1.0);
        let hot = hot.min(dirty);
        self.dirty = 0.0;
        self.held = if hold_back { hot } else { 0.0 };
        (self.todo, self.later, self.again) = (dirty - self.held, 0.0, 0.0);
        Seen { dirty, hot, held: self.held }
    }

    /// A look in the middle of a round; answers pages written.
    pub(super) fn glance(&mut self, now: Duration, waits: bool) -> f64 {
        let share = self.dirty;
        self.look_at(now);
        self.dirty = 0.0;
        let new = if self.walks { share.min(1.0 - self.ever) } else { (1.0 - self.ever) * share };
        self.ever += new;
        if waits {
            self.later += self.todo * share;
            self.todo -= self.todo * share;
        }
        let done = (self.pages - self.held - self.todo - self.later - self.again).max(0.0);
        self.again += done * share;
        self.pages * share
    }

    /// Pages to be read: those not seen written, or, at the end of a round, those
    /// that are not written all the time.
    pub(super) fn left(&self, now: Duration, late: bool) -> f64 {
        if late { self.later * (1.0 - self.hot_share(now)) } else { self.todo }
    }

    /// Whether pages wait for the end of the round.
    pub(super) fn waits(&self) -> bool {
        self.later > 0.0
    }

    /// Reads this share of them.
    pub(super) fn read(&mut self, now: Duration, late: bool, share: f64) {
        if late {
            self.later -= self.left(now, true) * share;
        } else {
            self.todo -= self.todo * share;
        }
    }

    /// Ends a round: what was not read in the end is held back.
    pub(super) fn settle(&mut self) {
        self.held += self.later;
        self.later = 0.0;
    }

    /// Pages that are held back.
    pub(super) fn held(&self) -> f64 {
        self.held
    }

    /// Pages that are due again; those of them and of the held ones that are
    /// written all the time.
    pub(super) fn due(&self, now: Duration) -> (f64, f64) {
        (self.again, self.held + self.again * self.hot_share(now))
    }

    /// Pages seen in this round at all, and those not held back now.
    pub(super) fn ever(&self) -> (f64, f64) {
        (self.pages * self.ever, (self.pages - self.held) * self.ever)
    }

    /// Pages seen by the look made at `at`, without those held back now.
    pub(super) fn outside(&self, at: Duration) -> f64 {
        let share = self.looks.iter().find(|look| look.0 == at).map_or(0.0, |look| look.1);
        (self.pages - self.held) * share
    }

    fn look_at(&mut self, now: Duration) {
        if self.looks.len() == KEPT {
            self.looks.pop_front();
        }
        self.looks.push_back((now, self.dirty));
    }

    /// Of those that were written of late, the share that was twice.
    fn hot_share(&self, now: Duration) -> f64 {
        let (warm, hot) = self.heat(now);
        if warm > 0.0 { (hot / warm).min(1.0) } else { 0.0 }
    }

    /// The share of pages written of late, and the share written twice.
    fn heat(&self, now: Duration) -> (f64, f64) {
        let counts =
            |(age, look): &(usize, &(Duration, f64))| *age < ALWAYS || look.0 + COOLS >= now;
        let looks = self.looks.iter().rev().enumerate().take_while(counts).map(|(_, look)| look.1);
        if self.walks {
            // Whoever walks comes back only after the whole way.
            let sum: f64 = looks.sum();
            return (sum.min(1.0), (sum - 1.0).clamp(0.0, 1.0));
        }
        let (never, once) = looks.fold((1.0, 0.0), |(never, once), share| {
            (never * (1.0 - share), once * (1.0 - share) + never * share)
        });
        (1.0 - never, (1.0 - never - once).max(0.0))
    }
}
