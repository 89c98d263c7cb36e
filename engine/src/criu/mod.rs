//! CRIU, seen from blip.

pub mod image;
