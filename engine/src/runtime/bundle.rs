//! The OCI bundle: what is read of it, and how it is changed for the restore.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::stage::StageDir;

/// A hook of the bundle that belongs into `create`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OciHook {
    pub(super) path: PathBuf,
    /// With its own name first, as `execve` takes it.
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    /// Seconds.
    pub(super) timeout: Option<u64>,
}

/// Where the container's network is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Network {
    /// A namespace of its own: the holder's.
    Fresh,
    /// An existing one, named by the configuration (`--network container:…`).
    Joined(PathBuf),
    /// The host's.
    Host,
}

/// `config.json` of a bundle.
#[derive(Debug)]
pub(super) struct Bundle {
    dir: PathBuf,
    config: Value,
}

impl Bundle {
    pub(super) fn read(dir: &Path) -> Result<Self, String> {
        let file = dir.join("config.json");
        let text = fs::read(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
        let config = serde_json::from_slice(&text)
            .map_err(|e| format!("{} is not an OCI configuration: {e}", file.display()))?;
        Ok(Self { dir: dir.to_owned(), config })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The root file system, absolute.
    pub(super) fn rootfs(&self) -> PathBuf {
        self.dir.join(self.config["root"]["path"].as_str().unwrap_or("rootfs"))
    }

    pub(super) fn cgroups_path(&self) -> &str {
        self.config["linux"]["cgroupsPath"].as_str().unwrap_or_default()
    }

    /// Kernel parameters and their values.
    pub(super) fn sysctls(&self) -> Vec<(String, String)> {
        let all = self.config["linux"]["sysctl"].as_object().into_iter().flatten();
        all.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
    }

    pub(super) fn terminal(&self) -> bool {
        self.config["process"]["terminal"].as_bool().unwrap_or(false)
    }

    /// The path of a namespace, if it is new (`Some(None)`) or joined.
    fn namespace(&self, kind: &str) -> Option<Option<&str>> {
        let all = self.config["linux"]["namespaces"].as_array()?;
        let one = all.iter().find(|ns| ns["type"] == kind)?;
        Some(one["path"].as_str().filter(|p| !p.is_empty()))
    }

    pub(super) fn network(&self) -> Network {
        match self.namespace("network") {
            None => Network::Host,
            Some(None) => Network::Fresh,
            Some(Some(path)) => Network::Joined(path.into()),
        }
    }

    /// Whether the container has a pid namespace to itself.
    pub(super) fn own_pids(&self) -> bool {
        self.namespace("pid") == Some(None)
    }

    /// Destinations of the bind mounts.
    pub(super) fn bind_mounts(&self) -> Vec<PathBuf> {
        let is_bind = |m: &Value| {
            m["type"] == "bind"
                || m["options"]
                    .as_array()
                    .is_some_and(|o| o.iter().any(|o| o == "bind" || o == "rbind"))
        };
        let mounts = self.config["mounts"].as_array().map_or(&[][..], Vec::as_slice);
        mounts
            .iter()
            .filter(|m| is_bind(m))
            .filter_map(|m| m["destination"].as_str().map(PathBuf::from))
            .collect()
    }

    /// The hooks that run while the container is created, in their order.
    pub(super) fn create_hooks(&self) -> Vec<OciHook> {
        ["prestart", "createRuntime"]
            .iter()
            .flat_map(|kind| self.config["hooks"][kind].as_array().into_iter().flatten())
            .filter_map(|hook| {
                Some(OciHook {
                    path: hook["path"].as_str()?.into(),
                    args: strings(&hook["args"]),
                    env: strings(&hook["env"]),
                    timeout: hook["timeout"].as_u64(),
                })
            })
            .collect()
    }

    /// The state of the container as hooks and `state` show it (OCI runtime
    /// specification, "State").
    pub(super) fn state(&self, id: &str, pid: i32, status: &str) -> Value {
        json!({
            "ociVersion": self.config["ociVersion"].as_str().unwrap_or("1.0.2"),
            "id": id, "status": status, "pid": pid, "bundle": self.dir,
            "annotations": self.config["annotations"],
        })
    }

    /// Writes the bundle `runc restore` is given: the network namespace is the
    /// holder's, hooks that have run already are gone, and CRIU reads our
    /// configuration file.
    pub(super) fn write_for_restore(
        &self,
        stage: &StageDir,
        netns: &Path,
    ) -> Result<PathBuf, String> {
        let mut config = self.config.clone();
        config["root"]["path"] = json!(self.rootfs());
        if let Some(all) = config["linux"]["namespaces"].as_array_mut() {
            for ns in all.iter_mut().filter(|ns| ns["type"] == "network") {
                ns["path"] = json!(netns);
            }
        }
        if let Some(hooks) = config["hooks"].as_object_mut() {
            for done in ["prestart", "createRuntime", "createContainer", "startContainer"] {
                hooks.remove(done);
            }
        }
        resolve_sources(&mut config);
        if !config["annotations"].is_object() {
            config["annotations"] = Value::Object(Map::new());
        }
        config["annotations"]["org.criu.config"] = json!(stage.criu_conf());
        let dir = stage.bundle();
        let write = || {
            fs::create_dir_all(&dir)?;
            fs::write(dir.join("config.json"), serde_json::to_vec(&config)?)
        };
        write().map_err(|e| format!("cannot write the bundle {}: {e}", dir.display()))?;
        Ok(dir)
    }
}

/// CRIU binds a source without following it: a symbolic link (as Debian's
/// docker-init is one) would itself be mounted.
fn resolve_sources(config: &mut Value) {
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        let resolved =
            mount["source"].as_str().filter(|s| s.starts_with('/')).map(fs::canonicalize);
        if let Some(Ok(path)) = resolved {
            mount["source"] = json!(path);
        }
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: Value) -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let read = Bundle::read(dir.path()).unwrap();
        (dir, read)
    }

    fn sample() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "hooks": {
                "prestart": [{"path": "/p", "args": ["libnetwork-setkey", "c1"], "timeout": 3}],
                "poststop": [{"path": "/q"}],
            },
            "mounts": [
                {"destination": "/proc", "type": "proc"},
                {"destination": "/etc/hosts", "type": "bind", "options": ["rbind"]},
                {"destination": "/data", "options": ["rbind", "ro"]},
            ],
            "linux": {"cgroupsPath": "/docker/c1", "namespaces": [{"type": "pid"}, {"type": "network"}]},
        })
    }

    #[test]
    fn is_rewritten_for_the_restore_and_nothing_else_changes() {
        let (dir, before) = bundle(sample());
        let root = tempfile::tempdir().unwrap();
        let stage = StageDir::make(root.path(), "c1").unwrap();
        let made = before.write_for_restore(&stage, Path::new("/proc/7/ns/net")).unwrap();
        let after = Bundle::read(&made).unwrap();
        assert_eq!(after.network(), Network::Joined("/proc/7/ns/net".into()));
        assert_eq!(after.rootfs(), dir.path().join("rootfs"));
        assert!(after.create_hooks().is_empty());
        assert_eq!(
            after.config["hooks"]["poststop"][0]["path"], "/q",
            "what runs at the end stays"
        );
        assert_eq!(after.config["annotations"]["org.criu.config"], json!(stage.criu_conf()));
        assert_eq!(after.config["mounts"], before.config["mounts"]);
        assert!(after.own_pids());
    }

    #[test]
    fn reads_hooks_mounts_and_networks() {
        let (_dir, b) = bundle(sample());
        assert_eq!(b.network(), Network::Fresh);
        assert_eq!(b.bind_mounts(), [PathBuf::from("/etc/hosts"), "/data".into()]);
        assert_eq!(
            b.create_hooks(),
            [OciHook {
                path: "/p".into(),
                args: vec!["libnetwork-setkey".into(), "c1".into()],
                env: vec![],
                timeout: Some(3),
            }]
        );
        let (_dir, host) = bundle(json!({"linux": {"namespaces": []}}));
        assert_eq!(host.network(), Network::Host);
        assert!(!host.own_pids());
    }
}
