//! How many pages may be written now: a token bucket. Pure, time is an
//! argument.
//!
//! **Invariant**: after a standstill, however long, at most `DEPTH` worth of
//! writes is made up for. A container that was frozen goes on at its rate and
//! does not burst, so the rate after a migration is the rate before it.

use std::time::Duration;

/// How much time's worth of writes the bucket holds.
const DEPTH: Duration = Duration::from_millis(50);

/// Writes per turn when there is no limit, so that orders are heard.
const TURN: u64 = 512;

/// A token bucket, or none.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Pages a second; `None` for as fast as it goes.
    rate: Option<f64>,
    tokens: f64,
    last: Duration,
}

impl Pace {
    /// `rate` in pages a second; `None` for as fast as it goes.
    pub fn new(rate: Option<f64>) -> Pace {
        Pace { rate, tokens: 0.0, last: Duration::ZERO }
    }

    /// Whether it ever lets anything be written.
    pub fn is_idle(&self) -> bool {
        self.rate.is_some_and(|rate| rate <= 0.0)
    }

    /// How many pages may be written now, at this time since the beginning.
    /// A clock that went back (another host's) counts as one that stood still.
    pub fn take(&mut self, now: Duration) -> u64 {
        let Some(rate) = self.rate else { return TURN };
        let passed = now.saturating_sub(self.last);
        self.last = now;
        let most = (rate * DEPTH.as_secs_f64()).max(1.0);
        self.tokens = (self.tokens + rate * passed.as_secs_f64()).min(most);
        let whole = self.tokens.floor();
        self.tokens -= whole;
        whole as u64
    }

    /// How long to rest before asking again: a millisecond, or until the next
    /// page is due where pages are rarer.
    pub fn rest(&self) -> Duration {
        match self.rate {
            None => Duration::ZERO,
            Some(rate) if rate <= 0.0 => DEPTH,
            Some(rate) => Duration::from_secs_f64((1.0 / rate).clamp(1e-3, DEPTH.as_secs_f64())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_rate_holds_whatever_the_steps() {
        for step in [1, 3, 7, 20] {
            let mut pace = Pace::new(Some(1_234.5));
            let taken: u64 = (0..10_000 / step).map(|n| pace.take(ms((n + 1) * step))).sum();
            assert!((12_300..=12_345).contains(&taken), "{taken} in steps of {step} ms");
        }
    }

    #[test]
    fn a_standstill_is_not_made_up_for() {
        let mut pace = Pace::new(Some(1_000.0));
        assert_eq!(pace.take(ms(10)), 10);
        assert_eq!(pace.take(ms(5_000)), 50);
        assert_eq!(pace.take(ms(5_010)), 10);
        assert_eq!(pace.take(ms(1)), 0, "the clock of another host");
        assert_eq!(pace.take(ms(11)), 10);
    }

    #[test]
    fn slow_rates_add_up_and_none_is_none() {
        let mut pace = Pace::new(Some(2.0));
        let taken: u64 = (1..=1_000).map(|n| pace.take(ms(n * 10))).sum();
        assert!((19..=20).contains(&taken), "{taken}");
        let mut idle = Pace::new(Some(0.0));
        assert!(idle.is_idle() && idle.take(ms(60_000)) == 0);
        assert!(Pace::new(None).take(ms(0)) > 0);
    }
}
