//! What a round came to.

use crate::units::{ByteSize, PageCount, Round};
use crate::wire::Batch;
use serde::{Deserialize, Serialize};

/// What became of the pages of one round.
///
/// `seen = unchanged + zero + deduplicated + delta + data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTally {
    /// The round.
    pub round: Round,
    /// Pages offered.
    pub seen: PageCount,
    /// Pages the target held already, just so.
    pub unchanged: PageCount,
    /// Pages sent as all zero.
    pub zero: PageCount,
    /// Pages sent as the name of a content.
    pub deduplicated: PageCount,
    /// Pages sent as a difference.
    pub delta: PageCount,
    /// Pages sent whole.
    pub data: PageCount,
    /// Pages the target was told to drop.
    pub dropped: PageCount,
    /// Batches made: how many the target must apply before the round may be
    /// sealed.
    pub batches: u32,
    /// Page data in these batches before compression.
    pub raw: ByteSize,
    /// Bytes on the wire, as far as [`RoundTally::count_sent`] was told.
    pub wire: ByteSize,
}

impl RoundTally {
    /// Adds a compressed batch of this round to [`RoundTally::wire`].
    pub fn count_sent(&mut self, batch: &Batch) {
        self.wire += batch.wire_size();
    }
}
