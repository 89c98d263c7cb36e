//! Where a page lives and what names its content.

use crate::units::{PAGE_SIZE, PageCount};
use serde::{Deserialize, Serialize};

/// The bytes of one page.
pub type PageBytes = [u8; PAGE_SIZE];

/// One address space of the container, named by the process ID its owner has
/// *inside* the container. That number is the same on both hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpaceId(pub u32);

/// Number of a page in its address space: virtual address ÷ [`PAGE_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageIndex(pub u64);

impl PageIndex {
    /// The page that holds virtual address `address`.
    pub fn holding(address: u64) -> Self {
        Self(address / PAGE_SIZE as u64)
    }

    /// Virtual address of the page's first byte.
    pub fn address(self) -> u64 {
        self.0 * PAGE_SIZE as u64
    }
}

/// One page of one address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageAt {
    /// The address space.
    pub space: SpaceId,
    /// The page in it.
    pub index: PageIndex,
}

/// Consecutive pages of one address space: `start .. start + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageRun {
    /// First page.
    pub start: PageIndex,
    /// How many; never zero in a run that came from this project's code.
    pub count: PageCount,
}

impl PageRun {
    /// The run of `count` pages from `start`.
    pub fn new(start: u64, count: u64) -> Self {
        Self { start: PageIndex(start), count: PageCount(count) }
    }

    /// First page number after the run.
    pub fn end(self) -> u64 {
        self.start.0 + self.count.0
    }

    /// Every page of the run, in order.
    pub fn pages(self) -> impl Iterator<Item = PageIndex> {
        (self.start.0..self.end()).map(PageIndex)
    }
}

/// BLAKE3 of a page's bytes. Two pages with one hash are one content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// The name of `bytes`.
    pub fn of(bytes: &PageBytes) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}
