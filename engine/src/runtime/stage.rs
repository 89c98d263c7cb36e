//! The stage: where the agent and a container's runtime commands meet.
//!
//! The agent makes a directory `/run/blip/stage/<container id>/` before
//! `docker start` and listens on a socket in it. The holder and the hook are
//! clients of that socket; they speak lines of JSON ([`wire`]).
//!
//! What outlives all processes is in files of the directory, so that an agent
//! that was restarted can find out what happened ([`StageDir::fate`]).

mod dir;
mod server;
pub mod wire;

pub use dir::{Fate, HolderRecord, StageDir, StageError};
pub use server::{StageEvent, StageServer};
pub use wire::{
    CgroupMode, HolderOrder, HolderUp, HookOrder, Report, RestoreSpec, TcpMode, TmpfsPlace,
};

/// Where stage directories are made: a tmpfs that only root can enter.
pub const STAGE_ROOT: &str = "/run/blip/stage";
