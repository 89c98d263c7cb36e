//! The host a container leaves.

pub mod pump;
