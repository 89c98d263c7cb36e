//! Containers that write as described, in expectation: pages come in bands of
//! the same habit, no page has a name, and what is random is a function of the
//! seed and of the time, so that whoever looks when changes nothing.

use blip_engine::plan::rehearsal::{Band, World};
use blip_transport::link::quic::settings::MAX_IN_FLIGHT;
use blip_transport::units::{Bandwidth, PageCount};
use std::time::Duration;

/// Memory of every container.
pub const MEMORY: PageCount = PageCount(262_144);
/// How fast pages can be read, hashed and compressed at all.
const CPU: f64 = 1.5e9;
/// Bytes on the link for a byte of memory.
pub const SQUEEZE: f64 = 0.8;
/// How long chance stays the same.
const MOMENT: f64 = 0.25;
const PAGES_PER_MIB: f64 = 256.0;
const MIB: f64 = 1048576.0;

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Next to nothing.
    Idle,
    /// 20 MB/s, anywhere.
    Uniform,
    /// 200 MB/s to 64 MiB, 1 MB/s anywhere.
    HotSet,
    /// A few pages all the time, some often, many seldom: like a database.
    Skewed,
    /// 4 s of 150 MB/s to 128 MiB, then 4 s of 1 MB/s.
    Phases,
    /// Walks through 512 MiB at 80 MB/s.
    Streaming,
    /// 600 MB/s to 512 MiB.
    Fast,
    /// Quiet until rounds become short, then 250 MB/s for a second.
    Adversarial,
}

impl Habit {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::Uniform,
        Self::HotSet,
        Self::Skewed,
        Self::Phases,
        Self::Streaming,
        Self::Fast,
        Self::Adversarial,
    ];

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Uniform => "uniform",
            Self::HotSet => "hot set",
            Self::Skewed => "skewed",
            Self::Phases => "phases",
            Self::Streaming => "streaming",
            Self::Fast => "fast writer",
            Self::Adversarial => "adversarial",
        }
    }

    /// Bands as (MiB, bytes a second).
    fn bands(self) -> Vec<Band> {
        let writes = |bytes_a_second: f64| bytes_a_second / (MIB / PAGES_PER_MIB);
        let random = |mib: f64, rate: f64| Band::random(mib * PAGES_PER_MIB, writes(rate));
        let mut bands = match self {
            Self::Idle => vec![random(0.2, 1e6)],
            Self::Uniform => vec![random(1024.0, 20e6)],
            Self::HotSet => vec![random(64.0, 200e6), random(960.0, 1e6)],
            Self::Skewed => {
                vec![random(2.0, 100e6), random(30.0, 30e6), random(256.0, 5e6), random(736.0, 5e5)]
            }
            Self::Phases => vec![random(128.0, 150e6), random(896.0, 1e6)],
            Self::Streaming => {
                vec![Band::walk(512.0 * PAGES_PER_MIB, writes(80e6)), random(1.0, 1e6)]
            }
            Self::Fast => vec![random(512.0, 600e6)],
            Self::Adversarial => vec![random(256.0, 250e6), random(768.0, 1e6)],
        };
        let written: f64 = bands.iter().map(Band::pages).sum();
        bands.push(Band::random((MEMORY.0 as f64 - written).max(0.0), 0.0));
        bands
    }
}

/// A container over a link.
#[derive(Clone, Debug)]
pub struct Container {
    habit: Habit,
    bands: Vec<Band>,
    link: Bandwidth,
    rtt: Duration,
    seed: u64,
    now: f64,
    /// Until when the adversary writes.
    roused: f64,
}

impl Container {
    /// One that has just been looked at for the first time by nobody.
    pub fn new(habit: Habit, link: Bandwidth, rtt: Duration, seed: u64) -> Self {
        let bands = habit.bands();
        Self { habit, bands, link, rtt, seed, now: 0.0, roused: 0.0 }
    }

    /// A number around 1, the same for the same moment.
    fn chance(&self, what: u64, spread: f64) -> f64 {
        let moment = (self.now / MOMENT) as u64;
        1.0 + spread * unit(self.seed ^ what << 32 ^ moment)
    }

    /// How busy the first band is now; the others never rest.
    fn activity(&self) -> f64 {
        match self.habit {
            Habit::Phases => f64::from(((self.now / 4.0) as u64).is_multiple_of(2)),
            Habit::Adversarial => f64::from(self.now < self.roused),
            _ => 1.0,
        }
    }
}

impl World for Container {
    fn resident(&self) -> PageCount {
        MEMORY
    }

    fn run(&mut self, time: Duration, throttle: u8) {
        let cpu = f64::from(100 - throttle.min(100)) / 100.0;
        let mut left = time.as_secs_f64();
        while left > 0.0 {
            let step = left.min(0.05);
            let busy = self.activity();
            let luck = self.chance(1, 0.15);
            for (i, band) in self.bands.iter_mut().enumerate() {
                let active = if i == 0 { busy } else { 1.0 };
                band.run(step * cpu * luck * active);
            }
            self.now += step;
            left -= step;
        }
    }

    fn bands(&mut self) -> &mut [Band] {
        &mut self.bands
    }

    fn scanned(&mut self, _: Duration, dirty: PageCount) {
        if self.habit == Habit::Adversarial && dirty.0 < 4_000 {
            self.roused = self.now + 1.0;
        }
    }

    fn pace(&self) -> Bandwidth {
        let window = MAX_IN_FLIGHT.0 as f64 / self.rtt.as_secs_f64();
        let carried = window.min(self.link.0 * 0.94) / SQUEEZE;
        Bandwidth(carried.min(CPU) * self.chance(2, 0.08))
    }

    fn squeeze(&self) -> f64 {
        SQUEEZE
    }

    fn overhead(&self) -> Duration {
        Duration::from_millis(7) + self.rtt
    }
}

/// From -1 to 1, by splitmix64.
pub fn unit(seed: u64) -> f64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(habit: Habit) -> Container {
        Container::new(habit, Bandwidth(125e6), Duration::ZERO, 7)
    }

    fn dirty_after(habit: Habit, seconds: f64) -> f64 {
        let mut container = container(habit);
        container.scan(Duration::ZERO, false);
        container.run(Duration::from_secs_f64(seconds), 0);
        container.scan(Duration::ZERO, false).dirty.0 as f64 / PAGES_PER_MIB
    }

    #[test]
    fn the_habits_dirty_what_they_say() {
        assert!(dirty_after(Habit::Idle, 60.0) < 0.3);
        assert!((dirty_after(Habit::Uniform, 1.0) / 19.0 - 1.0).abs() < 0.2);
        assert!((dirty_after(Habit::HotSet, 5.0) / 68.0 - 1.0).abs() < 0.1);
        assert!((dirty_after(Habit::Streaming, 1.0) / 77.0 - 1.0).abs() < 0.2);
        assert!(dirty_after(Habit::Fast, 2.0) > 400.0);
        let [busy, both] = [4.0, 8.0].map(|time| dirty_after(Habit::Phases, time));
        assert!(both - busy < 8.0, "{busy} {both}");
    }

    #[test]
    fn who_looks_when_changes_nothing() {
        let (mut once, mut often) = (container(Habit::HotSet), container(Habit::HotSet));
        for container in [&mut once, &mut often] {
            container.scan(Duration::ZERO, false);
        }
        once.run(Duration::from_millis(1_000), 0);
        for _ in 0..20 {
            often.run(Duration::from_millis(50), 0);
        }
        let [a, b] = [once.scan(Duration::ZERO, false), often.scan(Duration::ZERO, false)];
        assert!(a.dirty.0.abs_diff(b.dirty.0) <= a.dirty.0 / 100, "{a:?} {b:?}");
    }

    #[test]
    fn hot_pages_wait_and_walked_ones_do_not() {
        for (habit, waits) in [(Habit::HotSet, true), (Habit::Streaming, false)] {
            let mut container = container(habit);
            let mut found = container.scan(Duration::ZERO, true);
            for scan in 1..5 {
                let time = Duration::from_millis(800);
                container.run(time, 0);
                found = container.scan(time * scan, true);
            }
            assert_eq!(found.held_back.0 > 10_000, waits, "{habit:?} {found:?}");
            assert!(found.held_back <= found.hot && found.hot <= found.dirty);
        }
    }

    #[test]
    fn the_adversary_waits_for_short_rounds() {
        let mut container = container(Habit::Adversarial);
        container.scan(Duration::ZERO, false);
        container.run(Duration::from_secs(8), 0);
        assert!(container.scan(Duration::ZERO, false).dirty.0 < 4_000);
        container.run(Duration::from_millis(500), 0);
        assert!(container.scan(Duration::ZERO, false).dirty.0 > 10_000);
    }
}
