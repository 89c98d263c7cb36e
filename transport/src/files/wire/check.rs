//! What a decoded record must keep to on its own.

use super::{MAX_DATA, MAX_XATTR_VALUE, Meta, Record, WireError, malformed};
use crate::files::path::RelPath;

/// Longest target of a symbolic link.
const MAX_TARGET: usize = 4095;
pub(super) fn validate(record: &Record) -> Result<(), WireError> {
    let range = |offset: u64, len: u64| {
        // Kernel offsets are signed.
        let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
        if len == 0 || end.is_none() {
            return Err(malformed("an impossible range"));
        }
        Ok(())
    };
    match record {
        Record::File { path, size, .. } => {
            below_root(path)?;
            i64::try_from(*size).map(drop).map_err(|_| malformed("an impossible size"))
        }
        Record::Hole { offset, len } => range(*offset, *len),
        Record::Data { offset, len } => {
            if *len as usize > MAX_DATA {
                return Err(malformed("more content in one record than allowed"));
            }
            range(*offset, u64::from(*len))
        }
        Record::Dir { path, clear, meta } => {
            if *clear {
                below_root(path)?;
            }
            valid_meta(meta)
        }
        Record::Close { meta } | Record::Meta { meta, .. } => valid_meta(meta),
        Record::Symlink { path, target, meta } => {
            below_root(path)?;
            if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                return Err(malformed("an impossible link target"));
            }
            valid_meta(meta)
        }
        Record::Node { path, meta, .. } => {
            below_root(path)?;
            valid_meta(meta)
        }
        Record::HardLink { path, to } => {
            below_root(path)?;
            below_root(to)?;
            if path == to {
                return Err(malformed("a file linked to itself"));
            }
            Ok(())
        }
        Record::Remove { path } => below_root(path),
        Record::End => Ok(()),
    }
}

fn below_root(path: &RelPath) -> Result<(), WireError> {
    if path.is_root() { Err(malformed("the root where it cannot be")) } else { Ok(()) }
}

fn valid_meta(meta: &Meta) -> Result<(), WireError> {
    if meta.mode & !0o7777 != 0 {
        return Err(malformed("impossible permissions"));
    }
    if meta.atime.nanos >= 1_000_000_000 || meta.mtime.nanos >= 1_000_000_000 {
        return Err(malformed("an impossible time"));
    }
    // All ones means "leave as it is" to chown.
    if meta.uid == u32::MAX || meta.gid == u32::MAX {
        return Err(malformed("an impossible owner"));
    }
    for xattr in &meta.xattrs {
        let name = &xattr.name;
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(malformed("an impossible attribute name"));
        }
        if xattr.value.len() > MAX_XATTR_VALUE {
            return Err(malformed("an impossible attribute value"));
        }
    }
    Ok(())
}
