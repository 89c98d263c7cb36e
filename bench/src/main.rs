//! The `blip-bench` command.
fn main() {}
