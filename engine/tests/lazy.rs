//! The lazy-pages server against real userfaultfds of real processes: this
//! binary starts itself again as the restored process, which behaves as CRIU's
//! restorer and then does with its memory what programs do.
//!
//! Every page has content that follows from its number, so that the restored
//! process can tell by itself whether each byte is right.

#[path = "lazy/criu.rs"]
mod criu;
#[path = "lazy/harness.rs"]
mod harness;
#[path = "lazy/peer.rs"]
mod peer;
#[path = "lazy/protocol.rs"]
mod protocol;
#[path = "lazy/remote.rs"]
mod remote;
#[path = "lazy/restored.rs"]
mod restored;
#[path = "lazy/speed.rs"]
mod speed;
