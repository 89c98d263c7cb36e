//! What can go wrong while memory is served lazily.

use blip_transport::page::SpaceId;
use nix::errno::Errno;
use std::io;
use std::path::PathBuf;

/// Why a page cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Neither the store nor the source host has it.
    #[error("neither the store nor the source host has it")]
    Gone,
    /// The source host cannot be asked any more.
    #[error("it is not in the store and the source host cannot be asked: {0}")]
    SourceLost(String),
    /// The restored process does not wait for it: CRIU registered no mapping
    /// there, so the kernel would have answered with zeros.
    #[error("the restored process has no lazily served mapping there")]
    NotRegistered,
    /// The kernel refused to put it in place.
    #[error("the kernel refused to put it in place: {0}")]
    Kernel(Errno),
}

/// A lazy-pages server failed.
#[derive(Debug, thiserror::Error)]
pub enum LazyError {
    /// The socket could not be made.
    #[error("cannot listen for CRIU on {}: {error}", .path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// A system call failed that should not.
    #[error("the lazy-pages server cannot {what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The restorer said something it should not.
    #[error("the restorer broke the lazy-pages protocol: {what}; the restore must be ended")]
    Protocol {
        /// What it did.
        what: String,
    },
    /// The restorer hung up in the middle of the restore.
    #[error("CRIU hung up before its restore was finished; its own log says why")]
    RestorerLeft,
    /// The restore is finished, but a task that misses pages was never handed
    /// over.
    #[error("CRIU restored process {} without handing over its memory", .space.0)]
    NotHandedOver {
        /// The task.
        space: SpaceId,
    },
    /// A task misses pages that cannot be had.
    #[error("process {} misses page {page:#x}: {why}; it cannot go on", .space.0)]
    PagesLost {
        /// The task.
        space: SpaceId,
        /// The first of the pages, as at the dump.
        page: u64,
        /// Why.
        why: Loss,
    },
    /// The server's thread panicked.
    #[error("the lazy-pages server panicked; the restored processes wait for their memory")]
    Panicked,
    /// The owner gave up the restore.
    #[error("the lazy restore was aborted")]
    Aborted,
}

impl LazyError {
    pub(super) fn system(what: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |error| Self::System { what, error: error.into() }
    }

    pub(super) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol { what: what.into() }
    }
}
