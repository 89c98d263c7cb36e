//! The container's freezer: finding it, freezing, thawing.
//!
//! CRIU polls a freezer in steps of 100 ms unless it finds it frozen, so blip
//! freezes first and is told by the kernel when that is done (`cgroup.events`
//! on cgroup v2; on v1 a read of `freezer.state` drives the change on).

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Which generation of control groups a freezer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// What went wrong with a freezer.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// None was found.
    #[error(
        "process {pid} is in no freezer cgroup visible here; mount cgroup v2, or the v1 freezer"
    )]
    NotFound {
        /// The process looked at.
        pid: i32,
    },
    /// It did not freeze.
    #[error("{path:?} did not freeze within {limit:?}: a process in it does not react to signals")]
    Stuck {
        /// The cgroup.
        path: PathBuf,
        /// How long it was given.
        limit: Duration,
    },
    /// A file of it could not be used.
    #[error("cannot use {path:?}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A cgroup that can be frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freezer {
    /// Its directory.
    pub path: PathBuf,
    /// Its kind.
    pub version: Version,
}

impl Freezer {
    /// The freezer that holds process `pid`. On a machine with both
    /// generations the v1 freezer is meant if the process is in one.
    pub fn of(pid: i32) -> Result<Self, CgroupError> {
        let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let membership = read(&file)?;
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        find(&membership, &mounts)
            .filter(|freezer| freezer.control().exists())
            .ok_or(CgroupError::NotFound { pid })
    }

    /// Freezes every task in it and waits until they stand, at most `limit`.
    pub fn freeze(&self, limit: Duration) -> Result<(), CgroupError> {
        let until = Instant::now() + limit;
        match self.version {
            Version::V2 => {
                write(&self.control(), "1")?;
                self.wait_frozen_v2(until)
            }
            Version::V1 => self.freeze_v1(until),
        }
        .and_then(|frozen| {
            if frozen { Ok(()) } else { Err(CgroupError::Stuck { path: self.path.clone(), limit }) }
        })
    }

    /// Orders it to freeze, without waiting.
    pub fn order(&self) -> Result<(), CgroupError> {
        write(&self.control(), if self.version == Version::V2 { "1" } else { "FROZEN" })
    }

    /// Lets every task in it run.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        write(&self.control(), if self.version == Version::V2 { "0" } else { "THAWED" })
    }

    /// Whether all its tasks stand still.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        match self.version {
            Version::V2 => Ok(read(&self.path.join("cgroup.events"))?.contains("frozen 1")),
            Version::V1 => Ok(read(&self.control())?.trim() == "FROZEN"),
        }
    }

    /// IDs of all processes in it and below it.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut found = Vec::new();
        collect(&self.path, &mut found)?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Whether process `pid` is in it, or below it: frozen with it.
    pub fn holds(&self, pid: u32) -> Result<bool, CgroupError> {
        Ok(self.processes()?.contains(&(pid as i32)))
    }

    fn control(&self) -> PathBuf {
        self.path.join(if self.version == Version::V2 { "cgroup.freeze" } else { "freezer.state" })
    }

    /// The kernel wakes a poll on `cgroup.events` when the state changes.
    fn wait_frozen_v2(&self, until: Instant) -> Result<bool, CgroupError> {
        let path = self.path.join("cgroup.events");
        let file = fs::File::open(&path).map_err(|source| io_error(&path, source))?;
        loop {
            if self.is_frozen()? {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // A wake-up between the look and the wait is not lost, because the
            // wait ends after 2 ms in any case.
            let step = left.min(Duration::from_millis(2));
            let step = PollTimeout::try_from(step).unwrap_or(PollTimeout::ZERO);
            let _ = poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], step);
        }
    }

    /// A v1 freezer may hang half way; asking again moves it on.
    fn freeze_v1(&self, until: Instant) -> Result<bool, CgroupError> {
        loop {
            write(&self.control(), "FROZEN")?;
            if self.is_frozen()? {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_micros(300));
        }
    }
}

fn collect(path: &Path, found: &mut Vec<i32>) -> Result<(), CgroupError> {
    let procs = read(&path.join("cgroup.procs"))?;
    found.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
    let entries = fs::read_dir(path).map_err(|source| io_error(path, source))?;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// Finds the freezer from the text of `/proc/PID/cgroup` and of
/// `/proc/self/mountinfo`.
fn find(membership: &str, mountinfo: &str) -> Option<Freezer> {
    let (mut v1, mut v2) = (None, None);
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        if controllers.is_empty() {
            v2 = Some(path);
        } else if controllers.split(',').any(|c| c == "freezer") && path != "/" {
            // The root of a v1 hierarchy cannot be frozen: who is there is in
            // no freezer.
            v1 = Some(path);
        }
    }
    let v1 = v1.and_then(|path| locate(mountinfo, "cgroup", Some("freezer"), path));
    let v2 = v2.and_then(|path| locate(mountinfo, "cgroup2", None, path));
    v1.map(|path| Freezer { path, version: Version::V1 })
        .or_else(|| v2.map(|path| Freezer { path, version: Version::V2 }))
}

/// Where `path` of a hierarchy is visible: its mount point plus what of `path`
/// lies below the mount's root.
pub(crate) fn locate(
    mountinfo: &str,
    kind: &str,
    option: Option<&str>,
    path: &str,
) -> Option<PathBuf> {
    mountinfo.lines().rev().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let options = right.clone().nth(2)?;
        if right.next()? != kind || option.is_some_and(|o| !options.split(',').any(|x| x == o)) {
            return None;
        }
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| io_error(path, source))
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(|source| io_error(path, source))
}

fn io_error(path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Io { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 1 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
31 1 0:27 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n";

    #[test]
    fn the_v1_freezer_wins_where_the_process_is_in_one() {
        let found = find("5:freezer:/docker/abc\n0::/\n", MOUNTS).unwrap();
        assert_eq!(found.version, Version::V1);
        assert_eq!(found.path, Path::new("/sys/fs/cgroup/freezer/docker/abc"));
    }

    #[test]
    fn a_v2_only_host_has_its_unified_freezer() {
        let mounts = "30 1 0:26 /labs/a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = find("0::/labs/a/docker/abc\n", mounts).unwrap();
        assert_eq!(found.version, Version::V2);
        assert_eq!(found.path, Path::new("/sys/fs/cgroup/docker/abc"));
    }

    #[test]
    fn a_cgroup_outside_of_the_mount_is_not_found() {
        let mounts = "30 1 0:26 /labs/a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find("0::/../b\n", mounts), None);
    }
}
