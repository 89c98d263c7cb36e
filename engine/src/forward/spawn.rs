//! Starting a forwarder that outlives blip, and its own life.

use super::gate::Gate;
use super::relay::{self, Bound};
use super::{Forward, OPEN_LIMIT, Port, forget, record};
use crate::history::now;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// Said when new connections are held back.
const CLOSED: &str = "closed";
/// Said when all ports are relayed.
const OPEN: &str = "open";
/// How long the process may take to come up.
const START_LIMIT: Duration = Duration::from_secs(5);

/// A forwarder that has been started. New connections wait.
pub struct Spawned {
    // Not killed when dropped: it is to outlive blip.
    _child: Child,
    said: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Spawned {
    /// Starts a forwarder; returns when new connections are held back. It takes
    /// its ports as soon as Docker has let go of them.
    ///
    /// # Errors
    /// If it does not come up; then nothing is held back.
    pub async fn start(forward: &Forward) -> io::Result<Self> {
        let forward = serde_json::to_string(forward)?;
        let mut command = std::process::Command::new("/proc/self/exe");
        command.args(["forward", "run", &forward]).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Out of the terminal's group: its interrupts are not meant for it.
        command.process_group(0);
        let mut child = Command::from(command).spawn()?;
        let said = child.stdout.take().ok_or_else(|| io::Error::other("it has no output"))?;
        let mut spawned = Self { _child: child, said: BufReader::new(said).lines() };
        spawned.hear(CLOSED, START_LIMIT).await?;
        Ok(spawned)
    }

    /// Waits until it has its ports.
    ///
    /// # Errors
    /// If it cannot get them; it is gone then.
    pub async fn opened(mut self) -> io::Result<()> {
        self.hear(OPEN, OPEN_LIMIT + START_LIMIT).await
    }

    async fn hear(&mut self, word: &str, limit: Duration) -> io::Result<()> {
        match tokio::time::timeout(limit, self.said.next_line()).await {
            Ok(Ok(Some(said))) if said == word => Ok(()),
            Ok(Ok(Some(why))) => Err(io::Error::other(why)),
            Ok(Ok(None)) => Err(io::Error::other("the forwarder ended without a word")),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the forwarder does not answer")),
        }
    }
}

/// The forwarder's own life: `blip forward run`.
///
/// # Errors
/// If it cannot hold connections back or get its ports.
pub async fn run(mut forward: Forward) -> io::Result<()> {
    // A session of its own, so that it does not end with the one blip ran in.
    let _ = nix::unistd::setsid();
    let pid = i32::try_from(std::process::id()).unwrap_or(0);
    (forward.pid, forward.started) = (pid, crate::runtime::started(pid).unwrap_or(0));
    forward.until = now() + forward.seconds;
    record(&forward)?;
    let served = tokio::select! {
        served = serve(&forward) => served,
        () = stopped() => Ok(()),
        () = tokio::time::sleep(Duration::from_secs(forward.seconds)) => Ok(()),
    };
    if let Err(error) = &served {
        say(&error.to_string());
    }
    let _ = forget(forward.ticket);
    served
}

async fn serve(forward: &Forward) -> io::Result<()> {
    let gate = Gate::close(forward.ticket, &forward.ports);
    let gate = gate.map_err(|error| {
        let why = format!("cannot hold new connections back: {error}");
        io::Error::new(error.kind(), why)
    })?;
    say(CLOSED);
    let bound = bind_all(&forward.ports).await?;
    drop(gate);
    say(OPEN);
    let relays = bound.into_iter().map(|(port, bound)| {
        let target = SocketAddr::new(forward.target, port.listen.port());
        relay::serve(bound, target)
    });
    futures_util::future::join_all(relays).await;
    Ok(())
}

/// All ports, as soon as they are free.
async fn bind_all(ports: &[Port]) -> io::Result<Vec<(Port, Bound)>> {
    let until = Instant::now() + OPEN_LIMIT;
    let mut all = Vec::new();
    for &port in ports {
        let bound = loop {
            match relay::bind(port).await {
                Ok(bound) => break bound,
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until =>
                {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                Err(error) => {
                    let why = format!("cannot listen on {}: {error}", port.listen);
                    return Err(io::Error::new(error.kind(), why));
                }
            }
        };
        all.push((port, bound));
    }
    Ok(all)
}

async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => drop(terminate.recv().await),
        Err(_) => std::future::pending().await,
    }
}

/// Whoever started it may be gone.
fn say(word: &str) {
    let _ = writeln!(io::stdout(), "{word}");
}
