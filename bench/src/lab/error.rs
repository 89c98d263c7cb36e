//! What can go wrong with a lab, in words that say what to do.

use std::path::{Path, PathBuf};

/// Why a lab could not be made, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Not run as root.
    #[error(
        "the lab needs root, for namespaces, mounts and cgroups: run the same command with sudo"
    )]
    NeedsRoot,
    /// The machine lacks something; all of it is named at once.
    #[error("this machine cannot hold the lab: {0}")]
    Missing(String),
    /// A name that would not do in paths and cgroups.
    #[error(
        "`{0}` cannot name a lab: use 1 to 24 lower-case letters, digits and dashes, a letter first"
    )]
    BadName(String),
    /// Too few or too many hosts.
    #[error("a lab cannot have {0} hosts: ask for 1 to {most}", most = super::MOST_HOSTS)]
    Hosts(usize),
    /// There is no such lab.
    #[error("no lab `{0}` is up: start it with `blip-bench lab up --name {0}`")]
    NotUp(String),
    /// A lab of this name is up, but of another shape.
    #[error(
        "lab `{name}` is already up with {is}, not {wanted}: choose another --name, or take it down first"
    )]
    Different {
        /// The lab.
        name: String,
        /// What it is.
        is: String,
        /// What was asked for.
        wanted: String,
    },
    /// No such host in the lab.
    #[error("lab `{lab}` has no host `{host}`: it has {known} and client")]
    NoHost {
        /// The lab.
        lab: String,
        /// The host asked for.
        host: String,
        /// The hosts it has.
        known: String,
    },
    /// Labs stand on the cache that was to be removed.
    #[error("the cache is in use by the labs {0}: take them down first")]
    InUse(String),
    /// All slots are taken, or their folder cannot be written.
    #[error("all 256 subnets of labs are taken: take some lab down")]
    NoSlot,
    /// A program failed.
    #[error("{doing}: `{program}` {how}{said}")]
    Program {
        /// What it was run for.
        doing: String,
        /// The program.
        program: String,
        /// Its exit status or why it did not start.
        how: String,
        /// The end of what it said, after a colon.
        said: String,
    },
    /// A host did not come up.
    #[error("host `{host}` did not come up: {why}; the end of its log:\n{log}")]
    Host {
        /// The host.
        host: String,
        /// What was waited for.
        why: String,
        /// The last lines of its log.
        log: String,
    },
    /// Processes that do not die, or cgroups that stay busy.
    #[error(
        "the cgroups blip-lab-{0} cannot be emptied: see which processes in them do not die, then repeat `lab down`"
    )]
    Undead(String),
    /// Something with a file or a kernel object.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A thread of the lab panicked.
    #[error("a thread of the lab panicked: this is a bug in the lab")]
    Panicked,
}

/// Gives an I/O error the context that makes it readable.
pub(super) trait Context<T> {
    /// Says what was tried, and on which path.
    fn on(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T, LabError>;
}

/// An I/O error with what was tried, and on which path.
pub(crate) fn on(doing: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> LabError {
    LabError::Io { doing, path: path.as_ref().to_path_buf(), source }
}

impl<T, E: Into<std::io::Error>> Context<T> for Result<T, E> {
    fn on(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T, LabError> {
        self.map_err(|e| self::on(doing, path, e.into()))
    }
}
