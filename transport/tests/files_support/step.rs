//! Random changes to a tree. A step that makes no sense where it lands is
//! skipped, as a program would get an error.

use proptest::prelude::*;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps,
    Uid, XattrFlags,
};
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

/// Names with everything a name may have.
const NAMES: [&[u8]; 7] = [b"a", b"b", b"sp ace", b"new\nline", b"\xff\xfe", b"d", b"file"];

type Place = Vec<usize>;

/// One change.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Dir(Place),
    Write(Place, u64, usize, u8),
    Truncate(Place, u64),
    Punch(Place, u64, u64),
    Replace(Place, usize, u8),
    Symlink(Place, Place),
    Link(Place, Place),
    Rename(Place, Place),
    Exchange(Place, Place),
    Remove(Place),
    Mode(Place, u32),
    Times(Place, i64, i64),
    Xattr(Place, usize, Vec<u8>),
    NoXattr(Place, usize),
    Acl(Place, bool),
    Fifo(Place),
    Socket(Place),
    Owner(Place, u32, u32),
    Device(Place, bool, u32),
}

const XATTRS: [&str; 5] =
    ["user.one", "user.two", "trusted.mine", "security.capability", "trusted.overlay.opaque"];

fn place() -> impl Strategy<Value = Place> {
    prop::collection::vec(0..NAMES.len(), 1..4)
}

/// Several steps; with `root`, also such that only root can take.
pub(crate) fn steps(root: bool, count: Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let extent = 0u64..400_000;
    let common = prop_oneof![
        4 => place().prop_map(Step::Dir),
        4 => (place(), extent.clone(), 1usize..150_000, any::<u8>())
            .prop_map(|(p, at, len, seed)| Step::Write(p, at, len, seed)),
        3 => (place(), Just(0), 0usize..100, any::<u8>())
            .prop_map(|(p, at, len, seed)| Step::Write(p, at, len, seed)),
        1 => (place(), extent.clone()).prop_map(|(p, size)| Step::Truncate(p, size)),
        1 => (place(), extent.clone(), 1..200_000u64).prop_map(|(p, at, n)| Step::Punch(p, at, n)),
        2 => (place(), 0usize..200_000, any::<u8>()).prop_map(|(p, n, s)| Step::Replace(p, n, s)),
        1 => (place(), place()).prop_map(|(p, q)| Step::Symlink(p, q)),
        4 => (place(), place()).prop_map(|(p, q)| Step::Link(p, q)),
        3 => (place(), place()).prop_map(|(p, q)| Step::Rename(p, q)),
        1 => (place(), place()).prop_map(|(p, q)| Step::Exchange(p, q)),
        3 => place().prop_map(Step::Remove),
        1 => (place(), 0u32..0o10000).prop_map(|(p, mode)| Step::Mode(p, mode)),
        1 => (place(), -5i64..1 << 33, 0..1_000_000_000i64).prop_map(|(p, s, n)| Step::Times(p, s, n)),
        1 => (place(), 0..XATTRS.len(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(p, name, value)| Step::Xattr(p, name, value)),
        1 => (place(), 0..XATTRS.len()).prop_map(|(p, name)| Step::NoXattr(p, name)),
        1 => (place(), any::<bool>()).prop_map(|(p, default)| Step::Acl(p, default)),
        1 => place().prop_map(Step::Fifo),
        1 => place().prop_map(Step::Socket),
    ];
    let weight = u32::from(root) * 2;
    let step = prop_oneof![
        36 => common,
        weight + 1 => (place(), 0..3u32, 0..3u32).prop_map(|(p, u, g)| Step::Owner(p, u, g)),
        weight + 1 => (place(), any::<bool>(), 0..300u32).prop_map(|(p, c, n)| Step::Device(p, c, n)),
    ];
    prop::collection::vec(step, count).prop_map(move |steps| {
        let needs_root = |step: &Step| matches!(step, Step::Owner(..) | Step::Device(..));
        let privileged = |step: &Step| matches!(step, Step::Xattr(_, 2.., _));
        steps.into_iter().filter(|step| root || !(needs_root(step) || privileged(step))).collect()
    })
}

impl Step {
    /// Takes the step below `root`, if it can be taken.
    pub(crate) fn run(&self, root: &Path) {
        let _ = self.attempt(root);
    }

    fn attempt(&self, root: &Path) -> std::io::Result<()> {
        let at = |place: &Place| {
            let mut path = root.to_path_buf();
            path.extend(place.iter().map(|name| OsStr::from_bytes(NAMES[*name])));
            path
        };
        let (empty, nofollow) = (XattrFlags::empty(), AtFlags::SYMLINK_NOFOLLOW);
        match self {
            Step::Dir(p) => fs::create_dir(at(p))?,
            Step::Write(p, offset, len, seed) => {
                file(&at(p), true)?.write_all_at(&noise(*len, *seed), *offset)?;
            }
            Step::Truncate(p, size) => file(&at(p), false)?.set_len(*size)?,
            Step::Punch(p, offset, len) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(file(&at(p), false)?, flags, *offset, *len)?;
            }
            Step::Replace(p, len, seed) => {
                let temporary = at(p).with_extension("tmp");
                fs::write(&temporary, noise(*len, *seed))?;
                if fs::rename(&temporary, at(p)).is_err() {
                    fs::remove_file(&temporary)?;
                }
            }
            Step::Symlink(p, to) => symlink(at(to), at(p))?,
            Step::Link(p, to) => fs::hard_link(at(to), at(p))?,
            Step::Rename(p, to) => fs::rename(at(p), at(to))?,
            Step::Exchange(p, to) => {
                rustix::fs::renameat_with(CWD, at(p), CWD, at(to), RenameFlags::EXCHANGE)?;
            }
            Step::Remove(p) => {
                let path = at(p);
                if fs::symlink_metadata(&path)?.is_dir() {
                    fs::remove_dir_all(path)?;
                } else {
                    fs::remove_file(path)?;
                }
            }
            Step::Mode(p, mode) => {
                let path = real(at(p))?;
                // The owner must be able to get in and to read.
                rustix::fs::chmod(path, Mode::from_raw_mode(*mode | 0o700))?;
            }
            Step::Times(p, seconds, nanos) => {
                let spec = Timespec { tv_sec: *seconds, tv_nsec: *nanos };
                let times = Timestamps { last_access: spec, last_modification: spec };
                rustix::fs::utimensat(CWD, at(p), &times, nofollow)?;
            }
            Step::Xattr(p, name, value) => {
                let mut value = value.as_slice();
                if XATTRS[*name] == "security.capability" {
                    value = b"\x00\x00\x00\x02\x00\x04\x00\x00\0\0\0\0\0\0\0\0\0\0\0\0";
                }
                rustix::fs::lsetxattr(at(p), XATTRS[*name], value, empty)?;
            }
            Step::NoXattr(p, name) => rustix::fs::lremovexattr(at(p), XATTRS[*name])?,
            Step::Acl(p, default) => {
                let name =
                    if *default { "system.posix_acl_default" } else { "system.posix_acl_access" };
                rustix::fs::lsetxattr(at(p), name, &acl(), empty)?;
            }
            Step::Fifo(p) => node(&at(p), FileType::Fifo, 0)?,
            Step::Socket(p) => node(&at(p), FileType::Socket, 0)?,
            Step::Owner(p, uid, gid) => {
                let (uid, gid) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                rustix::fs::chownat(CWD, at(p), uid, gid, nofollow)?;
            }
            Step::Device(p, character, minor) => {
                let kind =
                    if *character { FileType::CharacterDevice } else { FileType::BlockDevice };
                node(&at(p), kind, rustix::fs::makedev(7, *minor))?;
            }
        }
        Ok(())
    }
}

/// Never through a symbolic link: it may lead anywhere.
fn real(path: PathBuf) -> std::io::Result<PathBuf> {
    if fs::symlink_metadata(&path)?.is_symlink() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    Ok(path)
}

fn file(path: &Path, create: bool) -> std::io::Result<fs::File> {
    let mut flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    flags.set(OFlags::CREATE, create);
    let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o640))?;
    let file = fs::File::from(fd);
    if !file.metadata()?.is_file() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    Ok(file)
}

fn node(path: &Path, kind: FileType, device: u64) -> std::io::Result<()> {
    Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device)?)
}

fn noise(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ seed).collect()
}

/// `user::rwx,user:7:r-x,group::r--,mask::rwx,other::---` as the kernel has it.
fn acl() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 7u16, u32::MAX), (2, 5, 7), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}
