//! A page that knows what it must hold. Pure.
//!
//! The first words of a page are its header: number, generation, checksum, and
//! the sum of each of its eight parts. The rest are the parts. A write raises
//! the generation, fills one part (or all) with words that follow from seed,
//! page, generation and part, and brings header and checksum up to date.
//!
//! What each field is for: the *number* tells a page that came to the wrong
//! place, the *generation* one that came back old (the owner keeps what it
//! should be elsewhere), the *sums* one of which some words are old or
//! damaged, the *checksum* a header that does not belong to itself.
//!
//! **Invariant**: between two writes, [`Page::check`] holds.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Parts of a page's payload.
pub const PARTS: usize = 8;
const WORDS: usize = 62;

/// What is written, and how much of a page a write changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fill {
    /// A write changes an eighth of the page to random bytes: there is
    /// something for delta encoding to find, and nothing for compression
    #[default]
    Part,
    /// A write changes the whole page to random bytes
    Random,
    /// A write changes the whole page to bytes of which one in eight is random
    Compressible,
}

/// One page of memory.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Page {
    number: u64,
    generation: u64,
    checksum: u64,
    seed: u64,
    spare: [u64; 4],
    sums: [u64; PARTS],
    parts: [[u64; WORDS]; PARTS],
}

const _: () = assert!(size_of::<Page>() == blip_transport::units::PAGE_SIZE);

/// What is wrong with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    /// It is another page.
    Misplaced,
    /// It is whole, but of an earlier generation: a write was lost.
    Old,
    /// It is whole, but of a generation that was never written.
    Ahead,
    /// It does not agree with itself: torn, or changed by someone else.
    Torn,
}

impl Page {
    /// A page with nothing in it, which no check accepts. To be followed by
    /// [`Page::begin`].
    pub const BLANK: Page = Page {
        number: 0,
        generation: 0,
        checksum: 0,
        seed: 0,
        spare: [0; 4],
        sums: [0; PARTS],
        parts: [[0; WORDS]; PARTS],
    };

    /// Makes it page `number` of generation 0, filled as a whole.
    pub fn begin(&mut self, number: u64, seed: u64, fill: Fill) {
        self.number = number;
        self.seed = seed;
        self.generation = 0;
        (0..PARTS).for_each(|part| self.fill(part, fill));
        self.checksum = self.own_checksum();
    }

    /// The next write to this page. Gives its generation.
    pub fn write(&mut self, fill: Fill) -> u64 {
        self.generation += 1;
        match fill {
            Fill::Part => self.fill((self.generation % PARTS as u64) as usize, fill),
            Fill::Random | Fill::Compressible => {
                (0..PARTS).for_each(|part| self.fill(part, fill));
            }
        }
        self.checksum = self.own_checksum();
        self.generation
    }

    /// Looks at the header alone: cheap enough for every write.
    ///
    /// # Errors
    /// What is wrong, if it is not page `number` of this generation.
    pub fn glance(&self, number: u64, generation: u64) -> Result<(), Damage> {
        if self.checksum != self.own_checksum() {
            return Err(Damage::Torn);
        }
        if self.number != number {
            return Err(Damage::Misplaced);
        }
        match self.generation.cmp(&generation) {
            std::cmp::Ordering::Less => Err(Damage::Old),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(Damage::Ahead),
        }
    }

    /// Looks at every word of it.
    ///
    /// # Errors
    /// What is wrong, if it is not page `number` of this generation, whole.
    pub fn check(&self, number: u64, generation: u64) -> Result<(), Damage> {
        let whole = self.parts.iter().zip(&self.sums).all(|(words, sum)| sum_of(words) == *sum);
        if whole { self.glance(number, generation) } else { Err(Damage::Torn) }
    }

    fn fill(&mut self, part: usize, fill: Fill) {
        let from = mix(self.seed ^ mix(self.number) ^ mix(!self.generation)) ^ (part as u64) << 32;
        // Bytes that stay zero make the rest compressible.
        let mask = if fill == Fill::Compressible { 0xff } else { u64::MAX };
        let words = &mut self.parts[part];
        for (at, word) in (0_u64..).zip(words.iter_mut()) {
            *word = mix(from.wrapping_add(at)) & mask;
        }
        self.sums[part] = sum_of(words);
    }

    fn own_checksum(&self) -> u64 {
        let head = [self.number, self.generation, self.seed];
        sum_of(&head).wrapping_add(mix(sum_of(&self.spare))) ^ sum_of(&self.sums).rotate_left(32)
    }
}

/// Order and value of every word count.
fn sum_of(words: &[u64]) -> u64 {
    let step =
        |sum: u64, word: &u64| (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mix(words.iter().fold(words.len() as u64, step))
}

/// Scatters a number over all 64 bits, one to one (splitmix64's finaliser;
/// Steele, Lea, Flood 2014).
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64, writes: u64, fill: Fill) -> Page {
        let mut page = Page::BLANK.clone();
        page.begin(number, 7, fill);
        (0..writes).for_each(|_| {
            page.write(fill);
        });
        page
    }

    #[test]
    fn every_generation_of_every_fill_is_whole() {
        for fill in [Fill::Part, Fill::Random, Fill::Compressible] {
            for writes in 0..20 {
                assert_eq!(page(3, writes, fill).check(3, writes), Ok(()));
            }
        }
        assert!(Page::BLANK.check(0, 0).is_err(), "a page of zeros is not a page");
    }

    #[test]
    fn each_damage_has_its_name() {
        let now = page(3, 5, Fill::Part);
        assert_eq!(now.check(4, 5), Err(Damage::Misplaced));
        assert_eq!(now.check(3, 6), Err(Damage::Old));
        assert_eq!(now.check(3, 4), Err(Damage::Ahead));
        for part in 0..PARTS {
            for word in [0, 1, WORDS - 1] {
                let mut torn = now.clone();
                torn.parts[part][word] ^= 1 << 40;
                assert_eq!(torn.check(3, 5), Err(Damage::Torn));
            }
        }
        let mut torn = now.clone();
        torn.generation = 6;
        assert_eq!(torn.check(3, 6), Err(Damage::Torn), "a header of one's own making");
    }

    #[test]
    fn half_of_an_older_page_is_torn() {
        let (old, mut new) = (page(3, 4, Fill::Random), page(3, 5, Fill::Random));
        new.parts[4..].clone_from_slice(&old.parts[4..]);
        assert_eq!(new.check(3, 5), Err(Damage::Torn));
    }

    #[test]
    fn a_part_is_an_eighth_and_a_whole_is_a_whole() {
        let changed = |fill| {
            let (old, new) = (page(3, 8, fill), page(3, 9, fill));
            old.parts
                .iter()
                .flatten()
                .zip(new.parts.iter().flatten())
                .filter(|(o, n)| o != n)
                .count()
        };
        assert_eq!(changed(Fill::Part), WORDS);
        assert!(changed(Fill::Random) > 7 * WORDS);
        let compressible = page(3, 1, Fill::Compressible);
        assert!(compressible.parts.iter().flatten().all(|word| *word <= 0xff));
    }
}
