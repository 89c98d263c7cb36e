//! Making blip known to Docker as a runtime, and unknown again.
//!
//! dockerd reads its list of runtimes again upon SIGHUP, without a restart.
//! A container that arrived through blip names the runtime for the rest of its
//! life: as long as there is one, the registration must stay.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::query_parameters::ListContainersOptions;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use super::{Docker, DockerError, RUNTIME_NAME};

/// How long dockerd may take to read its configuration again.
const RELOAD_PATIENCE: Duration = Duration::from_secs(15);

/// What a registration has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// It was there and right.
    Already,
    /// The file was changed and dockerd has read it.
    Changed,
}

impl Docker {
    /// Registers `blip` (this program's absolute path) as a runtime:
    /// merges it into `daemon_json`, leaving everything else as it is, and has
    /// the daemon named in `pid_file` read the file again.
    ///
    /// # Errors
    /// [`DockerError::Config`] when the file is not JSON, cannot be written,
    /// or dockerd does not take it over.
    pub async fn register_runtime(
        &self,
        daemon_json: &Path,
        blip: &Path,
        pid_file: &Path,
    ) -> Result<Registration, DockerError> {
        let entry = json!({"path": blip, "runtimeArgs": ["runtime"]});
        let changed = edit(daemon_json, |runtimes| {
            runtimes.insert(RUNTIME_NAME.to_owned(), entry.clone()).as_ref() != Some(&entry)
        })?;
        if !changed && self.has_runtime().await? {
            return Ok(Registration::Already);
        }
        self.reload(daemon_json, pid_file, true).await?;
        Ok(Registration::Changed)
    }

    /// Takes the registration back, if there is one.
    ///
    /// # Errors
    /// [`DockerError::Config`] as for registration, and while containers use
    /// the runtime.
    pub async fn unregister_runtime(
        &self,
        daemon_json: &Path,
        pid_file: &Path,
    ) -> Result<(), DockerError> {
        let users = self.users_of_runtime().await?;
        if !users.is_empty() {
            return Err(DockerError::Config {
                file: daemon_json.to_owned(),
                why: format!(
                    "containers that arrived through blip need it to start again: {}; remove them first",
                    users.join(", ")
                ),
            });
        }
        if edit(daemon_json, |runtimes| runtimes.remove(RUNTIME_NAME).is_some())? {
            self.reload(daemon_json, pid_file, false).await?;
        }
        Ok(())
    }

    /// Whether the daemon knows blip's runtime now.
    ///
    /// # Errors
    /// In Docker's words.
    pub async fn has_runtime(&self) -> Result<bool, DockerError> {
        let info = self.quick.info().await.map_err(DockerError::refused("tell its runtimes"))?;
        Ok(info.runtimes.unwrap_or_default().contains_key(RUNTIME_NAME))
    }

    /// Names of all containers, running or not, made with blip's runtime.
    async fn users_of_runtime(&self) -> Result<Vec<String>, DockerError> {
        let all = ListContainersOptions { all: true, ..Default::default() };
        let all = self.quick.list_containers(Some(all)).await;
        let mut users = Vec::new();
        for one in all.map_err(DockerError::refused("list its containers"))? {
            let Some(id) = one.id else { continue };
            match self.inspect(&id).await {
                Ok(facts) if facts.runtime == RUNTIME_NAME => users.push(facts.name),
                Ok(_) | Err(DockerError::NoContainer(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(users)
    }

    /// Has dockerd read its configuration, and waits until it shows.
    async fn reload(
        &self,
        daemon_json: &Path,
        pid_file: &Path,
        expected: bool,
    ) -> Result<(), DockerError> {
        let fail = |why: String| DockerError::Config { file: daemon_json.to_owned(), why };
        let pid = daemon_pid(pid_file).map_err(fail)?;
        kill(pid, Signal::SIGHUP)
            .map_err(|e| fail(format!("cannot signal dockerd ({pid}): {e}")))?;
        let begun = Instant::now();
        while self.has_runtime().await? != expected {
            if begun.elapsed() > RELOAD_PATIENCE {
                return Err(fail(format!(
                    "dockerd ({pid}) did not take the change over within {RELOAD_PATIENCE:?}; its log tells \
                     why, and whether it reads another file (--config-file)"
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// The daemon of a pid file, made sure to be one.
fn daemon_pid(file: &Path) -> Result<Pid, String> {
    let text = fs::read_to_string(file)
        .map_err(|e| format!("cannot read dockerd's pid from {}: {e}", file.display()))?;
    let pid: i32 = text.trim().parse().map_err(|_| format!("{} holds no pid", file.display()))?;
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) if name.trim() == "dockerd" => Ok(Pid::from_raw(pid)),
        _ => Err(format!("process {pid}, which {} names, is not dockerd", file.display())),
    }
}

/// Changes the `runtimes` of a `daemon.json` in one step; `change` tells
/// whether it did anything. Returns whether the file was written.
fn edit(
    file: &Path,
    change: impl FnOnce(&mut Map<String, Value>) -> bool,
) -> Result<bool, DockerError> {
    let fail = |why: String| DockerError::Config { file: file.to_owned(), why };
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(fail(format!("cannot read it: {e}"))),
    };
    let mut config = match text.trim() {
        "" => Value::Object(Map::new()),
        text => serde_json::from_str(text).map_err(|e| {
            fail(format!("it is not JSON ({e}); correct it, dockerd would not start with it"))
        })?,
    };
    let top =
        config.as_object_mut().ok_or_else(|| fail("it is not a JSON object; correct it".into()))?;
    let mut runtimes = match top.remove("runtimes") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(runtimes)) => runtimes,
        Some(_) => return Err(fail("its \"runtimes\" is not a JSON object; correct it".into())),
    };
    if !change(&mut runtimes) {
        return Ok(false);
    }
    if !runtimes.is_empty() {
        top.insert("runtimes".to_owned(), Value::Object(runtimes));
    }
    replace(file, &config).map_err(|e| fail(format!("cannot write it: {e}")))?;
    Ok(true)
}

/// Writes the file anew beside the old one, then puts it in its place.
fn replace(file: &Path, config: &Value) -> io::Result<()> {
    let mode = fs::metadata(file).map_or(0o644, |m| m.permissions().mode() & 0o7777);
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    let fresh = file.with_extension("json.blip-new");
    let mut out =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
    out.write_all(&serde_json::to_vec_pretty(config)?)?;
    out.write_all(b"\n")?;
    out.sync_all()?;
    fs::rename(fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(file: &Path) -> Result<bool, DockerError> {
        let entry = json!({"path": "/usr/bin/blip", "runtimeArgs": ["runtime"]});
        edit(file, |r| r.insert("blip".into(), entry.clone()).as_ref() != Some(&entry))
    }

    fn read(file: &Path) -> Value {
        serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
    }

    #[test]
    fn everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("daemon.json");
        let before = json!({
            "log-opts": {"max-size": "10m"}, "dns": ["1.1.1.1"], "runtimes": {"kata": {"path": "/k"}},
        });
        fs::write(&file, before.to_string()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(add(&file).unwrap());
        assert!(!add(&file).unwrap(), "the second time there is nothing to do");
        let after = read(&file);
        assert_eq!(after["dns"], before["dns"]);
        assert_eq!(after["log-opts"], before["log-opts"]);
        assert_eq!(after["runtimes"]["kata"]["path"], "/k");
        assert_eq!(after["runtimes"]["blip"]["path"], "/usr/bin/blip");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(edit(&file, |r| r.remove("blip").is_some()).unwrap());
        assert_eq!(read(&file), before);
        assert!(!edit(&file, |r| r.remove("blip").is_some()).unwrap());
    }

    #[test]
    fn a_missing_or_empty_file_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("docker/daemon.json");
        assert!(add(&file).unwrap());
        assert!(edit(&file, |r| r.remove("blip").is_some()).unwrap());
        assert_eq!(read(&file), json!({}), "no empty list is left behind");
        fs::write(&file, "\n").unwrap();
        assert!(add(&file).unwrap());
    }

    #[test]
    fn what_is_broken_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("daemon.json");
        for broken in ["{\"a\": 1,}", "[]", "{\"runtimes\": []}", "{\"a\""] {
            fs::write(&file, broken).unwrap();
            let err = add(&file).unwrap_err();
            assert!(err.to_string().contains("correct it"), "{err}");
            assert_eq!(fs::read_to_string(&file).unwrap(), broken);
        }
    }

    #[test]
    fn another_process_is_never_signalled() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("docker.pid");
        fs::write(&file, std::process::id().to_string()).unwrap();
        assert!(daemon_pid(&file).unwrap_err().contains("is not dockerd"));
    }
}
