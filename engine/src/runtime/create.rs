//! `create` of a staged container: start the holder, attach the network.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::args::Invocation;
use super::bundle::{Bundle, Network, OciHook};
use super::holder::CONSOLE_VARIABLE;
use super::real::find_runc;
use super::stage::StageDir;

/// Starts the holder, runs the bundle's create hooks on it, and writes its pid
/// where Docker looks for the container's.
pub(super) fn create(call: &Invocation, stage: &StageDir) -> Result<(), String> {
    let bundle = Bundle::read(call.bundle.as_deref().unwrap_or(Path::new(".")))?;
    refuse_unmovable(&bundle)?;
    find_runc().map_err(|e| e.to_string())?;
    let mut holder = spawn_holder(call, stage, &bundle)?;
    let pid = i32::try_from(holder.id()).map_err(|e| e.to_string())?;
    let rest = || {
        for hook in bundle.create_hooks() {
            run_hook(&hook, &bundle.state(&call.id, pid, "created").to_string())?;
        }
        if let Some(file) = &call.pid_file {
            write_pid(file, pid).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
        }
        Ok(())
    };
    rest().inspect_err(|_| {
        let _ = holder.kill();
        let _ = holder.wait();
    })
}

fn refuse_unmovable(bundle: &Bundle) -> Result<(), String> {
    if bundle.network() == Network::Host {
        return Err(
            "this container uses the host's network, whose addresses and connections cannot move; \
                    blip stages only containers with a network namespace"
                .into(),
        );
    }
    if !bundle.own_pids() {
        return Err(
            "this container shares its pid namespace with others; CRIU restores only a namespace \
                    of its own"
                .into(),
        );
    }
    Ok(())
}

/// Starts the holder and waits until it stands.
///
/// It inherits standard input, output and error, which are the container's,
/// and outlives this process, whereupon containerd's shim, the nearest
/// subreaper, becomes its parent.
fn spawn_holder(call: &Invocation, stage: &StageDir, bundle: &Bundle) -> Result<Child, String> {
    let fail = |e: &dyn std::fmt::Display| format!("cannot start the holder of the container: {e}");
    let (mut ready, tell) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
        .map(|(r, w)| (std::fs::File::from(r), w))
        .map_err(|e| fail(&e))?;
    fcntl(&tell, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|e| fail(&e))?;
    let myself = std::env::current_exe().map_err(|e| fail(&e))?;
    let mut command = Command::new(myself);
    if bundle.terminal() {
        // Output and errors are this command's own then, and containerd waits
        // until nobody holds them any more.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    }
    let mut holder = command
        .envs(call.console_socket.iter().map(|socket| (CONSOLE_VARIABLE, socket)))
        .args(["runtime", "holder"])
        .arg(&call.id)
        .arg(stage.path())
        .arg(bundle.dir())
        .arg(tell.as_raw_fd().to_string())
        .args(&call.global.raw)
        .spawn()
        .map_err(|e| fail(&e))?;
    drop(tell);
    let mut said = String::new();
    let read = ready.read_to_string(&mut said);
    if read.is_ok() && said == "ready" {
        return Ok(holder);
    }
    let _ = holder.kill();
    let _ = holder.wait();
    Err(fail(&if said.is_empty() { "it ended at once".to_owned() } else { said }))
}

/// Runs one hook as the OCI specification says: the state on its standard
/// input, and failure when it ends with another status than 0.
fn run_hook(hook: &OciHook, state: &str) -> Result<(), String> {
    let fail = |e: &dyn std::fmt::Display| format!("the hook {} failed: {e}", hook.path.display());
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    if !hook.env.is_empty() {
        command.env_clear().envs(hook.env.iter().filter_map(|e| e.split_once('=')));
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| fail(&e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its input.
        let _ = stdin.write_all(state.as_bytes());
    }
    if let Some(seconds) = hook.timeout {
        let end = Instant::now() + Duration::from_secs(seconds);
        while child.try_wait().map_err(|e| fail(&e))?.is_none() {
            if Instant::now() >= end {
                let _ = child.kill();
                let _ = child.wait();
                return Err(fail(&format!("no end after {seconds} s")));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let out = child.wait_with_output().map_err(|e| fail(&e))?;
    if out.status.success() {
        return Ok(());
    }
    Err(fail(&format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim())))
}

/// In one step, as containerd reads it without a lock.
fn write_pid(file: &Path, pid: i32) -> std::io::Result<()> {
    let fresh = file.with_extension("blip-new");
    std::fs::write(&fresh, pid.to_string())?;
    std::fs::rename(fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Option<u64>) -> OciHook {
        OciHook {
            path: "/bin/sh".into(),
            args: vec!["hook".into(), "-c".into(), script.into()],
            env: vec!["SAID=yes".into()],
            timeout,
        }
    }

    #[test]
    fn a_hook_gets_the_state_and_its_environment() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        run_hook(
            &sh(&format!("cat > {}; test $SAID = yes", out.display()), Some(5)),
            "{\"pid\":1}",
        )
        .unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "{\"pid\":1}");
    }

    #[test]
    fn a_failing_or_endless_hook_is_an_error() {
        let err = run_hook(&sh("echo broken >&2; exit 3", None), "{}").unwrap_err();
        assert!(err.contains("broken"), "{err}");
        let err = run_hook(&sh("sleep 60", Some(0)), "{}").unwrap_err();
        assert!(err.contains("no end"), "{err}");
    }
}
