//! Stops a container for a part of every period, by its freezer.
//!
//! A container that does not use all the time it runs catches up what it missed
//! while it stood. So the part is not computed but found: the CPU time that is
//! really used is read several times a second, and the part follows.

use super::meter::Meter;
use crate::cgroup::{CgroupError, Freezer, Version};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One run and one stop: short enough that a client hardly waits for it.
const PERIOD: Duration = Duration::from_millis(25);
/// Periods between two looks at the CPU time.
const LOOK_EVERY: u32 = 8;
/// The least part of a period that it runs.
const LEAST: f64 = 0.02;

/// What the cycle is to reach.
#[derive(Clone, Copy, Debug)]
struct Aim {
    /// A first guess of the part of the time that it may run.
    part: f64,
    /// CPUs that it may use.
    cpus: f64,
}

/// A container's freezer and the thread that works it, once there is one.
#[derive(Debug)]
pub(super) struct Duty {
    freezer: Freezer,
    cycle: Option<(Sender<Aim>, JoinHandle<()>)>,
}

impl Duty {
    pub(super) fn new(freezer: Freezer) -> Self {
        Self { freezer, cycle: None }
    }

    /// The freezer's directory and whether it is of v2.
    pub(super) fn freezer(&self) -> (PathBuf, bool) {
        (self.freezer.path.clone(), self.freezer.version == Version::V2)
    }

    /// Lets it use `cpus`, beginning with `part` of its time.
    pub(super) fn set(&mut self, part: f64, cpus: f64, meter: &Meter) {
        let aim = Aim { part, cpus };
        if let Some((orders, _)) = &self.cycle
            && orders.send(aim).is_ok()
        {
            return;
        }
        let (orders, received) = channel();
        let (freezer, meter) = (self.freezer.clone(), meter.clone());
        let thread = std::thread::spawn(move || Cycle::run(freezer, meter, aim, &received));
        self.cycle = Some((orders, thread));
    }

    /// Ends the cycle; the container runs when this returns.
    pub(super) fn end(&mut self) -> Result<(), CgroupError> {
        let Some((orders, thread)) = self.cycle.take() else { return Ok(()) };
        drop(orders);
        let _ = thread.join();
        match self.freezer.thaw() {
            // The container has ended, and its cgroup with it.
            Err(CgroupError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            other => other,
        }
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

struct Cycle {
    freezer: Freezer,
    meter: Meter,
    aim: Aim,
    /// Part of the period that it runs.
    part: f64,
}

impl Cycle {
    /// Until the sender of orders is gone.
    fn run(freezer: Freezer, meter: Meter, aim: Aim, orders: &Receiver<Aim>) {
        let mut cycle = Self { freezer, meter, aim, part: aim.part };
        loop {
            let before = (Instant::now(), cycle.meter.read().ok());
            for _ in 0..LOOK_EVERY {
                if cycle.period(orders).is_none() {
                    return;
                }
            }
            let now = (Instant::now(), cycle.meter.read().ok());
            if let ((from, Some(first)), (to, Some(last))) = (before, now) {
                cycle.part =
                    adjusted(cycle.part, cycle.aim.cpus, super::rate((from, first), (to, last)));
            }
        }
    }

    /// One run and one stop. `None`: the end, with the container running.
    fn period(&mut self, orders: &Receiver<Aim>) -> Option<()> {
        let runs = PERIOD.mul_f64(self.part);
        self.wait(orders, runs)?;
        if runs < PERIOD {
            let _thaw = Thaw(&self.freezer.clone());
            // One that has ended cannot be frozen: the cycle is ended soon.
            let _ = self.freezer.order();
            self.wait(orders, PERIOD - runs)?;
        }
        Some(())
    }

    /// Waits, and takes in orders meanwhile.
    fn wait(&mut self, orders: &Receiver<Aim>, time: Duration) -> Option<()> {
        let until = Instant::now() + time;
        loop {
            match orders.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(aim) => {
                    self.part = (self.part * aim.cpus / self.aim.cpus).clamp(LEAST, 1.0);
                    self.aim = aim;
                }
                Err(RecvTimeoutError::Timeout) => return Some(()),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}

/// Whatever happens, it does not stay frozen.
struct Thaw<'a>(&'a Freezer);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        let _ = self.0.thaw();
    }
}

/// The next part, by what the last one led to. Small steps: what a container
/// uses varies by itself.
fn adjusted(part: f64, aim: f64, used: f64) -> f64 {
    let ratio = if used > 0.0 { (aim / used).clamp(0.5, 2.0) } else { 2.0 };
    (part * ratio.powf(0.7)).clamp(LEAST, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_catches_up_is_stopped_longer_until_it_uses_what_it_may() {
        // It has work for 0.3 CPUs and a whole CPU to do it in while it runs.
        let used = |part: f64| part.min(0.3);
        let mut part = 0.5;
        for _ in 0..20 {
            part = adjusted(part, 0.15, used(part));
        }
        assert!((used(part) - 0.15).abs() < 0.01, "{part}");
    }

    #[test]
    fn one_that_has_gone_idle_runs_all_the_time() {
        let part = (0..10).fold(0.1, |part, _| adjusted(part, 0.15, 0.0));
        assert!(part >= 1.0);
    }

    #[test]
    fn it_never_stands_for_a_whole_period() {
        let part = (0..50).fold(0.5, |part, _| adjusted(part, 0.001, 1.0));
        assert!(part >= LEAST);
    }
}
