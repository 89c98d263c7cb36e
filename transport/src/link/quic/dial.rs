//! The dialing end: from an address to a session, or a clear refusal.

use super::connection::{CloseCode, Connection, Session, shut};
use super::control::Control;
use super::frame::lost;
use super::hello::Hello;
use super::settings::{SERVER_NAME, Settings};
use super::socket;
use crate::identity::{Fingerprint, Identity, SeenKey, Trust, client_tls};
use crate::link::{LinkError, LostWhy, UnreachableWhy, error::clean};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, TransportErrorCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// TLS alert of an end whose pins do not include our key.
pub(super) const ACCESS_DENIED: u8 = 49;
/// TLS alert of an end that speaks another protocol.
pub(super) const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Connects to the agent at `addr`, which must prove a key `trust` has pinned.
///
/// # Errors
/// [`LinkError::Unreachable`], [`LinkError::WrongIdentity`],
/// [`LinkError::NotPaired`], [`LinkError::NobodyPinned`],
/// [`LinkError::Version`], [`LinkError::NotBlip`]; rarely others.
pub async fn dial(
    addr: SocketAddr,
    identity: &Identity,
    trust: &Trust,
    settings: &Settings,
) -> Result<Session, LinkError> {
    let pinned = trust.pinned()?;
    if pinned.is_empty() {
        return Err(LinkError::NobodyPinned { addr });
    }
    let (ours, began) = (identity.fingerprint(), Instant::now());
    let caller = Caller { addr, pinned, ours, seen: SeenKey::default(), began };
    let patience = settings.connect_timeout;
    tokio::select! {
        session = caller.call(identity, settings) => session,
        why = socket::refusal(addr) => Err(LinkError::Unreachable { addr, why }),
        () = tokio::time::sleep(patience) => {
            Err(LinkError::Unreachable { addr, why: UnreachableWhy::TimedOut(patience) })
        }
    }
}

/// What is needed to explain a failure.
struct Caller {
    addr: SocketAddr,
    pinned: Vec<Fingerprint>,
    ours: Fingerprint,
    seen: SeenKey,
    began: Instant,
}

impl Caller {
    async fn call(
        mut self,
        identity: &Identity,
        settings: &Settings,
    ) -> Result<Session, LinkError> {
        let addr = self.addr;
        let handshake = |why: String| LinkError::Handshake { addr, why };
        let (tls, seen) =
            client_tls(identity, self.pinned.clone()).map_err(|e| handshake(e.to_string()))?;
        self.seen = seen;
        let crypto = QuicClientConfig::try_from(tls).map_err(|e| handshake(e.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(settings.transport(socket::largest_datagram(addr)));

        let endpoint = socket::endpoint(socket::unspecified_for(addr), None)?;
        let quic = endpoint
            .connect_with(config, addr, SERVER_NAME)
            .map_err(|e| handshake(e.to_string()))?
            .await
            .map_err(|e| self.explain(e))?;
        let peer = *self.seen.get().ok_or_else(|| handshake("it showed no key".into()))?;

        // In TLS 1.3 a dialer is done before the other end has judged its key:
        // a refusal arrives here, in place of the hello.
        let ours =
            Hello { protocol: settings.protocol_version, software: settings.software.clone() };
        let (control, theirs) = self.exchange(&quic, &ours).await.map_err(|error| {
            let refused = matches!(error, LinkError::ConnectionLost { .. });
            match quic.close_reason().filter(|_| refused) {
                Some(reason) => self.explain(reason),
                None => error,
            }
        })?;
        if let Err(error) = ours.check(&theirs) {
            shut(&quic, Some(&endpoint), CloseCode::Version, "different protocol versions").await;
            return Err(error);
        }
        Ok(Session {
            connection: Connection::new(quic, Some(endpoint), peer, theirs.software),
            control,
        })
    }

    async fn exchange(
        &self,
        quic: &quinn::Connection,
        ours: &Hello,
    ) -> Result<(Control, Hello), LinkError> {
        let (mut send, mut receive) = quic.open_bi().await.map_err(lost)?;
        ours.send(&mut send).await?;
        let theirs = Hello::receive(&mut receive, self.addr).await?;
        Ok((Control::new(send, receive), theirs))
    }

    fn explain(&self, error: ConnectionError) -> LinkError {
        let addr = self.addr;
        let alert = |code: TransportErrorCode, alert: u8| code == TransportErrorCode::crypto(alert);
        match error {
            ConnectionError::TransportError(_) if self.refused_key().is_some() => {
                LinkError::WrongIdentity {
                    addr,
                    expected: self.pinned.clone(),
                    got: self.refused_key().unwrap_or(self.ours),
                }
            }
            ConnectionError::ConnectionClosed(close) if alert(close.error_code, ACCESS_DENIED) => {
                LinkError::NotPaired { addr, ours: self.ours }
            }
            ConnectionError::ConnectionClosed(close)
                if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
            {
                LinkError::Unreachable { addr, why: UnreachableWhy::Refused }
            }
            ConnectionError::ConnectionClosed(close)
                if alert(close.error_code, NO_APPLICATION_PROTOCOL) =>
            {
                LinkError::NotBlip { addr, why: "it offers another protocol".into() }
            }
            ConnectionError::TransportError(error)
                if alert(error.code, NO_APPLICATION_PROTOCOL) =>
            {
                LinkError::NotBlip { addr, why: "it offers another protocol".into() }
            }
            ConnectionError::TimedOut => {
                LinkError::Unreachable { addr, why: UnreachableWhy::TimedOut(self.began.elapsed()) }
            }
            ConnectionError::VersionMismatch => {
                LinkError::NotBlip { addr, why: "it speaks another version of QUIC".into() }
            }
            ConnectionError::ApplicationClosed(close) => LinkError::ConnectionLost {
                why: LostWhy::ClosedByPeer {
                    code: close.error_code.into_inner(),
                    reason: clean(&close.reason),
                },
            },
            other => LinkError::Handshake { addr, why: clean(other.to_string().as_bytes()) },
        }
    }

    fn refused_key(&self) -> Option<Fingerprint> {
        self.seen.get().copied().filter(|key| !self.pinned.contains(key))
    }
}
