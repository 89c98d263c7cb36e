//! The host a container leaves.

pub mod pump;
pub mod subject;
