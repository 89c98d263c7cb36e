//! How much CPU time a container has used.

use super::{ThrottleError, file_error, path_in, read};
use crate::cgroup::{self, Freezer, Version};
use std::path::PathBuf;
use std::time::Duration;

/// Where the kernel counts it.
#[derive(Clone, Debug)]
pub(super) enum Meter {
    /// `cpuacct.usage` of v1, in nanoseconds.
    Account(PathBuf),
    /// `usage_usec` of v2's `cpu.stat`, which is there without the controller.
    Stat(PathBuf),
    /// Nowhere for the group: the sum over its processes, in clock ticks.
    Processes(Freezer),
}

impl Meter {
    pub(super) fn find(membership: &str, mounts: &str, freezer: &Freezer) -> Self {
        let stat = freezer.path.join("cpu.stat");
        if freezer.version == Version::V2 && stat.exists() {
            return Self::Stat(stat);
        }
        path_in(membership, Some("cpuacct"))
            .and_then(|path| cgroup::locate(mounts, "cgroup", Some("cpuacct"), path))
            .map(|group| group.join("cpuacct.usage"))
            .filter(|file| file.exists())
            .map_or_else(|| Self::Processes(freezer.clone()), Self::Account)
    }

    /// All of it, since the cgroup was made.
    pub(super) fn read(&self) -> Result<Duration, ThrottleError> {
        match self {
            Self::Account(file) => {
                let nanos = read(file)?.trim().parse();
                nanos.map(Duration::from_nanos).map_err(|_| unreadable(file))
            }
            Self::Stat(file) => read(file)?
                .lines()
                .find_map(|line| line.strip_prefix("usage_usec "))
                .and_then(|micros| micros.trim().parse().ok())
                .map(Duration::from_micros)
                .ok_or_else(|| unreadable(file)),
            Self::Processes(freezer) => {
                Ok(freezer.processes()?.into_iter().filter_map(used_by).sum())
            }
        }
    }
}

/// User and system time of a process, fields 14 and 15 of its stat (proc(5)).
fn used_by(pid: i32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some(Duration::from_secs_f64(ticks as f64 / a_second as f64))
}

fn unreadable(file: &std::path::Path) -> ThrottleError {
    file_error(file, std::io::ErrorKind::InvalidData.into())
}
