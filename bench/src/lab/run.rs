//! Running the machine's own programs.

use super::{LabError, Result};
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Folders of system programs that an ordinary user's `PATH` may lack.
const SYSTEM: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// Search path for programs: the caller's, then the system's.
fn search_path() -> String {
    match std::env::var("PATH") {
        Ok(path) if !path.is_empty() => format!("{path}:{SYSTEM}"),
        _ => SYSTEM.into(),
    }
}

/// Where a program is, if it is installed.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    search_path().split(':').map(|dir| PathBuf::from(dir).join(program)).find(|p| p.is_file())
}

/// A command of the machine, found also where only root's `PATH` looks.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(find(name).unwrap_or_else(|| name.into()));
    command.env("PATH", search_path()).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// A command that, with all its descendants, dies when the lab's process does.
pub(crate) fn leashed(name: &str) -> Command {
    let mut command = program("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"]);
    command.args(["--kill-child", "--mount-proc"]).arg(name);
    command
}

/// Runs a command to its end and takes what it says.
pub(crate) fn run(doing: &str, command: &mut Command) -> Result<Output> {
    finish(doing, command, |c| c.output())
}

/// Runs a command that reads `input`.
pub(crate) fn run_with(doing: &str, command: &mut Command, input: &[u8]) -> Result<Output> {
    finish(doing, command, |c| {
        let mut child =
            c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that stops reading says why in its exit status.
            let _ = stdin.write_all(input);
        }
        child.wait_with_output()
    })
}

fn finish(
    doing: &str,
    command: &mut Command,
    run: impl FnOnce(&mut Command) -> std::io::Result<Output>,
) -> Result<Output> {
    let failure = |how: String, said: &[u8], program: &OsStr| LabError::Program {
        doing: doing.into(),
        program: PathBuf::from(program)
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
        how,
        said: tail(said),
    };
    let output = run(command)
        .map_err(|e| failure(format!("did not start ({e})"), &[], command.get_program()))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    Err(failure(format!("failed ({})", output.status), said, command.get_program()))
}

/// The last lines of what a program said, after a colon.
fn tail(said: &[u8]) -> String {
    let lines = last_lines(&String::from_utf8_lossy(said), 8);
    if lines.is_empty() { String::new() } else { format!(": {lines}") }
}

/// The last `n` lines of a text.
pub(crate) fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}
