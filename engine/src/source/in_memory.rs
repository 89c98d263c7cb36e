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
use std::collections::BTreeMap;
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
    /// All of the container of `init`. `external` is what CRIU is told already
    /// to leave to others; what cannot be looked into is left to CRIU.
    pub fn all(init: i32, external: &[String]) -> Vec<Self> {
        let text = fs::read_to_string(format!("/proc/{init}/mountinfo")).unwrap_or_default();
        let found = own(&text, external).into_iter().enumerate();
        let opened = found.filter_map(|(number, own)| match bare(init, &own.destinations[0]) {
            Ok(bare) => Some(Self::of(number as u32, own, bare)),
            Err(error) => {
                tracing::warn!("CRIU packs the tmpfs at {:?}: {error}", own.destinations);
                None
            }
        });
        opened.collect()
    }

    fn of(number: u32, own: Own, bare: OwnedFd) -> Self {
        // Nobody in the container can put anything into one that is mounted
        // read-only: empty, it stays so.
        let empty = fs::read_dir(path_of(&bare)).is_ok_and(|mut names| names.next().is_none());
        let travels = !(own.read_only && empty);
        let tree = travels.then_some(TreeId(FIRST_TREE + number));
        let Own { destinations, options, .. } = own;
        Self { told: Tmpfs { number, destinations, options, tree }, bare }
    }

    /// Where this process sees its files.
    pub fn path(&self) -> PathBuf {
        path_of(&self.bare)
    }

    /// What CRIU must be told when it dumps.
    pub fn external(&self) -> impl Iterator<Item = String> {
        let key = self.told.key();
        self.told.destinations.iter().map(move |at| format!("mnt[{}]:{key}", at.display()))
    }
}

fn path_of(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// A whole tmpfs and every place it is mounted at.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    destinations: Vec<PathBuf>,
    /// Of the file system, as mount(2) takes them.
    options: String,
    /// Each of the mounts, whatever the file system is.
    read_only: bool,
}

/// A line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
struct Line<'a> {
    device: &'a str,
    root: &'a str,
    at: &'a str,
    flags: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let (device, root, at, flags) = (left.next()?, left.next()?, left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, _, options) = (right.next()?, right.next()?, right.next()?);
        Some(Self { device, root, at, flags, kind, options })
    }
}

/// The tmpfs that belong to the container alone. One of which a part is mounted
/// somewhere, or that the host has a hand in, CRIU has to put together.
fn own(mountinfo: &str, external: &[String]) -> Vec<Own> {
    let mut devices: BTreeMap<&str, Vec<Line>> = BTreeMap::new();
    let lines = mountinfo.lines().filter_map(Line::of).filter(|line| line.kind == "tmpfs");
    lines.for_each(|line| devices.entry(line.device).or_default().push(line));
    let others = |line: &Line| {
        let name = format!("mnt[{}]:", line.at);
        external.iter().any(|told| told.starts_with(&name))
    };
    devices.into_values().filter_map(|lines| whole(&lines, others)).collect()
}

fn whole(lines: &[Line], others: impl Fn(&Line) -> bool) -> Option<Own> {
    // Masks over single files are parts of `/dev` and looked after already.
    let (whole, parts): (Vec<&Line>, Vec<&Line>) = lines.iter().partition(|line| line.root == "/");
    let options = whole.first()?.options;
    // Names that are written in an escaped form are nobody's usual choice.
    let plain = !options.contains(['\\', '"']) && whole.iter().all(|line| !line.at.contains('\\'));
    if !plain || whole.iter().any(|line| others(line)) || !parts.into_iter().all(others) {
        return None;
    }
    let options = options.split(',').filter(|word| !matches!(*word, "rw" | "ro"));
    let read_only = |line: &&Line| line.flags.split(',').any(|flag| flag == "ro");
    Some(Own {
        destinations: whole.iter().map(|line| line.at.into()).collect(),
        options: options.collect::<Vec<_>>().join(","),
        read_only: whole.iter().all(read_only),
    })
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
    fn whole_file_systems_of_the_container_alone_are_own() {
        let text = "1 0 0:40 / / rw - overlay overlay rw,lowerdir=/l\n\
                    2 1 0:41 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755,inode64\n\
                    3 2 0:42 / /dev/shm rw - tmpfs shm rw,size=65536k\n\
                    4 1 0:43 / /proc/acpi ro,relatime - tmpfs tmpfs ro,inode64\n\
                    5 1 0:43 / /sys/firmware ro,relatime - tmpfs tmpfs ro,inode64\n\
                    6 1 0:41 /null /proc/keys rw - tmpfs tmpfs rw\n\
                    7 1 0:44 /part /a rw - tmpfs tmpfs rw\n\
                    8 1 0:45 / /b rw - tmpfs tmpfs rw\n\
                    9 1 0:45 /part /c rw - tmpfs tmpfs rw\n\
                    10 1 0:46 / /odd\\040name rw - tmpfs tmpfs rw\n\
                    11 1 0:47 / /host rw - tmpfs tmpfs rw\n\
                    12 1 0:48 / /v rw - ext4 /dev/sda rw\n";
        let external = ["mnt[/proc/keys]:/dev/null", "mnt[/host]:/host"].map(str::to_owned);
        let own = own(text, &external);
        let at: Vec<_> = own.iter().map(|own| own.destinations.as_slice()).collect();
        let masks = ["/proc/acpi", "/sys/firmware"].map(PathBuf::from);
        assert_eq!(at, [&[PathBuf::from("/dev")][..], &["/dev/shm".into()], &masks]);
        assert_eq!(own[0].options, "size=65536k,mode=755,inode64");
        assert_eq!(own.iter().map(|own| own.read_only).collect::<Vec<_>>(), [false, false, true]);
    }
}
