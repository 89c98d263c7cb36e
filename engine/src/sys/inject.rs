//! Having another process make a system call, and not letting it notice.
//!
//! A userfaultfd belongs to the address space that made it, so the target must
//! make its own. [`userfaultfd_of`] stops all its threads, runs `userfaultfd`
//! in the leader with the instruction pointer on a `syscall` instruction of the
//! target's vDSO, fetches the descriptor through a pidfd, runs `close` the same
//! way, and restores everything.
//!
//! Why *all* threads: a thread that forks between the two calls would leave an
//! open userfaultfd in its child, which CRIU cannot dump.
//!
//! **How a stop stays unseen**
//! * A call that was interrupted and would be restarted shows `-ERESTART…` in
//!   its result. Only the kernel's signal path restarts it, so the leader is
//!   interrupted once more after the injected calls, and its registers are
//!   restored in that stop, never at a system call's exit.
//! * Some calls answer `EINTR` to any interruption (signal(7) lists them). They have
//!   done nothing then, so they are rewound and made again, with their full
//!   timeout. Not if a signal waits to be delivered: then `EINTR` is its due.
//! * Signals are blocked while calls are injected: none is lost, none sees
//!   foreign registers.
//! * A restartable sequence (`rseq`) the leader stood in is aborted, as the
//!   kernel does with any preempted one; the kernel itself could not, because
//!   it would look at the injected instruction pointer.
//! * Once registers are changed there is no giving up: a process short of its
//!   share of processor time is waited for until it has made its calls.
//!
//! **What remains**: were blip killed (`SIGKILL`) in the some hundred
//! microseconds between changing and restoring the registers, the process would
//! go on with ours, and crash. It happens once per process and migration.

use super::ptrace::HoldError;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Why no call could be injected. The process goes on undisturbed.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// Its threads could not be stopped.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// The process is not of a kind we can inject into.
    #[error("cannot inject a system call into process {pid}: {why}")]
    Unsuitable {
        /// Host process ID.
        pid: i32,
        /// What is in the way.
        why: &'static str,
    },
    /// The injected call failed in the target.
    #[error("{call} in process {pid} failed: {source}")]
    Call {
        /// Which call.
        call: &'static str,
        /// Host process ID.
        pid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A descriptor fetched out of a process.
#[derive(Debug)]
pub struct Fetched {
    /// A userfaultfd of the process' address space; closed in the process.
    pub fd: OwnedFd,
    /// For how long the process stood still.
    pub stopped: Duration,
    /// How many threads it had.
    pub threads: usize,
}

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::undo_eintr;
#[cfg(target_arch = "x86_64")]
pub use x86_64::userfaultfd_of;

/// Not on this architecture yet.
#[cfg(not(target_arch = "x86_64"))]
pub fn userfaultfd_of(pid: i32, _limit: Duration) -> Result<Fetched, InjectError> {
    let why = "system calls are injected on x86-64 only";
    Err(InjectError::Unsuitable { pid, why })
}

/// Not on this architecture yet: such calls end with `EINTR`.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn undo_eintr(_tid: i32, _mask: Option<u64>) -> Result<(), HoldError> {
    Ok(())
}
