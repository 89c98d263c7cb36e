//! The container's cgroup, lent to the holder for a while.
//!
//! containerd asks for the cgroup of the pid it is given, once, after
//! `create`, and uses the answer for statistics and OOM events ever after; so
//! the holder sits in the container's cgroup then. runc refuses to restore
//! into a cgroup that is not empty; so the holder goes back to where it came
//! from before. The cgroup itself stays: containerd watches its files.
//!
//! Both layouts are served: one unified hierarchy, and one hierarchy per
//! controller. Limits are runc's business, nothing is configured here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One mounted hierarchy and where a process sits in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seat {
    mount: PathBuf,
    /// Below `mount`, without a leading slash.
    path: String,
    cpuset: bool,
    unified: bool,
}

/// Where a process sits in all hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seats(Vec<Seat>);

impl Seats {
    /// Where this process sits now.
    pub(super) fn current() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mine = fs::read_to_string("/proc/self/cgroup")?;
        Ok(Self::parse(&mounts, &mine))
    }

    fn parse(mountinfo: &str, cgroup: &str) -> Self {
        let mounts: Vec<_> = mountinfo.lines().filter_map(Mount::parse).collect();
        let seat = |line: &str| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            let path = parts.next()?;
            let mount = mounts.iter().find(|m| m.carries(controllers))?;
            let below = path.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or(path);
            Some(Seat {
                mount: mount.at.clone(),
                path: below.trim_start_matches('/').to_owned(),
                cpuset: controllers.split(',').any(|c| c == "cpuset"),
                unified: mount.unified,
            })
        };
        let mut seats: Vec<_> = cgroup.lines().filter_map(seat).collect();
        // Where both are mounted, runc and containerd use the old one.
        if !seats.iter().all(|s| s.unified) {
            seats.retain(|s| !s.unified);
        }
        Self(seats)
    }

    /// The path in the unified hierarchy, where that is the one in use.
    pub(super) fn unified_path(&self) -> Option<String> {
        self.0.iter().find(|s| s.unified).map(|s| format!("/{}", s.path))
    }

    /// The same hierarchies at a bundle's `cgroupsPath`.
    pub(super) fn of_container(&self, cgroups_path: &str, systemd: bool) -> Self {
        let path = if systemd {
            systemd_path(cgroups_path)
        } else {
            cgroups_path.trim_start_matches('/').to_owned()
        };
        Self(self.0.iter().map(|seat| Seat { path: path.clone(), ..seat.clone() }).collect())
    }

    /// Moves this process there, making what is missing.
    pub(super) fn take(&self) -> io::Result<()> {
        for seat in &self.0 {
            let dir = seat.mount.join(&seat.path);
            fs::create_dir_all(&dir)?;
            if seat.cpuset {
                inherit_cpuset(&seat.mount, Path::new(&seat.path))?;
            }
            fs::write(dir.join("cgroup.procs"), "0").map_err(|e| {
                io::Error::new(e.kind(), format!("cannot enter {}: {e}", dir.display()))
            })?;
        }
        Ok(())
    }

    /// Moves this process to where it is.
    ///
    /// The first move of any process waits for an RCU grace period, 5 to 11 ms
    /// measured; those soon after it do not. CRIU moves what it restores in the
    /// middle of the downtime, so the holder keeps the kernel warm for it.
    pub(super) fn stay(&self) {
        if let Some(seat) = self.0.first() {
            let _ = fs::write(seat.mount.join(&seat.path).join("cgroup.procs"), "0");
        }
    }

    /// Removes these cgroups where they are empty.
    pub(super) fn remove(&self) {
        for seat in self.0.iter().filter(|s| !s.path.is_empty()) {
            let _ = fs::remove_dir(seat.mount.join(&seat.path));
        }
    }
}

/// A line of mountinfo that is a cgroup hierarchy (proc(5)).
struct Mount {
    root: String,
    at: PathBuf,
    unified: bool,
    options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, at) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let kind = after.next()?;
        let options = after.nth(1)?;
        (kind == "cgroup" || kind == "cgroup2").then(|| Self {
            root: root.to_owned(),
            at: at.into(),
            unified: kind == "cgroup2",
            options: options.to_owned(),
        })
    }

    /// Is this the hierarchy of a `/proc/self/cgroup` line's controllers?
    fn carries(&self, controllers: &str) -> bool {
        if controllers.is_empty() {
            return self.unified;
        }
        !self.unified && controllers.split(',').all(|c| self.options.split(',').any(|o| o == c))
    }
}

/// A fresh cpuset of the v1 hierarchy admits nobody until it has CPUs and
/// memory nodes; it gets its parent's, as runc does.
fn inherit_cpuset(mount: &Path, path: &Path) -> io::Result<()> {
    let mut dir = mount.to_owned();
    for part in path.components() {
        let child = dir.join(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read_to_string(child.join(file))?.trim().is_empty() {
                fs::write(child.join(file), fs::read_to_string(dir.join(file))?.trim())?;
            }
        }
        dir = child;
    }
    Ok(())
}

/// `slice:prefix:name` as systemd lays it out in the tree.
fn systemd_path(cgroups_path: &str) -> String {
    let mut parts = cgroups_path.split(':');
    let slice = parts.next().filter(|s| !s.is_empty()).unwrap_or("system.slice");
    let prefix = parts.next().unwrap_or_default();
    let name = parts.next().unwrap_or_default();
    let mut path = String::new();
    let stem = slice.trim_end_matches(".slice");
    for (at, _) in stem.match_indices('-').chain(std::iter::once((stem.len(), ""))) {
        path.push_str(&format!("{}.slice/", &stem[..at]));
    }
    let unit = match (name.ends_with(".slice"), prefix) {
        (true, _) => name.to_owned(),
        (false, "") => format!("{name}.scope"),
        (false, prefix) => format!("{prefix}-{name}.scope"),
    };
    path + &unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_unified_hierarchy() {
        let seats = Seats::parse(
            "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n\
             31 20 0:27 / /proc rw - proc proc rw",
            "0::/system.slice/docker.service\n",
        );
        assert_eq!(
            seats.0,
            [Seat {
                mount: "/sys/fs/cgroup".into(),
                path: "system.slice/docker.service".into(),
                cpuset: false,
                unified: true
            }]
        );
        let there = seats.of_container("/docker/c1", false);
        assert_eq!(there.unified_path().as_deref(), Some("/docker/c1"));
    }

    #[test]
    fn finds_each_controller_of_v1() {
        let seats = Seats::parse(
            "40 30 0:30 /lab/a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             41 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             42 30 0:32 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
             43 30 0:33 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
             44 30 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
            "5:memory:/lab/a/init\n4:cpu,cpuacct:/\n3:cpuset:/x\n2:name=systemd:/y\n0::/nowhere\n",
        );
        assert_eq!(seats.unified_path(), None);
        let found: Vec<_> = seats
            .0
            .iter()
            .map(|s| (s.mount.to_str().unwrap(), s.path.as_str(), s.cpuset))
            .collect();
        assert_eq!(
            found,
            [
                ("/sys/fs/cgroup/memory", "init", false),
                ("/sys/fs/cgroup/cpu,cpuacct", "", false),
                ("/sys/fs/cgroup/cpuset", "x", true),
                ("/sys/fs/cgroup/systemd", "y", false),
            ]
        );
    }

    #[test]
    fn lays_slices_out_as_systemd_does() {
        assert_eq!(systemd_path("system.slice:docker:c1"), "system.slice/docker-c1.scope");
        assert_eq!(systemd_path(":docker:c1"), "system.slice/docker-c1.scope");
        assert_eq!(systemd_path("a-b.slice:docker:c1"), "a.slice/a-b.slice/docker-c1.scope");
    }
}
