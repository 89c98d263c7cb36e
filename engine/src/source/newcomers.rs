//! Connections that nobody has accepted yet, at the moment of the freeze.
//!
//! They belong to no process, and CRIU cannot carry them: one of them, anywhere
//! in the container, makes it refuse. So new ones are held back for a moment (the
//! tap keeps their requests, which go to the target once the container runs
//! there), those that are there get accepted, and then it is frozen. Connections
//! that exist are not touched by any of that.
//!
//! A program that never accepts is told from one that is slow by what moves:
//! only while the queues get shorter is it waited for.

use super::freeze::{FreezeError, Ready};
use super::subject::Subject;
use crate::descriptors;
use crate::network::NetworkError;
use crate::network::backlog::{Backlog, Waiting};
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

/// Longest that new connections are held back at a stretch.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest without any connection being accepted. A client that has missed the
/// server's answer gets it again after a second.
const PATIENCE: Duration = Duration::from_millis(1200);
/// How often it is tried, and the time for new connections in between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);
/// Between two looks at the queues.
const STEPS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(10)];

/// What becomes of connections that nobody has accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Unaccepted {
    /// They are waited for; without end in sight the move is given up.
    #[default]
    Wait,
    /// They are waited for; then the move goes on and their clients are reset.
    Reset,
}

/// Connections that nobody accepts.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{} waited to be accepted and nobody did, {tries} times; CRIU cannot carry such connections: \
     see why the program does not accept them, or give them up with --unaccepted reset",
    said(.0),
    tries = TRIES
)]
pub struct UnacceptedError(Vec<Listener>);

/// A listening socket whose connections nobody accepts.
#[derive(Clone, Debug)]
struct Listener {
    waiting: Waiting,
    program: Option<String>,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Waiting { port, connections, .. } = self.waiting;
        let s = if connections == 1 { "" } else { "s" };
        write!(f, "{connections} connection{s} to port {port}")?;
        self.program.as_ref().map_or(Ok(()), |program| write!(f, " ({program})"))
    }
}

fn said(listeners: &[Listener]) -> String {
    listeners.iter().map(Listener::to_string).collect::<Vec<_>>().join(", ")
}

/// The dump may leave them out: all connections are closed, or these given up.
pub(super) fn are_left_behind(keep_connections: bool, unaccepted: Unaccepted) -> bool {
    !keep_connections || unaccepted == Unaccepted::Reset
}

/// Looks after them.
pub(super) struct Newcomers {
    /// Absent where all connections are closed anyway.
    backlog: Option<Backlog>,
    unaccepted: Unaccepted,
}

impl Newcomers {
    pub(super) fn of(subject: &Subject, unaccepted: Unaccepted) -> Result<Self, NetworkError> {
        let pid = subject.init();
        let backlog = subject.keep_connections.then(|| Backlog::of(pid)).transpose();
        let what = "watch the listening sockets";
        let backlog = backlog.map_err(|source| NetworkError::Namespace { what, pid, source })?;
        Ok(Self { backlog, unaccepted })
    }

    /// Somebody waits whom a dump cannot leave out.
    pub(super) fn are_in_the_way(&self) -> bool {
        let keep_connections = self.backlog.is_some();
        !are_left_behind(keep_connections, self.unaccepted) && !self.waiting().is_empty()
    }

    fn waiting(&self) -> Vec<Waiting> {
        // If the kernel does not tell, CRIU will.
        self.look(Backlog::waiting).unwrap_or_default()
    }

    /// The container's sockets, unless its connections stay behind.
    pub(super) fn backlog(&self) -> Option<&Backlog> {
        self.backlog.as_ref()
    }

    fn half_open(&self) -> u32 {
        self.look(Backlog::half_open).unwrap_or_default()
    }

    fn look<T>(&self, look: fn(&Backlog) -> std::io::Result<T>) -> Option<T> {
        let seen = look(self.backlog.as_ref()?);
        seen.inspect_err(|error| tracing::warn!("cannot see who waits: {error}")).ok()
    }
}

impl Ready {
    /// Holds new connections back and waits until those that are there have
    /// been accepted. `say` tells of whatever takes its time.
    pub async fn settle(&mut self, say: impl Fn(String)) -> Result<(), FreezeError> {
        if self.newcomers.backlog.is_none() {
            self.in_flight.reset();
            return Ok(());
        }
        let mut left = Vec::new();
        for attempt in 1..=TRIES {
            self.hold_newcomers().await?;
            left = self.wait_for_accepts().await;
            if left.is_empty() || self.newcomers.unaccepted == Unaccepted::Reset {
                return Ok(());
            }
            self.let_newcomers_in().await;
            if attempt < TRIES {
                let who = said(&left);
                say(format!("{who} waits to be accepted, and nobody does: trying again"));
                tokio::time::sleep(PAUSE).await;
            }
        }
        Err(UnacceptedError(left).into())
    }

    async fn hold_newcomers(&mut self) -> Result<(), FreezeError> {
        if !self.cut.is_holding() {
            // Before, not after: what comes meanwhile may reach the container
            // and the target, which does no harm; none of both would.
            self.in_flight.reset();
            self.cut.hold_newcomers().await?;
        }
        Ok(())
    }

    /// Waits until nobody waits; gives who still does when nothing moves.
    async fn wait_for_accepts(&mut self) -> Vec<Listener> {
        let begun = Instant::now();
        let (mut fewest, mut progress) = (u32::MAX, begun);
        loop {
            self.in_flight.sift();
            let waiting = self.newcomers.waiting();
            let queued: u32 = waiting.iter().map(|waiting| waiting.connections).sum();
            let open = queued + self.newcomers.half_open();
            if open == 0 {
                tracing::debug!(after = ?begun.elapsed(), "nobody waits to be accepted");
                return Vec::new();
            }
            if open < fewest {
                (fewest, progress) = (open, Instant::now());
            }
            if progress.elapsed() > PATIENCE || begun.elapsed() > LIMIT {
                // Handshakes that nobody goes on with are no connections.
                return waiting.into_iter().map(|waiting| self.named(waiting)).collect();
            }
            let step = STEPS[usize::from(begun.elapsed() > STEPS[1])];
            tokio::time::sleep(step).await;
        }
    }

    /// Finds the program that should accept.
    fn named(&self, waiting: Waiting) -> Listener {
        let pids = self.freezer().processes().unwrap_or_default();
        let holds = |pid: &i32| {
            let open = descriptors::of(*pid).unwrap_or_default();
            open.iter().any(|descriptor| descriptor.socket() == Some(waiting.inode))
        };
        let program = pids.into_iter().find(holds).and_then(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some(name.trim().to_owned())
        });
        Listener { waiting, program }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_port_and_program_and_a_way_out() {
        let waiting = Waiting { port: 8080, connections: 3, inode: 7 };
        let listener = Listener { waiting, program: Some("python3".into()) };
        let said = UnacceptedError(vec![listener]).to_string();
        for part in ["3 connections to port 8080 (python3)", "--unaccepted reset"] {
            assert!(said.contains(part), "{said}");
        }
    }
}
