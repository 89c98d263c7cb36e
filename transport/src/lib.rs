//! Moving pages and files between two hosts.
//!
//! Data travels one way through this crate:
//!
//! ```text
//! select → encode → link ⇒ link → decode → page store
//! ```
//!
//! **Architecture Invariants**
//! * Nothing here knows what a container, Docker or CRIU is.
//! * [`encode`], [`wire`] and [`store`] are pure: no sockets, no clock, no
//!   files. Everything that does I/O lives in [`link`], [`identity`] and
//!   [`files`].
//! * A decoded value is valid: lengths are checked before memory is reserved.

pub mod encode;
pub mod files;
pub mod identity;
pub mod link;
pub mod page;
pub mod store;
pub mod units;
pub mod wire;
