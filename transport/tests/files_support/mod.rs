//! What the tests of the file carrier need.

pub mod measure;
pub mod overlay;
pub mod step;
pub mod tree;
