//! A manifest on its way to the other host: what a target tells of a tree that
//! it holds already. Pure.
//!
//! Entries come in the order of the walk, each with its depth, so that reading
//! needs no recursion. What a change time or an inode of one host says means
//! nothing on another: they stay behind, so the reader believes no stamp and
//! compares contents.
//!
//! **Invariant**: a manifest that was read is as good as one of a walk: names
//! are plain, sorted and unique, blocks ascend, nothing is nested deeper than
//! [`MAX_DEPTH`].

use super::MAX_DEPTH;
use super::manifest::{Blocks, Body, Digest, Linked, Manifest, Node, Stamp};
use super::path::RelPath;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Set in the inodes of another host: no file of this one has it.
const FOREIGN: u64 = 1 << 63;

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum BadMemo {
    /// They do not decode.
    #[error("the list of a tree's files does not decode: {0}")]
    Decode(#[from] postcard::Error),
    /// They decode to nothing that a walk could have found.
    #[error("the list of a tree's files is malformed: {0}")]
    Malformed(&'static str),
}

#[derive(Serialize, Deserialize)]
struct Memo {
    entries: Vec<Entry>,
    links: Vec<Link>,
}

/// One entry of a directory; the root first, with no name.
#[derive(Serialize, Deserialize)]
struct Entry {
    depth: u16,
    #[serde(with = "serde_bytes")]
    name: Vec<u8>,
    mode: u32,
    size: u64,
    digest: Digest,
    kind: Kind,
}

#[derive(Serialize, Deserialize)]
enum Kind {
    Dir {
        opaque: bool,
    },
    File {
        blocks: Vec<(u64, Digest)>,
    },
    /// The number of a [`Link`].
    Linked(u32),
    Whiteout,
    Plain,
}

#[derive(Serialize, Deserialize)]
struct Link {
    names: Vec<RelPath>,
    size: u64,
    blocks: Vec<(u64, Digest)>,
    digest: Digest,
}

impl Manifest {
    /// The manifest for another host.
    pub fn to_bytes(&self) -> Vec<u8> {
        let numbers: BTreeMap<u64, u32> =
            self.links.keys().enumerate().map(|(number, inode)| (*inode, number as u32)).collect();
        let mut entries = Vec::new();
        if let Some(root) = &self.root {
            list(&[], root, 0, &numbers, &mut entries);
        }
        let links = self.links.values().map(link).collect();
        postcard::to_stdvec(&Memo { entries, links }).unwrap_or_default()
    }

    /// Reads what another host wrote.
    ///
    /// # Errors
    /// [`BadMemo`] if it is none; nothing of it may be used then.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadMemo> {
        let memo: Memo = postcard::from_bytes(bytes)?;
        let mut links = BTreeMap::new();
        for (number, link) in memo.links.into_iter().enumerate() {
            links.insert(number as u64 | FOREIGN, linked(number as u64 | FOREIGN, link)?);
        }
        let root = grow(memo.entries, &links)?;
        Ok(Self { root, links: Arc::new(links) })
    }
}

fn list(name: &[u8], node: &Node, depth: u16, numbers: &BTreeMap<u64, u32>, into: &mut Vec<Entry>) {
    let kind = match &node.body {
        Body::Dir { opaque, .. } => Kind::Dir { opaque: *opaque },
        Body::File { blocks } => Kind::File { blocks: blocks.to_vec() },
        Body::Linked => match numbers.get(&node.stamp.inode) {
            Some(number) => Kind::Linked(*number),
            // It went while it was looked at.
            None => return,
        },
        Body::Whiteout => Kind::Whiteout,
        Body::Plain => Kind::Plain,
    };
    let Stamp { mode, size, .. } = node.stamp;
    into.push(Entry { depth, name: name.to_vec(), mode, size, digest: node.digest, kind });
    if let Body::Dir { children, .. } = &node.body {
        for (name, child) in children.iter() {
            list(name, child, depth + 1, numbers, into);
        }
    }
}

fn link(linked: &Linked) -> Link {
    let names = linked.names.iter().filter_map(|name| RelPath::parse(name).ok()).collect();
    let (size, blocks, digest) = (linked.size, linked.blocks.to_vec(), linked.digest);
    Link { names, size, blocks, digest }
}

fn linked(inode: u64, link: Link) -> Result<Linked, BadMemo> {
    let names = link.names.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Linked {
        names,
        size: link.size,
        blocks: ascending(link.blocks)?,
        digest: link.digest,
        stamp: stamp(0, link.size, inode),
        settled: false,
    })
}

fn ascending(blocks: Vec<(u64, Digest)>) -> Result<Blocks, BadMemo> {
    if blocks.is_sorted_by(|(a, _), (b, _)| a < b) {
        Ok(Arc::new(blocks))
    } else {
        Err(BadMemo::Malformed("a file's blocks do not ascend"))
    }
}

/// Of another host: no file here has it.
fn stamp(mode: u32, size: u64, inode: u64) -> Stamp {
    let time = super::wire::Time::default();
    Stamp { inode, size, mtime: time, ctime: time, mode, uid: 0, gid: 0, links: 0, rdev: 0 }
}

/// A directory whose entries are still coming.
struct Open {
    name: Arc<[u8]>,
    node: Node,
    opaque: bool,
    children: Vec<(Arc<[u8]>, Node)>,
}

impl Open {
    fn close(self) -> (Arc<[u8]>, Node) {
        let body = Body::Dir { opaque: self.opaque, children: Arc::new(self.children) };
        (self.name, Node { body, ..self.node })
    }
}

fn grow(entries: Vec<Entry>, links: &BTreeMap<u64, Linked>) -> Result<Option<Node>, BadMemo> {
    use BadMemo::Malformed;
    let mut open: Vec<Open> = Vec::new();
    for entry in entries {
        let depth = usize::from(entry.depth);
        if depth > open.len() || depth > MAX_DEPTH || (depth == 0) != open.is_empty() {
            return Err(Malformed("an entry is in no directory"));
        }
        while open.len() > depth {
            fold(&mut open);
        }
        let plain = RelPath::parse(&entry.name)
            .is_ok_and(|path| path.is_root() == (depth == 0) && !entry.name.contains(&b'/'));
        if !plain {
            return Err(Malformed("a name is no plain name"));
        }
        let last = open.last().and_then(|parent| parent.children.last());
        if last.is_some_and(|(last, _)| **last >= *entry.name) {
            return Err(Malformed("names do not ascend"));
        }
        let (name, digest): (Arc<[u8]>, _) = (entry.name.into(), entry.digest);
        let mut inode = u64::MAX;
        let body = match entry.kind {
            Kind::Dir { opaque } => {
                let stamp = stamp(entry.mode, entry.size, inode);
                let node = Node { stamp, settled: false, digest, body: Body::Plain };
                open.push(Open { name, node, opaque, children: Vec::new() });
                continue;
            }
            Kind::File { blocks } => Body::File { blocks: ascending(blocks)? },
            Kind::Linked(number) => {
                inode = u64::from(number) | FOREIGN;
                if !links.contains_key(&inode) {
                    return Err(Malformed("a name leads to no file"));
                }
                Body::Linked
            }
            Kind::Whiteout => Body::Whiteout,
            Kind::Plain => Body::Plain,
        };
        let node =
            Node { stamp: stamp(entry.mode, entry.size, inode), settled: false, digest, body };
        let parent = open.last_mut().ok_or(Malformed("the root is no directory"))?;
        parent.children.push((name, node));
    }
    while open.len() > 1 {
        fold(&mut open);
    }
    Ok(open.pop().map(|root| root.close().1))
}

/// The innermost directory is complete.
fn fold(open: &mut Vec<Open>) {
    if let Some(done) = open.pop()
        && let Some(parent) = open.last_mut()
    {
        parent.children.push(done.close());
    }
}
