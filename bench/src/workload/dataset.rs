//! The dataset: keys and values that follow from a seed, and their digest.
//!
//! Values look like what services keep: many small ones and a few large ones,
//! prose that compresses well, noise that does not, records full of zeros, and
//! some values that occur many times. Everything is drawn from BLAKE3's
//! extendable output, so the same seed gives the same bytes on every machine
//! and with every version of every library.
//!
//! **Invariant**: a digest does not depend on the order in which entries were
//! seen, and seeing an entry twice (as `SCAN` may show it) changes nothing.

use serde::{Deserialize, Serialize};

/// Prefix of every key of the dataset; the probe's counters have another.
pub const KEY_PREFIX: &str = "data:";

/// How many different values the duplicated entries are drawn from.
const POOL: u64 = 64;

const WORDS: [&str; 32] = [
    "address ", "answer ", "bridge ", "carry ", "client ", "copy ", "dirty ", "early ", "freeze ",
    "grant ", "hold ", "house ", "journey ", "kernel ", "later ", "memory ", "moment ", "network ",
    "page ", "quiet ", "resume ", "river ", "round ", "server ", "source ", "steady ", "target ",
    "the ", "track ", "under ", "write ", "yield ",
];

/// A dataset, described by its size and seed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Keys and values together reach at least this many bytes (and pass it
    /// by at most one value, 64 KiB).
    pub bytes: u64,
    /// Two datasets of the same seed and size are the same, byte for byte.
    pub seed: u64,
}

/// One key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `data:` and the entry's number.
    pub key: String,
    /// Between 32 bytes and 64 KiB.
    pub value: Vec<u8>,
}

impl Dataset {
    /// All entries, in the order of their numbers.
    pub fn entries(self) -> impl Iterator<Item = Entry> {
        let mut written = 0;
        (0..).map_while(move |number| {
            if written >= self.bytes {
                return None;
            }
            let entry = self.entry(number);
            written += (entry.key.len() + entry.value.len()) as u64;
            Some(entry)
        })
    }

    fn entry(self, number: u64) -> Entry {
        let mut noise = noise(self.seed, "entry", number);
        let mut draw = [0; 16];
        noise.fill(&mut draw);
        let size = size_of_value(draw[0], u32::from_le_bytes([draw[1], draw[2], draw[3], 0]));
        let value = match draw[4] % 10 {
            0..4 => prose(&mut noise, size),
            4..6 => random(&mut noise, size),
            6..8 => {
                let mut value = prose(&mut noise, size / 2);
                value.extend(random(&mut noise, size - size / 2));
                value
            }
            8 => self.pooled(u64::from(draw[5]) % POOL),
            _ => record(&mut noise, size),
        };
        Entry { key: format!("{KEY_PREFIX}{number:08x}"), value }
    }

    /// One of the values that many entries share.
    fn pooled(self, which: u64) -> Vec<u8> {
        let mut noise = noise(self.seed, "pool", which);
        let size = 1024 + 192 * which as usize;
        random(&mut noise, size)
    }
}

/// What a dataset's digest says: equal digests, equal data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// How many keys there are.
    pub keys: u64,
    /// Keys and values together, in bytes.
    pub bytes: u64,
    /// BLAKE3 over all entries sorted by key, in hexadecimal.
    pub blake3: String,
}

/// Collects entries in any order and makes their [`Digest`].
#[derive(Default)]
pub struct Digester {
    entries: Vec<(Vec<u8>, u64, [u8; 32])>,
}

impl Digester {
    /// Takes one entry. The same entry may be given again.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        let hash = blake3::hash(value);
        self.entries.push((key.to_vec(), value.len() as u64, *hash.as_bytes()));
    }

    /// Sorts, drops what was seen twice, and hashes the rest.
    pub fn finish(mut self) -> Digest {
        self.entries.sort_unstable();
        self.entries.dedup();
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        for (key, len, hash) in &self.entries {
            hasher.update(&(key.len() as u64).to_le_bytes());
            hasher.update(key);
            hasher.update(hash);
            bytes += key.len() as u64 + len;
        }
        Digest {
            keys: self.entries.len() as u64,
            bytes,
            blake3: hasher.finalize().to_hex().to_string(),
        }
    }
}

/// An endless stream of bytes that follows from seed, purpose and number.
fn noise(seed: u64, purpose: &str, number: u64) -> blake3::OutputReader {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"blip-bench dataset, first edition\0");
    hasher.update(&seed.to_le_bytes());
    hasher.update(purpose.as_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.finalize_xof()
}

/// Six of ten values are small, three of a hundred are large: 3 KiB on average.
fn size_of_value(class: u8, draw: u32) -> usize {
    let (least, most) = match class {
        0..154 => (32, 512),
        154..218 => (512, 4096),
        218..248 => (4096, 16_384),
        248.. => (16_384, 65_536),
    };
    (least + draw % (most - least)) as usize
}

fn random(noise: &mut blake3::OutputReader, size: usize) -> Vec<u8> {
    let mut value = vec![0; size];
    noise.fill(&mut value);
    value
}

fn prose(noise: &mut blake3::OutputReader, size: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(size + 16);
    let mut draws = [0; 64];
    while value.len() < size {
        noise.fill(&mut draws);
        for draw in draws {
            value.extend_from_slice(WORDS[usize::from(draw) % WORDS.len()].as_bytes());
        }
    }
    value.truncate(size);
    value
}

/// A record of mostly zeros: eight bytes of sixty-four are set.
fn record(noise: &mut blake3::OutputReader, size: usize) -> Vec<u8> {
    let mut value = vec![0; size];
    for field in value.chunks_mut(64) {
        let len = field.len().min(8);
        noise.fill(&mut field[..len]);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Dataset = Dataset { bytes: 2 << 20, seed: 7 };

    fn digest(entries: impl Iterator<Item = Entry>) -> Digest {
        let mut digester = Digester::default();
        entries.for_each(|e| digester.add(e.key.as_bytes(), &e.value));
        digester.finish()
    }

    #[test]
    fn the_seed_decides_every_byte() {
        let one = digest(SMALL.entries());
        assert_eq!(one, digest(SMALL.entries()));
        let other = Dataset { seed: 8, ..SMALL };
        assert_ne!(one.blake3, digest(other.entries()).blake3);
        assert!((2 << 20..(2 << 20) + 65_600).contains(&one.bytes));
    }

    #[test]
    fn order_and_repetition_do_not_matter_but_content_does() {
        let mut entries: Vec<_> = SMALL.entries().collect();
        let straight = digest(entries.iter().cloned());
        entries.reverse();
        entries.push(entries[3].clone());
        assert_eq!(straight, digest(entries.iter().cloned()));
        entries[5].value[0] ^= 1;
        assert_ne!(straight.blake3, digest(entries.into_iter()).blake3);
    }

    #[test]
    fn values_are_mixed() {
        let entries: Vec<_> = SMALL.entries().collect();
        let mut values: Vec<_> = entries.iter().map(|e| e.value.as_slice()).collect();
        assert!(values.iter().any(|v| v.len() < 256) && values.iter().any(|v| v.len() > 16_384));
        let zeros = |v: &&[u8]| v.iter().filter(|b| **b == 0).count() * 2 > v.len();
        assert!(values.iter().any(zeros));
        values.sort_unstable();
        let all = values.len();
        values.dedup();
        assert!(values.len() < all, "some values occur more than once");
    }
}
