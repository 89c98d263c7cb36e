//! The kernel's own bandwidth limit on a cgroup: `cpu.max` of v2, the cfs quota
//! of v1.

use super::{ThrottleError, file_error, path_in, read};
use crate::cgroup::{self, Freezer, Version};
use crate::guard::Setting;
use std::path::{Path, PathBuf};

/// The length of a period: short, so that a client waits little for the next.
const PERIOD_US: f64 = 20_000.0;
/// The longest, for shares that are too small for a short one.
const LONGEST_US: f64 = 100_000.0;
/// The least quota that the kernel takes.
const LEAST_US: u64 = 1000;

/// A limit in microseconds of CPU time per period of microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    /// `None`: as much as there is.
    quota: Option<u64>,
    period: u64,
}

/// A cgroup's limit, and what it was.
#[derive(Debug)]
pub(super) struct Quota {
    group: PathBuf,
    version: Version,
    earlier: Limit,
    /// How much unused quota may be saved up, if the user has set that.
    burst: Option<u64>,
    written: Option<Limit>,
}

impl Quota {
    /// The cpu controller's directory of a process, if it can be written to.
    pub(super) fn find(membership: &str, mounts: &str, freezer: &Freezer) -> Option<Self> {
        let v2 = match freezer.version {
            Version::V2 => Some(freezer.path.clone()),
            Version::V1 => path_in(membership, None)
                .and_then(|path| cgroup::locate(mounts, "cgroup2", None, path)),
        };
        let v1 = path_in(membership, Some("cpu"))
            .and_then(|path| cgroup::locate(mounts, "cgroup", Some("cpu"), path));
        v2.and_then(|group| Self::open(group, Version::V2))
            .or_else(|| v1.and_then(|group| Self::open(group, Version::V1)))
    }

    pub(super) fn open(group: PathBuf, version: Version) -> Option<Self> {
        let control = group.join(Self::control(version));
        std::fs::OpenOptions::new().write(true).open(control).ok()?;
        let earlier = Limit::read(&group, version).ok()?;
        let burst = read(&group.join(Self::burst_file(version))).ok();
        let burst = burst.and_then(|text| text.trim().parse().ok()).filter(|&burst| burst > 0);
        Some(Self { group, version, earlier, burst, written: None })
    }

    /// Takes the limit as it is now for the one to put back.
    pub(super) fn refresh(&mut self) {
        if let Some(now) = Self::open(self.group.clone(), self.version) {
            *self = now;
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self.version {
            Version::V2 => "cpu.max",
            Version::V1 => "cfs quota",
        }
    }

    /// Limits it to `cpus`, or to its earlier limit if that is less.
    pub(super) fn set(&mut self, cpus: f64) -> Result<(), ThrottleError> {
        let limit = Limit::of(cpus.min(self.earlier.cpus()));
        // A limit below the allowed burst is refused.
        if self.burst.is_some() {
            apply(&[self.setting(Self::burst_file(self.version), "0".into())])?;
        }
        apply(&self.settings(limit))?;
        self.written = Some(limit);
        Ok(())
    }

    /// Puts back what was there, unless somebody has set another limit.
    pub(super) fn restore(&mut self) -> Result<(), ThrottleError> {
        let ours = match (self.written.take(), Limit::read(&self.group, self.version)) {
            (Some(written), Ok(found)) => written == found,
            _ => true,
        };
        if !ours {
            tracing::info!("the CPU limit was changed while blip had lowered it; it stays");
            return Ok(());
        }
        apply(&self.restoring())
    }

    /// What puts back the earlier limit.
    pub(super) fn restoring(&self) -> Vec<Setting> {
        let mut settings = self.settings(self.earlier);
        let burst = self.burst.map(|burst| burst.to_string());
        settings.extend(burst.map(|burst| self.setting(Self::burst_file(self.version), burst)));
        settings
    }

    /// The writes that lead to `limit`. On v1, where quota and period are two
    /// files, by way of the least quota: no state between exceeds both ends.
    fn settings(&self, limit: Limit) -> Vec<Setting> {
        let Limit { quota, period } = limit;
        match self.version {
            Version::V2 => {
                let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
                vec![self.setting("cpu.max", format!("{quota} {period}"))]
            }
            Version::V1 => {
                let quota = quota.map_or("-1".to_owned(), |quota| quota.to_string());
                vec![
                    self.setting("cpu.cfs_quota_us", LEAST_US.to_string()),
                    self.setting("cpu.cfs_period_us", period.to_string()),
                    self.setting("cpu.cfs_quota_us", quota),
                ]
            }
        }
    }

    fn setting(&self, file: &str, value: String) -> Setting {
        Setting { file: self.group.join(file), value }
    }

    fn control(version: Version) -> &'static str {
        match version {
            Version::V2 => "cpu.max",
            Version::V1 => "cpu.cfs_quota_us",
        }
    }

    fn burst_file(version: Version) -> &'static str {
        match version {
            Version::V2 => "cpu.max.burst",
            Version::V1 => "cpu.cfs_burst_us",
        }
    }
}

impl Limit {
    /// A limit of so many CPUs, in the shortest period that has room for it.
    fn of(cpus: f64) -> Self {
        let least = LEAST_US as f64;
        let period = (least / cpus.max(1e-6)).clamp(PERIOD_US, LONGEST_US).round();
        Self { quota: Some(((cpus * period) as u64).max(LEAST_US)), period: period as u64 }
    }

    fn cpus(self) -> f64 {
        self.quota.map_or(f64::INFINITY, |quota| quota as f64 / self.period.max(1) as f64)
    }

    fn read(group: &Path, version: Version) -> Result<Self, ThrottleError> {
        let number = |path: &Path, text: &str| {
            let wrong = |_| file_error(path, std::io::ErrorKind::InvalidData.into());
            text.trim().parse::<u64>().map_err(wrong)
        };
        match version {
            Version::V2 => {
                let path = group.join("cpu.max");
                let text = read(&path)?;
                let (quota, period) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
                let period = if period.is_empty() { 100_000 } else { number(&path, period)? };
                let quota = if quota == "max" { None } else { Some(number(&path, quota)?) };
                Ok(Self { quota, period })
            }
            Version::V1 => {
                let (quota, period) =
                    (group.join("cpu.cfs_quota_us"), group.join("cpu.cfs_period_us"));
                let text = read(&quota)?;
                let limit = if text.starts_with('-') { None } else { Some(number(&quota, &text)?) };
                Ok(Self { quota: limit, period: number(&period, &read(&period)?)? })
            }
        }
    }
}

fn apply(settings: &[Setting]) -> Result<(), ThrottleError> {
    settings
        .iter()
        .try_for_each(|setting| setting.write().map_err(|e| file_error(&setting.file, e)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    #[test]
    fn a_v2_group_gets_its_own_limit_back() {
        let group = group(&[("cpu.max", "150000 100000\n"), ("cpu.max.burst", "0\n")]);
        let file = group.path().join("cpu.max");
        let mut quota = Quota::open(group.path().into(), Version::V2).unwrap();
        quota.set(0.5).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "10000 20000");
        quota.restore().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "150000 100000");
    }

    #[test]
    fn never_more_than_the_user_allowed() {
        let group = group(&[("cpu.max", "20000 100000\n")]);
        let mut quota = Quota::open(group.path().into(), Version::V2).unwrap();
        quota.set(1.5).unwrap();
        assert_eq!(quota.written.unwrap(), Limit { quota: Some(4000), period: 20_000 });
    }

    #[test]
    fn on_v1_the_way_to_a_limit_leads_over_the_least() {
        let group = group(&[("cpu.cfs_quota_us", "-1\n"), ("cpu.cfs_period_us", "100000\n")]);
        let quota = Quota::open(group.path().into(), Version::V1).unwrap();
        let values: Vec<_> = quota.restoring().into_iter().map(|s| s.value).collect();
        assert_eq!(values, ["1000", "100000", "-1"]);
    }

    #[test]
    fn a_small_share_has_a_longer_period() {
        assert_eq!(Limit::of(0.5), Limit { quota: Some(10_000), period: 20_000 });
        assert_eq!(Limit::of(0.02), Limit { quota: Some(1000), period: 50_000 });
        assert_eq!(Limit::of(0.001), Limit { quota: Some(1000), period: 100_000 });
    }

    #[test]
    fn an_allowed_burst_is_lifted_out_of_the_way_and_put_back_last() {
        let files = [("cpu.max", "max 100000\n"), ("cpu.max.burst", "5000\n")];
        let group = group(&files);
        let quota = Quota::open(group.path().into(), Version::V2).unwrap();
        let values: Vec<_> = quota.restoring().into_iter().map(|s| s.value).collect();
        assert_eq!(values, ["max 100000", "5000"]);
    }

    #[test]
    fn a_limit_that_somebody_else_set_stays() {
        let group = group(&[("cpu.max", "max 100000\n")]);
        let file = group.path().join("cpu.max");
        let mut quota = Quota::open(group.path().into(), Version::V2).unwrap();
        quota.set(0.5).unwrap();
        fs::write(&file, "77000 100000\n").unwrap();
        quota.restore().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "77000 100000\n");
    }
}
