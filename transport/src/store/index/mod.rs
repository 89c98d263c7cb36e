//! The two indexes both ends are made of.
//!
//! The source remembers what the target holds, the target holds it; so both
//! map pages to something small ([`PageMap`]) and count the pages that share a
//! content ([`Contents`]).

mod contents;
mod page_map;

pub(crate) use contents::{ContentId, Contents, Release, SEGMENT};
pub(crate) use page_map::PageMap;
