//! The form in which pages cross the network: one *batch* at a time.
//!
//! A batch says what became of some pages: new bytes, all zero, the same as a
//! content sent before, or gone. Three types, one direction:
//!
//! ```text
//! RawBatch ── compress ──▶ Batch ── bytes ⇒ bytes ── decode ──▶ DecodedBatch
//! ```
//!
//! Every arrow is a pure function of its input, so that each may run on any
//! thread, and batches of one migration may be compressed and decoded at the
//! same time.
//!
//! The frame, all numbers little-endian:
//!
//! ```text
//! header   36 bytes  magic, round, number, page count, lengths, encoding, checksum
//! payload            page bytes in the order of the plan, raw or one zstd frame
//! plan               what happened to which pages, in order (see `plan`)
//! ```
//!
//! **Invariants**
//! * The checksum covers the header, the plan and the *hash of every page in
//!   the payload*. The target needs those hashes anyway, so checking what was
//!   really read on the source costs nothing extra, and a fault of the
//!   compressor or of memory on the way is found as well.
//! * Every length is compared with a limit below before memory is reserved;
//!   the decompressed size is stated in pages and cannot exceed
//!   [`MAX_DATA_PAGES`].
//! * A [`DecodedBatch`] cannot be malformed. [`decode`] never panics.
//!
//! **Non-goals**: authenticity (the link has mutual TLS) and compatibility
//! between format versions (one binary runs on both hosts).

mod batch;
mod decode;
mod delta;
mod error;
mod plan;

pub use batch::{Batch, BatchId, RawBatch};
pub use decode::{DecodedBatch, Entries, Entry, decode};
pub use error::WireError;

pub(crate) use decode::pages_of;
pub(crate) use delta::xor;
pub(crate) use plan::whole_space;

/// Most pages whose bytes one batch carries: 1 MiB of page data.
pub const MAX_DATA_PAGES: usize = 256;

/// Most pages one batch speaks of with zero, data and reference entries
/// together. Bounds what a small frame can make the target index.
pub const MAX_COVERED_PAGES: u64 = 64 * 1024;

/// Longest plan in bytes that [`decode`] accepts.
pub const MAX_PLAN_BYTES: usize = 256 * 1024;

/// Longest frame in bytes that [`decode`] accepts: what a receiver has to be
/// ready to buffer for one batch.
pub const MAX_FRAME_BYTES: usize =
    batch::HEADER_BYTES + MAX_DATA_PAGES * crate::units::PAGE_SIZE + MAX_PLAN_BYTES;

/// First page number that no address space has: 2^64 ÷ 4096.
pub(crate) const END_OF_SPACE: u64 = 1 << 52;

#[cfg(test)]
mod tests;
