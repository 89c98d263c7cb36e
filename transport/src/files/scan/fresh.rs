//! The list of entries that is only copied if something in it changed.

use crate::files::manifest::Node;
use std::sync::Arc;

/// The entries of a directory in the making: as long as all are as they were,
/// nothing is copied.
pub(super) struct Fresh<'a> {
    pub(super) old: &'a [(Arc<[u8]>, Node)],
    pub(super) kept: usize,
    pub(super) new: Option<Vec<(Arc<[u8]>, Node)>>,
}

impl Fresh<'_> {
    pub(super) fn keep(&mut self, at: usize) {
        match &mut self.new {
            None => self.kept = at + 1,
            Some(new) => new.push(self.old[at].clone()),
        }
    }

    pub(super) fn push(&mut self, name: Arc<[u8]>, node: Node) {
        self.diverge().push((name, node));
    }

    pub(super) fn diverge(&mut self) -> &mut Vec<(Arc<[u8]>, Node)> {
        self.new.get_or_insert_with(|| self.old[..self.kept].to_vec())
    }

    pub(super) fn finish(self) -> Option<Vec<(Arc<[u8]>, Node)>> {
        self.new
    }
}
