//! How far a round is, and the brake that ends it early; shared between the
//! threads that work on it and the one that watches.

use blip_transport::units::PageCount;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Clones are the same gauge. Use a new one for each round.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    dirty: AtomicU64,
    done: AtomicU64,
    cut: AtomicBool,
}

impl Gauge {
    /// Pages the round has to read, as soon as its scan has told.
    pub fn dirty(&self) -> PageCount {
        PageCount(self.0.dirty.load(Relaxed))
    }

    /// Pages it has read.
    pub fn done(&self) -> PageCount {
        PageCount(self.0.done.load(Relaxed))
    }

    /// Ends the round as soon as may be: what has not been read is held back.
    pub fn cut_short(&self) {
        self.0.cut.store(true, Relaxed);
    }

    /// Whether the round is to end.
    pub(super) fn is_cut(&self) -> bool {
        self.0.cut.load(Relaxed)
    }

    pub(super) fn found(&self, pages: PageCount) {
        self.0.dirty.fetch_add(pages.0, Relaxed);
    }

    pub(super) fn read(&self, pages: PageCount) {
        self.0.done.fetch_add(pages.0, Relaxed);
    }
}

/// Cuts the round short when dropped: a round that nobody waits for any more
/// must not go on reading.
pub(super) struct Brake<'a>(pub(super) &'a Gauge);

impl Drop for Brake<'_> {
    fn drop(&mut self) {
        self.0.cut_short();
    }
}
