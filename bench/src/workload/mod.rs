//! What runs inside the container while it moves.
//!
//! A workload is a real service filled with data that can be recomputed from a
//! seed, and a digest which says whether that data is still what it was. The
//! part that changes during a migration is the probe's, not the workload's:
//! the two keep to different key prefixes so that the digest of the dataset is
//! the same before, during and after. The memory writer changes all the time,
//! and keeps account of it itself.

pub mod dataset;
pub mod redis;
pub mod service;
pub mod writer;
