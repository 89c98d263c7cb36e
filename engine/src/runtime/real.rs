//! Finding runc, and becoming it.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// No runc was found.
#[derive(Debug, thiserror::Error)]
#[error("found no runc in PATH or the usual places ({0}); install runc, or name it in BLIP_RUNC")]
pub struct RealRuncError(String);

const USUAL: &[&str] =
    &["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/bin", "/sbin"];

/// The path of the real runc: `$BLIP_RUNC`, then `PATH`, then the usual
/// places. Never this program itself, under whatever name it is installed.
///
/// # Errors
/// When none of these holds an executable `runc`.
pub fn find_runc() -> Result<PathBuf, RealRuncError> {
    let named = std::env::var_os("BLIP_RUNC").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let myself = std::fs::metadata("/proc/self/exe").ok().map(|m| (m.dev(), m.ino()));
    named
        .into_iter()
        .chain(std::env::split_paths(&path).map(|dir| dir.join("runc")))
        .chain(USUAL.iter().map(|dir| Path::new(dir).join("runc")))
        .find(|candidate| {
            candidate.is_absolute()
                && std::fs::metadata(candidate).is_ok_and(|m| {
                    m.is_file()
                        && m.permissions().mode() & 0o111 != 0
                        && Some((m.dev(), m.ino())) != myself
                })
        })
        .ok_or_else(|| RealRuncError(USUAL.join(", ")))
}

/// Replaces this process by runc; returns the reason when it could not.
pub(super) fn exec(runc: &Path, args: &[OsString]) -> String {
    let why = Command::new(runc).args(args).exec();
    format!("cannot execute {}: {why}", runc.display())
}
