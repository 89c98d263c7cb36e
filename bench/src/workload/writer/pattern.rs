//! Which page is written next. Pure: randomness comes from a seed.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::page::mix;

/// How writes are spread over the hot pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Every hot page is equally likely
    #[default]
    Uniform,
    /// One hot page after the other, from the first again
    Sequential,
    /// The nth of the hot pages is written in proportion to 1/n: a few very
    /// often, most rarely
    Zipf,
    /// As uniform, but every two seconds other pages are the hot ones, until
    /// all memory has been
    Phases,
}

/// Seconds until [`Pattern::Phases`] moves on.
const PHASE_SECONDS: u64 = 2;

/// An odd multiplier that is prime, so that it scatters ranks one to one over
/// any number of pages it does not divide.
const SCATTER: u64 = 2_654_435_761;

/// Draws pages out of a set.
pub struct Chooser {
    pattern: Pattern,
    pages: u64,
    hot: u64,
    drawn: u64,
    seed: u64,
}

impl Chooser {
    /// A chooser of `hot` among `pages` pages; `hot` is at least 1 and at most
    /// `pages`, or is made so.
    pub fn new(pattern: Pattern, pages: u64, hot: u64, seed: u64) -> Chooser {
        let pages = pages.max(1);
        Chooser { pattern, pages, hot: hot.clamp(1, pages), drawn: 0, seed: mix(seed) }
    }

    /// The next page, `seconds` after the beginning.
    pub fn next(&mut self, seconds: u64) -> usize {
        let number = self.drawn;
        self.drawn += 1;
        let page = match self.pattern {
            Pattern::Sequential => number % self.hot,
            Pattern::Uniform => self.below(number, self.hot),
            Pattern::Zipf => self.scattered_rank(number),
            Pattern::Phases => {
                let first = seconds / PHASE_SECONDS * self.hot;
                (first + self.below(number, self.hot)) % self.pages
            }
        };
        page as usize
    }

    /// A number below `bound`, by the high half of a product (Lemire 2019).
    fn below(&self, number: u64, bound: u64) -> u64 {
        ((u128::from(mix(self.seed ^ number)) * u128::from(bound)) >> 64) as u64
    }

    /// Rank n with a chance in proportion to 1/n: the inverse of its
    /// distribution is, but for rounding, a power. Ranks are then scattered,
    /// so that hot pages do not lie side by side.
    fn scattered_rank(&self, number: u64) -> u64 {
        let uniform = (mix(self.seed ^ number) >> 11) as f64 / (1_u64 << 53) as f64;
        let rank = ((self.hot + 1) as f64).powf(uniform) as u64 - 1;
        (u128::from(rank.min(self.hot - 1)) * u128::from(SCATTER) % u128::from(self.hot)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pattern: Pattern, pages: u64, hot: u64, draws: usize, seconds: u64) -> Vec<u32> {
        let mut chooser = Chooser::new(pattern, pages, hot, 1);
        let mut counts = vec![0; pages as usize];
        (0..draws).for_each(|_| counts[chooser.next(seconds)] += 1);
        counts
    }

    #[test]
    fn only_hot_pages_are_written() {
        for pattern in [Pattern::Uniform, Pattern::Sequential, Pattern::Zipf] {
            let counts = counts(pattern, 100, 10, 10_000, 0);
            assert!(counts[..10].iter().all(|n| *n > 0), "{pattern:?}: {counts:?}");
            assert!(counts[10..].iter().all(|n| *n == 0), "{pattern:?}");
        }
    }

    #[test]
    fn uniform_is_even_and_sequential_exactly_so() {
        let uniform = counts(Pattern::Uniform, 10, 10, 100_000, 0);
        assert!(uniform.iter().all(|n| (9_500..10_500).contains(n)), "{uniform:?}");
        assert_eq!(counts(Pattern::Sequential, 10, 10, 30, 0), vec![3; 10]);
    }

    #[test]
    fn zipf_writes_the_first_rank_about_as_often_as_1_over_n_says() {
        let mut counts = counts(Pattern::Zipf, 1_000, 1_000, 200_000, 0);
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // log(2) / log(1001) of all draws have rank 0, log(1.5) rank 1.
        assert!((19_000..21_200).contains(&counts[0]), "{}", counts[0]);
        assert!((11_000..12_500).contains(&counts[1]), "{}", counts[1]);
        assert!(counts[999] < 100);
    }

    #[test]
    fn phases_move_on_and_come_round() {
        let first = |seconds| {
            let counts = counts(Pattern::Phases, 30, 10, 1_000, seconds);
            counts.iter().position(|n| *n > 0)
        };
        assert_eq!(
            [first(0), first(1), first(2), first(4), first(6)].map(|p| p.unwrap_or(99)),
            [0, 0, 10, 20, 0]
        );
    }
}
