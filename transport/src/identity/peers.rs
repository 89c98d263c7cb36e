//! The list of pinned peers: a file a person can read and edit.
//!
//! One peer a line, `FINGERPRINT NAME`; `#` begins a comment. Changes keep
//! every other line as it was, comments included. One key may have several
//! names (a host name and an address, say); one name stands for one key.

use super::{Fingerprint, IdentityError, private};
use std::fmt;
use std::path::{Path, PathBuf};

/// File of the pinned peers in an identity's directory.
const PEERS_FILE: &str = "peers";
/// The longest name of a peer, in bytes: as long as a DNS name can be.
const MAX_NAME: usize = 253;

/// What a peer is called: no blanks, no `#`, and not the look of a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName(String);

impl PeerName {
    /// Takes `name` if it can stand in the peers file.
    ///
    /// # Errors
    /// [`IdentityError::BadPeerName`].
    pub fn new(name: &str) -> Result<Self, IdentityError> {
        let bad =
            |why| Err(IdentityError::BadPeerName { name: name.escape_debug().to_string(), why });
        if name.is_empty() || name.len() > MAX_NAME {
            return bad("it must have 1 to 253 bytes");
        }
        if name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#') {
            return bad("it must not contain blanks, control characters or `#`");
        }
        if name.to_ascii_lowercase().starts_with("blip1-") {
            return bad("it looks like a fingerprint");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One pin: a name for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What we call it.
    pub name: PeerName,
    /// The key it must prove.
    pub fingerprint: Fingerprint,
}

/// What [`Peers::add`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The pin is new.
    New,
    /// Exactly this pin was there.
    Already,
}

/// The pinned peers at the moment the file was read.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    peers: Vec<Peer>,
}

impl Peers {
    /// Reads the pins kept in `dir`; no file means no peers.
    ///
    /// # Errors
    /// The directory or file is exposed to others or unreadable, or a line
    /// makes no sense (then none counts: a pin half read is not trusted).
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        private::check_directory(dir)?;
        let path = path_in(dir);
        let text = private::read(&path)?.unwrap_or_default();
        Ok(Self { peers: parse(&path, &text)?.into_iter().filter_map(|(_, peer)| peer).collect() })
    }

    /// Pins `fingerprint` under `name` in the file of `dir`.
    ///
    /// # Errors
    /// The name stands for another key, or the file cannot be read or written.
    pub fn add(
        dir: &Path,
        name: &PeerName,
        fingerprint: Fingerprint,
    ) -> Result<Added, IdentityError> {
        private::ensure_directory(dir)?;
        let _lock = private::lock(dir)?;
        if let Some(known) = Self::load(dir)?.by_name(name.as_str()) {
            return if known.fingerprint == fingerprint {
                Ok(Added::Already)
            } else {
                Err(IdentityError::NameTaken { name: name.0.clone(), pinned: known.fingerprint })
            };
        }
        let path = path_in(dir);
        let mut text = private::read(&path)?.unwrap_or_default();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("{fingerprint} {name}\n"));
        private::replace(&path, text.as_bytes())?;
        Ok(Added::New)
    }

    /// Removes every pin called `who`, or every name of the key `who`.
    ///
    /// # Errors
    /// There is none, or the file cannot be read or written.
    pub fn remove(dir: &Path, who: &str) -> Result<Vec<Peer>, IdentityError> {
        private::check_directory(dir)?;
        let _lock = private::lock(dir)?;
        let path = path_in(dir);
        let text = private::read(&path)?.unwrap_or_default();
        let mut removed = Vec::new();
        let mut kept = String::new();
        for (line, peer) in parse(&path, &text)? {
            match peer {
                Some(peer) if peer.is(who) => removed.push(peer),
                _ => {
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
        }
        if removed.is_empty() {
            return Err(IdentityError::UnknownPeer { who: who.escape_debug().to_string() });
        }
        private::replace(&path, kept.as_bytes())?;
        Ok(removed)
    }

    /// Every pin, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }

    /// The pin called `name`.
    pub fn by_name(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name.as_str() == name)
    }

    /// The first pin of this key.
    pub fn by_fingerprint(&self, fingerprint: Fingerprint) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.fingerprint == fingerprint)
    }

    /// The pin a user means by `who`, a name or a fingerprint.
    ///
    /// # Errors
    /// [`IdentityError::UnknownPeer`].
    pub fn find(&self, who: &str) -> Result<&Peer, IdentityError> {
        self.peers
            .iter()
            .find(|peer| peer.is(who))
            .ok_or_else(|| IdentityError::UnknownPeer { who: who.escape_debug().to_string() })
    }
}

impl Peer {
    fn is(&self, who: &str) -> bool {
        self.name.as_str() == who || who.parse() == Ok(self.fingerprint)
    }
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join(PEERS_FILE)
}

/// Every line of the file, with the pin it holds.
fn parse<'a>(path: &Path, text: &'a str) -> Result<Vec<(&'a str, Option<Peer>)>, IdentityError> {
    let mut lines: Vec<(&str, Option<Peer>)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let bad = |why: String| IdentityError::BadPeerLine {
            path: path.to_owned(),
            line: number + 1,
            why,
        };
        let content = line.split('#').next().unwrap_or_default();
        let mut words = content.split_whitespace();
        let peer = match (words.next(), words.next(), words.next()) {
            (None, ..) => None,
            (Some(fingerprint), Some(name), None) => Some(Peer {
                name: PeerName::new(name).map_err(|e| bad(e.to_string()))?,
                fingerprint: fingerprint
                    .parse()
                    .map_err(|e: super::FingerprintError| bad(e.to_string()))?,
            }),
            (Some(_), None, _) => return Err(bad("the peer has no name".into())),
            (Some(_), Some(_), Some(_)) => {
                return Err(bad("there is something after the name".into()));
            }
        };
        if let Some(peer) = &peer {
            let twin = |(_, other): &(&str, Option<Peer>)| {
                other
                    .as_ref()
                    .is_some_and(|o| o.name == peer.name && o.fingerprint != peer.fingerprint)
            };
            if lines.iter().any(twin) {
                return Err(bad(format!("`{}` is pinned to two keys", peer.name)));
            }
        }
        lines.push((line, peer));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::super::tests::private_tempdir;
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn key(text: &str) -> Fingerprint {
        Fingerprint::of_public_key(text.as_bytes())
    }

    fn name(text: &str) -> PeerName {
        PeerName::new(text).unwrap()
    }

    fn write(dir: &Path, text: &str) {
        fs::write(path_in(dir), text).unwrap();
        fs::set_permissions(path_in(dir), fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn pins_are_added_found_and_removed() {
        let tmp = private_tempdir();
        let dir = tmp.path();
        assert_eq!(Peers::load(dir).unwrap().iter().count(), 0);
        assert_eq!(Peers::add(dir, &name("web"), key("a")).unwrap(), Added::New);
        assert_eq!(Peers::add(dir, &name("web"), key("a")).unwrap(), Added::Already);
        assert_eq!(Peers::add(dir, &name("10.0.0.2"), key("a")).unwrap(), Added::New);
        Peers::add(dir, &name("db"), key("b")).unwrap();
        let taken = Peers::add(dir, &name("web"), key("b")).unwrap_err();
        assert!(matches!(taken, IdentityError::NameTaken { pinned, .. } if pinned == key("a")));

        let peers = Peers::load(dir).unwrap();
        assert_eq!(peers.find("db").unwrap().fingerprint, key("b"));
        assert_eq!(peers.find(&key("b").to_string()).unwrap().name, name("db"));
        assert_eq!(peers.by_fingerprint(key("a")).unwrap().name, name("web"));
        assert!(peers.find("nobody").unwrap_err().to_string().contains("blip pair list"));

        assert_eq!(Peers::remove(dir, &key("a").to_string()).unwrap().len(), 2);
        assert!(matches!(Peers::remove(dir, "web"), Err(IdentityError::UnknownPeer { .. })));
        assert_eq!(Peers::load(dir).unwrap().iter().count(), 1);
        let mode = fs::metadata(path_in(dir)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn comments_outlive_changes() {
        let tmp = private_tempdir();
        let text = format!("# our hosts\n\n{} web  # rack 4\n{} db", key("a"), key("b"));
        write(tmp.path(), &text);
        Peers::add(tmp.path(), &name("new"), key("c")).unwrap();
        Peers::remove(tmp.path(), "db").unwrap();
        let now = fs::read_to_string(path_in(tmp.path())).unwrap();
        assert_eq!(now, format!("# our hosts\n\n{} web  # rack 4\n{} new\n", key("a"), key("c")));
    }

    #[test]
    fn a_bad_line_is_named_and_nothing_is_trusted() {
        let tmp = private_tempdir();
        let good = format!("{} web", key("a"));
        for bad in [
            "blip1-short web".to_owned(),
            key("b").to_string(),
            format!("{} two words", key("b")),
            format!("{} web", key("b")),
        ] {
            write(tmp.path(), &format!("{good}\n{bad}\n"));
            let error = Peers::load(tmp.path()).unwrap_err();
            assert!(matches!(error, IdentityError::BadPeerLine { line: 2, .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn a_list_others_can_write_is_not_trusted() {
        let tmp = private_tempdir();
        write(tmp.path(), &format!("{} web\n", key("a")));
        fs::set_permissions(path_in(tmp.path()), fs::Permissions::from_mode(0o660)).unwrap();
        assert!(matches!(Peers::load(tmp.path()), Err(IdentityError::Exposed { .. })));
    }

    #[test]
    fn names_that_would_confuse_are_refused() {
        for bad in ["", "a b", "a#b", "blip1-x", "a\nb", &"x".repeat(254)] {
            assert!(PeerName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["web-1.example", "10.0.0.2", "fe80::1%eth0"] {
            assert!(PeerName::new(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn many_writers_lose_nothing() {
        let tmp = private_tempdir();
        std::thread::scope(|scope| {
            for i in 0..8 {
                let dir = tmp.path();
                scope.spawn(move || {
                    Peers::add(dir, &name(&format!("h{i}")), key(&i.to_string())).unwrap()
                });
            }
        });
        assert_eq!(Peers::load(tmp.path()).unwrap().iter().count(), 8);
    }
}
