//! Why the store refuses a batch.

use crate::units::{ByteSize, Round};
use std::io;
use thiserror::Error;

/// Why a batch could not be applied.
///
/// The store stays consistent: every page is as it was or as the batch says,
/// and the same batch may be applied again.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The batch needs more memory than the store may take.
    #[error(
        "page store: {needed} more would exceed its limit of {limit} ({resident} in use): \
         raise the agent's memory limit, or migrate when the container holds less"
    )]
    Full {
        /// Bytes the next step of the batch needs.
        needed: ByteSize,
        /// Bytes in use.
        resident: ByteSize,
        /// The limit given to [`super::PageStore::new`].
        limit: ByteSize,
    },
    /// A batch arrived after its round was sealed.
    #[error(
        "page store: a batch of round {round} arrived after round {sealed} was sealed: \
         the source must seal a round only once all its batches were applied"
    )]
    Late {
        /// The batch's round.
        round: Round,
        /// Newest sealed round.
        sealed: Round,
    },
    /// The kernel gave no memory.
    #[error("page store: map memory for more pages: free memory on this host")]
    Memory(#[source] io::Error),
}

impl StoreError {
    pub(super) fn full(needed: u64, resident: u64, limit: u64) -> Self {
        Self::Full {
            needed: ByteSize(needed),
            resident: ByteSize(resident),
            limit: ByteSize(limit),
        }
    }
}
