//! The holder: the process Docker takes for the container's init.
//!
//! It stands in for the container from `create` on, restores it on the
//! agent's order, and then is nothing but the parent of the restored init: it
//! waits for it and ends with its status. One thread, one `poll`; only the bytes
//! of a terminal ([`console`]) go past it.
//!
//! Whose word counts:
//! * The agent orders the restore, or the end ([`HolderOrder`]).
//! * Docker asks for the start, or the end ([`Ask`]).
//! * Only the hook knows whether the container may run. The holder therefore
//!   never ends CRIU while restored tasks live: CRIU's end would let go of
//!   them. It ends the tasks first ([`exclusion`]).

mod console;
mod restore;
mod setup;
mod sysctls;

pub(super) use restore::clear_runc_leftovers;
pub(super) use setup::CONSOLE_VARIABLE;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use self::console::Console;
use self::setup::Place;
use super::exclusion;
use super::stage::wire::{self, Answer, Ask, HolderOrder, MAX_LINE, Report, RestoreSpec};

/// How long a restore that was told to stop may take before it is made to.
const ABORT_PATIENCE: Duration = Duration::from_secs(3);

/// How long CRIU's way is kept warm ([`Seats::stay`]), and how often.
///
/// [`Seats::stay`]: super::cgroup::Seats::stay
const WARM_FOR: Duration = Duration::from_secs(10);
const WARM_EVERY_MS: u8 = 2;

/// `blip runtime holder ID STAGE BUNDLE READY-FD GLOBAL…`, started by `create`.
pub(super) fn main(args: &[OsString]) -> ExitCode {
    match setup::stand(args) {
        Some(place) => Holder::new(place).run(),
        None => ExitCode::FAILURE,
    }
}

/// Where the container is in its coming.
enum Phase {
    /// Created; Docker is attaching the network. An order may have come early.
    Created { ordered: Option<RestoreSpec> },
    /// Docker waits in `start`; the agent may order the restore.
    Started,
    /// runc restores it; `stop` says since when it is to give up, and why.
    Restoring { runc: i32, since: Instant, spec: RestoreSpec, stop: Option<(Instant, String)> },
    /// It runs.
    Restored { init: i32 },
}

struct Holder {
    place: Place,
    phase: Phase,
    agent: Option<Agent>,
    commands: Option<UnixListener>,
    signals: SignalFd,
    /// Its terminal, if the container has one.
    console: Option<Console>,
    /// `start` commands that wait for the outcome.
    waiting: Vec<UnixStream>,
    /// Children that ended, with their wait status as an exit code.
    ended: HashMap<i32, u8>,
}

impl Holder {
    fn new(mut place: Place) -> Self {
        let agent = Some(Agent { stream: place.take_agent(), unread: Vec::new() });
        let commands = Some(place.take_commands());
        let signals = place.take_signals();
        let console = place.take_console();
        let phase = Phase::Created { ordered: None };
        let (waiting, ended) = (Vec::new(), HashMap::new());
        Self { place, phase, agent, commands, signals, console, waiting, ended }
    }

    /// Until the container's end, or the stage's.
    fn run(mut self) -> ExitCode {
        loop {
            let (signal, order, command) = self.wait();
            if signal && let Some(code) = self.on_signal() {
                return code;
            }
            if order && let Some(code) = self.on_agent() {
                return code;
            }
            if command && let Some(code) = self.on_command() {
                return code;
            }
            match &self.phase {
                Phase::Restoring { runc, spec, stop: Some((since, _)), .. } => {
                    restore::unpark(&spec.images);
                    if since.elapsed() > ABORT_PATIENCE {
                        exclusion::end_restore(*runc);
                    }
                }
                Phase::Restoring { since, .. } if since.elapsed() < WARM_FOR => {
                    self.place.home.stay()
                }
                _ => {}
            }
        }
    }

    /// Waits for something to do: signals, the agent, Docker's commands.
    fn wait(&self) -> (bool, bool, bool) {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let agent = self.agent.as_ref().map(|a| {
            fds.push(PollFd::new(a.stream.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        let commands = self.commands.as_ref().map(|c| {
            fds.push(PollFd::new(c.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        let timeout = match &self.phase {
            Phase::Restoring { stop: Some(_), .. } => PollTimeout::from(20u8),
            Phase::Restoring { since, .. } if since.elapsed() < WARM_FOR => {
                PollTimeout::from(WARM_EVERY_MS)
            }
            _ => PollTimeout::NONE,
        };
        if poll(&mut fds, timeout).is_err() {
            return (false, false, false);
        }
        let ready = |at: usize| fds[at].any().unwrap_or(false);
        (ready(0), agent.is_some_and(ready), commands.is_some_and(ready))
    }

    fn on_signal(&mut self) -> Option<ExitCode> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == Signal::SIGWINCH as u32 {
                self.console.iter().for_each(Console::resize);
                continue;
            }
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|s| Signal::try_from(s).ok());
            match (&self.phase, signal) {
                (_, Some(Signal::SIGCHLD)) => {}
                (Phase::Restored { init }, Some(signal)) => {
                    let _ = kill(Pid::from_raw(*init), signal);
                }
                (_, signal) => {
                    let name = signal.map_or("a signal", Signal::as_str);
                    if let Some(code) =
                        self.stop(&format!("the holder of the container got {name}"))
                    {
                        return Some(code);
                    }
                }
            }
        }
        self.reap();
        match &self.phase {
            Phase::Restoring { runc, .. } => {
                let status = self.ended.remove(runc)?;
                self.after_restore(status)
            }
            Phase::Restored { init } => {
                let status = self.ended.remove(init)?;
                self.console.iter_mut().for_each(Console::flush);
                Some(ExitCode::from(status))
            }
            Phase::Created { .. } | Phase::Started => None,
        }
    }

    /// Collects the children that ended: runc, what it left to us, and init.
    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => {
                    self.ended.insert(pid.as_raw(), u8::try_from(code & 0xff).unwrap_or(u8::MAX));
                }
                // 128 + n is what containerd makes of a death by signal n.
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended.insert(pid.as_raw(), 128u8.saturating_add(signal as u8));
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn on_agent(&mut self) -> Option<ExitCode> {
        let agent = self.agent.as_mut()?;
        match agent.next_orders() {
            Ok(orders) => orders.into_iter().find_map(|order| self.obey(order)),
            Err(why) => {
                self.agent = None;
                match self.phase {
                    Phase::Restored { .. } => None,
                    // The hook has a link of its own to the agent and knows
                    // better: nothing is killed, the restore only not kept waiting.
                    _ => self.stop(&why),
                }
            }
        }
    }

    fn obey(&mut self, order: HolderOrder) -> Option<ExitCode> {
        match (order, &mut self.phase) {
            (HolderOrder::Restore(spec), Phase::Created { ordered }) => {
                *ordered = Some(spec);
                None
            }
            (HolderOrder::Restore(spec), Phase::Started) => self.restore(spec),
            (HolderOrder::Restore(_), _) => None,
            (HolderOrder::Die { .. }, Phase::Restored { .. }) => None,
            (HolderOrder::Die { why }, _) => self.stop(&why),
        }
    }

    fn on_command(&mut self) -> Option<ExitCode> {
        let (stream, _) = self.commands.as_ref()?.accept().ok()?;
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        match wire::receive(&mut BufReader::new(&stream)) {
            Ok(Some(Ask::Start)) => {
                self.waiting.push(stream);
                self.started()
            }
            Ok(Some(Ask::End)) => {
                self.waiting.push(stream);
                self.stop("Docker ended the container before it came")
            }
            _ => None,
        }
    }

    /// The network is attached and containerd knows the cgroup: make room for
    /// the container in it, and say so.
    fn started(&mut self) -> Option<ExitCode> {
        let Phase::Created { ordered } = &mut self.phase else { return None };
        let ordered = ordered.take();
        if let Err(why) = self.place.home.take() {
            return Some(self.fail(&format!("cannot leave the cgroup of the container: {why}")));
        }
        if let Err(why) = sysctls::set(self.place.bundle.sysctls(), &self.place.netns) {
            return Some(self.fail(&format!("cannot {why}")));
        }
        self.phase = Phase::Started;
        self.report(&Report::StartAsked);
        ordered.and_then(|spec| self.restore(spec))
    }

    fn restore(&mut self, spec: RestoreSpec) -> Option<ExitCode> {
        match restore::spawn(&self.place, &spec, self.console.as_mut()) {
            Ok(runc) => {
                self.phase = Phase::Restoring { runc, since: Instant::now(), spec, stop: None };
                self.report(&Report::Restoring { pid: runc });
                None
            }
            Err(why) => Some(self.fail(&why)),
        }
    }

    /// runc has ended: the container runs, or never will.
    fn after_restore(&mut self, status: u8) -> Option<ExitCode> {
        let Phase::Restoring { spec, stop, .. } = &self.phase else { return None };
        let init = match restore::outcome(&self.place, spec, status) {
            Ok(init) => init,
            Err(why) => {
                let why = stop.as_ref().map_or(why, |(_, order)| order.clone());
                return Some(self.fail(&why));
            }
        };
        if let Err(why) = self.place.stage.mark_restored() {
            return Some(self.fail(&format!("cannot note the restore: {why}")));
        }
        self.phase = Phase::Restored { init };
        self.answer(&Answer::Done);
        self.report(&Report::Restored { init_pid: init });
        self.commands = None;
        setup::drop_stdio();
        self.ended.remove(&init).map(ExitCode::from)
    }

    /// Ends the stage; at once, or as soon as the restore has stopped.
    fn stop(&mut self, why: &str) -> Option<ExitCode> {
        if let Phase::Restoring { stop, .. } = &mut self.phase {
            stop.get_or_insert((Instant::now(), why.to_owned()));
            return None;
        }
        Some(self.fail(why))
    }

    /// Nothing runs and nothing will: tell everybody, and end.
    fn fail(&mut self, why: &str) -> ExitCode {
        restore::end_children();
        clear_runc_leftovers(self.place.root.as_deref(), &self.place.id);
        let log_tail = match &self.phase {
            Phase::Restoring { spec, .. } => {
                exclusion::clear_mounts(&spec.work);
                restore::log_tail(&spec.work)
            }
            _ => String::new(),
        };
        self.report(&Report::Failed { why: why.to_owned(), log_tail });
        self.answer(&Answer::Failed { why: why.to_owned() });
        let _ = self.place.home.take();
        self.place.seats.remove();
        ExitCode::FAILURE
    }

    fn report(&mut self, report: &Report) {
        if let Some(agent) = &self.agent
            && wire::send(&agent.stream, report).is_err()
        {
            // Its end is noticed, and treated, where orders are read.
        }
    }

    fn answer(&mut self, answer: &Answer) {
        for waiting in self.waiting.drain(..) {
            let _ = wire::send(&waiting, answer);
        }
    }
}

/// The link to the agent.
struct Agent {
    stream: UnixStream,
    unread: Vec<u8>,
}

impl Agent {
    /// What has come, in whole orders; an error when the link is of no use any more.
    fn next_orders(&mut self) -> Result<Vec<HolderOrder>, String> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => {
                return Err("the agent of blip ended while the container was on its way".into());
            }
            Ok(n) => self.unread.extend_from_slice(&chunk[..n]),
            Err(e) => return Err(format!("lost the agent of blip: {e}")),
        }
        let mut orders = Vec::new();
        while let Some(end) = self.unread.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            orders
                .push(wire::parse(&line).map_err(|e| format!("cannot understand the agent: {e}"))?);
        }
        if self.unread.len() > MAX_LINE {
            return Err("the agent of blip sends nonsense".into());
        }
        Ok(orders)
    }
}
