//! Everything that can be seen of a tree, to compare two.

use rustix::fs::SeekFrom;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// By path below the root.
pub(crate) type Snapshot = BTreeMap<Vec<u8>, Entry>;

/// One file, of whatever kind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) what: What,
    /// All names of the same file.
    pub(crate) names: Vec<Vec<u8>>,
}

/// What it holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum What {
    Dir,
    /// Size, digest, and where data is.
    File(u64, blake3::Hash, Vec<(u64, u64)>),
    Symlink(Vec<u8>),
    /// Device number.
    Node(u64),
}

/// Looks at everything below `root`, and at `root` itself.
pub(crate) fn snapshot(root: &Path) -> Snapshot {
    let mut all = Snapshot::new();
    let mut inodes: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    visit(root, root, &mut all, &mut inodes);
    for names in inodes.into_values().filter(|names| names.len() > 1) {
        for name in &names {
            all.get_mut(name).unwrap().names = names.clone();
        }
    }
    all
}

fn visit(root: &Path, path: &Path, all: &mut Snapshot, inodes: &mut BTreeMap<u64, Vec<Vec<u8>>>) {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = meta.file_type();
    let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
    let what = if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            visit(root, &entry.unwrap().path(), all, inodes);
        }
        What::Dir
    } else if kind.is_file() {
        content(path)
    } else if kind.is_symlink() {
        What::Symlink(fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec())
    } else {
        let device = kind.is_block_device() || kind.is_char_device();
        What::Node(if device { meta.rdev() } else { 0 })
    };
    if !kind.is_dir() {
        inodes.entry(meta.ino()).or_default().push(name.clone());
    }
    let entry = Entry {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        xattrs: xattrs(path),
        what,
        names: Vec::new(),
    };
    all.insert(name, entry);
}

fn content(path: &Path) -> What {
    let bytes = fs::read(path).unwrap();
    let file = fs::File::open(path).unwrap();
    let (mut data, mut at) = (Vec::new(), 0);
    while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        data.push((start, at));
    }
    What::File(bytes.len() as u64, blake3::hash(&bytes), data)
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
    let names = list[..len].split(|b| *b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}
