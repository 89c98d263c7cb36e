//! How many distinct pages a container dirties in a given time.
//!
//! A container writes to a working set again and again, and walks over other
//! memory once: in time `t` it dirties `W (1 - exp(-t/τ)) + s t` distinct pages.
//! `W`, `τ` and `s` are fitted to what the scans found. A rate alone would be
//! wrong by orders of magnitude: a hot set of 64 MiB that is rewritten three
//! times a second dirties no more in 10 s than in 1 s.
//!
//! Time here is CPU time left to the container: while it is throttled, less of
//! it goes by.

use blip_transport::units::PageCount;
use std::collections::VecDeque;
use std::time::Duration;

/// Observations that are kept. What the container did before is past.
const KEPT: usize = 8;
/// The weight of each observation relative to the one after it.
const FADE: f64 = 0.6;
/// This many times more or less than expected, twice, is another habit.
const SURPRISE: f64 = 3.0;
/// Shortest and longest time constant tried, in seconds, and steps between.
const TAU: (f64, f64) = (2e-3, 200.0);
const STEPS: i32 = 48;

/// The pages found dirty `time` after the scan before.
#[derive(Clone, Copy, Debug)]
struct Seen {
    time: f64,
    pages: f64,
}

/// A curve through the observations.
#[derive(Clone, Copy, Debug)]
enum Curve {
    /// One observation: between "always the same pages" and "never the same".
    Root {
        pages_per_root: f64,
    },
    Fitted {
        working_set: f64,
        tau: f64,
        stream: f64,
    },
}

impl Curve {
    fn at(&self, time: f64) -> f64 {
        match *self {
            Self::Root { pages_per_root } => pages_per_root * time.sqrt(),
            Self::Fitted { working_set, tau, stream } => {
                working_set * -(-time / tau).exp_m1() + stream * time
            }
        }
    }
}

/// What has been seen of a container's writing.
#[derive(Clone, Debug, Default)]
pub struct Dirtying {
    seen: VecDeque<Seen>,
    curve: Option<Curve>,
    /// Root of the mean squared relative error of the curve.
    error: f64,
    /// Observations in a row far above the curve before them, or below it.
    surprises: i32,
}

impl Dirtying {
    /// Takes in that a scan found `pages` dirty, `time` of the container's CPU
    /// time after the scan before.
    pub fn observe(&mut self, time: Duration, pages: PageCount) {
        let seen = Seen { time: time.as_secs_f64().max(1e-4), pages: pages.0 as f64 };
        if let Some(expected) = self.curve.map(|curve| curve.at(seen.time)) {
            let ratio = (seen.pages + 8.0) / (expected + 8.0);
            self.surprises = match ratio {
                _ if ratio > SURPRISE => self.surprises.max(0) + 1,
                _ if ratio < 1.0 / SURPRISE => self.surprises.min(0) - 1,
                _ => 0,
            };
        }
        if self.surprises.abs() >= 2 {
            // It does something else now.
            self.seen.drain(..self.seen.len() - 1);
            self.surprises = 0;
        }
        if self.seen.len() == KEPT {
            self.seen.pop_front();
        }
        self.seen.push_back(seen);
        self.fit();
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Observations made.
    pub fn observations(&self) -> usize {
        self.seen.len()
    }

    /// Distinct pages dirtied in `time`; `None` before the first observation.
    pub fn within(&self, time: Duration) -> Option<PageCount> {
        let curve = self.curve?;
        let last = self.seen.back()?;
        // What it did last it probably still does; more so if that was much.
        let drift = (last.pages.max(1.0) / curve.at(last.time).max(1.0)).clamp(0.6, 4.0);
        let mut pages = curve.at(time.as_secs_f64()) * drift;
        // Shorter than anything seen, pages that are written all the time show
        // that longer intervals hid.
        let shortest = self.seen.iter().map(|seen| seen.time).fold(f64::MAX, f64::min);
        if time.as_secs_f64() < shortest {
            let share = time.as_secs_f64() / shortest;
            pages = pages.max(curve.at(shortest) * drift * share.powf(0.75));
        }
        // Whatever is dirtied in less time cannot be more: also where a fit
        // through noise says so.
        let most =
            if time.as_secs_f64() <= last.time { last.pages.max(1.0) * 1.5 } else { f64::MAX };
        Some(PageCount(pages.min(most).ceil() as u64))
    }

    /// How far off the curve usually is, relative to what it says.
    pub fn error(&self) -> f64 {
        match self.seen.len() {
            0 => 1.0,
            1 => 0.6,
            n => self.error.max(0.6 / (n as f64 + 1.0)).max(0.1),
        }
    }

    /// Pages a second, over the latest interval.
    pub fn rate(&self) -> Option<f64> {
        self.seen.back().map(|seen| seen.pages / seen.time)
    }

    fn fit(&mut self) {
        let Some(last) = self.seen.back() else { return };
        if self.seen.len() == 1 {
            let pages_per_root = last.pages / last.time.sqrt();
            (self.curve, self.error) = (Some(Curve::Root { pages_per_root }), 0.6);
            return;
        }
        let tau = |step: i32| TAU.0 * (TAU.1 / TAU.0).powf(f64::from(step) / f64::from(STEPS));
        let fits = (0..=STEPS).map(|step| self.fit_with(tau(step)));
        let best = fits.min_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((curve, error)) = best {
            (self.curve, self.error) = (Some(curve), error.sqrt());
        }
    }

    /// Weighted least squares of the relative error for one time constant, with
    /// `W` and `s` not negative. Answers the mean squared error.
    fn fit_with(&self, tau: f64) -> (Curve, f64) {
        let rows: Vec<[f64; 4]> = self
            .seen
            .iter()
            .rev()
            .enumerate()
            .map(|(age, seen)| {
                let scale = seen.pages + 8.0;
                let weight = FADE.powi(age as i32);
                let shape = -(-seen.time / tau).exp_m1();
                [weight, shape / scale, seen.time / scale, seen.pages / scale]
            })
            .collect();
        let sum = |f: &dyn Fn(&[f64; 4]) -> f64| rows.iter().map(f).sum::<f64>();
        let [aa, bb, ab, ay, by] = [
            sum(&|r| r[0] * r[1] * r[1]),
            sum(&|r| r[0] * r[2] * r[2]),
            sum(&|r| r[0] * r[1] * r[2]),
            sum(&|r| r[0] * r[1] * r[3]),
            sum(&|r| r[0] * r[2] * r[3]),
        ];
        let determinant = aa * bb - ab * ab;
        let both = ((ay * bb - by * ab) / determinant, (by * aa - ay * ab) / determinant);
        let alone = [(ay / aa.max(1e-300), 0.0), (0.0, by / bb.max(1e-300))];
        let inside = determinant > 1e-9 * aa * bb && both.0 >= 0.0 && both.1 >= 0.0;
        let candidates = alone.into_iter().chain(inside.then_some(both));
        let total = sum(&|r| r[0]);
        let error =
            |(w, s): (f64, f64)| sum(&|r| r[0] * (w * r[1] + s * r[2] - r[3]).powi(2)) / total;
        let best = candidates.map(|ws| (ws, error(ws))).min_by(|a, b| a.1.total_cmp(&b.1));
        let ((working_set, stream), error) = best.unwrap_or(((0.0, 0.0), f64::MAX));
        (Curve::Fitted { working_set, tau, stream }, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(s: f64) -> Duration {
        Duration::from_secs_f64(s)
    }

    #[test]
    fn a_working_set_is_told_from_a_stream() {
        let mut hot = Dirtying::default();
        let mut stream = Dirtying::default();
        for time in [8.0, 2.0, 0.5, 0.25, 0.125] {
            let truth = 16_384.0 * (1.0 - (-time / 0.3_f64).exp());
            hot.observe(seconds(time), PageCount(truth as u64));
            stream.observe(seconds(time), PageCount((time * 2_000.0) as u64));
        }
        let at = |of: &Dirtying, time| of.within(seconds(time)).unwrap().0 as f64;
        assert!((at(&hot, 20.0) / 16_384.0 - 1.0).abs() < 0.1, "{}", at(&hot, 20.0));
        assert!((at(&hot, 0.05) / 2_515.0 - 1.0).abs() < 0.35, "{}", at(&hot, 0.05));
        assert!((at(&stream, 20.0) / 40_000.0 - 1.0).abs() < 0.1, "{}", at(&stream, 20.0));
        assert!((at(&stream, 0.05) / 100.0 - 1.0).abs() < 0.35, "{}", at(&stream, 0.05));
    }

    #[test]
    fn nothing_is_said_before_anything_was_seen() {
        let mut dirtying = Dirtying::default();
        assert_eq!(dirtying.within(seconds(1.0)), None);
        dirtying.observe(seconds(1.0), PageCount(0));
        assert!(dirtying.within(seconds(1.0)).unwrap().0 <= 1);
    }

    #[test]
    fn what_was_seen_last_counts_most() {
        let mut dirtying = Dirtying::default();
        for _ in 0..5 {
            dirtying.observe(seconds(1.0), PageCount(100));
        }
        for _ in 0..3 {
            dirtying.observe(seconds(1.0), PageCount(10_000));
        }
        assert!(dirtying.within(seconds(1.0)).unwrap().0 > 7_000);
    }

    proptest! {
        #[test]
        fn any_observations_give_a_curve_that_rises(
            seen in proptest::collection::vec((1e-4..100.0_f64, 0..10_000_000_u64), 1..12),
        ) {
            let mut dirtying = Dirtying::default();
            for (time, pages) in seen {
                dirtying.observe(seconds(time), PageCount(pages));
            }
            prop_assert!(dirtying.error().is_finite());
            let at = |time| dirtying.curve.unwrap().at(time);
            let mut before = 0.0;
            for exponent in -3..3 {
                let now = at(10_f64.powi(exponent));
                prop_assert!(now.is_finite() && now >= before * 0.999_999, "{now} after {before}");
                before = now;
            }
        }
    }
}
