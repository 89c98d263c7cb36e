//! The connection between source and target: the real one and a simulated one.
//!
//! **Participants.** The *source* dials, the *target*'s agent listens. One
//! connection serves one migration.
//!
//! **Goals.** Commands overtake page faults, page faults overtake bulk data;
//! a slow reader slows its own stream and no other; either end learns within
//! two seconds that the other is gone, and why; nothing a peer sends makes us
//! reserve memory that a limit here has not allowed.
//!
//! **Non-goals.** The meaning of what is sent (see [`crate::wire`]), resuming
//! a broken connection, more than one path, hosts that have not been paired.
//!
//! [`quic`] is the only module of this crate that touches the network;
//! [`memory`] joins two pure state machines under virtual time.

mod error;
pub mod memory;
pub mod quic;

pub use error::{LinkError, LostWhy, UnreachableWhy};
