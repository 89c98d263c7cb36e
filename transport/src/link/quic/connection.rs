//! An established connection between two paired hosts.

use super::blob::BlobSender;
use super::bulk::{BulkReceiver, BulkSender, StreamKind};
use super::control::Control;
use super::frame::{FrameReader, lost, why_lost};
use super::pacer::{Paced, Pacer};
use super::settings::Priority;
use super::urgent::{Urgent, UrgentServer};
use crate::identity::Fingerprint;
use crate::link::{LinkError, LostWhy};
use crate::units::{Bandwidth, ByteSize};
use quinn::VarInt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long a dialer stays to see its farewell delivered.
const LINGER: Duration = Duration::from_millis(200);

/// Longest farewell; the rest is cut, so that it fits one packet.
const MAX_REASON: usize = 512;

/// A fresh connection: the shared handle, and the one control stream.
pub struct Session {
    /// Opens and accepts every other stream.
    pub connection: Connection,
    /// Commands and their answers.
    pub control: Control,
}

/// A connection to a paired host. Cheap to clone; it closes when asked to, or
/// when nothing uses it any more.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    quic: quinn::Connection,
    /// The dialer's own endpoint; a listener's is shared and lives elsewhere.
    endpoint: Option<quinn::Endpoint>,
    peer: Fingerprint,
    software: String,
    /// A bulk stream whose head was being read when its reader was cancelled.
    headless: tokio::sync::Mutex<Option<FrameReader>>,
    pacer: Arc<Pacer>,
}

/// Why a connection is closed, for programs; the text beside it is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// The migration is over, well or not, and both ends know it.
    Done,
    /// This end gives up; the text says why.
    Aborted,
    /// The two ends speak different protocol versions.
    Version,
    /// The other end broke the protocol.
    Violation,
    /// This end is busy with another migration.
    Busy,
}

impl CloseCode {
    /// The number on the wire. 0 is what QUIC sends when a process lets go.
    pub fn number(self) -> u32 {
        match self {
            Self::Done => 1,
            Self::Aborted => 2,
            Self::Version => 3,
            Self::Violation => 4,
            Self::Busy => 5,
        }
    }
}

/// What a connection has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Bytes sent in datagrams, everything included, lost ones too.
    pub sent: ByteSize,
    /// Bytes received in datagrams.
    pub received: ByteSize,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Congestion window: bytes that may be on their way at once.
    pub cwnd: ByteSize,
    /// Packets sent and declared lost.
    pub lost_packets: u64,
    /// UDP payload the path carries, as found so far.
    pub datagram: ByteSize,
}

impl Connection {
    pub(super) fn new(
        quic: quinn::Connection,
        endpoint: Option<quinn::Endpoint>,
        peer: Fingerprint,
        software: String,
    ) -> Self {
        let (headless, pacer) = Default::default();
        Self(Arc::new(Inner { quic, endpoint, peer, software, headless, pacer }))
    }

    /// The QUIC connection itself, to misbehave on.
    #[cfg(test)]
    pub(super) fn raw(&self) -> &quinn::Connection {
        &self.0.quic
    }

    /// The key the other end has proven.
    pub fn peer(&self) -> Fingerprint {
        self.0.peer
    }

    /// The software version the other end states.
    pub fn peer_software(&self) -> &str {
        &self.0.software
    }

    /// Where the other end is.
    pub fn remote_addr(&self) -> SocketAddr {
        self.0.quic.remote_address()
    }

    /// Opens a stream for page batches or file parts. Waits while
    /// [`MAX_UNI_STREAMS`](super::settings::MAX_UNI_STREAMS) are open.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn open_bulk(
        &self,
        kind: StreamKind,
        priority: Priority,
    ) -> Result<BulkSender, LinkError> {
        let stream = self.0.quic.open_uni().await.map_err(lost)?;
        BulkSender::open(stream, kind, priority, self.paced()).await
    }

    /// Opens a stream for a set of named blobs.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn open_blobs(&self, priority: Priority) -> Result<BlobSender, LinkError> {
        Ok(BlobSender::new(self.open_bulk(StreamKind::Blobs, priority).await?))
    }

    /// The next bulk stream the other end opens. Cancel-safe.
    ///
    /// # Errors
    /// The connection is lost, or the stream does not begin as one of ours.
    pub async fn accept_bulk(&self) -> Result<BulkReceiver, LinkError> {
        let mut headless = self.0.headless.lock().await;
        if headless.is_none() {
            let stream = self.0.quic.accept_uni().await.map_err(lost)?;
            *headless = Some(BulkReceiver::headless(stream));
        }
        // Cannot be absent here; if it were, asking again is the right answer.
        let Some(frames) = headless.as_mut() else {
            return Err(LinkError::Ended { stream: "bulk" });
        };
        let kind = BulkReceiver::read_head(frames).await;
        let frames = headless.take();
        match (kind, frames) {
            (Ok(kind), Some(frames)) => Ok(BulkReceiver::new(frames, kind)),
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(LinkError::Ended { stream: "bulk" }),
        }
    }

    /// Opens a stream to ask urgent questions on. The other end sees it with
    /// the first question.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn open_urgent(&self) -> Result<Urgent, LinkError> {
        let (send, receive) = self.0.quic.open_bi().await.map_err(lost)?;
        Ok(Urgent::new(send, receive))
    }

    /// The next urgent stream the other end opens. Cancel-safe.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn accept_urgent(&self) -> Result<UrgentServer, LinkError> {
        let (send, receive) = self.0.quic.accept_bi().await.map_err(lost)?;
        Ok(UrgentServer::new(send, receive, self.paced()))
    }

    /// Sets a ceiling on what this end sends in bulk and urgent streams from
    /// now on, headers included; `None` lifts it.
    pub fn limit(&self, ceiling: Option<Bandwidth>) {
        self.0.pacer.limit(ceiling);
    }

    fn paced(&self) -> Paced {
        Paced { pacer: self.0.pacer.clone(), quic: self.0.quic.clone() }
    }

    /// What the connection has done so far.
    pub fn stats(&self) -> LinkStats {
        let stats = self.0.quic.stats();
        LinkStats {
            sent: ByteSize(stats.udp_tx.bytes),
            received: ByteSize(stats.udp_rx.bytes),
            rtt: stats.path.rtt,
            cwnd: ByteSize(stats.path.cwnd),
            lost_packets: stats.path.lost_packets,
            datagram: ByteSize(stats.path.current_mtu.into()),
        }
    }

    /// Closes at once; the other end sees `code` and `reason` on every stream.
    /// What is still on its way is thrown away: finish the control stream
    /// first ([`ControlSender::finish`](super::ControlSender::finish)).
    pub async fn close(&self, code: CloseCode, reason: &str) {
        shut(&self.0.quic, self.0.endpoint.as_ref(), code, reason).await;
    }

    /// Waits until the connection is gone, and says why.
    pub async fn closed(&self) -> LostWhy {
        why_lost(self.0.quic.closed().await)
    }
}

/// Closes `quic`; a dialer (which owns its endpoint) waits a little for the
/// farewell to leave, because its process may end right after.
pub(super) async fn shut(
    quic: &quinn::Connection,
    endpoint: Option<&quinn::Endpoint>,
    code: CloseCode,
    reason: &str,
) {
    let reason = &reason.as_bytes()[..reason.len().min(MAX_REASON)];
    quic.close(VarInt::from_u32(code.number()), reason);
    if let Some(endpoint) = endpoint {
        let _ = tokio::time::timeout(LINGER, endpoint.wait_idle()).await;
    }
}
