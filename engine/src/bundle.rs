//! The OCI side of a running container on the source: what containerd and runc
//! wrote down about it, and what of it is not CRIU's to dump.

use serde_json::Value;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where containerd keeps the bundles of Docker's containers: its own service,
/// or one started by dockerd.
const BUNDLES: [&str; 2] = [
    "/run/containerd/io.containerd.runtime.v2.task/moby",
    "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby",
];

/// Where runc keeps its state of Docker's containers.
const RUNC_ROOT: &str = "/run/docker/runtime-runc/moby";

/// What went wrong with a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// None of the known places has it.
    #[error(
        "no OCI bundle of container {id} under {BUNDLES:?}; is it run by Docker with containerd's runc shim?"
    )]
    NotFound {
        /// The container.
        id: String,
    },
    /// A file could not be read.
    #[error("cannot read {path:?}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file says something unexpected.
    #[error("{path:?} lacks {what}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
}

/// A running container as the OCI runtime sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Its directory.
    pub path: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// What CRIU must treat as external, in its own notation.
    pub external: Vec<String>,
    /// Where its bind mounts are in it: Docker's own, volumes and paths.
    pub mounted: Vec<PathBuf>,
    /// Names of the container's stdio as `runc restore` wants them.
    pub descriptors: Vec<String>,
    /// Whether it has a terminal.
    pub terminal: bool,
}

impl Bundle {
    /// The bundle of container `id`, whose init is process `pid` of this host.
    pub fn of(id: &str, pid: i32) -> Result<Self, BundleError> {
        let path = BUNDLES
            .iter()
            .map(|base| Path::new(base).join(id))
            .find(|path| path.join("config.json").exists())
            .ok_or_else(|| BundleError::NotFound { id: id.into() })?;
        let file = path.join("config.json");
        let config = read_json(&file)?;
        let rootfs = config["root"]["path"]
            .as_str()
            .ok_or(BundleError::Malformed { path: file, what: "root.path" })?;
        let mounted = bind_mounts(&config);
        let mut external = external_mounts(&config, &mounted, pid);
        if !has_cgroup_namespace(&config) {
            external.extend(external_cgroups(pid)?);
        }
        external.push(external_network(pid)?);
        Ok(Self {
            rootfs: path.join(rootfs),
            external,
            mounted,
            descriptors: descriptors(id, pid),
            terminal: config["process"]["terminal"].as_bool().unwrap_or(false),
            path,
        })
    }
}

fn bind_mounts(config: &Value) -> Vec<PathBuf> {
    let mounts = list(&config["mounts"]).into_iter().filter_map(|mount| {
        let bind = mount["type"] == "bind"
            || list(&mount["options"]).iter().any(|option| option == "bind" || option == "rbind");
        bind.then_some(mount["destination"].as_str()?.into())
    });
    mounts.collect()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// Bind mounts come from the target's own Docker; masked files are bind mounts
/// of /dev/null. (Masked directories are empty tmpfs mounts, which CRIU dumps.)
fn external_mounts(config: &Value, mounted: &[PathBuf], pid: i32) -> Vec<String> {
    let binds = mounted.iter().map(|at| format!("mnt[{0}]:{0}", at.display()));
    let masked = list(&config["linux"]["maskedPaths"]).into_iter().filter_map(|path| {
        let path = path.as_str()?;
        let inside = format!("/proc/{pid}/root{path}");
        let is_file = fs::metadata(inside).is_ok_and(|meta| !meta.is_dir());
        is_file.then(|| format!("mnt[{path}]:/dev/null"))
    });
    binds.chain(masked).collect()
}

/// Without a cgroup namespace the runtime binds the host's cgroup v1 hierarchies
/// into the container, one by one, and does so again on the target.
fn external_cgroups(pid: i32) -> Result<Vec<String>, BundleError> {
    let path = PathBuf::from(format!("/proc/{pid}/mountinfo"));
    let mounts = fs::read_to_string(&path).map_err(|source| BundleError::Io { path, source })?;
    Ok(cgroup_v1_mounts(&mounts))
}

fn cgroup_v1_mounts(mountinfo: &str) -> Vec<String> {
    let bound = mountinfo.lines().filter(|line| line.contains(" - cgroup "));
    let places = bound.filter_map(|line| line.split(' ').nth(4));
    places.map(|place| format!("mnt[{place}]:{place}")).collect()
}

fn has_cgroup_namespace(config: &Value) -> bool {
    let namespaces = config["linux"]["namespaces"].as_array();
    namespaces.is_some_and(|all| all.iter().any(|one| one["type"] == "cgroup"))
}

/// The network namespace belongs to Docker on both sides.
fn external_network(pid: i32) -> Result<String, BundleError> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let meta = fs::metadata(&path).map_err(|source| BundleError::Io { path, source })?;
    Ok(format!("net[{}]:extRootNetNS", meta.ino()))
}

/// runc's own record if there is one: init may have closed or replaced its
/// first three descriptors since.
fn descriptors(id: &str, pid: i32) -> Vec<String> {
    let state = Path::new(RUNC_ROOT).join(id).join("state.json");
    let recorded = read_json(&state)
        .ok()
        .and_then(|state| serde_json::from_value(state["external_descriptors"].clone()).ok());
    recorded.unwrap_or_else(|| {
        let name = |fd| fs::read_link(format!("/proc/{pid}/fd/{fd}"));
        (0..3).map(|fd| name(fd).unwrap_or_default().to_string_lossy().into_owned()).collect()
    })
}

fn read_json(path: &Path) -> Result<Value, BundleError> {
    let text = fs::read(path).map_err(|source| BundleError::Io { path: path.into(), source })?;
    serde_json::from_slice(&text)
        .map_err(|_| BundleError::Malformed { path: path.into(), what: "valid JSON" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_cgroup_v1_are_left_to_the_runtime() {
        let text = "513 512 0:2 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    514 513 0:3 /docker/x /sys/fs/cgroup/cpu ro master:1 - cgroup cgroup rw,cpu\n\
                    515 513 0:4 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup_v1_mounts(text), ["mnt[/sys/fs/cgroup/cpu]:/sys/fs/cgroup/cpu"]);
        let with = serde_json::json!({"linux": {"namespaces": [{"type": "cgroup"}]}});
        assert!(has_cgroup_namespace(&with) && !has_cgroup_namespace(&Value::Null));
    }
}
