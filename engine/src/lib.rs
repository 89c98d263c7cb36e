//! Deciding and driving: how a container is moved with `blip`.
//!
//! **Architecture Invariants**
//! * The planner, the handover protocol and rollback are pure: they see values
//!   and a time, never a socket, a process or a clock.
//! * `unsafe` stands in [`sys`] only.
//! * Nothing here depends on `blip-bench`.

pub mod bundle;
pub mod cgroup;
pub mod cli;
pub mod connections;
pub mod criu;
pub mod descriptors;
pub mod docker;
pub mod event;
pub mod experience;
pub mod external;
pub mod forward;
pub mod guard;
pub mod handover;
pub mod history;
pub mod image;
pub mod kept;
pub mod lazy;
pub mod ledger;
pub mod memory;
pub mod mounts;
pub mod network;
pub mod patience;
pub mod plan;
pub mod protocol;
pub mod runtime;
pub mod source;
pub mod sys;
pub mod target;
mod text;
pub mod throttle;
pub mod timeline;
pub mod timers;
pub mod track;
