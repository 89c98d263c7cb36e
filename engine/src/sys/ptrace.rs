//! Stopping the threads of another process, and letting them go unharmed.
//!
//! [`hold`] seizes every thread of a process, runs a closure while they all
//! stand still, and lets them go. What it takes care of:
//!
//! * a blocked system call goes on as if nothing had happened, including those
//!   the kernel would end with `EINTR` (see [`super::inject`] for the rule);
//! * a signal that arrives meanwhile is delivered, not lost;
//! * if stopping takes longer than allowed, or the closure panics, the kernel
//!   itself undoes everything: the tracing thread ends, and with it the tracing.
//!
//! **Invariant**: between `hold`'s first request and its return, all ptrace
//! requests come from one thread of ours, made for this one hold.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

/// Why a process could not be held. The process goes on undisturbed.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// It ended, or is a zombie.
    #[error("process {pid} ended while it was being stopped")]
    Gone {
        /// Host process ID.
        pid: i32,
    },
    /// Some thread did not stop in time: in an uninterruptible wait, in `vfork`
    /// waiting for its child, or in a frozen cgroup. Trying later may work.
    #[error("thread {tid} of process {pid} did not stop within {limit:?}; try again later")]
    Busy {
        /// Host process ID.
        pid: i32,
        /// The thread that would not stop.
        tid: i32,
        /// The time it was given.
        limit: Duration,
    },
    /// Someone else traces it, so neither blip nor CRIU can.
    #[error("process {pid} is traced by process {tracer}: end that debugger first")]
    Traced {
        /// Host process ID.
        pid: i32,
        /// Who traces it.
        tracer: i32,
    },
    /// A ptrace request failed.
    #[error("ptrace {request} on thread {tid} failed: {source}")]
    Request {
        /// Which request.
        request: &'static str,
        /// On which thread.
        tid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The threads of one process, all stopped.
#[derive(Debug)]
pub struct Held {
    pub(super) pid: i32,
    pub(super) threads: Vec<i32>,
    limit: Duration,
    /// Until when to wait; `None`, once calls are injected: for ever.
    pub(super) deadline: Option<Instant>,
    /// A `SIGSTOP` came while a call was injected; it is sent again on release.
    pub(super) stop_again: bool,
}

/// How a traced thread reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// Stopped by `PTRACE_INTERRUPT`, or in a group stop.
    Event,
    /// At the entry or exit of a system call.
    Syscall,
    /// About to receive this signal.
    Signal(i32),
    /// Ended.
    Gone,
}

/// Runs `work` while every thread of process `pid` is stopped. Gives back what
/// it returned and for how long the process stood still: from the first
/// interrupt to the last detach.
///
/// `limit` bounds the time to stop all threads. Threads seized here carry `options` (`PTRACE_O_*`).
pub fn hold<R: Send>(
    pid: i32,
    options: i64,
    limit: Duration,
    work: impl FnOnce(&mut Held) -> R + Send,
) -> Result<(R, Duration), HoldError> {
    // A thread of its own: ptrace belongs to the thread that seized, and the
    // end of that thread detaches whatever an error or a panic left behind.
    let run = move || {
        hurry();
        let mut held = Held {
            pid,
            threads: Vec::new(),
            limit,
            deadline: Some(Instant::now() + limit),
            stop_again: false,
        };
        let mut begin = None;
        held.stop_all(options, &mut begin)?;
        for &tid in &held.threads {
            super::inject::undo_eintr(tid, None)?;
        }
        let result = work(&mut held);
        held.release()?;
        Ok((result, begin.map_or(Duration::ZERO, |b| b.elapsed())))
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

impl Held {
    /// The process held.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How many threads stand still.
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Seizes all threads, then interrupts all, then waits for all; again until
    /// a look at the thread list shows no new one. A thread made by a thread
    /// that was not yet stopped is thus found: once all known ones stand still,
    /// none can make another.
    fn stop_all(&mut self, options: i64, begin: &mut Option<Instant>) -> Result<(), HoldError> {
        let mut known = HashSet::new();
        loop {
            let mut fresh = Vec::new();
            for tid in thread_ids(self.pid)? {
                if known.insert(tid) && self.seize(tid, options)? {
                    fresh.push(tid);
                }
            }
            if fresh.is_empty() {
                break;
            }
            begin.get_or_insert_with(Instant::now);
            for &tid in &fresh {
                match interrupt(tid) {
                    Err(HoldError::Gone { .. }) => {}
                    other => other?,
                }
            }
            for tid in fresh {
                if self.wait_interrupted(tid)? {
                    self.threads.push(tid);
                }
            }
        }
        // The leader stays listed until the last thread is gone; without it
        // there is nobody to speak for the process.
        if self.threads.contains(&self.pid) {
            Ok(())
        } else {
            Err(HoldError::Gone { pid: self.pid })
        }
    }

    /// Seizes one thread; `false` if it ended first.
    fn seize(&self, tid: i32, options: i64) -> Result<bool, HoldError> {
        let source = match request(libc::PTRACE_SEIZE, tid, 0, options as usize) {
            Ok(()) => return Ok(true),
            Err(source) => source,
        };
        if source.raw_os_error() == Some(libc::ESRCH) {
            return Ok(false);
        }
        let status = std::fs::read_to_string(format!("/proc/{}/task/{tid}/status", self.pid));
        let status = status.unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        match (field("State:"), field("TracerPid:").and_then(|t| t.parse().ok())) {
            (None, _) => Ok(false),
            (Some(state), _) if state.starts_with(['Z', 'X']) => Ok(false),
            (_, Some(tracer)) if tracer != 0 => Err(HoldError::Traced { pid: self.pid, tracer }),
            _ => Err(HoldError::Request { request: "SEIZE", tid, source }),
        }
    }

    /// Waits until an interrupted thread stands still, passing on signals that
    /// reach it first; `false` if it ended instead.
    fn wait_interrupted(&self, tid: i32) -> Result<bool, HoldError> {
        loop {
            match self.wait(tid)? {
                Report::Event => return Ok(true),
                Report::Gone => return Ok(false),
                Report::Syscall => resume(tid, libc::PTRACE_CONT, 0)?,
                Report::Signal(signal) => resume(tid, libc::PTRACE_CONT, signal)?,
            }
        }
    }

    /// Waits for a thread's next report until the deadline.
    pub(super) fn wait(&self, tid: i32) -> Result<Report, HoldError> {
        let mut polls = 0_u32;
        loop {
            if let Some(report) = poll(tid)? {
                return Ok(report);
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(HoldError::Busy { pid: self.pid, tid, limit: self.limit });
            }
            // A running thread stops within microseconds: sleeping at once
            // would make the stop longer than it need be.
            polls += 1;
            if polls < 200 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// Lets every thread go.
    fn release(&mut self) -> Result<(), HoldError> {
        for tid in std::mem::take(&mut self.threads) {
            match request(libc::PTRACE_DETACH, tid, 0, 0).map_err(|e| failed("DETACH", tid, e)) {
                Err(HoldError::Gone { .. }) => {}
                other => other?,
            }
        }
        if std::mem::take(&mut self.stop_again) {
            let pid = nix::unistd::Pid::from_raw(self.pid);
            // It may have ended: then there is nothing left to stop.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP);
        }
        Ok(())
    }
}

/// The threads of a process, as `/proc` lists them now.
pub fn thread_ids(pid: i32) -> Result<Vec<i32>, HoldError> {
    let listing = std::fs::read_dir(format!("/proc/{pid}/task"));
    let listing = listing.map_err(|_| HoldError::Gone { pid })?;
    Ok(listing.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// Puts this thread before all others in the queue for a processor: a process
/// stands still until it gets one. At best effort.
fn hurry() {
    // SAFETY: the call takes numbers and touches no memory; it concerns only
    // the calling thread, which was made for one hold and then ends.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}

/// Asks a seized thread to stop.
pub(super) fn interrupt(tid: i32) -> Result<(), HoldError> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map_err(|error| failed("INTERRUPT", tid, error))
}

/// Lets a stopped thread run on, by `how` (`CONT`, `SYSCALL`), with `signal`.
pub(super) fn resume(tid: i32, how: libc::c_uint, signal: i32) -> Result<(), HoldError> {
    match request(how, tid, 0, signal as usize).map_err(|error| failed("CONT", tid, error)) {
        // Killed: the next wait says so.
        Err(HoldError::Gone { .. }) => Ok(()),
        other => other,
    }
}

/// What a failed request means: `ESRCH` says that the thread was killed.
pub(super) fn failed(request: &'static str, tid: i32, source: io::Error) -> HoldError {
    if source.raw_os_error() == Some(libc::ESRCH) {
        HoldError::Gone { pid: tid }
    } else {
        HoldError::Request { request, tid, source }
    }
}

/// One ptrace request whose answer is only success or failure. `address` and
/// `data` must be what the request's documentation says: numbers here; requests
/// that take pointers have their own functions.
fn request(what: libc::c_uint, tid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: every request passed by this module takes numbers, no pointers,
    // in `addr` and `data`, so no memory of ours is touched.
    let answer = unsafe { libc::ptrace(what, tid, address, data) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Looks, without waiting, whether a traced thread has something to report.
fn poll(tid: i32) -> Result<Option<Report>, HoldError> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for one int and lives through the call.
    let answer = unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) };
    if answer == 0 {
        return Ok(None);
    }
    if answer < 0 {
        let source = io::Error::last_os_error();
        return match source.raw_os_error() {
            Some(libc::ECHILD) => Ok(Some(Report::Gone)),
            Some(libc::EINTR) => Ok(None),
            _ => Err(HoldError::Request { request: "wait", tid, source }),
        };
    }
    if !libc::WIFSTOPPED(status) {
        return Ok(Some(Report::Gone));
    }
    let signal = libc::WSTOPSIG(status);
    Ok(Some(match (status >> 16, signal) {
        (libc::PTRACE_EVENT_STOP, _) => Report::Event,
        (0, s) if s == libc::SIGTRAP | 0x80 => Report::Syscall,
        (0, s) => Report::Signal(s),
        _ => Report::Event,
    }))
}
