//! Where a lab keeps things, and the locks on them.
//!
//! | what | where |
//! |---|---|
//! | state, namespace mounts | `/run/blip-lab/NAME/` |
//! | the hosts' writable file systems | `/var/lib/blip-lab/NAME/HOST/` (`BLIP_LAB_VAR`) |
//! | root file systems and images | `/var/cache/blip-lab/` (`BLIP_LAB_CACHE`) |

use super::error::Context as _;
use super::{LabError, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

const RUN: &str = "/run/blip-lab";

/// The folders of one lab.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// The lab's name.
    pub(super) name: String,
    /// State and namespace mounts; gone after a reboot.
    pub(super) run: PathBuf,
    /// The hosts' writable file systems.
    pub(super) var: PathBuf,
}

/// Checks that a name is safe in paths, cgroups and host names.
pub(super) fn valid_name(name: &str) -> Result<&str> {
    let fits = (1..=24).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits { Ok(name) } else { Err(LabError::BadName(name.into())) }
}

/// The folder of cached root file systems and images.
pub(super) fn cache() -> PathBuf {
    folder("BLIP_LAB_CACHE", "/var/cache/blip-lab")
}

fn var() -> PathBuf {
    folder("BLIP_LAB_VAR", "/var/lib/blip-lab")
}

fn folder(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).filter(|v| !v.is_empty()).map_or_else(|| default.into(), Into::into)
}

/// Names of all labs that left something in `/run` or `/var/lib`.
pub(super) fn names() -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for dir in [PathBuf::from(RUN), var()] {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).on("reading", &dir),
        };
        let found = entries.flatten().filter(|e| e.path().is_dir());
        names.extend(found.filter_map(|e| e.file_name().into_string().ok()));
    }
    names.retain(|n| valid_name(n).is_ok());
    names.sort();
    names.dedup();
    Ok(names)
}

impl Paths {
    /// The folders of the lab of this (valid) name.
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into(), run: Path::new(RUN).join(name), var: var().join(name) }
    }

    /// The file that holds the lab's state.
    pub(super) fn state(&self) -> PathBuf {
        self.run.join("state.json")
    }

    /// What the machine's limit of a pipe was before the lab raised it.
    pub(super) fn pipe_limit(&self) -> PathBuf {
        self.run.join("pipe-max-size")
    }

    /// The mount that keeps a network namespace alive.
    pub(super) fn net(&self, of: &str) -> PathBuf {
        self.run.join("net").join(of)
    }

    /// A host's writable files.
    pub(super) fn host(&self, host: &str) -> PathBuf {
        self.var.join(host)
    }

    /// Makes the lab's folders; only root may look into them.
    pub(super) fn create(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        for dir in [self.run.join("net"), self.var.clone()] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).on("making", &dir)?;
        }
        Ok(())
    }

    /// Waits until no other program brings this lab up or down. The kernel
    /// lets go of the lock when its holder dies.
    pub(super) fn lock(&self) -> Result<Flock<fs::File>> {
        lock(&Path::new(RUN).join(format!("{}.lock", self.name)))
    }

    /// Takes the lowest free slot. A slot is a symbolic link to the lab's
    /// name: made and labelled in one atomic step.
    pub(super) fn claim_slot(&self) -> Result<u8> {
        let dir = slots();
        fs::create_dir_all(&dir).on("making", &dir)?;
        for slot in 0..=u8::MAX {
            let link = dir.join(slot.to_string());
            match std::os::unix::fs::symlink(&self.name, &link) {
                Ok(()) => return Ok(slot),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).on("claiming", link),
            }
        }
        Err(LabError::NoSlot)
    }

    /// Removes all folders of the lab and gives its slot back.
    pub(super) fn remove(&self) -> Result<()> {
        for dir in [&self.run, &self.var] {
            match fs::remove_dir_all(dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).on("removing", dir);
                }
                _ => {}
            }
        }
        for slot in fs::read_dir(slots()).into_iter().flatten().flatten().map(|e| e.path()) {
            if fs::read_link(&slot).is_ok_and(|name| name == Path::new(&self.name)) {
                fs::remove_file(&slot).on("removing", &slot)?;
            }
        }
        // The last lab turns off the light; these fail while others stand.
        let lock = Path::new(RUN).join(format!("{}.lock", self.name));
        let _ = fs::remove_file(lock);
        for dir in [slots(), RUN.into(), var()] {
            let _ = fs::remove_dir(dir);
        }
        Ok(())
    }
}

fn slots() -> PathBuf {
    Path::new(RUN).join(".slots")
}

/// Takes an exclusive lock on a file, making it if need be. Its holder may
/// have removed the file by the time the lock is ours: then we ask again.
pub(super) fn lock(path: &Path) -> Result<Flock<fs::File>> {
    loop {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).on("making", dir)?;
        }
        let file = match fs::File::options().create(true).append(true).open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.on("opening", path)?,
        };
        let held =
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).on("locking", path)?;
        let ours = held.metadata().on("reading", path)?.ino();
        if fs::metadata(path).is_ok_and(|m| m.ino() == ours) {
            return Ok(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_safe_in_paths_and_cgroups_pass() {
        for good in ["a", "blip", "v1-trixie", "x0"] {
            assert_eq!(valid_name(good).ok(), Some(good));
        }
        for bad in ["", "A", "0x", "..", "a/b", "a b", "a_b", &"x".repeat(25)] {
            assert!(valid_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_asked_for_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.lock");
        let first = lock(&path).expect("first lock");
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || lock(&path).map(|l| l.metadata().map(|m| m.ino()))
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::remove_file(&path).expect("removing");
        drop(first);
        let ino = waiter.join().expect("thread").expect("second lock").expect("inode");
        assert_eq!(ino, fs::metadata(&path).expect("file").ino());
    }
}
