//! What can be wrong with received bytes.

use thiserror::Error;

/// Why some bytes are not a batch.
///
/// None of these can be mended by decoding again: the peer sent something
/// else, or the bytes changed on the way. Close the connection, and migrate
/// again.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The frame does not begin the way this format begins.
    #[error(
        "page batch: the frame begins with {found:#010x}, not {expected:#010x}: run the same version of blip on both hosts"
    )]
    Format {
        /// What this version writes.
        expected: u32,
        /// What arrived.
        found: u32,
    },
    /// The frame is shorter or longer than its header says.
    #[error("page batch: the frame has {found} bytes where its header calls for {expected}")]
    Length {
        /// Bytes the header calls for.
        expected: u64,
        /// Bytes that arrived.
        found: u64,
    },
    /// A stated size is beyond what any sender of this version produces.
    #[error("page batch: {what} is {found}, and the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The stated value.
        found: u64,
        /// The limit of this version.
        limit: u64,
    },
    /// The payload's encoding is not one this version knows.
    #[error(
        "page batch: payload encoding {0} is unknown: run the same version of blip on both hosts"
    )]
    Encoding(u32),
    /// The payload does not decompress to the stated number of pages.
    #[error("page batch: the payload does not decompress to {pages} pages: {reason}")]
    Payload {
        /// Pages the header states.
        pages: usize,
        /// What the decompressor said.
        reason: String,
    },
    /// The content differs from what the source read.
    #[error(
        "page batch: checksum {found:016x} where the source computed {expected:016x}: the bytes changed on the way"
    )]
    Checksum {
        /// What the source computed.
        expected: u64,
        /// What the received content gives.
        found: u64,
    },
    /// The plan cannot be read. With a right checksum, the sender is at fault.
    #[error("page batch: the plan is malformed at byte {at}: {what}")]
    Plan {
        /// Offset in the plan.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
}
