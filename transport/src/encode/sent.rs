//! What the target holds, as far as the source told it.
//!
//! A mirror of the page store without the bytes: per page its content, per
//! content its hash and how many pages have it, so that a reference is only
//! ever made to a content that some page of the target still has.
//!
//! Costs per page 13 bytes, and per different content 36 bytes and 6 to 11
//! in the hash table: for 2 million pages that all differ, about 110 MB.

use crate::page::{ContentHash, PageAt, PageRun, SpaceId};
use crate::store::index::{ContentId, Contents, PageMap, Release};
use crate::units::{ByteSize, PageCount, Round};
use std::collections::HashSet;

/// What the target holds of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Zero,
    Content(ContentId),
    /// The target asked for the page to be sent whole.
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    what: What,
    round: Round,
}

/// See the module's header.
#[derive(Debug)]
pub(super) struct Sent {
    pages: PageMap<Record>,
    contents: Contents,
    /// Contents that the target turned out to lack.
    doubted: HashSet<ContentId>,
}

impl Default for Sent {
    fn default() -> Self {
        Self { pages: PageMap::new(), contents: Contents::default(), doubted: HashSet::new() }
    }
}

impl Sent {
    pub(super) fn get(&self, at: PageAt) -> Option<What> {
        self.pages.get(at).map(|record| record.what)
    }

    /// The content of `what`, if it has one.
    pub(super) fn name(&self, what: What) -> Option<ContentHash> {
        match what {
            What::Content(id) => Some(self.contents.name(id)),
            What::Zero | What::Lost => None,
        }
    }

    /// The round in which the target got what it holds of a page.
    pub(super) fn sent_in(&self, at: PageAt) -> Option<Round> {
        self.pages.get(at).filter(|record| record.what != What::Lost).map(|record| record.round)
    }

    /// Whether a page may be sent as a reference to `hash`.
    pub(super) fn offers(&self, hash: &ContentHash) -> bool {
        self.contents.find(hash).is_some_and(|id| !self.doubted.contains(&id))
    }

    pub(super) fn set_zero(&mut self, at: PageAt, round: Round) {
        self.set(at, Record { what: What::Zero, round });
    }

    /// A page has the content `hash` now, which travelled `whole` or by name.
    pub(super) fn set_content(&mut self, at: PageAt, hash: ContentHash, round: Round, whole: bool) {
        let id = match self.contents.find(&hash) {
            Some(id) => {
                self.contents.acquire(id);
                id
            }
            None => self.contents.insert(hash),
        };
        if whole && !self.doubted.is_empty() {
            self.doubted.remove(&id);
        }
        self.set(at, Record { what: What::Content(id), round });
    }

    /// The target lacks the content it should have for a page.
    pub(super) fn lose(&mut self, at: PageAt) {
        // A page the target was since told to drop is not asked for again.
        let Some(Record { what, round }) = self.pages.get(at) else { return };
        if let What::Content(id) = what {
            self.doubted.insert(id);
        }
        self.set(at, Record { what: What::Lost, round });
    }

    /// The target drops a run; says how many pages it had of it.
    pub(super) fn forget(&mut self, space: SpaceId, run: PageRun) -> PageCount {
        if !self.pages.any_in(space, run) {
            return PageCount(0);
        }
        let mut gone = Vec::new();
        self.pages.remove_where(space, run, |_, record| {
            gone.push(record.what);
            true
        });
        let count = gone.len() as u64;
        for what in gone {
            self.release(what);
        }
        PageCount(count)
    }

    pub(super) fn spaces(&self) -> impl Iterator<Item = SpaceId> {
        self.pages.spaces()
    }

    pub(super) fn memory(&self) -> ByteSize {
        ByteSize(self.pages.bytes() + self.contents.bytes())
    }

    /// The new content was acquired before the old one is let go: the same
    /// order as in the store.
    fn set(&mut self, at: PageAt, record: Record) {
        if let Some(before) = self.pages.insert(at, record) {
            self.release(before.what);
        }
    }

    fn release(&mut self, what: What) {
        if let What::Content(id) = what
            && self.contents.release(id) != Release::Shared
        {
            self.doubted.remove(&id);
        }
    }
}
