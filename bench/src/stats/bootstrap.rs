//! Confidence intervals by resampling (Efron's percentile bootstrap).
//!
//! With five runs an interval can only be as wide as the runs are apart: it is
//! a floor of what is not known, not a ceiling.

use serde::{Deserialize, Serialize};

use super::random::Random;
use super::{median, quantile};

/// How many resamples are drawn.
const DRAWS: usize = 10_000;

/// A value and the interval that holds it with 95 % confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The value itself.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// How many samples it is made of; the smaller number of two.
    pub samples: usize,
}

/// The median of the samples; `None` of none.
pub fn median_interval(samples: &[f64]) -> Option<Interval> {
    let value = median(samples)?;
    let mut random = Random::fixed();
    let drawn: Vec<f64> =
        (0..DRAWS).filter_map(|_| median(&redrawn(samples, &mut random))).collect();
    ends(value, &drawn, samples.len())
}

/// The median of `a` over the median of `b`; `None` if either has none, or
/// `b`'s is zero.
pub fn ratio_interval(a: &[f64], b: &[f64]) -> Option<Interval> {
    let ratio = |a: &[f64], b: &[f64]| {
        let (a, b) = (median(a)?, median(b)?);
        (b > 0.0).then(|| a / b)
    };
    let value = ratio(a, b)?;
    let mut random = Random::fixed();
    let drawn: Vec<f64> = (0..DRAWS)
        .filter_map(|_| ratio(&redrawn(a, &mut random), &redrawn(b, &mut random)))
        .collect();
    ends(value, &drawn, a.len().min(b.len()))
}

fn ends(value: f64, drawn: &[f64], samples: usize) -> Option<Interval> {
    let (low, high) = (quantile(drawn, 0.025)?, quantile(drawn, 0.975)?);
    Some(Interval { value, low, high, samples })
}

fn redrawn(samples: &[f64], random: &mut Random) -> Vec<f64> {
    (0..samples.len()).map(|_| samples[random.below(samples.len())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_five_runs_spans_what_theory_says() {
        // The median of five drawn from five is the smallest with a chance of
        // 5.8 % and the largest likewise, so both ends are the outermost.
        let interval = median_interval(&[10.0, 11.0, 12.0, 13.0, 14.0]).expect("samples");
        assert_eq!((interval.low, interval.value, interval.high), (10.0, 12.0, 14.0));
        assert_eq!(interval.samples, 5);
    }

    #[test]
    fn more_samples_make_it_narrower_and_equal_ones_make_it_a_point() {
        let many: Vec<f64> = (0..101).map(f64::from).collect();
        let interval = median_interval(&many).expect("samples");
        assert_eq!(interval.value, 50.0);
        // The normal approximation says 50 ± 1.96 · 1.2533 · 29.15 / √101.
        assert!((36.0..43.0).contains(&interval.low), "{interval:?}");
        assert!((57.0..64.0).contains(&interval.high), "{interval:?}");
        let point = median_interval(&[3.0; 4]).expect("samples");
        assert_eq!((point.low, point.high), (3.0, 3.0));
        assert_eq!(median_interval(&[]), None);
    }

    #[test]
    fn a_ratio_is_one_of_medians() {
        let ratio = ratio_interval(&[20.0, 22.0, 24.0], &[10.0, 11.0, 12.0]).expect("samples");
        assert_eq!(ratio.value, 2.0);
        assert!(ratio.low >= 20.0 / 12.0 - 1e-9 && ratio.high <= 2.4 + 1e-9);
        assert_eq!(ratio_interval(&[1.0], &[0.0]), None);
        assert_eq!(ratio_interval(&[], &[1.0]), None);
    }
}
