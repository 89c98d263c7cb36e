//! The container's own tmpfs mounts: `/dev`, `/dev/shm`, the empty ones over
//! what Docker masks, and whatever `--tmpfs` asked for.
//!
//! CRIU packs each of them with tar and gzip while the container stands still,
//! and unpacks it before the container runs. Here they are external to CRIU:
//! their files travel in rounds like all others, and the target mounts a fresh
//! tmpfs of the same options for each.

use crate::mounts::Tmpfs;
use blip_transport::units::TreeId;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Trees of other kinds have lower numbers.
const FIRST_TREE: u32 = 1 << 16;

/// One such mount of the running container.
#[derive(Debug)]
pub struct InMemory {
    /// What the target hears of it.
    pub told: Tmpfs,
    /// The file system without what is mounted on top of it.
    bare: OwnedFd,
}

impl InMemory {
    /// All of the container of `init` but those at `elsewhere`, which belong to
    /// the host. What cannot be looked into is left to CRIU.
    pub fn all(init: i32, elsewhere: &[PathBuf]) -> Vec<Self> {
        let text = fs::read_to_string(format!("/proc/{init}/mountinfo")).unwrap_or_default();
        let mut found = own_mounts(&text);
        found.retain(|mount| !elsewhere.iter().any(|path| *path == mount.destination));
        let opened = found.into_iter().enumerate().filter_map(|(number, mount)| {
            match bare(init, &mount.destination) {
                Ok(bare) => Some(Self::of(number as u32, mount, bare)),
                Err(error) => {
                    tracing::warn!("CRIU packs the tmpfs at {:?}: {error}", mount.destination);
                    None
                }
            }
        });
        opened.collect()
    }

    fn of(number: u32, mount: OwnMount, bare: OwnedFd) -> Self {
        // Nobody in the container can put anything into one that is mounted
        // read-only: empty, it stays so.
        let empty = fs::read_dir(path_of(&bare)).is_ok_and(|mut names| names.next().is_none());
        let travels = !(mount.read_only && empty);
        let tree = travels.then_some(TreeId(FIRST_TREE + number));
        let OwnMount { destination, options, .. } = mount;
        Self { told: Tmpfs { number, destination, options, tree }, bare }
    }

    /// Where this process sees its files.
    pub fn path(&self) -> PathBuf {
        path_of(&self.bare)
    }

    /// What CRIU must be told when it dumps.
    pub fn external(&self) -> String {
        format!("mnt[{}]:{}", self.told.destination.display(), self.told.key())
    }
}

fn path_of(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// A mount as `/proc/PID/mountinfo` has it.
#[derive(Debug, PartialEq, Eq)]
struct OwnMount {
    destination: PathBuf,
    /// Of the file system, as mount(2) takes them.
    options: String,
    /// The mount, whatever the file system is.
    read_only: bool,
}

/// Whole tmpfs that are mounted in one place only. What is there twice, or in
/// part, CRIU has to put together.
fn own_mounts(mountinfo: &str) -> Vec<OwnMount> {
    let mut places: HashMap<&str, u32> = HashMap::new();
    for line in mountinfo.lines() {
        *places.entry(line.split(' ').nth(2).unwrap_or_default()).or_default() += 1;
    }
    let own = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let (device, root, at, flags) = (left.next()?, left.next()?, left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, _, options) = (right.next()?, right.next()?, right.next()?);
        // Names that are written in an escaped form are nobody's usual choice.
        let plain = !at.contains('\\') && !options.contains(['\\', '"']);
        if kind != "tmpfs" || root != "/" || places[device] != 1 || !plain {
            return None;
        }
        let options = options.split(',').filter(|word| !matches!(*word, "rw" | "ro"));
        Some(OwnMount {
            destination: at.into(),
            options: options.collect::<Vec<_>>().join(","),
            read_only: flags.split(',').any(|flag| flag == "ro"),
        })
    };
    mountinfo.lines().filter_map(own).collect()
}

/// A view of the file system mounted at `destination` in the mount namespace of
/// `init`, without the mounts on top of it. It is attached nowhere.
fn bare(init: i32, destination: &Path) -> io::Result<OwnedFd> {
    let namespace = File::open(format!("/proc/{init}/ns/mnt"))?;
    let look = || -> io::Result<OwnedFd> {
        unshare(CloneFlags::CLONE_FS)?;
        setns(&namespace, CloneFlags::CLONE_NEWNS)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(open_tree(CWD, destination, flags)?)
    };
    // The namespace is that of the thread, which ends with the look.
    std::thread::scope(|scope| {
        let looked = scope.spawn(look).join();
        looked.unwrap_or_else(|_| Err(io::Error::other("the thread that looks panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_file_systems_in_one_place_are_own() {
        let text = "1 0 0:40 / / rw - overlay overlay rw,lowerdir=/l\n\
                    2 1 0:41 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755,inode64\n\
                    3 2 0:42 / /dev/shm rw - tmpfs shm rw,size=65536k\n\
                    4 1 0:43 / /proc/acpi ro,relatime - tmpfs tmpfs ro,inode64\n\
                    5 1 0:44 /part /a rw - tmpfs tmpfs rw\n\
                    6 1 0:45 / /b rw - tmpfs tmpfs rw\n\
                    7 1 0:45 / /c rw - tmpfs tmpfs rw\n\
                    8 1 0:46 / /odd\\040name rw - tmpfs tmpfs rw\n\
                    9 1 0:47 / /v rw - ext4 /dev/sda rw\n";
        let own = own_mounts(text);
        let at: Vec<_> = own.iter().map(|mount| mount.destination.to_str().unwrap()).collect();
        assert_eq!(at, ["/dev", "/dev/shm", "/proc/acpi"]);
        assert_eq!(own[0].options, "size=65536k,mode=755,inode64");
        assert_eq!(own.iter().map(|m| m.read_only).collect::<Vec<_>>(), [false, false, true]);
    }
}
