//! Pins applied to a TLS 1.3 handshake.
//!
//! The same verifier serves both ends. It looks at the peer's key alone:
//! whether it is pinned, and (by the ring provider's algorithms) whether the
//! peer holds its private half. Names, dates and issuers in the certificate
//! mean nothing here.

use super::{Fingerprint, Identity, IdentityError, Peers};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, PeerMisbehaved, ServerConfig, SignatureScheme,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Names blip's protocol in the handshake, so that another QUIC service is
/// told apart before a byte is read. It never changes: versions are compared
/// in the hello, where they can be explained.
const ALPN: &[u8] = b"blip";

/// Which keys a peer may have.
#[derive(Clone, Debug)]
pub struct Trust(Source);

#[derive(Clone, Debug)]
enum Source {
    These(Vec<Fingerprint>),
    PeersIn(PathBuf),
}

impl Trust {
    /// Exactly this key.
    pub fn only(fingerprint: Fingerprint) -> Self {
        Self::any_of([fingerprint])
    }

    /// Any of these keys. None means nobody.
    pub fn any_of(fingerprints: impl IntoIterator<Item = Fingerprint>) -> Self {
        Self(Source::These(fingerprints.into_iter().collect()))
    }

    /// Whoever is pinned in the [`Peers`] of `dir` *when a handshake begins*:
    /// a long-running agent learns of new pins, and forgets removed ones,
    /// without a restart.
    pub fn peers_in(dir: &Path) -> Self {
        Self(Source::PeersIn(dir.to_owned()))
    }

    /// The keys trusted at this moment.
    ///
    /// # Errors
    /// The list of peers cannot be read.
    pub fn pinned(&self) -> Result<Vec<Fingerprint>, IdentityError> {
        match &self.0 {
            Source::These(all) => Ok(all.clone()),
            Source::PeersIn(dir) => {
                Ok(Peers::load(dir)?.iter().map(|peer| peer.fingerprint).collect())
            }
        }
    }
}

/// The key the peer showed in a handshake, known even if it was refused. In a
/// refused handshake it is a claim: its owner has not proven it.
pub(crate) type SeenKey = Arc<OnceLock<Fingerprint>>;

/// TLS for the end that dials.
pub(crate) fn client_tls(
    identity: &Identity,
    pinned: Vec<Fingerprint>,
) -> Result<(ClientConfig, SeenKey), Error> {
    let provider = provider();
    let (verifier, seen) = PinnedKeys::new(&provider, pinned);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    // A resumed session would skip the check of the pin.
    config.resumption = Resumption::disabled();
    Ok((config, seen))
}

/// TLS for the end that listens, for one connection.
pub(crate) fn server_tls(
    identity: &Identity,
    pinned: Vec<Fingerprint>,
) -> Result<(ServerConfig, SeenKey), Error> {
    let provider = provider();
    let (verifier, seen) = PinnedKeys::new(&provider, pinned);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the check of the pin.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((config, seen))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[derive(Debug)]
struct PinnedKeys {
    pinned: Vec<Fingerprint>,
    seen: SeenKey,
    provider: Arc<CryptoProvider>,
}

impl PinnedKeys {
    fn new(provider: &Arc<CryptoProvider>, pinned: Vec<Fingerprint>) -> (Arc<Self>, SeenKey) {
        let seen = SeenKey::default();
        let verifier = Self { pinned, seen: seen.clone(), provider: provider.clone() };
        (Arc::new(verifier), seen)
    }

    fn check_pin(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let spki = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        let got = Fingerprint::of_public_key(&spki);
        let _ = self.seen.set(got);
        if self.pinned.contains(&got) {
            return Ok(());
        }
        // The peer sees this as the TLS alert `access_denied`.
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(PeerIncompatible::Tls13RequiredForQuic.into())
}

impl ServerCertVerifier for PinnedKeys {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_pin(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for PinnedKeys {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check_pin(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::private_tempdir;
    use super::*;
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::{AlertDescription, ClientConnection, ServerConnection};

    /// Shakes hands in memory; the first error of each end.
    fn shake(client: ClientConfig, server: ServerConfig) -> (Option<Error>, Option<Error>) {
        let name = ServerName::try_from("blip").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        let (mut client_error, mut server_error) = (None, None);
        for _ in 0..8 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut wire.as_slice()).unwrap();
            server_error = server_error.or(server.process_new_packets().err());
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut wire.as_slice()).unwrap();
            client_error = client_error.or(client.process_new_packets().err());
        }
        (client_error, server_error)
    }

    /// The certificate of one identity with the private key of another.
    fn stolen_certificate(victim: &Identity, thief: &Identity) -> Arc<SingleCertAndKey> {
        let key = rustls::crypto::ring::sign::any_eddsa_type(match &*thief.key {
            rustls::pki_types::PrivateKeyDer::Pkcs8(key) => key,
            other => panic!("unexpected key {other:?}"),
        });
        Arc::new(CertifiedKey::new(vec![victim.certificate.clone()], key.unwrap()).into())
    }

    fn two() -> (Identity, Identity) {
        (Identity::ephemeral().unwrap(), Identity::ephemeral().unwrap())
    }

    #[test]
    fn pinned_ends_meet_and_see_each_other() {
        let (a, b) = two();
        let (client, seen_by_client) = client_tls(&a, vec![b.fingerprint()]).unwrap();
        let (server, seen_by_server) = server_tls(&b, vec![a.fingerprint()]).unwrap();
        assert_eq!(shake(client, server), (None, None));
        assert_eq!(seen_by_client.get(), Some(&b.fingerprint()));
        assert_eq!(seen_by_server.get(), Some(&a.fingerprint()));
    }

    #[test]
    fn an_unpinned_end_is_denied_access() {
        let (a, b) = two();
        let denied = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let alert = Error::AlertReceived(AlertDescription::AccessDenied);

        let (client, _) = client_tls(&a, vec![a.fingerprint()]).unwrap();
        let (server, _) = server_tls(&b, vec![a.fingerprint()]).unwrap();
        assert_eq!(shake(client, server), (Some(denied.clone()), Some(alert.clone())));

        let (client, _) = client_tls(&a, vec![b.fingerprint()]).unwrap();
        let (server, seen) = server_tls(&b, vec![]).unwrap();
        assert_eq!(shake(client, server), (Some(alert), Some(denied)));
        assert_eq!(seen.get(), Some(&a.fingerprint()), "a refused key is still reported");
    }

    #[test]
    fn a_pinned_certificate_without_its_key_is_worth_nothing() {
        let (a, b) = two();
        let thief = Identity::ephemeral().unwrap();
        let bad = Error::InvalidCertificate(CertificateError::BadSignature);

        let (client, _) = client_tls(&a, vec![b.fingerprint()]).unwrap();
        let (mut server, _) = server_tls(&thief, vec![a.fingerprint()]).unwrap();
        server.cert_resolver = stolen_certificate(&b, &thief);
        assert_eq!(shake(client, server).0, Some(bad.clone()));

        let (mut client, _) = client_tls(&thief, vec![b.fingerprint()]).unwrap();
        client.client_auth_cert_resolver = stolen_certificate(&a, &thief);
        let (server, _) = server_tls(&b, vec![a.fingerprint()]).unwrap();
        assert_eq!(shake(client, server).1, Some(bad));
    }

    #[test]
    fn a_client_without_a_certificate_is_refused() {
        let (a, b) = two();
        let (verifier, _) = PinnedKeys::new(&provider(), vec![b.fingerprint()]);
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        client.alpn_protocols = vec![ALPN.to_vec()];
        let (server, _) = server_tls(&b, vec![a.fingerprint()]).unwrap();
        assert_eq!(shake(client, server).1, Some(Error::NoCertificatesPresented));
    }

    #[test]
    fn trust_in_a_directory_follows_the_file() {
        let tmp = private_tempdir();
        let trust = Trust::peers_in(tmp.path());
        let key = Fingerprint::of_public_key(b"a");
        assert!(trust.pinned().unwrap().is_empty());
        Peers::add(tmp.path(), &super::super::PeerName::new("a").unwrap(), key).unwrap();
        assert_eq!(trust.pinned().unwrap(), vec![key]);
        Peers::remove(tmp.path(), "a").unwrap();
        assert!(trust.pinned().unwrap().is_empty());
    }
}
