//! What the tests of the file carrier need.

pub(crate) mod measure;
pub(crate) mod overlay;
pub(crate) mod step;
pub(crate) mod tree;
