//! Talking to CRIU: its RPC protocol, one held dump, and its images.

pub mod dump;
pub mod image;
pub mod predump;
pub mod preload;
pub mod rpc;
