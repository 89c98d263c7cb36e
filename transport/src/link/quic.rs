//! The real link: a thin layer over quinn.
//!
//! ```text
//! dialer (source)                                listener (target)
//!   ├── control  bi   hello, then commands  ⇄ ──────┤   highest priority
//!   ├── bulk     uni  pages, files, blobs     ─────▶│   low, several at once
//!   │◀─ urgent   bi   request ⇄ raw bytes     ──────┤   above bulk
//! ```
//!
//! **Order.** Mutual TLS with pinned keys; then a hello of fixed layout both
//! ways on the control stream, so that two versions of blip can tell each
//! other apart whatever else changes; then everything else.
//!
//! **Cancellation.** Every `recv`, `next` and `accept` may be dropped (in a
//! `select!`, say) and called again; nothing is lost. A dropped *send* leaves
//! a partial frame, so that stream refuses further use
//! ([`LinkError::HalfSent`](super::LinkError::HalfSent)).
//!
//! **Back-pressure** is QUIC's flow control, per stream: see [`settings`].
//! `send` returns when QUIC holds the bytes, not when the other end has them;
//! only a message on the control stream can say that.
//!
//! **Architecture Invariants**
//! * A length from the network is compared with a limit before it sizes
//!   anything.
//! * A bulk stream that ends without [`BulkSender::finish`] never looks
//!   complete to the receiver.
//! * The windows are sized so that unread bulk data cannot block control.

mod blob;
mod bulk;
mod congestion;
mod connection;
mod control;
mod dial;
mod frame;
mod hello;
mod listen;
mod pacer;
pub mod settings;
mod socket;
mod urgent;
mod vigil;

#[cfg(test)]
mod hostile;

pub use blob::{Blob, BlobHead, BlobName, BlobReceiver, BlobSender};
pub use bulk::{BulkReceiver, BulkSender, MAX_BULK_FRAME, StreamKind};
pub use connection::{CloseCode, Connection, LinkStats, Session};
pub use control::{Control, ControlReceiver, ControlSender, MAX_CONTROL_FRAME};
pub use dial::dial;
pub use hello::PROTOCOL_VERSION;
pub use listen::Listener;
pub use settings::{Priority, Settings};
pub use urgent::{
    Asked, MAX_URGENT_REPLY, MAX_URGENT_REQUEST, RequestId, Urgent, UrgentReplies, UrgentServer,
};
pub use vigil::Vigil;
