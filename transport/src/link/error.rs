//! What can go wrong between two hosts, told so that a person can act on it.

use crate::identity::{Fingerprint, IdentityError};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Why there is no connection, or no longer one.
#[derive(Clone, Debug, Error)]
pub enum LinkError {
    /// Nothing answered at the address.
    #[error("no blip agent answers at {addr} ({why}); on that host: blip agent")]
    Unreachable {
        /// Where we dialed.
        addr: SocketAddr,
        /// What happened instead of an answer.
        why: UnreachableWhy,
    },
    /// Dialer: the other end's key is not the pinned one.
    #[error(
        "{addr} has identity {got}, but pinned is {}; if that host was installed anew: \
         blip pair remove it, then blip pair add {got} NAME. If not, someone stands in between",
        list(expected)
    )]
    WrongIdentity {
        /// Where we dialed.
        addr: SocketAddr,
        /// The keys we would accept.
        expected: Vec<Fingerprint>,
        /// The key it showed (unproven).
        got: Fingerprint,
    },
    /// Dialer: the agent does not accept our key.
    #[error("the agent at {addr} does not know this host; over there: blip pair add {ours} NAME")]
    NotPaired {
        /// Where we dialed.
        addr: SocketAddr,
        /// Our fingerprint, which it must pin.
        ours: Fingerprint,
    },
    /// Dialer: no key is pinned for this host at all.
    #[error(
        "no identity is pinned for {addr}; ask it for its fingerprint, then: blip pair add FINGERPRINT NAME"
    )]
    NobodyPinned {
        /// Where we meant to dial.
        addr: SocketAddr,
    },
    /// Listener: someone we do not know came in.
    #[error(
        "refused {addr}: its identity is not pinned here; to accept it: blip pair add {got} NAME"
    )]
    Stranger {
        /// Where it came from.
        addr: SocketAddr,
        /// The key it showed (unproven).
        got: Fingerprint,
    },
    /// Listener: the dialer expects another key than ours.
    #[error("{addr} refused this host's identity; over there: blip pair add {ours} NAME")]
    NotRecognised {
        /// Where it came from.
        addr: SocketAddr,
        /// Our fingerprint, which it must pin.
        ours: Fingerprint,
    },
    /// The two programs speak different protocol versions.
    #[error(
        "this blip speaks protocol {ours}, the other end speaks {theirs} ({their_software}); \
         install the same version of blip on both hosts"
    )]
    Version {
        /// Our protocol version.
        ours: u16,
        /// Theirs.
        theirs: u16,
        /// The software version they state, cleaned for display.
        their_software: String,
    },
    /// Something answers there, but it is not blip.
    #[error("what answers at {addr} is not blip ({why}); check the port")]
    NotBlip {
        /// The other end.
        addr: SocketAddr,
        /// How we know.
        why: String,
    },
    /// The handshake failed for another reason than trust.
    #[error("the secure handshake with {addr} failed: {why}")]
    Handshake {
        /// The other end.
        addr: SocketAddr,
        /// What QUIC or TLS says.
        why: String,
    },
    /// An established connection is gone.
    #[error("the connection was lost: {why}")]
    ConnectionLost {
        /// How it ended.
        why: LostWhy,
    },
    /// A frame is larger than its stream allows; on receipt, nothing was
    /// reserved for it.
    #[error(
        "a frame of {size} bytes on the {stream} stream exceeds its limit of {limit}; split it (or the other end is broken)"
    )]
    FrameTooBig {
        /// Which stream.
        stream: &'static str,
        /// The frame's (claimed) size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A frame is whole but does not decode.
    #[error(
        "malformed message on the {stream} stream: {why}; are both hosts on the same build of blip?"
    )]
    Malformed {
        /// Which stream.
        stream: &'static str,
        /// What the decoder says.
        why: String,
    },
    /// The stream ended in the middle of a frame or a file.
    #[error("the {stream} stream ended in the middle of a message")]
    Truncated {
        /// Which stream.
        stream: &'static str,
    },
    /// The stream ended where another message was due.
    #[error("the other end finished the {stream} stream")]
    Ended {
        /// Which stream.
        stream: &'static str,
    },
    /// The sender gave the stream up: what came on it is incomplete.
    #[error("the other end gave up sending on the {stream} stream")]
    Abandoned {
        /// Which stream.
        stream: &'static str,
    },
    /// The receiver no longer reads the stream.
    #[error("the other end stopped reading the {stream} stream")]
    NotWanted {
        /// Which stream.
        stream: &'static str,
    },
    /// An earlier send on this stream was cancelled half way, so a frame is
    /// missing its end. A fault in the caller.
    #[error("an earlier send on the {stream} stream was cancelled half way; open a new one")]
    HalfSent {
        /// Which stream.
        stream: &'static str,
    },
    /// Our own keys or pins are unusable.
    #[error(transparent)]
    Identity(Arc<IdentityError>),
    /// A local socket could not be set up.
    #[error("cannot {what} {addr}: {why}")]
    Socket {
        /// The attempted action, as a verb.
        what: &'static str,
        /// On which address.
        addr: SocketAddr,
        /// The system's answer.
        why: String,
    },
}

/// What happened instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnreachableWhy {
    /// Nothing at all came back.
    #[error(
        "nothing came back within {0:.1?}: is the host up, the address right, UDP let through?"
    )]
    TimedOut(Duration),
    /// The host is there, but nobody listens on the port.
    #[error("the port is closed")]
    Refused,
    /// The system knows no way there.
    #[error("{0}")]
    NoRoute(String),
}

/// How an established connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LostWhy {
    /// Nothing was heard for the idle timeout: the other process, its host or
    /// the network is gone.
    #[error(
        "nothing was heard from the other end any more; its process, its host or the network is gone"
    )]
    TimedOut,
    /// The other end closed it and said why.
    #[error("the other end closed it: {} (code {code})", said(reason))]
    ClosedByPeer {
        /// Its code, see [`crate::link::quic::CloseCode`].
        code: u64,
        /// Its words, cleaned for display; empty if its process just let go.
        reason: String,
    },
    /// The other host no longer knows the connection: blip was restarted there,
    /// or it had heard nothing for so long that it gave up.
    #[error("the other end no longer knows it: it was restarted, or had long heard nothing")]
    Reset,
    /// This end closed it.
    #[error("this end closed it")]
    ClosedHere,
    /// The other end broke the rules of QUIC, or says we did.
    #[error("protocol violation: {0}")]
    Protocol(String),
}

impl From<IdentityError> for LinkError {
    fn from(error: IdentityError) -> Self {
        Self::Identity(Arc::new(error))
    }
}

/// Text from the other end, safe for a terminal and of bounded length.
pub(super) fn clean(text: &[u8]) -> String {
    const MAX_SHOWN: usize = 512;
    String::from_utf8_lossy(text)
        .chars()
        .take(MAX_SHOWN)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn said(reason: &str) -> &str {
    if reason.is_empty() { "its process ended or let go without a word" } else { reason }
}

fn list(all: &[Fingerprint]) -> impl fmt::Display {
    all.iter().map(Fingerprint::to_string).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_other_end_cannot_move_the_cursor() {
        let shown = clean(b"bad \x1b[2J\nend \xff");
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert!(clean(&[b'x'; 10_000]).len() <= 512);
    }

    #[test]
    fn refusals_say_what_to_type() {
        let addr = "10.0.0.2:7000".parse().unwrap();
        let (ours, got) = (Fingerprint::of_public_key(b"a"), Fingerprint::of_public_key(b"b"));
        let not_paired = LinkError::NotPaired { addr, ours }.to_string();
        assert!(not_paired.contains(&format!("blip pair add {ours}")), "{not_paired}");
        let stranger = LinkError::Stranger { addr, got }.to_string();
        assert!(stranger.contains(&format!("blip pair add {got}")), "{stranger}");
        let wrong = LinkError::WrongIdentity { addr, expected: vec![ours], got }.to_string();
        assert!(wrong.contains(&ours.to_string()) && wrong.contains("blip pair"), "{wrong}");
        assert!(!wrong.contains('\n'));
    }
}
