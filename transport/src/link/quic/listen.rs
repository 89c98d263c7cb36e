//! The listening end: many may knock, paired hosts come in.

use super::connection::{CloseCode, Connection, Session, shut};
use super::control::Control;
use super::dial::{ACCESS_DENIED, NO_APPLICATION_PROTOCOL};
use super::frame::lost;
use super::hello::Hello;
use super::settings::{MAX_HANDSHAKES, Settings};
use super::socket;
use crate::identity::{Fingerprint, Identity, SeenKey, Trust, server_tls};
use crate::link::{LinkError, error::clean};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ConnectionError, Incoming, TransportErrorCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// How long a peer of another version may take to read why it is refused.
const FAREWELL: Duration = Duration::from_millis(500);

/// Accepts paired hosts on one address. Must be made inside a tokio runtime.
///
/// Handshakes run beside each other, so one slow or hostile newcomer delays
/// nobody. Dropping the listener refuses newcomers; connections live on, and
/// the port is free again when the last of them is gone.
pub struct Listener {
    addr: SocketAddr,
    arrivals: mpsc::Receiver<Result<Session, LinkError>>,
}

impl Listener {
    /// Listens on `addr` (port 0: any free port) as `identity`, for the hosts
    /// `trust` has pinned when they come.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn bind(
        addr: SocketAddr,
        identity: &Identity,
        trust: Trust,
        settings: Settings,
    ) -> Result<Self, LinkError> {
        let host = Arc::new(Host { identity: identity.clone(), trust, settings });
        // Stands in until a newcomer's own is made; it trusts nobody.
        let (nobody, _) = host.server_config(addr, Vec::new())?;
        let endpoint = socket::endpoint(addr, Some(nobody))?;
        let addr = endpoint.local_addr().map_err(|e| LinkError::Socket {
            what: "listen on",
            addr,
            why: e.to_string(),
        })?;
        let (sender, arrivals) = mpsc::channel(MAX_HANDSHAKES);
        tokio::spawn(async move {
            receive(&endpoint, host, sender).await;
            refuse_all(&endpoint).await;
        });
        Ok(Self { addr, arrivals })
    }

    /// The address listened on, with the port that was found free.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next host that came in, or why one did not: an `Err` concerns that
    /// newcomer only, and the listener goes on. `None` once it is closed.
    /// Cancel-safe.
    pub async fn accept(&mut self) -> Option<Result<Session, LinkError>> {
        self.arrivals.recv().await
    }
}

/// Serves newcomers, each in a task of its own, until the listener is dropped.
async fn receive(
    endpoint: &quinn::Endpoint,
    host: Arc<Host>,
    arrivals: mpsc::Sender<Result<Session, LinkError>>,
) {
    let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let mut newcomers = JoinSet::new();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((place, endpoint.accept().await?))
        };
        let (place, incoming) = tokio::select! {
            next = next => match next {
                Some(next) => next,
                None => return,
            },
            () = arrivals.closed() => return,
        };
        while newcomers.try_join_next().is_some() {}
        let (host, arrivals) = (host.clone(), arrivals.clone());
        newcomers.spawn(async move {
            let result = host.welcome(incoming).await;
            let _ = arrivals.send(result).await;
            drop(place);
        });
    }
}

/// Turns newcomers away as long as old connections keep the port open.
async fn refuse_all(endpoint: &quinn::Endpoint) {
    loop {
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => incoming.refuse(),
                None => return,
            },
            () = endpoint.wait_idle() => return,
        }
    }
}

struct Host {
    identity: Identity,
    trust: Trust,
    settings: Settings,
}

impl Host {
    fn server_config(
        &self,
        addr: SocketAddr,
        pinned: Vec<Fingerprint>,
    ) -> Result<(quinn::ServerConfig, SeenKey), LinkError> {
        let failed = |why: String| LinkError::Handshake { addr, why };
        let (tls, seen) = server_tls(&self.identity, pinned).map_err(|e| failed(e.to_string()))?;
        let crypto = QuicServerConfig::try_from(tls).map_err(|e| failed(e.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(self.settings.transport(socket::largest_datagram(addr)));
        // A host does not change its address in the middle of a migration.
        config.migration(false);
        Ok((config, seen))
    }

    async fn welcome(&self, incoming: Incoming) -> Result<Session, LinkError> {
        let addr = incoming.remote_address();
        let patience = self.settings.connect_timeout;
        tokio::time::timeout(patience, self.shake_hands(incoming, addr)).await.unwrap_or_else(
            |_| {
                Err(LinkError::Handshake {
                    addr,
                    why: format!("it was not done within {patience:?}"),
                })
            },
        )
    }

    async fn shake_hands(
        &self,
        incoming: Incoming,
        addr: SocketAddr,
    ) -> Result<Session, LinkError> {
        // Read anew each time, so that pairing needs no restart.
        let pinned = match self.trust.pinned() {
            Ok(pinned) => pinned,
            Err(error) => {
                incoming.refuse();
                return Err(error.into());
            }
        };
        let (config, seen) = self.server_config(addr, pinned.clone())?;
        let explain = |error| self.explain(error, addr, &pinned, &seen);
        let connecting = incoming.accept_with(Arc::new(config)).map_err(explain)?;
        let quic = connecting.await.map_err(explain)?;
        let peer = *seen
            .get()
            .ok_or_else(|| LinkError::Handshake { addr, why: "it showed no key".into() })?;

        let (mut send, mut receive) = quic.accept_bi().await.map_err(lost)?;
        let theirs = Hello::receive(&mut receive, addr).await?;
        let ours = Hello {
            protocol: self.settings.protocol_version,
            software: self.settings.software.clone(),
        };
        ours.send(&mut send).await?;
        if let Err(error) = ours.check(&theirs) {
            // The dialer closes once it has read our hello; closing first
            // could overtake it.
            let _ = tokio::time::timeout(FAREWELL, quic.closed()).await;
            shut(&quic, None, CloseCode::Version, "different protocol versions").await;
            return Err(error);
        }
        let connection = Connection::new(quic, None, peer, theirs.software);
        Ok(Session { connection, control: Control::new(send, receive) })
    }

    fn explain(
        &self,
        error: ConnectionError,
        addr: SocketAddr,
        pinned: &[Fingerprint],
        seen: &SeenKey,
    ) -> LinkError {
        let refused = seen.get().copied().filter(|key| !pinned.contains(key));
        let is = |code: TransportErrorCode, alert: u8| code == TransportErrorCode::crypto(alert);
        match (error, refused) {
            (ConnectionError::TransportError(_), Some(got)) => LinkError::Stranger { addr, got },
            (ConnectionError::ConnectionClosed(close), _)
                if is(close.error_code, ACCESS_DENIED) =>
            {
                LinkError::NotRecognised { addr, ours: self.identity.fingerprint() }
            }
            (ConnectionError::TransportError(error), _)
                if is(error.code, NO_APPLICATION_PROTOCOL) =>
            {
                LinkError::NotBlip { addr, why: "it asked for another protocol".into() }
            }
            (other, _) => LinkError::Handshake { addr, why: clean(other.to_string().as_bytes()) },
        }
    }
}
