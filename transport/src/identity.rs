//! Who a host is, whom it trusts, and how both are proven in TLS.
//!
//! Every host has one Ed25519 key, made once and kept in a directory only its
//! owner can enter. Its [`Fingerprint`] is what people exchange; [`Peers`] is
//! the list of fingerprints this host accepts; [`Trust`] applies that list to
//! a handshake.
//!
//! **Goals.** Both ends prove their key (TLS 1.3 signatures are verified for
//! real); a key that is not pinned never gets a connection; keys at rest are
//! refused if anyone else can read them.
//!
//! **Non-goals.** Certificate authorities, expiry, host names in certificates
//! and revocation lists: a pin is added and removed by a person.
//!
//! **Architecture Invariants**
//! * No process-wide crypto provider is installed; ring's is passed explicitly.
//! * The private key never appears in `Debug` output or in an error.

mod fingerprint;
mod peers;
mod private;
mod trust;

pub use fingerprint::{Fingerprint, FingerprintError};
pub use peers::{Added, Peer, PeerName, Peers};
pub use trust::Trust;
pub(crate) use trust::{SeenKey, client_tls, server_tls};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// File of the private key in an identity's directory (PKCS #8 in PEM).
pub const KEY_FILE: &str = "identity.pem";

/// Subject of the self-signed certificate. Nobody checks it: the key counts.
const SUBJECT: &str = "blip";

/// This host's key and the certificate that carries it. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    key: Arc<PrivateKeyDer<'static>>,
    certificate: CertificateDer<'static>,
    fingerprint: Fingerprint,
}

impl Identity {
    /// The identity kept in `dir`; made there, with the directory, if absent.
    ///
    /// Safe against two processes doing so at once: both get the same key.
    ///
    /// # Errors
    /// The directory or the key is accessible to others, belongs to another
    /// user, cannot be read or written, or holds no Ed25519 key.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        private::ensure_directory(dir)?;
        let path = dir.join(KEY_FILE);
        let pem = match private::read(&path)? {
            Some(pem) => pem,
            None => {
                let fresh = KeyPair::generate_for(&PKCS_ED25519).map_err(IdentityError::making)?;
                private::create_if_absent(&path, fresh.serialize_pem().as_bytes())?;
                // Whoever came first has won; what is on disk is the identity.
                private::read(&path)?.ok_or_else(|| IdentityError::NotAKey {
                    path: path.clone(),
                    why: "it vanished while it was being made".into(),
                })?
            }
        };
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &PKCS_ED25519)
            .map_err(|why| IdentityError::NotAKey { path, why: why.to_string() })?;
        Self::from_key(&key)
    }

    /// An identity that is never stored: for tests and measurements.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        Self::from_key(&KeyPair::generate_for(&PKCS_ED25519).map_err(IdentityError::making)?)
    }

    /// What others pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn from_key(key: &KeyPair) -> Result<Self, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, SUBJECT);
        let certificate = params.self_signed(key).map_err(IdentityError::making)?;
        Ok(Self {
            key: Arc::new(PrivatePkcs8KeyDer::from(key.serialize_der()).into()),
            certificate: certificate.der().clone(),
            fingerprint: Fingerprint::of_public_key(&key.subject_public_key_info()),
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.fingerprint).finish()
    }
}

/// What can be wrong with an identity or a list of peers.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Reading or writing failed.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// The attempted action, as a verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Others could read or change a private file or directory.
    #[error(
        "{path} has mode {mode:04o}, so others could use it; make it private: chmod {right:o} {path}",
        path = path.display()
    )]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The bits it must have.
        right: u32,
    },
    /// A private file or directory belongs to someone else.
    #[error("{path} belongs to user {owner}, but blip runs as user {us}; chown {us} {path}", path = path.display())]
    ForeignOwner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner's user ID.
        owner: u32,
        /// Our user ID.
        us: u32,
    },
    /// The path exists and is of the wrong kind.
    #[error("{path} is not a {wanted}; move it away or choose another directory", path = path.display())]
    WrongKind {
        /// The path.
        path: PathBuf,
        /// What was needed there.
        wanted: &'static str,
    },
    /// The key file holds no usable key.
    #[error("{path} holds no Ed25519 key in PEM ({why}); restore it, or remove it and pair this host anew", path = path.display())]
    NotAKey {
        /// The key file.
        path: PathBuf,
        /// What the parser says.
        why: String,
    },
    /// A fresh key or its certificate could not be made.
    #[error("cannot make an Ed25519 identity: {why}")]
    Making {
        /// What the generator says.
        why: String,
    },
    /// A line of the peers file makes no sense.
    #[error("{path}, line {line}: {why}; write `FINGERPRINT NAME`, or remove the line", path = path.display())]
    BadPeerLine {
        /// The peers file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A name no peer can have.
    #[error("`{name}` cannot name a peer: {why}")]
    BadPeerName {
        /// The rejected name.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// The name is taken by another key.
    #[error(
        "peer `{name}` is already pinned to {pinned}; if its key really changed: blip pair remove {name}"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The key it stands for.
        pinned: Fingerprint,
    },
    /// No pinned peer goes by this name or fingerprint.
    #[error("no pinned peer is called `{who}`; see: blip pair list")]
    UnknownPeer {
        /// The name or fingerprint looked for.
        who: String,
    },
}

impl IdentityError {
    fn making(why: rcgen::Error) -> Self {
        Self::Making { why: why.to_string() }
    }

    fn io(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A directory fit to hold an identity, whatever the umask.
    pub(super) fn private_tempdir() -> tempfile::TempDir {
        let private = fs::Permissions::from_mode(0o700);
        tempfile::Builder::new().permissions(private).tempdir().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn an_identity_is_made_once_and_private() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("deep/blip");
        let first = Identity::load_or_create(&dir).unwrap();
        let again = Identity::load_or_create(&dir).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join(KEY_FILE)), 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file may stay");
        let debug = format!("{first:?}");
        assert!(debug.contains("blip1-") && !debug.contains("key"), "{debug}");
    }

    #[test]
    fn two_creators_at_once_get_one_identity() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("blip");
        let all: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| Identity::load_or_create(&dir).unwrap().fingerprint()))
                .collect();
            makers.into_iter().map(|m| m.join().unwrap()).collect()
        });
        assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
    }

    #[test]
    fn open_doors_are_refused_with_the_remedy() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("blip");
        Identity::load_or_create(&dir).unwrap();
        set_mode(&dir, 0o755);
        let error = Identity::load_or_create(&dir).unwrap_err();
        assert!(matches!(error, IdentityError::Exposed { mode: 0o755, .. }), "{error:?}");
        assert!(error.to_string().contains("chmod 700"), "{error}");
        set_mode(&dir, 0o700);
        set_mode(&dir.join(KEY_FILE), 0o640);
        let error = Identity::load_or_create(&dir).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn what_is_no_key_is_never_replaced() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("blip");
        Identity::load_or_create(&dir).unwrap();
        let key = dir.join(KEY_FILE);
        for rubbish in
            ["", "rubbish", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]
        {
            fs::write(&key, rubbish).unwrap();
            let error = Identity::load_or_create(&dir).unwrap_err();
            assert!(matches!(error, IdentityError::NotAKey { .. }), "{error:?}");
            assert_eq!(fs::read_to_string(&key).unwrap(), rubbish);
        }
        fs::remove_file(&key).unwrap();
        symlink("/dev/null", &key).unwrap();
        let error = Identity::load_or_create(&dir).unwrap_err();
        assert!(
            matches!(error, IdentityError::WrongKind { .. } | IdentityError::Io { .. }),
            "{error:?}"
        );
    }
}
