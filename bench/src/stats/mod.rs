//! Statistics for a handful of samples. Pure and deterministic: randomness
//! comes from a fixed seed, so the same samples always give the same numbers.
//!
//! Few runs and long tails: medians instead of means, intervals by the
//! bootstrap, and claims by a permutation test, none of which assumes a shape.

mod bootstrap;
mod permutation;
mod random;

pub use bootstrap::{Interval, median_interval, ratio_interval};
pub use permutation::{Test, faster, holm};

/// The middle value, or the mean of the two middle ones; `None` of none.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The `q` quantile, 0 to 1, between the two nearest values in proportion
/// (Hyndman and Fan's type 7, as R and NumPy have it); `None` of none.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let place = q.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        let values = [15.0, 20.0, 35.0, 40.0, 50.0];
        assert_eq!(median(&values), Some(35.0));
        assert_eq!(quantile(&values, 0.4), Some(29.0));
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.25), Some(1.75));
        assert_eq!((quantile(&values, 0.0), quantile(&values, 1.0)), (Some(15.0), Some(50.0)));
    }

    #[test]
    fn few_values_are_still_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[9.0, 7.0]), Some(8.0));
    }
}
