//! Terminals: whose they are, and how large.

use nix::libc;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

mod ioctl {
    use nix::libc;
    nix::ioctl_read_bad!(size, libc::TIOCGWINSZ, libc::winsize);
    nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, libc::winsize);
    nix::ioctl_write_int_bad!(take, libc::TIOCSCTTY);
}

/// Makes `terminal` the controlling one of the caller, who leads a session and
/// has none: it hears of changes of its size (`SIGWINCH`).
///
/// # Errors
/// `EPERM` if the caller leads no session, or the terminal has another.
pub fn control(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes a number (0: do not steal it) and touches no memory.
    unsafe { ioctl::take(terminal.as_raw_fd(), 0) }.map(drop).map_err(io::Error::from)
}

/// The owner of a descriptor that has just come over a socket (`SCM_RIGHTS`);
/// call it once for each.
pub fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel made the descriptor for the receiver of the message,
    // which has told its number to nobody but the caller.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Gives `to` the size of `from`, unless nobody has given that one any.
///
/// # Errors
/// Those of the two calls, as `ENOTTY`.
pub fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel fills the structure, which lives until the call returns.
    unsafe { ioctl::size(from.as_raw_fd(), &mut size) }?;
    if size.ws_row == 0 || size.ws_col == 0 {
        return Ok(());
    }
    // SAFETY: the kernel reads the structure, which lives until the call returns.
    unsafe { ioctl::set_size(to.as_raw_fd(), &size) }.map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::{Winsize, openpty};
    use std::os::fd::AsFd;

    #[test]
    fn a_size_is_passed_on_and_none_is_not() {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let sized = openpty(Some(&size), None).unwrap();
        let other = openpty(None, None).unwrap();
        copy_size(sized.slave.as_fd(), other.master.as_fd()).unwrap();
        let third = openpty(None, None).unwrap();
        copy_size(third.slave.as_fd(), other.master.as_fd()).unwrap();
        let mut seen = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: as in `copy_size`.
        unsafe { ioctl::size(other.slave.as_raw_fd(), &mut seen) }.unwrap();
        assert_eq!((seen.ws_row, seen.ws_col), (24, 80));
    }
}
