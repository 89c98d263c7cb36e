//! The only rooms of this crate that hold `unsafe`: thin, typed wrappers over
//! kernel interfaces that neither `std` nor `nix` covers. None knows what a
//! container or a migration is.

pub mod datagrams;
pub mod fiemap;
pub mod inject;
pub mod net;
pub mod pagemap;
pub mod pidfd;
pub mod ptrace;
pub mod readmem;
pub mod sched;
pub mod sockets;
pub mod timerfd;
pub mod tty;
pub mod uffd_copy;
pub mod uffd_peer;
pub mod wp;
