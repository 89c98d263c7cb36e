//! What reads must answer.

use super::dialect::Answer;

/// Keys, and hashes of what is kept there.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Where to read.
    pub keys: Vec<String>,
    hashes: Vec<blake3::Hash>,
}

impl Content {
    /// Another key.
    pub fn add(&mut self, key: String, value: &[u8]) {
        self.keys.push(key);
        self.hashes.push(blake3::hash(value));
    }

    /// Whether this is what is kept at the key of this number.
    pub fn is(&self, key: u32, answer: &Answer) -> bool {
        let Answer::Content(value) = answer else { return false };
        self.hashes.get(key as usize).is_some_and(|hash| *hash == blake3::hash(value))
    }
}
