//! Setting a timer (timerfd_create(2)) of another process.

use super::sockets::copy_of;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Has the timer behind a descriptor go off now, and then every `interval`.
///
/// # Errors
/// If the process has no such timer, or may not be looked at.
pub fn go_off(pid: i32, descriptor: i32, interval: Duration) -> io::Result<()> {
    let timer = copy_of(pid, descriptor)?;
    let (seconds, nanos) = (interval.as_secs() as i64, i64::from(interval.subsec_nanos()));
    let setting = libc::itimerspec {
        it_interval: libc::timespec { tv_sec: seconds, tv_nsec: nanos },
        it_value: libc::timespec { tv_sec: 0, tv_nsec: 1 },
    };
    // SAFETY: the setting lives; the kernel refuses a descriptor of another kind.
    let answer =
        unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &setting, std::ptr::null_mut()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::FromRawFd as _;

    #[test]
    fn a_timer_goes_off_at_once_and_again() {
        // SAFETY: makes a descriptor, which nobody else has.
        let mut timer =
            unsafe { File::from_raw_fd(libc::timerfd_create(libc::CLOCK_MONOTONIC, 0)) };
        let own = std::process::id() as i32;
        go_off(own, timer.as_raw_fd(), Duration::from_millis(5)).unwrap();
        for _ in 0..2 {
            let mut count = [0; 8];
            timer.read_exact(&mut count).unwrap();
            assert!(u64::from_ne_bytes(count) >= 1);
        }
        let other = File::open("/proc/self/stat").unwrap();
        assert!(go_off(own, other.as_raw_fd(), Duration::from_secs(1)).is_err());
    }
}
