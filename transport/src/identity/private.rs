//! Files and directories nobody else may touch.
//!
//! Everything here refuses what others could read or replace, and writes so
//! that a crash leaves the old content or the new, never a part.

use super::IdentityError;
use nix::fcntl::{Flock, FlockArg, OFlag};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Permissions of a private directory.
const DIRECTORY_MODE: u32 = 0o700;
/// Permissions of a private file.
const FILE_MODE: u32 = 0o600;
/// Nothing kept here is larger; what is, is not ours.
const MAX_FILE: u64 = 1 << 20;

/// Makes `dir` (and its parents) private if absent, refuses it if exposed.
pub(super) fn ensure_directory(dir: &Path) -> Result<(), IdentityError> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(dir)
        .map_err(|e| IdentityError::io("create directory", dir, e))?;
    check_directory(dir)
}

/// Refuses `dir` unless it is a directory of ours that only we can enter.
pub(super) fn check_directory(dir: &Path) -> Result<(), IdentityError> {
    let meta = fs::metadata(dir).map_err(|e| IdentityError::io("look at", dir, e))?;
    if !meta.is_dir() {
        return Err(IdentityError::WrongKind { path: dir.to_owned(), wanted: "directory" });
    }
    check_access(dir, &meta, DIRECTORY_MODE)
}

/// The text of a private file, or `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    let open = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path);
    let file = match open {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| IdentityError::io("open", path, e))?,
    };
    let meta = file.metadata().map_err(|e| IdentityError::io("look at", path, e))?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(IdentityError::WrongKind { path: path.to_owned(), wanted: "small plain file" });
    }
    check_access(path, &meta, FILE_MODE)?;
    let mut text = String::new();
    file.take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(|e| IdentityError::io("read", path, e))?;
    Ok(Some(text))
}

/// Writes `content` to `path` unless something is there already.
pub(super) fn create_if_absent(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    let temporary = write_temporary(path, content)?;
    // A link, unlike a rename, fails if the name is taken.
    let linked = fs::hard_link(&temporary, path);
    let removed = fs::remove_file(&temporary);
    match linked {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        other => other.map_err(|e| IdentityError::io("create", path, e))?,
    }
    removed.map_err(|e| IdentityError::io("remove", &temporary, e))?;
    sync_parent(path)
}

/// Replaces `path` by `content` in one step.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    let temporary = write_temporary(path, content)?;
    if let Err(e) = fs::rename(&temporary, path) {
        let _ = fs::remove_file(&temporary);
        return Err(IdentityError::io("replace", path, e));
    }
    sync_parent(path)
}

/// Keeps other processes' changes out of `dir` while it lives.
pub(super) fn lock(dir: &Path) -> Result<Flock<File>, IdentityError> {
    let handle = File::open(dir).map_err(|e| IdentityError::io("open", dir, e))?;
    Flock::lock(handle, FlockArg::LockExclusive)
        .map_err(|(_, errno)| IdentityError::io("lock", dir, errno.into()))
}

fn write_temporary(path: &Path, content: &[u8]) -> Result<PathBuf, IdentityError> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{number}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    // Left by a dead process that had our number; a file of ours in any case.
    let _ = fs::remove_file(&temporary);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    if let Err(e) = written {
        let _ = fs::remove_file(&temporary);
        return Err(IdentityError::io("write", &temporary, e));
    }
    Ok(temporary)
}

fn sync_parent(path: &Path) -> Result<(), IdentityError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| IdentityError::io("flush directory", dir, e))
}

fn check_access(path: &Path, meta: &fs::Metadata, right: u32) -> Result<(), IdentityError> {
    let us = nix::unistd::geteuid().as_raw();
    if meta.uid() != us {
        return Err(IdentityError::ForeignOwner { path: path.to_owned(), owner: meta.uid(), us });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode, right });
    }
    Ok(())
}
