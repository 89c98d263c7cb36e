//! Why a stream was not applied.

use super::Room;
use crate::files::path::RelPath;
use crate::files::wire::WireError;
use rustix::io::Errno;
use std::io;

/// Why a stream was not applied. What it changed until then stays.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A frame is no frame.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The records make no sense in this order.
    #[error("the file stream is out of order at {path}: {what}; the peer is broken or hostile")]
    Grammar {
        /// Where it was.
        path: RelPath,
        /// What did not hold.
        what: &'static str,
    },
    /// The stream ended before its end.
    #[error("the file stream broke off before its end; begin again with an empty target")]
    Truncated,
    /// The system refused.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what, below the root.
        path: RelPath,
        /// Why not.
        source: io::Error,
    },
    /// The disk or a quota is full.
    #[error("no space left on the target for {path}; free some and migrate again")]
    NoSpace {
        /// What no longer fitted.
        path: RelPath,
    },
    /// More than the caller allowed.
    #[error("{path} exceeds the room the target set aside: {bytes} bytes in {entries} entries", bytes = room.bytes, entries = room.entries)]
    NoRoom {
        /// What no longer fitted.
        path: RelPath,
        /// The room there was.
        room: Room,
    },
    /// A device node, where none are allowed.
    #[error("{path} is a device node, which this target does not accept")]
    Device {
        /// Where.
        path: RelPath,
    },
    /// A path that belongs to the target.
    #[error(
        "{path} belongs to the target and must not come from the source; both sides need the same list of mount points"
    )]
    Kept {
        /// Where.
        path: RelPath,
    },
    /// A path that leads through a link or a mount.
    #[error("{path} leads through a symbolic link or a mount point on the target")]
    LeadsElsewhere {
        /// Where.
        path: RelPath,
    },
    /// Deeper than allowed.
    #[error("the tree below {path} is nested deeper than {} directories", crate::files::MAX_DEPTH)]
    TooDeep {
        /// Where.
        path: RelPath,
    },
}

impl ApplyError {
    pub(super) fn io(what: &'static str, path: &RelPath, errno: Errno) -> Self {
        let path = path.clone();
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { path },
            Errno::LOOP | Errno::XDEV => Self::LeadsElsewhere { path },
            _ => Self::Io { what, path, source: errno.into() },
        }
    }
}
