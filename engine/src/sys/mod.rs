//! The one room with `unsafe` in it: kernel interfaces that neither `std` nor
//! `nix` covers. Each module wraps one of them in types that cannot be misused;
//! none knows what a container or a migration is.

pub mod inject;
pub mod pagemap;
pub mod ptrace;
pub mod readmem;
pub mod wp;
