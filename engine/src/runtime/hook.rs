//! The last moment: CRIU's action script before the first instruction.
//!
//! CRIU runs the script at several points and goes on whatever it returns at
//! the one that matters, `pre-resume`: all tasks are restored then, stopped
//! under ptrace at the door to their programs. So the script itself enforces
//! the answer: unless it has heard *go*, it kills the init of the restored pid
//! namespace and everything in it ([`exclusion`]). Should the hook process itself be killed,
//! the shell that started it does the same in its stead.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::exclusion;
use super::stage::StageDir;
use super::stage::wire::{self, HookOrder, Report};

/// The variable that carries the stage directory through runc and CRIU.
pub(super) const STAGE_VARIABLE: &str = "BLIP_STAGE";
/// And this program's path.
pub(super) const BLIP_VARIABLE: &str = "BLIP_EXE";

/// And the script's, for the library that CRIU loads.
pub(super) const ACTION_VARIABLE: &str = "BLIP_ACTION";

/// Where the script stands: `/run` may be mounted `noexec`.
const SCRIPT: &str = "/var/lib/blip/criu-action";

const SCRIPT_TEXT: &str = "#!/bin/sh
# CRIU calls this while it restores a container that blip moves here.
[ \"$CRTOOLS_SCRIPT_ACTION\" = pre-resume ] || exit 0
\"$BLIP_EXE\" runtime hook && exit 0
kill -9 \"$CRTOOLS_INIT_PID\"
exit 1
";

/// How the hook's last words begin in CRIU's log, where its standard error goes.
const REFUSAL: &str = "blip hook: not granted: ";

/// The hook's reason, if this line of CRIU's log is its last word.
pub(super) fn refusal(line: &str) -> Option<&str> {
    line.strip_prefix(REFUSAL)
}

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
            let _ = writeln!(io::stderr(), "{REFUSAL}{why}");
            if exclusion::kill_namespace(init_pid) {
                exclusion::kill_calling_criu();
            }
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
}
