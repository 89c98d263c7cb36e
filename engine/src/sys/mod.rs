//! Everything `unsafe` in this crate: thin, checked wrappers over system calls.

pub mod net;
