//! The part of runc's command line that matters here.
//!
//! What is not understood is never an error: it is runc's to judge.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// runc's options before the command.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Global {
    /// All of them, as given, to be repeated for `runc restore`.
    pub(super) raw: Vec<OsString>,
    /// `--root`: where runc keeps its state.
    pub(super) root: Option<PathBuf>,
    /// `--log`: where errors are to be written.
    pub(super) log: Option<PathBuf>,
    /// `--log-format json`.
    pub(super) log_json: bool,
    /// `--systemd-cgroup`: cgroup paths are `slice:prefix:name`.
    pub(super) systemd_cgroup: bool,
}

/// The command for a staged container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Create,
    Start,
    State,
    Kill,
    Delete,
    Ps,
    /// Anything else, by its name.
    Other(String),
}

/// One command line that concerns a staged container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) global: Global,
    pub(super) command: Command,
    pub(super) id: String,
    /// `--bundle`, for `create`.
    pub(super) bundle: Option<PathBuf>,
    /// `--pid-file`, for `create`.
    pub(super) pid_file: Option<PathBuf>,
    /// `--console-socket`, for `create`.
    pub(super) console_socket: Option<PathBuf>,
}

const GLOBAL_WITH_VALUE: &[&str] = &["--root", "--log", "--log-format", "--rootless", "--criu"];

impl Global {
    /// Reads the options before the command; returns them and how many
    /// arguments they took.
    pub(super) fn parse(args: &[OsString]) -> (Self, usize) {
        let mut global = Self::default();
        let mut at = 0;
        while let Some(arg) = args.get(at).filter(|a| is_flag(a)) {
            let (name, value, took) = split(arg, args.get(at + 1), GLOBAL_WITH_VALUE);
            match name.as_str() {
                "--root" => global.root = value.map(PathBuf::from),
                "--log" => global.log = value.map(PathBuf::from),
                "--log-format" => global.log_json = value.is_some_and(|v| v == "json"),
                "--systemd-cgroup" => global.systemd_cgroup = value.is_none_or(|v| v != "false"),
                _ => {}
            }
            global.raw.extend_from_slice(&args[at..(at + took).min(args.len())]);
            at += took;
        }
        (global, at.min(args.len()))
    }
}

impl Invocation {
    /// `None` when no argument names a staged container.
    ///
    /// The container id is the first argument of the command that
    /// `is_staged` knows; ids have no slash, so option values are not looked up.
    pub(super) fn parse(args: &[OsString], is_staged: impl Fn(&str) -> bool) -> Option<Self> {
        let (global, at) = Global::parse(args);
        let command = args.get(at)?.to_str()?;
        let rest = &args[at + 1..];
        let id = rest
            .iter()
            .filter_map(|a| a.to_str())
            .find(|a| !a.starts_with('-') && !a.contains('/') && is_staged(a))?;
        let path = |names: &[&str]| option(rest, names).map(PathBuf::from);
        Some(Self {
            id: id.to_owned(),
            bundle: path(&["--bundle", "-b"]),
            pid_file: path(&["--pid-file"]),
            console_socket: path(&["--console-socket"]),
            command: match command {
                "create" => Command::Create,
                "start" => Command::Start,
                "state" => Command::State,
                "kill" => Command::Kill,
                "delete" => Command::Delete,
                "ps" => Command::Ps,
                other => Command::Other(other.to_owned()),
            },
            global,
        })
    }
}

fn is_flag(arg: &OsStr) -> bool {
    arg.to_str().is_some_and(|a| a.starts_with('-'))
}

/// One option as (name, value, arguments taken); Go takes `-x` for `--x`.
fn split(
    arg: &OsStr,
    next: Option<&OsString>,
    with_value: &[&str],
) -> (String, Option<OsString>, usize) {
    let text = arg.to_string_lossy();
    let (name, inline) = match text.split_once('=') {
        Some((name, value)) => (name, Some(OsString::from(value))),
        None => (&*text, None),
    };
    let name = format!("--{}", name.trim_start_matches('-'));
    match inline {
        Some(value) => (name, Some(value), 1),
        None if with_value.contains(&name.as_str()) => (name, next.cloned(), 2),
        None => (name, None, 1),
    }
}

/// The value of the first option with one of these names.
fn option(args: &[OsString], names: &[&str]) -> Option<OsString> {
    args.iter().enumerate().find_map(|(at, arg)| {
        let arg = arg.to_str()?;
        names.iter().find_map(|name| match arg.strip_prefix(name)? {
            "" => args.get(at + 1).cloned(),
            rest => rest.strip_prefix('=').map(OsString::from),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn reads_what_containerd_gives_to_create() {
        let args = words(
            "--root /run/r/moby --log /b/log.json --log-format json --systemd-cgroup create \
             --bundle /b --pid-file /b/init.pid --console-socket=/t/pty.sock abc",
        );
        let seen = Invocation::parse(&args, |id| id == "abc").unwrap();
        assert_eq!(seen.command, Command::Create);
        assert_eq!(seen.id, "abc");
        assert_eq!(seen.bundle, Some("/b".into()));
        assert_eq!(seen.pid_file, Some("/b/init.pid".into()));
        assert_eq!(seen.console_socket, Some("/t/pty.sock".into()));
        assert_eq!(seen.global.root, Some("/run/r/moby".into()));
        assert_eq!(seen.global.log, Some("/b/log.json".into()));
        assert!(seen.global.log_json && seen.global.systemd_cgroup);
        assert_eq!(seen.global.raw, args[..7]);
    }

    #[test]
    fn reads_inline_and_single_dash_globals() {
        let args = words("-root=/r --debug --log=/l state abc");
        let seen = Invocation::parse(&args, |id| id == "abc").unwrap();
        assert_eq!(seen.global.root, Some("/r".into()));
        assert_eq!(seen.global.log, Some("/l".into()));
        assert_eq!(seen.command, Command::State);
    }

    #[test]
    fn an_unstaged_container_is_not_ours() {
        assert_eq!(Invocation::parse(&words("--root /r start other"), |id| id == "abc"), None);
        assert_eq!(Invocation::parse(&words("features"), |_| true), None);
        assert_eq!(Invocation::parse(&words("--version"), |_| true), None);
        assert_eq!(Invocation::parse(&words("--root"), |_| true), None);
        assert_eq!(Invocation::parse(&[], |_| true), None);
    }

    #[test]
    fn a_path_is_never_taken_for_an_id() {
        let args = words("delete --force /abc");
        assert_eq!(Invocation::parse(&args, |_| true), None);
        let args = words("kill --all abc 9");
        assert_eq!(Invocation::parse(&args, |id| id == "abc").unwrap().command, Command::Kill);
    }
}
