//! Carries a tree of files from one host to another, in rounds.
//!
//! A [`Scanner`] walks the source's tree, compares it with the [`Manifest`] of
//! what the target already has, and writes only what changed as frames into a
//! [`Sink`]. An [`Apply`] reads those frames on the target and makes the same
//! changes beneath one directory. The first round is the round with an empty
//! manifest; the last one runs with the container frozen.
//!
//! ```text
//! tree → Scanner ─(Manifest)→ frames → Sink ⇒ link ⇒ Apply → tree
//! ```
//!
//! The tree is either a plain directory or the *upper* directory of an overlay
//! mount. What an upper directory says with whiteouts and opaque directories
//! is translated into removals and cleared directories, so the target applies
//! everything through its own mounted overlay and never writes overlay's
//! private marks itself.
//!
//! **Invariants**
//! * A manifest describes what the target holds once the whole stream that
//!   came with it was applied. If a stream breaks off, both are void: begin
//!   again with an empty manifest and a fresh target.
//! * What a manifest calls settled cannot have changed without its change time
//!   telling: see [`Pace`] for why that needs more than comparing it.
//! * A decoded record is valid: its paths stay beneath the root by their
//!   spelling, and [`Apply`] resolves them so that no symbolic link is ever
//!   followed.
//!
//! **Non-goals**: access times (they travel with other changes but are no
//! change by themselves), `chattr` flags, and SELinux, IMA and EVM labels,
//! which belong to the host's policy and not to the container.

pub mod apply;
mod content;
mod exact;
pub mod manifest;
mod memo;
mod overlay;
pub mod path;
pub mod scan;
pub mod wire;
mod xattr;

pub use apply::{Applied, Apply, ApplyError, ApplyOptions, Room};
pub use manifest::Manifest;
pub use memo::BadMemo;
pub use path::{Exclude, RelPath};
pub use scan::{Marks, Pace, RoundTotals, ScanError, Scanner, Sent, Tree, WriteLog};
pub use wire::{Sink, WireError};

/// Size of the blocks in which a file's content is compared, in bytes.
pub const BLOCK: u64 = 64 * 1024;

/// Directories nested deeper than this are refused on either side: each level
/// costs an open file and some stack.
pub const MAX_DEPTH: usize = 512;
