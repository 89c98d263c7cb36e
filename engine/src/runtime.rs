//! The OCI runtime Docker sees on a target: real runc for everything, except
//! that a *staged* container is restored instead of started.
//!
//! Docker creates and starts the target container the ordinary way, with its
//! own network, volumes, logging and cgroup. This module stands where `runc`
//! would be and keeps a place for the processes that are still on their way:
//!
//! * `create` starts a **holder**, whose pid and network namespace Docker takes
//!   for the container's;
//! * `start` waits for the outcome of the handover;
//! * the holder runs `runc restore` when the agent orders it, becomes the
//!   parent of the restored init, and ends the way it ended;
//! * `hook` is CRIU's action script: it stops the restore in the last moment
//!   before the first instruction, until the agent says who owns the container.
//!
//! A container is staged when its stage directory exists (see [`stage`]); in
//! every other case, and after the restore, commands pass to runc by `exec`.
//!
//! **Architecture Invariants**
//! * No process of a staged container executes an instruction before the
//!   hook has read the word *go*. If the hook cannot hear the agent, it kills
//!   what was restored: CRIU ignores a failing hook, so the kill is the
//!   exclusion, not the exit code.
//! * Nothing here starts a tokio runtime or parses with clap in the runtime
//!   commands: Docker pays for this process at each of its commands.

mod args;
mod bundle;
mod cgroup;
mod create;
mod exclusion;
mod holder;
mod hook;
mod log;
mod procfs;
mod real;
pub mod stage;
mod staged;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

pub use hook::install_script as install_hook_script;
pub use procfs::restored_init;
pub(crate) use procfs::starttime as started;
pub use real::{RealRuncError, find_runc};

use args::{Command, Invocation};
use stage::StageDir;

/// Runs `blip runtime …` with the arguments after the word `runtime`.
///
/// Replaces the process by runc unless the command concerns a staged
/// container. Errors go to the file of `--log` in runc's JSON format, where
/// Docker finds them, and to standard error.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match args.first().and_then(|a| a.to_str()) {
        Some("holder") => return holder::main(&args[1..]),
        Some("hook") => return hook::main(&args[1..]),
        _ => {}
    }
    let root = Path::new(stage::STAGE_ROOT);
    let Some(invocation) =
        Invocation::parse(&args, |id| StageDir::at(root, id).is_some_and(|d| d.is_open()))
    else {
        return pass(&args);
    };
    let Some(stage) = StageDir::at(root, &invocation.id) else {
        return pass(&args);
    };
    let done = match invocation.command {
        Command::Create => create::create(&invocation, &stage),
        Command::Start => staged::start(&stage),
        Command::State => staged::state(&stage, &invocation.id),
        Command::Kill => staged::kill(&stage),
        Command::Delete => staged::delete(&invocation, &stage),
        Command::Ps => staged::ps(&stage),
        Command::Other(ref name) => staged::refuse(name),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            log::report(&invocation.global, &why);
            ExitCode::FAILURE
        }
    }
}

/// Becomes runc; returns only when that failed.
fn pass(args: &[OsString]) -> ExitCode {
    let why = match find_runc() {
        Ok(runc) => real::exec(&runc, args),
        Err(why) => why.to_string(),
    };
    log::report(&args::Global::parse(args).0, &why);
    ExitCode::FAILURE
}
