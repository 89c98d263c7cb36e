//! What else the machine did during a run.

use std::fs;

use super::sample::Noise;

/// The processors' time, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ticks {
    all: u64,
    stolen: u64,
}

/// A look at the machine before a run.
pub(super) struct Before {
    ticks: Ticks,
    load: f64,
    /// Mean frequency of the processors in MHz; 0 where nobody says.
    mhz: f64,
}

impl Before {
    /// Now.
    pub(super) fn now() -> Before {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|l| l.parse().ok()).unwrap_or_default();
        Before { ticks: ticks(), load, mhz: mhz() }
    }

    /// What happened since, with the bench's own longest stall in ms.
    pub(super) fn until_now(self, stall_ms: f64) -> Noise {
        let now = ticks();
        let mut noise = noise(self.ticks, now, self.load, stall_ms);
        noise.warnings.extend(slower(self.mhz, mhz()));
        noise
    }
}

fn mhz() -> f64 {
    mean_mhz(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn mean_mhz(cpuinfo: &str) -> f64 {
    let lines = cpuinfo.lines().filter(|l| l.starts_with("cpu MHz"));
    let all: Vec<f64> = lines.filter_map(|l| l.split_once(':')?.1.trim().parse().ok()).collect();
    if all.is_empty() { 0.0 } else { all.iter().sum::<f64>() / all.len() as f64 }
}

/// What to say of processors that have become slower.
fn slower(before: f64, after: f64) -> Option<String> {
    (after > 0.0 && after < 0.8 * before).then(|| {
        format!(
            "the processors went from {before:.0} to {after:.0} MHz: choose the governor \
             `performance`, and look at their temperature"
        )
    })
}

fn ticks() -> Ticks {
    parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// `cpu user nice system idle iowait irq softirq steal …`; what follows is
/// part of the first two.
fn parse(stat: &str) -> Ticks {
    let line = stat.lines().next().and_then(|l| l.strip_prefix("cpu ")).unwrap_or_default();
    let fields = line.split_whitespace().map(|f| f.parse().unwrap_or_default()).take(8);
    let fields: Vec<u64> = fields.collect();
    Ticks { all: fields.iter().sum(), stolen: fields.get(7).copied().unwrap_or_default() }
}

fn noise(before: Ticks, after: Ticks, load: f64, stall_ms: f64) -> Noise {
    let all = after.all.saturating_sub(before.all);
    let stolen = after.stolen.saturating_sub(before.stolen);
    let steal_percent = if all > 0 { 100.0 * stolen as f64 / all as f64 } else { 0.0 };
    let mut warnings = Vec::new();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if load > cores as f64 {
        warnings.push(format!(
            "{load} processes wanted to run in the minute before, on {cores} processors: end what \
             else runs, or wait"
        ));
    }
    if steal_percent > 1.0 {
        warnings.push(format!(
            "a hypervisor took {steal_percent:.1} % of the processors: measure on a quieter machine"
        ));
    }
    if stall_ms > 10.0 {
        warnings.push(format!(
            "the bench itself was not run for {stall_ms:.0} ms: gaps of that length mean nothing"
        ));
    }
    Noise { load, steal_percent, warnings }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_the_eighth_field_and_a_share_of_the_first_eight() {
        let before = parse("cpu  100 0 100 800 0 0 0 0 50 0\ncpu0 1\n");
        let after = parse("cpu  150 0 150 840 0 0 0 60 99 0\ncpu0 1\n");
        assert_eq!(before, Ticks { all: 1_000, stolen: 0 });
        let noise = noise(before, after, 0.5, 3.0);
        assert_eq!((noise.steal_percent, noise.load), (30.0, 0.5));
        assert!(noise.warnings.len() == 1 && noise.warnings[0].contains("30.0 %"));
    }

    #[test]
    fn frequencies_are_means_and_only_a_fall_is_told() {
        assert_eq!(mean_mhz("cpu MHz\t\t: 1000.0\nflags: x\ncpu MHz\t\t: 3000.0\n"), 2_000.0);
        assert_eq!(mean_mhz("flags: x\n"), 0.0);
        assert!(slower(3_000.0, 2_000.0).is_some_and(|w| w.contains("3000 to 2000 MHz")));
        assert_eq!(
            (slower(2_000.0, 3_000.0), slower(0.0, 0.0), slower(2_000.0, 0.0)),
            (None, None, None)
        );
    }

    #[test]
    fn a_machine_that_says_nothing_is_not_accused() {
        assert_eq!(parse(""), Ticks::default());
        assert!(noise(Ticks::default(), Ticks::default(), 0.0, 0.0).warnings.is_empty());
    }
}
