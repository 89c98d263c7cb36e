//! Names of files below a root, as raw bytes.
//!
//! **Invariant**: a [`RelPath`] has no empty, `.` or `..` component, no NUL,
//! does not begin or end with `/`, and fits the kernel's limits. The empty path
//! is the root itself.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;
use std::fmt;

/// Longest name of one file in bytes, as Linux has it.
pub const MAX_NAME: usize = 255;
/// Longest path in bytes, as Linux has it.
pub const MAX_PATH: usize = 4095;

/// Why bytes are no [`RelPath`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Longer than [`MAX_PATH`], or with a name longer than [`MAX_NAME`].
    #[error("the path or one of its names is longer than Linux allows")]
    TooLong,
    /// An empty, `.` or `..` name, which also catches a leading `/`.
    #[error("the path has an empty, \".\" or \"..\" name")]
    Escapes,
    /// A NUL byte.
    #[error("the path holds a NUL byte")]
    Nul,
}

/// A path beneath a root, without a way out of it by its spelling.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// The root itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks `bytes`, which come from anywhere.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadPath> {
        if bytes.is_empty() {
            return Ok(Self::root());
        }
        if bytes.len() > MAX_PATH {
            return Err(BadPath::TooLong);
        }
        if bytes.contains(&0) {
            return Err(BadPath::Nul);
        }
        for name in bytes.split(|b| *b == b'/') {
            match name {
                b"" | b"." | b".." => return Err(BadPath::Escapes),
                name if name.len() > MAX_NAME => return Err(BadPath::TooLong),
                _ => {}
            }
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The raw bytes, without a leading `/`; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds this path, and its name there; `None` for the
    /// root.
    pub fn split(&self) -> Option<(RelPath, &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => (Self(self.0[..at].to_vec()), &self.0[at + 1..]),
            None => (Self::root(), &self.0),
        })
    }

    /// Whether this is `other` or lies beneath it.
    pub fn is_within(&self, other: &RelPath) -> bool {
        within(&self.0, &other.0)
    }
}

/// Whether `path` is `top` or beneath it, name by name.
pub(super) fn within(path: &[u8], top: &[u8]) -> bool {
    top.is_empty() || path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// As an absolute path, with anything unprintable escaped.
impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelPath({self})")
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: &serde_bytes::Bytes = Deserialize::deserialize(deserializer)?;
        Self::parse(bytes).map_err(serde::de::Error::custom)
    }
}

/// Paths that do not travel, each with everything beneath it: mount points of
/// the container and what its engine put there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclude(BTreeSet<RelPath>);

impl Exclude {
    /// From raw paths as the container sees them; slashes at either end do not
    /// matter. The root itself cannot be excluded and is ignored.
    pub fn new<P: AsRef<[u8]>>(paths: impl IntoIterator<Item = P>) -> Result<Self, BadPath> {
        let mut set = BTreeSet::new();
        for path in paths {
            let mut bytes = path.as_ref();
            while let [b'/', rest @ ..] = bytes {
                bytes = rest;
            }
            while let [rest @ .., b'/'] = bytes {
                bytes = rest;
            }
            if !bytes.is_empty() {
                set.insert(RelPath::parse(bytes)?);
            }
        }
        Ok(Self(set))
    }

    /// Whether nothing is excluded.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `path` is excluded or lies beneath what is.
    pub fn covers(&self, path: &[u8]) -> bool {
        self.0.iter().any(|top| within(path, &top.0))
    }

    /// Whether something excluded lies strictly beneath `path`.
    pub fn reaches_into(&self, path: &[u8]) -> bool {
        self.0.iter().any(|top| top.0 != path && within(&top.0, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_leave_the_root_is_refused() {
        for (bytes, why) in [
            (&b"/etc"[..], BadPath::Escapes),
            (b"../x", BadPath::Escapes),
            (b"a/../../x", BadPath::Escapes),
            (b"a//b", BadPath::Escapes),
            (b"a/", BadPath::Escapes),
            (b"./a", BadPath::Escapes),
            (b"a\0b", BadPath::Nul),
            (&[b'x'; 256], BadPath::TooLong),
            (&b"x/".repeat(2048), BadPath::TooLong),
        ] {
            assert_eq!(RelPath::parse(bytes), Err(why), "{}", bytes.escape_ascii());
        }
        assert_eq!(RelPath::parse(b"a/..b/\xff\n").unwrap().as_bytes(), b"a/..b/\xff\n");
    }

    #[test]
    fn exclusion_goes_by_whole_names() {
        let exclude = Exclude::new(["/etc/hosts", "proc/", "/"]).unwrap();
        assert!(exclude.covers(b"etc/hosts"));
        assert!(exclude.covers(b"proc/1/mem"));
        assert!(!exclude.covers(b"etc/hosts.allow"));
        assert!(!exclude.covers(b"etc"));
        assert!(exclude.reaches_into(b"etc"));
        assert!(exclude.reaches_into(b""));
        assert!(!exclude.reaches_into(b"proc"));
    }
}
