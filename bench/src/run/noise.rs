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
}

impl Before {
    /// Now.
    pub(super) fn now() -> Before {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|l| l.parse().ok()).unwrap_or_default();
        Before { ticks: ticks(), load }
    }

    /// What happened since, with the bench's own longest stall in ms.
    pub(super) fn until_now(self, stall_ms: f64) -> Noise {
        let now = ticks();
        noise(self.ticks, now, self.load, stall_ms)
    }
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
    fn a_machine_that_says_nothing_is_not_accused() {
        assert_eq!(parse(""), Ticks::default());
        assert!(noise(Ticks::default(), Ticks::default(), 0.0, 0.0).warnings.is_empty());
    }
}
