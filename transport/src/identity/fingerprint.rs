//! The short name of a public key.

use data_encoding::{BASE32_NOPAD, Specification};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;
use thiserror::Error;

/// Bytes kept of the BLAKE3 hash. Pretending to be a pinned host means finding
/// a key with its fingerprint: 2^160 work.
const BYTES: usize = 20;

/// First part of every fingerprint; the digit is the version of the scheme.
const PREFIX: &str = "blip1-";

/// Letters after the prefix: 5 bits each, no padding.
const LETTERS: usize = BYTES * 8 / 5;

/// A host's public key in short: BLAKE3 of its SubjectPublicKeyInfo (DER),
/// first 160 bits, written as `blip1-` and 32 letters of lowercase base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint([u8; BYTES]);

impl Fingerprint {
    /// The fingerprint of a public key given as SubjectPublicKeyInfo in DER.
    pub fn of_public_key(spki: &[u8]) -> Self {
        let mut bytes = [0; BYTES];
        bytes.copy_from_slice(&blake3::hash(spki).as_bytes()[..BYTES]);
        Self(bytes)
    }
}

/// Why a text is no fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FingerprintError {
    /// It does not begin as fingerprints do.
    #[error("`{text}` is no fingerprint: one begins with `{PREFIX}`; see: blip pair list")]
    Prefix {
        /// The text.
        text: String,
    },
    /// It is cut short or has something appended.
    #[error(
        "a fingerprint has {LETTERS} letters after `{PREFIX}`, this one has {got}; copy it whole"
    )]
    Length {
        /// Letters after the prefix.
        got: usize,
    },
    /// It has a letter base32 does not use.
    #[error("`{letter}` cannot be in a fingerprint (only a-z and 2-7 can); copy it again")]
    Letter {
        /// The first such letter.
        letter: char,
    },
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", lowercase_base32().encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    /// Reads what `Display` writes; capitals are accepted too.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.to_ascii_lowercase();
        let letters = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| FingerprintError::Prefix { text: text.chars().take(64).collect() })?;
        if let Some(letter) = letters.chars().find(|c| !matches!(c, 'a'..='z' | '2'..='7')) {
            return Err(FingerprintError::Letter { letter });
        }
        let length = FingerprintError::Length { got: letters.len() };
        if letters.len() != LETTERS {
            return Err(length);
        }
        let bytes = lowercase_base32().decode(letters.as_bytes()).map_err(|_| length.clone())?;
        Ok(Self(bytes.try_into().map_err(|_| length)?))
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = FingerprintError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

fn lowercase_base32() -> &'static data_encoding::Encoding {
    static ENCODING: LazyLock<data_encoding::Encoding> = LazyLock::new(|| {
        let mut spec: Specification = BASE32_NOPAD.specification();
        spec.symbols.make_ascii_lowercase();
        spec.encoding().expect("lowercasing a valid alphabet keeps it valid")
    });
    &ENCODING
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_value_are_one(bytes: [u8; BYTES]) {
            let fingerprint = Fingerprint(bytes);
            let text = fingerprint.to_string();
            prop_assert_eq!(text.len(), PREFIX.len() + LETTERS);
            prop_assert_eq!(text.parse::<Fingerprint>().unwrap(), fingerprint);
            prop_assert_eq!(text.to_uppercase().parse::<Fingerprint>().unwrap(), fingerprint);
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = text.parse::<Fingerprint>();
            let _ = format!("{PREFIX}{text}").parse::<Fingerprint>();
        }
    }

    #[test]
    fn every_mistake_has_its_own_answer() {
        let right = Fingerprint::of_public_key(b"key").to_string();
        let parse = |text: &str| text.parse::<Fingerprint>().unwrap_err();
        assert!(matches!(parse("web1"), FingerprintError::Prefix { .. }));
        assert_eq!(parse(&right[..right.len() - 1]), FingerprintError::Length { got: 31 });
        assert_eq!(parse(&format!("{right}a")), FingerprintError::Length { got: 33 });
        assert_eq!(parse("blip1-ab1c"), FingerprintError::Letter { letter: '1' });
        assert_eq!(parse("blip1-abäc"), FingerprintError::Letter { letter: 'ä' });
    }
}
