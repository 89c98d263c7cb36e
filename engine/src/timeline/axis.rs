//! From values to pixels, and where the ticks are.

use super::canvas::{Anchor, Canvas, GRID, Pen};
use crate::text;

/// A time axis: milliseconds to pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) left: f64,
    pub(super) right: f64,
}

impl Time {
    /// Where a time is; outside of the axis: at its edge.
    pub(super) fn x(self, ms: f64) -> f64 {
        let span = (self.to - self.from).max(1e-6);
        let part = ((ms - self.from) / span).clamp(0.0, 1.0);
        self.left + part * (self.right - self.left)
    }

    /// Draws grid lines from `top` to `bottom`, and the times below, in
    /// milliseconds or seconds after `zero`.
    pub(super) fn draw(self, canvas: &mut Canvas, top: f64, bottom: f64, zero: f64) {
        let (from, to) = (self.from - zero, self.to - zero);
        let (unit, scale) = if to - from >= 2000.0 { ("s", 1e3) } else { ("ms", 1.0) };
        let step = nice((to - from) / scale / 9.0);
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let first = (from / scale / step).ceil() as i64;
        let last = (to / scale / step + 1e-9).floor() as i64;
        for tick in first..=last {
            let value = tick as f64 * step;
            let x = self.x(value * scale + zero);
            canvas.line([x, top], [x, bottom], GRID, "");
            let label = format!("{value:.digits$}");
            let label = if tick == last { format!("{label} {unit}") } else { label };
            canvas.text([x, bottom + 14.0], &label, Pen::FAINT.at(Anchor::Middle));
        }
    }
}

/// The next of 1, 2, 5 times a power of ten.
pub(super) fn nice(at_least: f64) -> f64 {
    let at_least = at_least.max(1e-9);
    let power = 10f64.powf(at_least.log10().floor());
    let digit = at_least / power;
    power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|&d| digit <= d + 1e-9).unwrap_or(10.0)
}

/// A scale for heights, from the bottom to the top of a lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Height {
    pub(super) top: f64,
    pub(super) bottom: f64,
    low: f64,
    high: f64,
    log: bool,
}

impl Height {
    /// From zero to a little more than `most`.
    pub(super) fn linear(top: f64, bottom: f64, most: f64) -> Self {
        Self { top, bottom, low: 0.0, high: most.max(1e-9) * 1.05, log: false }
    }

    /// Logarithmic: amounts of bytes from `least` to `most`, in powers of ten
    /// times a KiB.
    pub(super) fn bytes(top: f64, bottom: f64, least: f64, most: f64) -> Self {
        let most = most.max(4096.0);
        // At least three powers of ten: else a little less looks like half.
        let low = (least.clamp(4096.0, most) / 2.0).min(most / 1e3);
        Self { top, bottom, low, high: most * 1.3, log: true }
    }

    /// Where a value is.
    pub(super) fn y(self, value: f64) -> f64 {
        let part = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            value / self.high
        };
        self.bottom - part.clamp(0.0, 1.0) * (self.bottom - self.top)
    }

    /// Round values in it that are at least 15 pixels apart.
    pub(super) fn ticks(self, unit: f64) -> Vec<f64> {
        if !self.log {
            let step = nice(self.high / unit / 3.0) * unit;
            return (1..).map(|i| f64::from(i) * step).take_while(|v| *v <= self.high).collect();
        }
        let all = (1..14).map(|power| 4f64.powi(power) * 1024.0);
        let mut ticks: Vec<f64> = Vec::new();
        for value in all.filter(|value| *value > self.low * 1.2 && *value <= self.high) {
            let far = |last: &f64| self.y(*last) - self.y(value) >= 15.0;
            if ticks.last().is_none_or(far) {
                ticks.push(value);
            }
        }
        ticks
    }

    /// Draws its ticks, from `left` to `right`, with labels at the left.
    pub(super) fn draw(self, canvas: &mut Canvas, x: [f64; 2], unit: f64, of: fn(f64) -> String) {
        for value in self.ticks(unit) {
            let y = self.y(value);
            canvas.line([x[0], y], [x[1], y], GRID, "");
            canvas.text([x[0] - 6.0, y + 4.0], &of(value), Pen::FAINT.at(Anchor::End));
        }
    }
}

/// An amount of bytes at a tick: `64 MiB`.
pub(super) fn bytes(value: f64) -> String {
    let text = blip_transport::units::ByteSize(value.round() as u64).to_string();
    text.replace(".0 ", " ")
}

/// A rate at a tick.
pub(super) fn rate(value: f64) -> String {
    format!("{}/s", bytes(value))
}

/// A time in words.
pub(super) fn time(ms: f64) -> String {
    text::time(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        assert_eq!([0.3, 1.0, 1.1, 3.0, 7.0, 230.0].map(nice), [0.5, 1.0, 2.0, 5.0, 10.0, 500.0]);
    }

    #[test]
    fn a_small_amount_beside_a_large_one_is_seen() {
        let height = Height::bytes(0.0, 80.0, 100e3, 1e9);
        assert!(height.y(100e3) < 78.0);
        assert!(height.y(1e9) > 0.0);
        let ys: Vec<f64> = height.ticks(1.0).into_iter().map(|value| height.y(value)).collect();
        assert!(ys.len() >= 3 && ys.windows(2).all(|pair| pair[0] - pair[1] >= 15.0), "{ys:?}");
    }
}
