//! The bench: scenarios × links × arms × repeats, each run verified, each
//! sample on disk before the next run begins.
//!
//! An *arm* is one of the ways that are compared: nothing at all, blip with
//! certain flags, or a peer. Within a scenario and a link arms take turns
//! (A B C A B C …), so that a machine that grows slower in the course of an
//! hour slows all of them down alike.
//!
//! | file | what |
//! |---|---|
//! | `plan.json` | what was asked for, as it was understood |
//! | `environment.json` | where it ran |
//! | `samples.jsonl` | one [`Sample`] a line, in the order of the runs |
//! | `traces/*.json` | one [`Trace`] a run: the client's timeline, blip's events |
//!
//! **Invariants**: a sample is written once, as a whole line; a run that has
//! one is not repeated when the bench is started again; what a client saw comes
//! from the probe alone; nothing is subtracted from anything.

mod cable;
mod command;
mod crowd;
pub mod environment;
pub mod link;
mod mover;
mod noise;
pub mod plan;
pub mod record;
mod resident;
mod runner;
pub mod sample;
pub mod scenario;

pub use command::{CompareCommand, RunCommand};
pub use link::Link;
pub use plan::{Arm, Cell, Plan, Way};
pub use record::Record;
pub use resident::container;
pub use runner::{MOVED, Runner};
pub use sample::{Sample, Trace};
pub use scenario::{Load, Scenario};
