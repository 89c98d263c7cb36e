//! The `blip` command.
fn main() {}
