//! The last moment: CRIU's action script before the first instruction.
//!
//! CRIU runs the script at several points and goes on whatever it returns at
//! the one that matters, `pre-resume`: all tasks are restored then, stopped
//! under ptrace at the door to their programs. So the script itself enforces
//! the answer: unless it has heard *go*, it kills the init of the restored pid
//! namespace and everything in it. Should the hook process itself be killed,
//! the shell that started it does the same in its stead.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::procfs;
use super::stage::StageDir;
use super::stage::wire::{self, HookOrder, Report};

/// The variable that carries the stage directory through runc and CRIU.
pub(super) const STAGE_VARIABLE: &str = "BLIP_STAGE";
/// And this program's path.
pub(super) const BLIP_VARIABLE: &str = "BLIP_EXE";

/// Where the script stands: `/run` may be mounted `noexec`.
const SCRIPT: &str = "/var/lib/blip/criu-action";

const SCRIPT_TEXT: &str = "#!/bin/sh
# CRIU calls this while it restores a container that blip moves here.
[ \"$CRTOOLS_SCRIPT_ACTION\" = pre-resume ] || exit 0
\"$BLIP_EXE\" runtime hook && exit 0
kill -9 \"$CRTOOLS_INIT_PID\"
exit 1
";

/// `blip runtime hook`, called by the script at `pre-resume`.
pub(super) fn main(_args: &[OsString]) -> ExitCode {
    let init: Option<i32> = std::env::var("CRTOOLS_INIT_PID").ok().and_then(|p| p.parse().ok());
    let stage = std::env::var_os(STAGE_VARIABLE).map(|p| StageDir::given(Path::new(&p)));
    let (Some(init_pid), Some(stage)) = (init, stage) else {
        let _ = writeln!(io::stderr(), "blip hook: not called by a restore of blip's");
        return ExitCode::FAILURE;
    };
    let heard = wait_for_word(&stage, init_pid);
    // The mark comes before the first instruction, so that an agent that lost
    // its memory can trust its absence.
    let granted = heard.and_then(|()| stage.mark_granted(init_pid));
    match granted {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(io::stderr(), "blip hook: not granted: {why}");
            exclude(init_pid);
            ExitCode::FAILURE
        }
    }
}

/// Returns when the agent said *go*; everything else is an error.
fn wait_for_word(stage: &StageDir, init_pid: i32) -> io::Result<()> {
    let stream = UnixStream::connect(stage.socket())?;
    wire::send(&stream, &Report::Held { init_pid })?;
    match wire::receive(&mut BufReader::new(&stream))? {
        Some(HookOrder::Go) => Ok(()),
        Some(HookOrder::Die) => Err(io::Error::other("the agent said no")),
        None => Err(io::Error::other("the agent is gone")),
    }
}

/// Kills everything in the pid namespace of `init_pid` and returns when none
/// of it can execute an instruction any more.
fn exclude(init_pid: i32) {
    let own = procfs::pid_namespace(i32::try_from(std::process::id()).unwrap_or(0));
    let members = match procfs::pid_namespace(init_pid) {
        Some(namespace) if Some(&namespace) != own.as_ref() => procfs::in_pid_namespace(&namespace),
        _ => Vec::new(),
    };
    let everyone: Vec<i32> = members.into_iter().chain([init_pid]).collect();
    for &pid in &everyone {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    // Threads in a ptrace stop die of SIGKILL without being let go.
    let begun = Instant::now();
    while !everyone.iter().all(|&pid| procfs::is_ending(pid))
        && begun.elapsed() < Duration::from_secs(10)
    {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Puts the action script in its place and returns its path.
///
/// # Errors
/// When it cannot be written.
pub fn install_script() -> io::Result<PathBuf> {
    let path = PathBuf::from(SCRIPT);
    if fs::read_to_string(&path).is_ok_and(|text| text == SCRIPT_TEXT) {
        return Ok(path);
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let fresh = path.with_extension(format!("new{}", std::process::id()));
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o700).open(&fresh)?;
    file.write_all(SCRIPT_TEXT.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o700))?;
    drop(file);
    fs::rename(fresh, &path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    fn answer(with: &'static [u8]) -> io::Result<()> {
        let root = tempfile::tempdir().unwrap();
        let stage = StageDir::make(root.path(), "c1").unwrap();
        let listener = UnixListener::bind(stage.socket()).unwrap();
        let agent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let held: Option<Report> = wire::receive(&mut BufReader::new(&stream)).unwrap();
            assert_eq!(held, Some(Report::Held { init_pid: 7 }));
            stream.write_all(with).unwrap();
        });
        let heard = wait_for_word(&stage, 7);
        agent.join().unwrap();
        heard
    }

    #[test]
    fn only_the_very_word_is_a_grant() {
        answer(b"\"go\"\n").unwrap();
        for not in [&b"\"die\"\n"[..], b"", b"\"go\"", b"go\n", b"\"gone\"\n", b"{\"go\":1}\n"] {
            assert!(answer(not).is_err(), "{:?}", String::from_utf8_lossy(not));
        }
    }

    #[test]
    fn no_agent_is_no_grant() {
        let root = tempfile::tempdir().unwrap();
        let stage = StageDir::make(root.path(), "c1").unwrap();
        assert!(wait_for_word(&stage, 7).is_err());
    }

    #[test]
    fn exclusion_waits_for_the_end() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        exclude(pid);
        assert!(procfs::is_ending(pid));
        child.wait().unwrap();
    }
}
