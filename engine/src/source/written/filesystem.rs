//! File systems whose ways of changing are known.

use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, XFS_SUPER_MAGIC, statfs};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whether all that changes content on the file system of `root` is told.
pub(super) fn tells_content(root: &Path) -> bool {
    match kind(root) {
        Some(XFS_SUPER_MAGIC) => true,
        Some(EXT4_SUPER_MAGIC) => !may_have(root, "data=journal"),
        _ => false,
    }
}

/// Whether all that changes an inode there is told, too. Lazy times are not:
/// they change in memory alone.
pub(super) fn tells_inodes(root: &Path) -> bool {
    kind(root) == Some(EXT4_SUPER_MAGIC) && !may_have(root, "lazytime")
}

fn kind(root: &Path) -> Option<FsType> {
    statfs(root).ok().map(|stat| stat.filesystem_type())
}

/// Whether it is mounted with `option` anywhere; not to be found means not to
/// be known.
fn may_have(root: &Path, option: &str) -> bool {
    let Ok(meta) = fs::metadata(root) else { return true };
    let device = format!("{}:{}", libc::major(meta.dev()), libc::minor(meta.dev()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut ours = mounts.lines().filter(|l| l.split(' ').nth(2) == Some(&device)).peekable();
    ours.peek().is_none() || ours.any(|line| line.contains(option))
}
