//! What has several names: sent once all of its names are known.

use super::ScanError;
use super::entry::digest_of_node;
use super::walk::{Name, Read, Walk, relative};
use crate::files::manifest::{Blocks, Body, Digest, Linked};
use crate::files::wire::Record;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;

impl<'a> Walk<'a, '_> {
    /// Sends the files with several names, now that all of them are known.
    pub(super) fn linked_files(&mut self) -> Result<BTreeMap<u64, Linked>, ScanError> {
        let mut links = BTreeMap::new();
        for (inode, names) in std::mem::take(&mut self.linked) {
            if let Some(linked) = self.linked_file(inode, names)? {
                links.insert(inode, linked);
            }
        }
        Ok(links)
    }

    /// One file with several names. The target may write in place what it has
    /// under one of them if every other name of that is in the group too, or if
    /// this is the same inode, for then all its former names are replaced or
    /// removed in this very stream.
    pub(super) fn linked_file(
        &mut self,
        inode: u64,
        found: Vec<Name<'a>>,
    ) -> Result<Option<Linked>, ScanError> {
        let all: HashSet<&[u8]> = found.iter().map(|name| name.path.as_slice()).collect();
        let base = found.iter().find_map(|name| {
            let node = name.known?;
            let content = self.known.content_of(&name.path, node)?;
            if node.stamp.kind() != name.stamp.kind() {
                return None;
            }
            let ours = node.stamp.inode == inode || content.names.all(|name| all.contains(name));
            ours.then_some((name, node, content))
        });
        let joined = |name: &Name<'_>| {
            base.is_some_and(|(_, node, _)| name.known.is_some_and(|known| known.shares(node)))
        };
        let before = base.and_then(|(_, node, _)| match node.body {
            Body::Linked => self.known.links.get(&node.stamp.inode),
            _ => None,
        });
        if let Some(before) = before.filter(|before| {
            let same = |name: &Name<'_>| name.stamp == before.stamp && joined(name);
            before.settled && before.names.len() == found.len() && found.iter().all(same)
        }) {
            return Ok(Some(before.clone()));
        }
        self.totals.loose +=
            u64::from(self.names_only && (found.len() as u64) < found[0].stamp.links);
        let primary = base.map_or(&found[0], |(name, ..)| name);
        let known = base.map(|(_, node, _)| before.map_or(node.digest, |before| before.digest));
        self.path.clone_from(&primary.path);
        let regular = primary.stamp.kind() == FileType::RegularFile;
        let read = if regular {
            let located = self.locate_again(inode)?;
            match located.map(|located| self.open_regular(&located)).transpose()?.flatten() {
                Some(fd) => {
                    let read_last = base.map(|(_, node, _)| node.stamp.inode);
                    self.read(&fd, base.map(|(.., content)| content), read_last, known)?
                }
                None => Read::Gone,
            }
        } else {
            self.linked_node(inode, known)?
        };
        self.path.clear();
        let Read::File { stamp, settled, digest, blocks } = read else { return Ok(None) };
        // What is no file was made anew if anything about it changed.
        let anew = !regular && known != Some(digest);
        for name in &found {
            if name.path != primary.path && (anew || !joined(name)) {
                let (path, to) = (relative(&name.path), relative(&primary.path));
                self.put(&Record::HardLink { path, to })?;
            }
        }
        let settled = settled && found.iter().all(|name| name.stamp == stamp);
        self.totals.unsettled += u64::from(!settled);
        let names = found.into_iter().map(|name| name.path).collect();
        Ok(Some(Linked { names, size: stamp.size, blocks, digest, stamp, settled }))
    }

    /// What is neither file nor directory and has several names.
    pub(super) fn linked_node(
        &mut self,
        inode: u64,
        known: Option<Digest>,
    ) -> Result<Read, ScanError> {
        let Some(fd) = self.locate_again(inode)? else { return Ok(Read::Gone) };
        let Some((stamp, mut record)) = self.describe(&fd)? else { return Ok(Read::Gone) };
        let digest = digest_of_node(&mut record);
        if known != Some(digest) {
            self.put(&record)?;
        }
        let settled = self.settles(&stamp);
        Ok(Read::File { stamp, settled, digest, blocks: Blocks::default() })
    }

    /// Finds the path at hand, which was `inode`. If that leads elsewhere by
    /// now, the next round has to sort it out.
    pub(super) fn locate_again(&self, inode: u64) -> Result<Option<OwnedFd>, ScanError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let (root, path) = (&self.scanner.root, self.path.as_slice());
        let located = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve);
        let Some(fd) = self.there(located.map(Some))? else { return Ok(None) };
        let stat = rustix::fs::fstat(&fd).map_err(|errno| self.failed("look at", errno))?;
        Ok((stat.st_ino == inode).then_some(fd))
    }
}
