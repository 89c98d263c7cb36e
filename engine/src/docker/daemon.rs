//! Registering blip with dockerd as an OCI runtime, without restarting it.

use super::Docker;
use super::create::RUNTIME;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// dockerd's configuration file.
const CONFIG: &str = "/etc/docker/daemon.json";
/// Where dockerd may have written its process ID.
const PIDFILES: [&str; 2] = ["/var/run/docker.pid", "/run/docker.pid"];
/// How long dockerd may take to read its configuration again.
const RELOAD_LIMIT: Duration = Duration::from_secs(5);

/// Why blip is not a runtime of this Docker.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration cannot be read or written.
    #[error("cannot use {path:?}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration is not an object.
    #[error("{path:?} is not a JSON object; mend it, blip changes only what it understands")]
    Broken {
        /// Which file.
        path: PathBuf,
    },
    /// dockerd was not found.
    #[error(
        "no dockerd found through {PIDFILES:?}; add the runtime by hand: \"runtimes\": {{\"blip\": {{\"path\": {path:?}, \"runtimeArgs\": [\"runtime\"]}}}} in {CONFIG}"
    )]
    NoDaemon {
        /// blip's own path.
        path: PathBuf,
    },
    /// dockerd did not take it.
    #[error("dockerd did not take up the runtime within {RELOAD_LIMIT:?}; its log tells why")]
    NotTaken,
    /// Asking dockerd failed.
    #[error("cannot ask dockerd for its runtimes: {0}")]
    Ask(#[from] bollard::errors::Error),
}

/// Makes `blip` a runtime of this host's dockerd: an entry in daemon.json and a
/// SIGHUP, both only if needed. Running containers do not notice.
pub async fn register_runtime(docker: &Docker, blip: &Path) -> Result<(), DaemonError> {
    let changed = write_entry(Path::new(CONFIG), blip)?;
    if !changed && is_known(docker).await? {
        return Ok(());
    }
    let pid = daemon_pid().ok_or_else(|| DaemonError::NoDaemon { path: blip.into() })?;
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP);
    let taken = async {
        while !is_known(docker).await? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    tokio::time::timeout(RELOAD_LIMIT, taken).await.unwrap_or(Err(DaemonError::NotTaken))
}

async fn is_known(docker: &Docker) -> Result<bool, DaemonError> {
    let runtimes = docker.api.info().await?.runtimes.unwrap_or_default();
    Ok(runtimes.contains_key(RUNTIME))
}

fn daemon_pid() -> Option<nix::unistd::Pid> {
    let pid = PIDFILES.iter().find_map(|path| fs::read_to_string(path).ok())?;
    let pid: i32 = pid.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim() == "dockerd").then(|| nix::unistd::Pid::from_raw(pid))
}

/// Adds the entry, keeping everything else. Tells whether it was missing.
fn write_entry(config: &Path, blip: &Path) -> Result<bool, DaemonError> {
    let io_error = |source| DaemonError::Io { path: config.into(), source };
    let broken = || DaemonError::Broken { path: config.into() };
    let mut root: Map<String, Value> = match fs::read(config) {
        Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => Map::new(),
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|_| broken())?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Map::new(),
        Err(e) => return Err(io_error(e)),
    };
    let entry = json!({ "path": blip, "runtimeArgs": ["runtime"] });
    let runtimes = root.entry("runtimes").or_insert_with(|| json!({}));
    let runtimes = runtimes.as_object_mut().ok_or_else(broken)?;
    if runtimes.get(RUNTIME) == Some(&entry) {
        return Ok(false);
    }
    runtimes.insert(RUNTIME.into(), entry);
    let directory = config.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(io_error)?;
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(io_error)?;
    let text = serde_json::to_vec_pretty(&root).map_err(io::Error::from).map_err(io_error)?;
    file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(io_error)?;
    file.persist(config).map_err(|e| io_error(e.error))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_is_added_once_and_the_rest_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("daemon.json");
        fs::write(&config, r#"{"debug": true, "runtimes": {"crun": {"path": "/c"}}}"#).unwrap();
        assert!(write_entry(&config, Path::new("/b/blip")).unwrap());
        assert!(!write_entry(&config, Path::new("/b/blip")).unwrap());
        let root: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        assert_eq!(root["debug"], true);
        assert_eq!(root["runtimes"]["crun"]["path"], "/c");
        assert_eq!(root["runtimes"]["blip"]["runtimeArgs"][0], "runtime");
    }

    #[test]
    fn a_broken_configuration_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("daemon.json");
        fs::write(&config, "{").unwrap();
        assert!(matches!(write_entry(&config, Path::new("/b")), Err(DaemonError::Broken { .. })));
        assert_eq!(fs::read_to_string(&config).unwrap(), "{");
    }
}
