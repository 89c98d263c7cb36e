//! The target, as the source talks to it.

use crate::patience::link_settings;
use crate::protocol::{ToSource, ToTarget};
use blip_transport::identity::{Identity, Peers, Trust};
use blip_transport::link::LinkError;
use blip_transport::link::quic::{Connection, ControlSender, Session, dial};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use tokio::sync::mpsc;

/// Where an agent listens unless told otherwise.
pub const PORT: u16 = 4433;

/// Why the target cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The name leads nowhere.
    #[error("cannot resolve the target '{name}': {why}; give an address as HOST[:PORT]")]
    Name {
        /// What was given.
        name: String,
        /// Why.
        why: String,
    },
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Our own identity or the list of peers.
    #[error(transparent)]
    Identity(#[from] blip_transport::identity::IdentityError),
    /// It said something that makes no sense now.
    #[error("the target answered out of turn: {0}")]
    OutOfTurn(String),
}

/// A connection to a target's agent.
pub struct Peer {
    /// For streams.
    pub link: Connection,
    to: ControlSender,
    inbox: mpsc::UnboundedReceiver<Result<ToSource, LinkError>>,
}

impl Peer {
    /// Connects to the agent at `target` (`HOST[:PORT]`), which must be paired.
    pub async fn connect(target: &str, directory: &Path) -> Result<Self, PeerError> {
        let address = resolve(target)?;
        let identity = Identity::load_or_create(directory)?;
        let peers = Peers::load(directory)?;
        // A name that is pinned stands for its own key only.
        let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
        let trust = match peers.by_name(host) {
            Some(peer) => Trust::only(peer.fingerprint),
            None => Trust::peers_in(directory),
        };
        let Session { connection, control } =
            dial(address, &identity, &trust, &link_settings()).await?;
        let (to, mut from) = control.split();
        let (post, inbox) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let message = from.recv().await;
                let ended = message.is_err();
                if post.send(message).is_err() || ended {
                    return;
                }
            }
        });
        Ok(Self { link: connection, to, inbox })
    }

    /// Says something.
    pub async fn say(&mut self, message: &ToTarget) -> Result<(), PeerError> {
        Ok(self.to.send(message).await?)
    }

    /// What the target says next.
    pub async fn hear(&mut self) -> Result<ToSource, PeerError> {
        match self.inbox.recv().await {
            Some(message) => Ok(message?),
            None => Err(LinkError::Ended { stream: "control" }.into()),
        }
    }

    /// Says goodbye, once everything said has arrived.
    pub async fn part(self) {
        let _ = self.to.finish().await;
        self.link.close(blip_transport::link::quic::CloseCode::Done, "done").await;
    }
}

fn resolve(target: &str) -> Result<SocketAddr, PeerError> {
    let fail = |why: String| PeerError::Name { name: target.to_owned(), why };
    let with_port = match target.parse::<SocketAddr>() {
        Ok(address) => return Ok(address),
        Err(_) if target.parse::<std::net::IpAddr>().is_ok() => None,
        Err(_) => target.rsplit_once(':'),
    };
    let (host, port) = match with_port {
        Some((host, port)) => {
            (host, port.parse().map_err(|_| fail(format!("'{port}' is no port number")))?)
        }
        None => (target, PORT),
    };
    let mut found = (host, port).to_socket_addrs().map_err(|e| fail(e.to_string()))?;
    found.next().ok_or_else(|| fail("no address".into()))
}
