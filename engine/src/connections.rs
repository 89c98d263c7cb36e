//! TCP connections that do not move with their container.
//!
//! Its address stays here, so nobody would ever answer their peers again: they
//! are reset, once the target owns the container, so that clients see an error
//! at once and connect anew. The container sees the other end of it: its
//! sockets are restored as closed ones, with an error (`ECONNABORTED`). A reset and not an orderly end, because
//! what was under way in either direction is lost, and that must not look like
//! a completed answer.
//!
//! The cut ([`crate::network::Cut`]) lets these resets pass.

use crate::cgroup::Freezer;
use crate::sys::sockets;
use clap::ValueEnum;
use std::process::Stdio;
use tokio::process::Command;

/// What the user wants to become of established TCP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// Keep them where the container's address moves along; else close them
    #[default]
    Auto,
    /// Keep them, or do not move
    Keep,
    /// Close them: clients see a reset, the container closed sockets
    Close,
}

/// Resets all connections of a container that stands still for good.
/// `processes`: all of its processes, as this host numbers them. What fails is
/// logged: a connection that ends in silence is no reason to stop.
pub async fn reset(processes: Vec<i32>) {
    let Some(&first) = processes.first() else { return };
    reset_what_nobody_holds(first).await;
    let resetting = tokio::task::spawn_blocking(move || {
        for pid in processes {
            match sockets::reset_all(pid) {
                Ok(count) => tracing::debug!(pid, count, "sockets reset"),
                Err(error) => {
                    tracing::warn!("connections of process {pid} end in silence: {error}")
                }
            }
        }
    });
    let _ = resetting.await;
}

/// What CRIU restores as a closed socket reads as an orderly end; an upload that
/// was cut off would pass for a whole one. `init`: that of a restored container
/// that has not run yet, as this host numbers it.
pub fn mark_closed(init: i32) {
    let processes = Freezer::of(init).and_then(|freezer| freezer.processes());
    for pid in processes.unwrap_or_default() {
        match sockets::abort_closed(pid) {
            Ok(count) => tracing::debug!(pid, count, "closed sockets marked"),
            Err(error) => {
                tracing::warn!("process {pid} takes its closed sockets for ended: {error}")
            }
        }
    }
}

/// An answer may still be on its way over a connection that its process has
/// closed already; only the kernel knows of it (CONFIG_INET_DIAG_DESTROY).
async fn reset_what_nobody_holds(pid: i32) {
    let done = Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .args(["ss", "--kill", "--tcp", "state", "connected", "state", "listening"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    if !done.is_ok_and(|status| status.success()) {
        tracing::debug!("ss cannot end the connections that are closing");
    }
}
