//! The only rooms of this crate that hold `unsafe`: thin, typed wrappers over
//! what neither the standard library nor `nix` offers.

pub mod net;
pub mod uffd_copy;
pub mod uffd_peer;
