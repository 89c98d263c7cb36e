//! The cgroups of a lab.
//!
//! Every process of a host is in `/blip-lab-NAME/HOST` of every hierarchy the
//! machine has mounted, v1 and v2, whichever the host gets to see; the host's
//! cgroup namespace begins there. So a lab's processes can always be found and
//! ended by its name, and all of them, also those entered later from another
//! session, read the same paths in `/proc/self/cgroup`, as CRIU wants it. On a
//! v2 host they sit in the leaf `init` of the v2 hierarchy, because a v2 cgroup
//! that hands controllers to its children must not hold processes itself.

use super::error::Context as _;
use super::{LabError, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long killed processes may take to disappear.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which cgroup version the hosts of a lab see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CgroupMode {
    /// One cgroup2 mount, as on today's distributions.
    V2,
    /// One mount per controller.
    V1,
}

impl fmt::Display for CgroupMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "v2",
            Self::V1 => "v1",
        })
    }
}

/// A cgroup hierarchy that the machine has mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where.
    pub(super) at: PathBuf,
    /// `None` for v2; for v1 what names it to `mount`: `cpu,cpuacct`.
    pub(super) v1: Option<String>,
}

/// A v1 hierarchy as a host mounts it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct V1Mount {
    /// Folder below `/sys/fs/cgroup`.
    pub(super) folder: String,
    /// Mount options that name it.
    pub(super) options: String,
}

/// The cgroups of one host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HostCgroups {
    /// The host's root in each hierarchy: its init enters them before it
    /// makes its cgroup namespace.
    pub(super) roots: Vec<PathBuf>,
    /// Where its ordinary processes belong.
    pub(super) homes: Vec<PathBuf>,
    /// On a v1 host, what it mounts.
    pub(super) v1: Vec<V1Mount>,
}

/// All hierarchies the machine has mounted.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let table = fs::read_to_string("/proc/self/mountinfo").on("reading", "/proc/self/mountinfo")?;
    Ok(parse(&table))
}

/// Finds cgroup mounts in the text of a mountinfo file.
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    const NOT_A_NAME: [&str; 5] = ["rw", "ro", "xattr", "clone_children", "cpuset_v2_mode"];
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut fields = before.split(' ').skip(3);
        let (Some(root), Some(at)) = (fields.next(), fields.next()) else { continue };
        let after: Vec<&str> = after.split(' ').collect();
        let (kind, options) = (after[0], after.last().copied().unwrap_or_default());
        let v1 = match kind {
            "cgroup2" => None,
            "cgroup" => Some(
                options
                    .split(',')
                    .filter(|o| !NOT_A_NAME.contains(o) && !o.starts_with("release_agent="))
                    .collect::<Vec<_>>()
                    .join(","),
            ),
            _ => continue,
        };
        if root == "/" && !found.iter().any(|h| h.v1 == v1) {
            found.push(Hierarchy { at: at.into(), v1 });
        }
    }
    found
}

/// What a machine lacks for hosts of this kind, in words.
pub(super) fn lacking(mode: CgroupMode, found: &[Hierarchy]) -> Vec<String> {
    const NEEDED: [&str; 4] = ["freezer", "devices", "memory", "cpu"];
    let has = |controller: &&&str| {
        !found.iter().any(|h| h.v1.iter().any(|v1| v1.split(',').any(|c| c == **controller)))
    };
    match mode {
        CgroupMode::V2 if found.iter().all(|h| h.v1.is_some()) => {
            vec!["a cgroup2 mount (mount -t cgroup2 none /sys/fs/cgroup/unified)".into()]
        }
        CgroupMode::V2 => Vec::new(),
        CgroupMode::V1 => NEEDED
            .iter()
            .filter(has)
            .map(|c| format!("the cgroup v1 controller {c} (this machine uses v2 only for it)"))
            .collect(),
    }
}

fn folder(lab: &str) -> String {
    format!("blip-lab-{lab}")
}

/// Makes the cgroups of a host.
pub(super) fn create(lab: &str, host: &str, mode: CgroupMode) -> Result<HostCgroups> {
    let mut made = HostCgroups { roots: Vec::new(), homes: Vec::new(), v1: Vec::new() };
    for hierarchy in hierarchies()? {
        let top = hierarchy.at.join(folder(lab));
        let root = top.join(host);
        match (hierarchy.v1, mode) {
            (None, _) => {
                let home = if mode == CgroupMode::V2 { root.join("init") } else { root.clone() };
                fs::create_dir_all(&home).on("making the cgroup", &home)?;
                if mode == CgroupMode::V2 {
                    for level in [&hierarchy.at, &top] {
                        hand_down_controllers(level);
                    }
                }
                made.homes.push(home);
            }
            (Some(options), _) => {
                fs::create_dir_all(&root).on("making the cgroup", &root)?;
                for level in [&top, &root] {
                    inherit_cpuset(level);
                }
                if mode == CgroupMode::V1 {
                    let folder = hierarchy.at.file_name().unwrap_or_default();
                    let folder = folder.to_string_lossy().into_owned();
                    let named = options.starts_with("name=");
                    let options = if named { format!("none,{options}") } else { options };
                    made.v1.push(V1Mount { folder, options });
                }
                made.homes.push(root.clone());
            }
        }
        made.roots.push(root);
    }
    Ok(made)
}

/// Gives a v2 cgroup's children whatever controllers it has, one by one, as
/// some may be refused. A lab without any still works: freezing needs none.
pub(super) fn hand_down_controllers(cgroup: &Path) {
    let controllers = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        let _ = fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// A new v1 cpuset is empty and takes no process until it is told its share.
fn inherit_cpuset(cgroup: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = fs::read_to_string(cgroup.join(file));
        if let (Ok(own), Some(parent)) = (own, cgroup.parent())
            && own.trim().is_empty()
            && let Ok(share) = fs::read_to_string(parent.join(file))
        {
            let _ = fs::write(cgroup.join(file), share);
        }
    }
}

/// Kills every process in the lab's cgroups, frozen or not, and removes them.
/// Goes round until all is gone: a dying `up` may still let one in.
pub(super) fn kill_and_remove(lab: &str) -> Result<()> {
    let tops: Vec<PathBuf> = hierarchies()?.into_iter().map(|h| h.at.join(folder(lab))).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let groups: Vec<PathBuf> = tops.iter().flat_map(|top| tree(top)).collect();
        let alive: BTreeSet<i32> = groups.iter().flat_map(|g| processes(g)).collect();
        for pid in &alive {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if alive.is_empty() && groups.iter().rev().all(|g| removed(g)) {
            return Ok(());
        }
        // A frozen v1 cgroup dies only when thawed, a v2 one by the signal.
        for freezer in groups.iter().map(|g| g.join("freezer.state")).filter(|f| f.exists()) {
            let _ = fs::write(freezer, "THAWED");
        }
        if Instant::now() > deadline {
            return Err(LabError::Undead(lab.into()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes a cgroup, which stays busy for a moment after its last process.
fn removed(group: &Path) -> bool {
    match fs::remove_dir(group) {
        Ok(()) => true,
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

/// A cgroup and all below it, parents first; nothing if it is not there.
fn tree(top: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = top.is_dir().then(|| top.to_path_buf()).into_iter().collect();
    let mut next = 0;
    while next < all.len() {
        let below = fs::read_dir(&all[next]).into_iter().flatten().flatten();
        let below: Vec<_> = below.map(|e| e.path()).filter(|p| p.is_dir()).collect();
        all.extend(below);
        next += 1;
    }
    all
}

fn processes(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).filter(|&pid| pid > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
35 30 0:30 /deep /elsewhere rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn hierarchies_are_named_by_what_mounts_them_again() {
        let found = parse(HYBRID);
        let names: Vec<_> = found.iter().map(|h| h.v1.as_deref()).collect();
        assert_eq!(names, [Some("cpu,cpuacct"), Some("freezer"), Some("name=systemd"), None]);
        assert_eq!(found[3].at, Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn what_a_machine_lacks_is_named_all_at_once() {
        let found = parse(HYBRID);
        assert!(lacking(CgroupMode::V2, &found).is_empty());
        let lacks = lacking(CgroupMode::V1, &found).join("; ");
        assert!(lacks.contains("devices") && lacks.contains("memory"), "{lacks}");
        assert!(!lacks.contains("controller cpu ") && !lacks.contains("freezer"), "{lacks}");
        assert_eq!(lacking(CgroupMode::V2, &found[..3]).len(), 1);
    }
}
