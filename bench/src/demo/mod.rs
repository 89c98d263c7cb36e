//! The demo: a busy Redis moves between two Docker hosts, and every claim is
//! proved before it is printed.
//!
//! [`run`] is the script; what it needs of the hosts is a [`Stage`]. The lab's
//! stage moves a container with blip; the tests' stage moves nothing and breaks
//! things, so the script itself is tested without Docker.
//!
//! **Invariant**: nothing the engine says enters the proof. The client gap and
//! the verdict come from the probe alone.

mod command;
mod lab_stage;
pub mod machine;
pub mod render;
pub mod report;
mod script;

pub use crate::rig::blip_beside;
pub use command::DemoCommand;
pub use lab_stage::LabStage;
pub use script::{Options, Stage, Step, run, series};
