//! Timers of a restored container that CRIU has left standing.
//!
//! A timer that goes off again and again (timerfd_create(2)) is not running
//! between going off and being read: the kernel starts it anew when it is read.
//! CRIU restores such a one as it found it, having gone off, and not as a timer
//! that will be started anew; it would never go off again. What is short, and
//! fell due in the freeze, is nearly always found so.

use crate::cgroup::Freezer;
use crate::descriptors;
use crate::sys::timerfd;
use std::time::Duration;

/// Sets them again. `init`: that of a restored container that has not run yet,
/// as this host numbers it.
pub fn set_again(init: i32) {
    let processes = Freezer::of(init).and_then(|freezer| freezer.processes());
    for pid in processes.unwrap_or_default() {
        for (descriptor, interval) in standing(pid) {
            match timerfd::go_off(pid, descriptor, interval) {
                Ok(()) => tracing::debug!(pid, descriptor, ?interval, "timer set again"),
                Err(error) => {
                    tracing::warn!("a timer of process {pid} stands still for good: {error}");
                }
            }
        }
    }
}

/// Descriptors of a process whose timers stand, and how often they go off.
fn standing(pid: i32) -> Vec<(i32, Duration)> {
    let open = descriptors::of(pid).unwrap_or_default().into_iter();
    let timers = open.filter(|descriptor| descriptor.link == "anon_inode:[timerfd]");
    timers.filter_map(|timer| Some((timer.number, left_standing(&timer.info(pid)?)?))).collect()
}

/// The interval of a timer that has gone off and was not read, by its fdinfo. One
/// that was switched off has counted nothing.
fn left_standing(fdinfo: &str) -> Option<Duration> {
    let field = |name| fdinfo.lines().find_map(|line| line.strip_prefix(name));
    let time = |name| {
        let (seconds, nanos) = field(name)?.trim().strip_prefix('(')?.split_once(',')?;
        let nanos = nanos.trim().strip_suffix(')')?;
        Some(Duration::new(seconds.parse().ok()?, nanos.parse().ok()?))
    };
    let ticks: u64 = field("ticks:")?.trim().parse().ok()?;
    let interval = time("it_interval:")?;
    (ticks > 0 && time("it_value:")?.is_zero() && !interval.is_zero()).then_some(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(ticks: u64, value: &str, interval: &str) -> String {
        format!(
            "pos:\t0\nclockid: 1\nticks: {ticks}\nsettime flags: 00\nit_value: {value}\nit_interval: {interval}\n"
        )
    }

    #[test]
    fn only_a_timer_that_would_never_go_off_again_is_set() {
        let fifth = Some(Duration::from_millis(200));
        assert_eq!(left_standing(&info(1, "(0, 0)", "(0, 200000000)")), fifth);
        for other in [
            info(0, "(0, 0)", "(0, 200000000)"),
            info(1, "(0, 0)", "(0, 0)"),
            info(0, "(0, 5)", "(0, 200000000)"),
            info(2, "(3, 5)", "(0, 200000000)"),
            "pos:\t0\n".to_owned(),
        ] {
            assert_eq!(left_standing(&other), None, "{other}");
        }
    }
}
