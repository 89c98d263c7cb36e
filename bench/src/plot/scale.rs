//! From values to places, and the ticks between.

use super::svg::{Anchor, Font, Svg};
use super::theme::{FAINT, GRID, SMALL};

/// A scale along one axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    log: bool,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// An even scale from zero to a round number not below `high`, drawn
    /// between two places.
    pub fn even(high: f64, from: f64, to: f64) -> Scale {
        let high = if high > 0.0 { round_up(high) } else { 1.0 };
        Scale { log: false, low: 0.0, high, from, to }
    }

    /// An even scale between two values, as they are.
    pub fn span(low: f64, high: f64, from: f64, to: f64) -> Scale {
        Scale { log: false, low, high: if high > low { high } else { low + 1.0 }, from, to }
    }

    /// A logarithmic scale that holds all positive values, with a little room
    /// at both ends.
    pub fn log(values: impl IntoIterator<Item = f64>, from: f64, to: f64) -> Scale {
        let positive = values.into_iter().filter(|v| *v > 0.0 && v.is_finite());
        let (low, high) =
            positive.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = if low.is_finite() { (low, high) } else { (1.0, 10.0) };
        // A picture of equal values is not to look like one of wild ones.
        let room = (10.0 / (high / low)).sqrt().max(1.25);
        Scale { log: true, low: low / room, high: high * room, from, to }
    }

    /// Where a value is. Values off the scale are at its ends.
    pub fn at(&self, value: f64) -> f64 {
        let part = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Whether a value has a place of its own on the scale.
    pub fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// Round values on the scale, from low to high: four to eight of them.
    pub fn ticks(&self) -> Vec<f64> {
        if self.log { self.log_ticks() } else { self.even_ticks() }
    }

    fn even_ticks(&self) -> Vec<f64> {
        let step = round_up((self.high - self.low) / 6.0);
        let first = (self.low / step).ceil() as i64;
        let ticks = (first..first + 20).map(|n| n as f64 * step);
        ticks.take_while(|t| *t <= self.high * (1.0 + 1e-9)).collect()
    }

    fn log_ticks(&self) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let within = |t: &f64| (self.low..=self.high).contains(t);
        let with = |factors: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|d| factors.iter().map(move |f| f * 10_f64.powi(d)));
            all.filter(within).collect()
        };
        let few = with(&[1.0]);
        if few.len() >= 4 {
            return few;
        }
        let some = with(&[1.0, 3.0]);
        if some.len() >= 4 { some } else { with(&[1.0, 2.0, 5.0]) }
    }

    /// Draws the ticks of a horizontal axis: grid lines from `top` to
    /// `bottom`, labels below.
    pub fn draw_below(&self, svg: &mut Svg, top: f64, bottom: f64, label: impl Fn(f64) -> String) {
        for tick in self.ticks() {
            let x = self.at(tick);
            svg.line((x, top), (x, bottom), GRID, 1.0);
            let font = Font { size: SMALL, ink: FAINT, ..Font::default() };
            svg.text((x, bottom + 15.0), label(tick), Anchor::Middle, font);
        }
    }

    /// Draws the ticks of a vertical axis: grid lines from `left` to `right`,
    /// labels on the left.
    pub fn draw_left(&self, svg: &mut Svg, left: f64, right: f64, label: impl Fn(f64) -> String) {
        for tick in self.ticks() {
            let y = self.at(tick);
            svg.line((left, y), (right, y), GRID, 1.0);
            let font = Font { size: SMALL, ink: FAINT, ..Font::default() };
            svg.text((left - 6.0, y + 4.0), label(tick), Anchor::End, font);
        }
    }
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    let fits = factors.into_iter().find(|f| f * decade >= value * (1.0 - 1e-9));
    fits.unwrap_or(10.0) * decade
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_scales_begin_at_zero_and_end_round() {
        let scale = Scale::even(173.0, 100.0, 300.0);
        assert_eq!((scale.at(0.0), scale.at(200.0), scale.at(100.0)), (100.0, 300.0, 200.0));
        assert_eq!(scale.ticks(), [0.0, 50.0, 100.0, 150.0, 200.0]);
        assert_eq!(scale.at(1e9), 300.0);
        assert_eq!(Scale::even(0.0, 0.0, 1.0).ticks().first(), Some(&0.0));
    }

    #[test]
    fn log_scales_have_round_ticks_whatever_their_range() {
        for (low, high, few) in [(90.0, 150.0, 3), (3.0, 900.0, 4), (0.1, 100_000.0, 5)] {
            let scale = Scale::log([low, high], 0.0, 100.0);
            let ticks = scale.ticks();
            assert!((few..=9).contains(&ticks.len()), "{low}–{high}: {ticks:?}");
            assert!(ticks.windows(2).all(|t| t[0] < t[1]));
            assert!(scale.at(low) > 0.0 && scale.at(high) < 100.0);
        }
        let odd = Scale::log([0.0, f64::INFINITY], 0.0, 100.0);
        assert!(!odd.ticks().is_empty(), "nothing to draw is no disaster");
    }

    #[test]
    fn equal_ratios_are_equal_lengths_on_a_log_scale() {
        let scale = Scale::log([1.0, 10_000.0], 0.0, 100.0);
        let length = |a, b| scale.at(b) - scale.at(a);
        assert!((length(1.0, 10.0) - length(100.0, 1_000.0)).abs() < 1e-9);
    }
}
