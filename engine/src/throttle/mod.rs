//! Takes CPU time from a container for a while, and gives it back on every way
//! out.
//!
//! A container that dirties pages faster than the link carries them never
//! converges; with less CPU time it writes less. Three means, the first that
//! is there:
//! 1. `cpu.max` of its cgroup (v2, Linux admin-guide/cgroup-v2, "CPU");
//! 2. `cfs quota`: `cpu.cfs_quota_us` and `cpu.cfs_period_us` (v1, Linux
//!    scheduler/sched-bwc);
//! 3. `freezer duty cycle`: where no cpu controller is, the freezer stops the
//!    container for a part of every 25 ms.
//!
//! With the third, Docker takes a container that stands at that moment for
//! paused: a `docker exec` or health check may be refused and has to be repeated.
//!
//! What is taken is a part of what the container **used** before: a quota
//! relative to its limit or to all CPUs would not touch a writer that uses half
//! of one. All three end at the same CPU time; the duty cycle gets there by
//! watching it, within about a second.
//!
//! **Invariants**
//! * Never more CPU time than the user allowed, not even between two writes.
//! * After [`Throttle::lift`], a drop, or blip's death (a [`Guard`] sees to
//!   that) the control files say what they said before, unless somebody else
//!   has changed them meanwhile.
//! * Nothing is taken while blip freezes the container:
//!   [`Throttle::before_freeze`] comes first.

mod duty;
mod meter;
mod quota;

use crate::cgroup::{CgroupError, Freezer};
use crate::guard::{Charge, Guard};
use duty::Duty;
use meter::Meter;
use quota::Quota;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A container keeps at least this many CPUs: what it needs to answer at all.
const FLOOR: f64 = 0.01;
/// How long its use is watched before the first step.
const LOOK: Duration = Duration::from_millis(100);

/// What went wrong with a throttle. The container has its CPU time.
#[derive(Debug, thiserror::Error)]
pub enum ThrottleError {
    /// A control file could not be used.
    #[error("cannot use {path:?} to slow the container down: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The freezer could not be used.
    #[error("cannot slow the container down: {0}")]
    Freezer(#[from] CgroupError),
    /// Without a guard it would stay slow if blip died.
    #[error("cannot start the guard that gives the container its CPU time back: {0}")]
    Guard(io::Error),
}

/// The CPU time of one container.
#[derive(Debug)]
pub struct Throttle {
    means: Means,
    freezer: Freezer,
    meter: Meter,
    /// When the present use began to be counted, and the count then.
    since: (Instant, Duration),
    /// What it used before the first step, in CPUs.
    used: Option<f64>,
    percent: u8,
    guard: Option<Guard>,
    blip: PathBuf,
}

#[derive(Debug)]
enum Means {
    Quota(Quota),
    Duty(Duty),
}

impl Throttle {
    /// Finds the means for the container of process `init`, whose freezer is
    /// `freezer`. Takes nothing yet, but begins to watch what it uses.
    pub fn of(init: i32, freezer: &Freezer) -> Result<Self, ThrottleError> {
        let membership = read(Path::new(&format!("/proc/{init}/cgroup")))?;
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        let quota = Quota::find(&membership, &mounts, freezer);
        let meter = Meter::find(&membership, &mounts, freezer);
        let means = match quota {
            Some(quota) => Means::Quota(quota),
            None => Means::Duty(Duty::new(freezer.clone())),
        };
        let since = (Instant::now(), meter.read()?);
        Ok(Self {
            means,
            freezer: freezer.clone(),
            meter,
            since,
            used: None,
            percent: 0,
            guard: None,
            blip: "/proc/self/exe".into(),
        })
    }

    /// Has the guard started from the program `blip`: for callers that are
    /// another program.
    #[must_use]
    pub fn guarded_by(mut self, blip: &Path) -> Self {
        self.blip = blip.to_owned();
        self
    }

    /// How the CPU time is taken: `cpu.max`, `cfs quota` or `freezer duty
    /// cycle`. The first [`set`](Self::set) may still fall back to the last.
    pub fn means(&self) -> &'static str {
        match &self.means {
            Means::Quota(quota) => quota.name(),
            Means::Duty(_) => "freezer duty cycle",
        }
    }

    /// Percent of its CPU time that is taken now.
    pub fn percent(&self) -> u8 {
        self.percent
    }

    /// CPU time the container has used, all its processes together. Counts on
    /// across steps; never back.
    pub fn used(&self) -> Result<Duration, ThrottleError> {
        self.meter.read()
    }

    /// Takes `percent` of the CPU time that the container used before the first
    /// step, 99 at most; 0 is [`lift`](Self::lift). The first step watches it
    /// for 100 ms: this blocks.
    pub fn set(&mut self, percent: u8) -> Result<(), ThrottleError> {
        let percent = percent.min(99);
        if percent == 0 {
            return self.lift();
        }
        let used = match self.used {
            Some(used) => used,
            None => self.begin()?,
        };
        self.used = Some(used);
        let kept = 1.0 - f64::from(percent) / 100.0;
        self.guard()?;
        let done = self.keep(used, kept);
        if done.is_ok() {
            self.percent = percent;
        } else {
            let _ = self.lift();
        }
        done
    }

    /// Must be called right before blip freezes the container. A duty cycle
    /// would thaw it again; and a task that has used up its quota does not
    /// freeze before it gets more: 233 ms of downtime were measured with a
    /// tenth left. After this [`lift`](Self::lift) does nothing.
    ///
    /// Who was slowed down is hungry: for a quota the freeze is ordered before it
    /// is lifted, or the first milliseconds dirty more than all the last round.
    pub fn before_freeze(&mut self) -> Result<(), ThrottleError> {
        let ordered = self.percent > 0 && matches!(self.means, Means::Quota(_));
        if ordered {
            self.freezer.order()?;
        }
        let lifted = self.lift();
        if ordered && lifted.is_err() {
            self.freezer.thaw()?;
        }
        lifted
    }

    /// Gives everything back. Does nothing if nothing is taken.
    pub fn lift(&mut self) -> Result<(), ThrottleError> {
        let Some(guard) = self.guard.take() else { return Ok(()) };
        let lifted = match &mut self.means {
            Means::Quota(quota) => quota.restore(),
            Means::Duty(duty) => duty.end().map_err(ThrottleError::from),
        };
        // Kept if there is still something to put right: then the guard tries
        // when blip ends.
        if lifted.is_err() {
            self.guard = Some(guard);
            return lifted;
        }
        let _ = guard.dismiss();
        self.percent = 0;
        self.used = None;
        self.since = (Instant::now(), self.meter.read().unwrap_or_default());
        Ok(())
    }

    /// The container as it is before the first step: its limit, and what it uses.
    fn begin(&mut self) -> Result<f64, ThrottleError> {
        if let Means::Quota(quota) = &mut self.means {
            quota.refresh();
        }
        self.look()
    }

    /// The larger of its mean use since the beginning and its use right now:
    /// one that works in bursts is not taken for idle.
    fn look(&self) -> Result<f64, ThrottleError> {
        let before = (Instant::now(), self.meter.read()?);
        std::thread::sleep(LOOK);
        let now = (Instant::now(), self.meter.read()?);
        Ok(rate(self.since, now).max(rate(before, now)).max(FLOOR))
    }

    fn keep(&mut self, used: f64, kept: f64) -> Result<(), ThrottleError> {
        let cpus = (used * kept).max(FLOOR);
        if let Means::Quota(quota) = &mut self.means {
            let refused = match quota.set(cpus) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // A cgroup inside of it may have a larger limit of its own, which
            // v1 refuses. The freezer knows no such rule.
            tracing::warn!("{refused}; trying the freezer");
            self.means = Means::Duty(Duty::new(self.freezer.clone()));
            self.renew_guard()?;
        }
        if let Means::Duty(duty) = &mut self.means {
            duty.set(kept, cpus, &self.meter);
        }
        Ok(())
    }

    fn guard(&mut self) -> Result<(), ThrottleError> {
        if self.guard.is_some() { Ok(()) } else { self.renew_guard() }
    }

    /// A guard for the means as they are now, before they are used.
    fn renew_guard(&mut self) -> Result<(), ThrottleError> {
        let charge = match &self.means {
            Means::Quota(quota) => Charge::Throttle { restore: quota.restoring(), thaw: None },
            Means::Duty(duty) => {
                Charge::Throttle { restore: Vec::new(), thaw: Some(duty.freezer()) }
            }
        };
        let guard = Guard::start_as(&self.blip, &charge, &[]).map_err(ThrottleError::Guard)?;
        if let Some(earlier) = self.guard.replace(guard) {
            let _ = earlier.dismiss();
        }
        Ok(())
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        if let Err(error) = self.lift() {
            tracing::error!("{error}");
        }
    }
}

/// CPUs used between two readings.
fn rate(from: (Instant, Duration), to: (Instant, Duration)) -> f64 {
    let time = to.0.saturating_duration_since(from.0).as_secs_f64();
    if time > 0.0 { to.1.saturating_sub(from.1).as_secs_f64() / time } else { 0.0 }
}

fn read(path: &Path) -> Result<String, ThrottleError> {
    std::fs::read_to_string(path).map_err(|source| file_error(path, source))
}

fn file_error(path: &Path, source: io::Error) -> ThrottleError {
    ThrottleError::File { path: path.into(), source }
}

/// The path of a `/proc/PID/cgroup` line: of a v1 controller, or of v2. Not
/// that of the root, which is the whole machine.
fn path_in<'a>(membership: &'a str, controller: Option<&str>) -> Option<&'a str> {
    membership.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let fits = match controller {
            Some(name) => controllers.split(',').any(|each| each == name),
            None => controllers.is_empty(),
        };
        (fits && path != "/").then_some(path)
    })
}
