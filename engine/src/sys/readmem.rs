//! Reading another process' memory: many pieces by one `process_vm_readv`.

use std::io;

/// Most pieces of one call here; the kernel would allow 1024 (`IOV_MAX`).
pub const MAX_PIECES: usize = 256;

/// Reads the byte ranges `(address, length)` of process `pid` into `buffer`, one
/// after the other, and returns how many bytes were read: all, or those before
/// the first page that could not be read. `EFAULT` if that is the very first.
///
/// # Panics
/// If there are more than [`MAX_PIECES`] pieces or `buffer` is too small.
pub fn read_pieces(pid: i32, pieces: &[(u64, usize)], buffer: &mut [u8]) -> io::Result<usize> {
    assert!(pieces.len() <= MAX_PIECES, "too many pieces for one call");
    let total: usize = pieces.iter().map(|piece| piece.1).sum();
    assert!(total <= buffer.len(), "buffer smaller than the pieces");
    let mut remote = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_PIECES];
    for (slot, &(address, length)) in remote.iter_mut().zip(pieces) {
        *slot = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: length };
    }
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: total };
    // SAFETY: `local` spans `total` bytes of `buffer`, which is exclusively ours
    // and long enough (asserted). `remote` is only interpreted in the other
    // process; its first `pieces.len()` entries are filled.
    let count = unsafe {
        libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), pieces.len() as u64, 0)
    };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}
