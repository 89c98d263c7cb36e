//! What a freeze comes to, and how sure that is.

use super::{Model, Rest};
use crate::event::{Forecast, Phase, PhaseTime, millis};
use crate::plan::Method;
use blip_transport::units::{ByteSize, PageCount};
use std::time::Duration;

impl Model {
    /// What of the sending of `rest` adds to the downtime.
    pub fn extra(&self, rest: PageCount) -> Duration {
        self.costs.beyond(self.time_for(rest), self.memory)
    }

    /// The downtime if `rest` is left to do.
    pub fn downtime(&self, rest: PageCount, how: Rest) -> Duration {
        match how {
            Rest::Shipped => self.fixed() + self.extra(rest),
            Rest::Left => self.costs.fixed(self.memory),
        }
    }

    /// The same, if it goes rather badly.
    pub fn downtime_at_worst(&self, rest: PageCount, how: Rest) -> Duration {
        let more = PageCount((rest.0 as f64 * (1.0 + self.doubt())).ceil() as u64);
        self.downtime(more, how) + self.costs.spread()
    }

    /// Once the container runs on the target, until the last page is there.
    pub fn brownout(&self, rest: PageCount, how: Rest) -> Duration {
        let fill = self.costs.prefill_time(self.memory).saturating_sub(self.prefill());
        match how {
            Rest::Shipped => fill,
            Rest::Left => fill + self.time_for(rest) + self.link.rtt,
        }
    }

    /// The forecast of a freeze at `elapsed` with `rest` left.
    pub fn forecast(&self, rest: PageCount, how: Rest, elapsed: Duration) -> Forecast {
        let downtime = self.downtime(rest, how);
        let brownout = self.brownout(rest, how);
        let wire = (rest.bytes().0 as f64 * self.squeeze()) as u64;
        Forecast {
            method: self.named(how),
            rounds: self.rounds + 1,
            bytes: self.wire + ByteSize(wire),
            total_ms: millis(elapsed + downtime + brownout),
            downtime_ms: millis(downtime),
            downtime: self.parts(rest, how),
            brownout_ms: millis(brownout),
            met: self.goal.downtime.map(|target| downtime <= target),
            confidence: self.confidence(rest, how),
        }
    }

    fn named(&self, how: Rest) -> Method {
        match (self.goal.method, how) {
            (Method::Auto, Rest::Left) if self.rounds == 0 => Method::PostCopy,
            (Method::Auto, _) => Method::Hybrid,
            (named, _) => named,
        }
    }

    fn parts(&self, rest: PageCount, how: Rest) -> Vec<PhaseTime> {
        let extra = if how == Rest::Shipped { self.extra(rest) } else { Duration::ZERO };
        let prefill = if how == Rest::Shipped { self.prefill() } else { Duration::ZERO };
        let mut parts = self.costs.phases(self.memory);
        for part in &mut parts {
            part.ms += match part.phase {
                Phase::Dump => millis(extra),
                Phase::Fill => millis(prefill),
                _ => 0.0,
            };
        }
        parts
    }

    /// How likely the downtime is within a quarter of the forecast, taking it as
    /// normally distributed.
    fn confidence(&self, rest: PageCount, how: Rest) -> f64 {
        let downtime = self.downtime(rest, how).as_secs_f64();
        let of_rest = match how {
            Rest::Shipped => self.extra(rest).as_secs_f64() * self.doubt(),
            Rest::Left => 0.0,
        };
        // How fast memory is filled in is known to a third or so.
        let of_prefill = 0.3 * self.prefill().as_secs_f64();
        let spread = self.costs.doubt(self.memory).as_secs_f64();
        let sigma = (spread.powi(2) + of_rest.powi(2) + of_prefill.powi(2)).sqrt();
        let z = 0.25 * downtime / sigma.max(1e-6);
        let rounded = (within(z) * 100.0).round() / 100.0;
        rounded.clamp(0.0, 0.99)
    }
}

/// Share of a normal distribution within `z` standard deviations of its mean
/// (logistic approximation, off by at most 0.01).
fn within(z: f64) -> f64 {
    let below = 1.0 / (1.0 + (-1.5976 * z - 0.070_56 * z.powi(3)).exp());
    2.0 * below - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_distribution_is_nearly_one() {
        for (z, p) in [(0.5, 0.3829), (1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)] {
            assert!((within(z) - p).abs() < 0.01, "{z}: {}", within(z));
        }
    }
}
