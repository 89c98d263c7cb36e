//! A small process that outlives blip and puts things right if blip dies.
//!
//! * On the source, from the first round until the grant: if blip ends without a
//!   word, the guard waits for CRIU to undo its dump, joins the network, thaws
//!   the container and removes the images.
//! * On the target, from the hold until the last page is in place: it holds the
//!   userfaultfds open. Without them a missing page would read as zeros. If the
//!   agent ends before the memory is complete, the guard kills the container
//!   while every thread that misses a page still waits for it.
//! * On the source, while Docker has it stopped with a checkpoint: if blip ends
//!   without a word before the grant, the guard starts it from there.
//! * On the source, while the container is slowed down: if blip ends without a
//!   word, the guard gives it its CPU time back.
//!
//! The guard knows its parent's end by the end of its standard input. Any line
//! on it means: all is well, go.

use crate::cgroup::{Freezer, Version};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// How long CRIU may take to notice that blip is gone and undo its dump.
const CRIU_LIMIT: Duration = Duration::from_secs(5);

/// The hidden subcommand of `blip` that is a guard.
pub const SUBCOMMAND: &str = "guard";

/// What a guard watches over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Charge {
    /// A container that is frozen to be moved away.
    Source {
        /// Directory of its freezer.
        freezer: PathBuf,
        /// Whether that is of cgroup v2.
        unified: bool,
        /// Its init, whose network namespace is cut.
        init: i32,
        /// The CRIU that dumps it.
        criu: Option<u32>,
        /// Where its images are: in memory, and worth nothing once it runs.
        images: PathBuf,
    },
    /// A container that Docker has stopped with a checkpoint, to be moved away.
    Stopped {
        /// Docker's ID of it.
        container: String,
        /// Where the checkpoint is that it can be started from.
        checkpoint: PathBuf,
    },
    /// A container that has arrived without all of its memory.
    Target {
        /// Its init on this host.
        init: i32,
    },
    /// A container that has less CPU time than its user gave it.
    Throttle {
        /// What gives it back, in this order.
        restore: Vec<Setting>,
        /// The freezer that may stand at this moment, and whether it is of
        /// cgroup v2.
        thaw: Option<(PathBuf, bool)>,
    },
}

/// What a control file is to contain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The file.
    pub file: PathBuf,
    /// What to write into it.
    pub value: String,
}

impl Setting {
    /// Writes it. A cgroup that is gone needs nothing any more.
    pub fn write(&self) -> io::Result<()> {
        match std::fs::OpenOptions::new().write(true).truncate(true).open(&self.file) {
            Ok(mut file) => file.write_all(self.value.as_bytes()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A running guard, seen from the process it watches.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Guard {
    /// Starts a guard. It keeps `descriptors` open as long as it lives.
    pub fn start(charge: &Charge, descriptors: &[OwnedFd]) -> io::Result<Self> {
        Self::start_as(Path::new("/proc/self/exe"), charge, descriptors)
    }

    /// Starts a guard from the program `blip`: for callers that are another.
    pub fn start_as(blip: &Path, charge: &Charge, descriptors: &[OwnedFd]) -> io::Result<Self> {
        let charge = serde_json::to_string(charge).map_err(io::Error::from)?;
        let copies = inheritable(descriptors)?;
        let mut child = Command::new(blip)
            .arg(SUBCOMMAND)
            .arg(charge)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of the terminal's group: an interrupt is not meant for it.
            .process_group(0)
            .spawn()?;
        drop(copies);
        Ok(Self { stdin: child.stdin.take(), child })
    }

    /// Dismisses the guard without waiting for its end, which takes a
    /// millisecond or more. The word is in the pipe: whatever becomes of this
    /// process, the guard reads it before it sees the end.
    pub fn send_away(mut self) -> io::Result<()> {
        match self.stdin.take() {
            Some(mut stdin) => stdin.write_all(b"done\n"),
            None => Ok(()),
        }
    }

    /// Dismisses the guard: there is nothing more to put right.
    pub fn dismiss(mut self) -> io::Result<()> {
        if let Some(mut stdin) = self.stdin.take() {
            stdin.write_all(b"done\n")?;
        }
        self.child.wait().map(drop)
    }
}

/// Copies that survive an exec; they are closed here once it has happened.
fn inheritable(descriptors: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let mut copies = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors {
        let copy = descriptor.try_clone()?;
        fcntl(&copy, FcntlArg::F_SETFD(FdFlag::empty()))?;
        copies.push(copy);
    }
    Ok(copies)
}

/// The guard's own life: `blip guard CHARGE`.
pub fn main(charge: &str) -> io::Result<()> {
    let charge: Charge = serde_json::from_str(charge).map_err(io::Error::from)?;
    let mut line = String::new();
    // A line dismisses; the end of input is the end of blip.
    if io::stdin().lock().read_line(&mut line)? > 0 {
        return Ok(());
    }
    match charge {
        Charge::Source { freezer, unified, init, criu, images } => {
            criu.into_iter().for_each(wait_for_end);
            join_network(init);
            let version = if unified { Version::V2 } else { Version::V1 };
            let thawed = Freezer { path: freezer, version }.thaw().map_err(io::Error::other);
            let removed = std::fs::remove_dir_all(images);
            thawed.and(removed)
        }
        Charge::Stopped { container, checkpoint } => {
            crate::external::start_blocking(&container, &checkpoint)
        }
        Charge::Target { init } => {
            let init = nix::unistd::Pid::from_raw(init);
            nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        }
        Charge::Throttle { restore, thaw } => give_back(&restore, thaw),
    }
}

/// Does all of it, whatever fails; the first failure is the answer.
fn give_back(restore: &[Setting], thaw: Option<(PathBuf, bool)>) -> io::Result<()> {
    let thawed = thaw.map_or(Ok(()), |(path, unified)| {
        let version = if unified { Version::V2 } else { Version::V1 };
        Freezer { path, version }.thaw().map_err(io::Error::other)
    });
    restore.iter().map(Setting::write).fold(thawed, io::Result::and)
}

/// CRIU undoes its dump when its socket ends, and then ends itself.
fn wait_for_end(pid: u32) {
    let until = Instant::now() + CRIU_LIMIT;
    let gone = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    while !gone() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn join_network(init: i32) {
    let namespace = format!("--net=/proc/{init}/ns/net");
    let table = crate::network::CUT;
    let deleted = Command::new("nsenter")
        .args([&namespace, "nft", "delete", "table", "netdev", table])
        .stderr(Stdio::null())
        .status();
    // No table: the cut had not been made yet.
    let _ = deleted;
}
