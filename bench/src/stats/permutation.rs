//! Is A faster than B? A permutation test on the difference of means.
//!
//! If it made no difference which arm a run belongs to, every division of the
//! runs among the two arms would be as likely as the one that happened. The
//! p value is the share of divisions in which A looks at least as much faster
//! as it did. All divisions are tried where there are few, and drawn otherwise.

use serde::{Deserialize, Serialize};

use super::random::Random;

/// Up to this many divisions all of them are tried.
const ALL: u128 = 50_000;

/// Otherwise this many are drawn.
const DRAWS: usize = 20_000;

/// What a test says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// How likely it is that A looks this much faster by chance.
    pub p: f64,
    /// Whether all divisions were tried.
    pub exact: bool,
}

/// Whether the values of `a` are smaller than those of `b`; `None` if either
/// has none.
pub fn faster(a: &[f64], b: &[f64]) -> Option<Test> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let seen: f64 = a.iter().sum();
    let mut pool: Vec<f64> = a.iter().chain(b).copied().collect();
    // The sum over all is what it is, so the sum of A's share decides. Sums of
    // the same values in another order may differ in their last digits.
    let slack = pool.iter().map(|v| v.abs()).sum::<f64>() * 1e-12;
    let as_small = |sum: f64| sum <= seen + slack;
    if divisions(pool.len(), a.len()) <= ALL {
        let (mut small, mut all) = (0_u64, 0_u64);
        each_choice(&pool, a.len(), 0.0, &mut |sum| {
            all += 1;
            small += u64::from(as_small(sum));
        });
        return Some(Test { p: small as f64 / all as f64, exact: true });
    }
    let mut random = Random::fixed();
    let drawn = (0..DRAWS).filter(|_| {
        random.shuffle(&mut pool);
        as_small(pool[..a.len()].iter().sum())
    });
    // The division that happened is one of them.
    Some(Test { p: (drawn.count() + 1) as f64 / (DRAWS + 1) as f64, exact: false })
}

/// How many ways there are to choose `some` of `all`.
fn divisions(all: usize, some: usize) -> u128 {
    let mut ways: u128 = 1;
    for n in 0..some.min(all - some) {
        ways = ways.saturating_mul((all - n) as u128) / (n as u128 + 1);
    }
    ways
}

/// Tells the sum of every choice of `some` of the values.
fn each_choice(values: &[f64], some: usize, sum: f64, tell: &mut impl FnMut(f64)) {
    if some == 0 {
        return tell(sum);
    }
    for first in 0..=values.len() - some {
        each_choice(&values[first + 1..], some - 1, sum + values[first], tell);
    }
}

/// Corrects p values of claims that are made together, so that the chance of
/// even one false claim stays what each p value says (Holm 1979). In the
/// order given.
pub fn holm(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut corrected = vec![0.0; values.len()];
    let mut most: f64 = 0.0;
    for (rank, at) in order.into_iter().enumerate() {
        most = most.max((values[at] * (values.len() - rank) as f64).min(1.0));
        corrected[at] = most;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(a: &[f64], b: &[f64]) -> f64 {
        faster(a, b).expect("values").p
    }

    #[test]
    fn complete_separation_has_one_division_in_all() {
        let (low, high) = ([1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]);
        assert_eq!(p(&low, &high), 1.0 / 252.0);
        assert_eq!(p(&high, &low), 1.0);
        assert!(faster(&low, &high).expect("values").exact);
        assert_eq!(p(&low[..3], &high[..3]), 1.0 / 20.0);
    }

    #[test]
    fn known_values_by_hand() {
        // {1, 4} of {1, 2, 3, 4}: sums at most 5 are 1+2, 1+3, 1+4, 2+3.
        assert_eq!(p(&[1.0, 4.0], &[2.0, 3.0]), 4.0 / 6.0);
        assert_eq!(p(&[5.0, 5.0], &[5.0, 5.0]), 1.0);
        assert_eq!(faster(&[], &[1.0]), None);
    }

    #[test]
    fn what_is_drawn_agrees_with_what_is_counted() {
        // Ten against ten has 184,756 divisions. Interleaved values: no claim.
        let a: Vec<f64> = (0..10).map(|n| f64::from(2 * n)).collect();
        let b: Vec<f64> = (0..10).map(|n| f64::from(2 * n + 1)).collect();
        let drawn = faster(&a, &b).expect("values");
        assert!(!drawn.exact && (0.30..0.48).contains(&drawn.p), "{drawn:?}");
        let far: Vec<f64> = b.iter().map(|v| v + 100.0).collect();
        assert!(p(&a, &far) < 0.001);
    }

    #[test]
    fn holm_as_in_the_textbook() {
        let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
        let expected = [0.03, 0.06, 0.06, 0.02];
        assert!(
            corrected.iter().zip(expected).all(|(c, e)| (c - e).abs() < 1e-12),
            "{corrected:?}"
        );
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
