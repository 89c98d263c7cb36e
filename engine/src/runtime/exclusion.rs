//! Making sure that a restored container never runs.
//!
//! While CRIU holds restored tasks they are stopped under ptrace. CRIU's end
//! would let go of them, and they would run. So the tasks die first, and CRIU
//! only when not one of them can execute an instruction any more.
//!
//! CRIU must then die too: when it gives up it waits for the init it restored,
//! which waits for its children to be reaped, which only CRIU could do.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::procfs;

/// How long SIGKILL may take to end a task, at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills everything in the pid namespace of `init`, and returns true when none
/// of it can execute an instruction any more.
pub(super) fn kill_namespace(init: i32) -> bool {
    let members = match procfs::pid_namespace(init) {
        Some(namespace) if !is_own(&namespace) => procfs::in_pid_namespace(&namespace),
        _ => Vec::new(),
    };
    let everyone: Vec<i32> = members.into_iter().chain([init]).collect();
    for &pid in &everyone {
        // Threads in a ptrace stop die of it without being let go.
        sigkill(pid);
    }
    let begun = Instant::now();
    while !everyone.iter().all(|&pid| procfs::is_ending(pid)) {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        sleep(Duration::from_millis(1));
    }
    true
}

/// Ends a restore: the tasks among `parent`'s children first, then CRIU.
/// `parent` is runc, or this process for what runc left behind.
pub(super) fn end_restore(parent: i32) {
    let (inits, rest): (Vec<i32>, Vec<i32>) = procfs::children(parent)
        .into_iter()
        .filter(|&pid| !procfs::is_ending(pid))
        .partition(|&pid| procfs::pid_namespace(pid).is_some_and(|ns| !is_own(&ns)));
    if inits.into_iter().all(kill_namespace) {
        rest.into_iter().for_each(sigkill);
    }
}

/// Kills the CRIU that started this process through a shell.
pub(super) fn kill_calling_criu() {
    let criu = procfs::parent(procfs::own_pid()).and_then(procfs::parent);
    if let Some(criu) =
        criu.filter(|&pid| procfs::name(pid).is_some_and(|name| name.starts_with("criu")))
    {
        sigkill(criu);
    }
}

/// Unmounts what a killed CRIU left mounted below `dir`, innermost first.
pub(super) fn clear_mounts(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .filter(|at| at.starts_with(dir) && at != dir)
        .collect();
    for at in below.iter().rev() {
        let _ = umount2(at, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(at);
    }
}

fn is_own(namespace: &Path) -> bool {
    procfs::pid_namespace(procfs::own_pid()).is_some_and(|own| own == namespace)
}

fn sigkill(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_the_end() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(kill_namespace(pid));
        assert!(procfs::is_ending(pid));
        child.wait().unwrap();
    }
}
