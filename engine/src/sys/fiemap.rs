//! Where on its disk a file's content lies (`FS_IOC_FIEMAP`), and two flags of
//! it (`FS_IOC_GETFLAGS`). Source: the kernel's `Documentation/filesystems/fiemap.rst`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Extents asked for at once.
const AT_ONCE: usize = 256;
/// `FIEMAP_EXTENT_LAST`.
const LAST: u32 = 1;
/// `FS_JOURNAL_DATA_FL`: content goes through the journal.
const JOURNAL_DATA: libc::c_long = 0x4000;
/// `FS_DAX_FL`: content bypasses the page cache.
const DAX: libc::c_long = 0x0200_0000;

nix::ioctl_readwrite_bad! {
    /// `FS_IOC_FIEMAP`.
    fiemap, nix::request_code_readwrite!(b'f', 11, size_of::<Header>()), Request
}
nix::ioctl_read! {
    /// `FS_IOC_GETFLAGS`.
    get_flags, b'f', 1, libc::c_long
}

/// One piece of a file, as the disk has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the file.
    pub start: u64,
    /// How many bytes.
    pub len: u64,
    /// First byte on the disk.
    pub physical: u64,
    /// What the file system says of it: unwritten, shared, not yet allocated.
    pub flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Header {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Raw {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Request {
    header: Header,
    extents: [Raw; AT_ONCE],
}

/// All extents of a file, ascending.
///
/// # Errors
/// `EOPNOTSUPP` where the file system has no such map.
pub fn extents(file: BorrowedFd<'_>) -> io::Result<Vec<Extent>> {
    let mut all = Vec::new();
    let mut start = 0;
    loop {
        let count = AT_ONCE as u32;
        let header = Header { start, length: u64::MAX - start, count, ..Header::default() };
        let mut request = Request { header, extents: [Raw::default(); AT_ONCE] };
        // SAFETY: the request is laid out as the kernel's struct fiemap with
        // room for as many extents as it says; the kernel writes no more.
        unsafe { fiemap(file.as_raw_fd(), &mut request) }?;
        let found = &request.extents[..(request.header.mapped as usize).min(AT_ONCE)];
        all.extend(found.iter().map(|raw| Extent {
            start: raw.logical,
            len: raw.length,
            physical: raw.physical,
            flags: raw.flags & !LAST,
        }));
        match found.last() {
            Some(last) if last.flags & LAST == 0 && found.len() == AT_ONCE => {
                start = last.logical.saturating_add(last.length);
            }
            _ => return Ok(all),
        }
    }
}

/// Whether writes to the file go through the page cache and from there to the
/// disk, without a journal in between.
///
/// # Errors
/// Those of the call.
pub fn writes_through_the_page_cache(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes one int to the long that is there for it.
    unsafe { get_flags(file.as_raw_fd(), &mut flags) }?;
    Ok(flags & (JOURNAL_DATA | DAX) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_lies_where_it_was_written_and_a_hole_nowhere() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 8192], 1 << 20).unwrap();
        file.sync_all().unwrap();
        let Ok(extents) = extents(file.as_fd()) else { return };
        let total: u64 = extents.iter().map(|extent| extent.len).sum();
        assert_eq!((extents[0].start, total), (1 << 20, 8192));
    }
}
