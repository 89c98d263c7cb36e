//! What a handover costs however little memory is left to copy.
//!
//! The defaults are those of a Redis in the runs published in `results/sizes`; what
//! this container and this pair of hosts really cost is learned from every
//! [`Report`].

use super::Method;
use crate::event::{Phase, PhaseTime, Report, millis};
use crate::handover::Outcome;
use blip_transport::units::{Bandwidth, ByteSize, PageCount};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The weight of the newest sample, once there are enough of them: costs change
/// with the load of the hosts.
const FORGET: f64 = 0.25;
/// Last pages so few that they draw out no phase.
const QUIET: ByteSize = ByteSize(1 << 20);
/// Rounds shorter than this say nothing of how memory goes out.
const TELLING: ByteSize = ByteSize(16 << 20);
/// Of a container's cost that was never seen, at least this share is in doubt.
const DOUBT: f64 = 0.25;
/// What sending beside the dump costs where that was not seen yet: the median of
/// nine moves between hosts that share two cores (`results/fast`, `--throttle`).
const DRAG: f64 = 0.5;
/// Round trips that each phase waits for.
const SHIP_TRIPS: f64 = 0.5;
const GRANT_TRIPS: f64 = 1.5;

/// A cost that varies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Mean in milliseconds.
    pub ms: f64,
    /// Standard deviation in milliseconds.
    pub spread_ms: f64,
    /// Observations of this container that went into it; 0: it is a default, or
    /// other containers'.
    pub samples: u32,
}

impl Cost {
    const fn measured(ms: f64, spread_ms: f64) -> Self {
        Self { ms, spread_ms, samples: 0 }
    }

    /// Takes in an observation. What was measured elsewhere counts for nothing
    /// beside it, but for how much such a cost varies.
    fn learn(&mut self, ms: f64) {
        if !ms.is_finite() || ms < 0.0 {
            return;
        }
        self.samples = self.samples.saturating_add(1);
        let weight = (1.0 / f64::from(self.samples)).max(FORGET);
        // One run that stalled says little about the next.
        let off = (ms - self.ms).clamp(-4.0 * self.ms, 4.0 * self.ms + 10.0);
        self.ms += weight * off;
        if self.samples == 1 {
            return;
        }
        let variance = (1.0 - weight) * (self.spread_ms.powi(2) + weight * off.powi(2));
        // However alike a few runs were, the next may differ a little.
        self.spread_ms = variance.sqrt().max(0.03 * self.ms);
    }
}

/// The costs of one container between one pair of hosts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Stopping the tasks and cutting the network.
    pub freeze: Cost,
    /// CRIU's dump without memory, for a container of no size.
    pub dump: Cost,
    /// What a GiB of resident memory adds to it, in milliseconds.
    pub dump_ms_per_gib: f64,
    /// Images and files, without the last pages.
    pub ship: Cost,
    /// Recreating the processes, without putting memory into them.
    pub restore: Cost,
    /// Grant and resume.
    pub grant: Cost,
    /// How fast the target puts stored pages into the processes.
    pub prefill: Bandwidth,
    /// How fast the container's memory went out with no limit set, in bytes of
    /// memory a second, once that was seen.
    #[serde(default)]
    pub pace: Option<Bandwidth>,
    /// Bytes on the link for a byte of memory, once that was seen.
    #[serde(default)]
    pub squeeze: Option<f64>,
    /// Share of dump and restore during which the last pages travel beside them,
    /// 0 to 1.
    pub overlap: f64,
    /// What each millisecond of that draws dump and restore out by, once that was
    /// seen: a host without cores to spare does both at once more slowly.
    #[serde(default)]
    pub drag: Option<f64>,
    /// Round-trip time of the link that these costs are of, in milliseconds.
    pub rtt_ms: f64,
}

/// Measured between two hosts on one machine of two cores: `results/sizes`, medians
/// of each phase; the dump's a line through those of 64 MiB to 4 GiB.
impl Default for Costs {
    fn default() -> Self {
        Self {
            freeze: Cost::measured(2.2, 1.0),
            dump: Cost::measured(17.5, 5.0),
            dump_ms_per_gib: 31.0,
            ship: Cost::measured(1.0, 1.0),
            restore: Cost::measured(31.0, 5.0),
            grant: Cost::measured(10.5, 2.5),
            prefill: Bandwidth(2.6e9),
            pace: None,
            squeeze: None,
            overlap: 0.7,
            drag: None,
            rtt_ms: 0.0,
        }
    }
}

impl Costs {
    /// The same costs over a link with another round-trip time.
    #[must_use]
    pub fn at(mut self, rtt: Duration) -> Self {
        let more = millis(rtt) - self.rtt_ms;
        self.ship.ms = (self.ship.ms + SHIP_TRIPS * more).max(0.1);
        self.grant.ms = (self.grant.ms + GRANT_TRIPS * more).max(0.1);
        self.rtt_ms = millis(rtt);
        self
    }

    /// The same for a container of which nothing is known: its first move will
    /// tell more than all of others'.
    #[must_use]
    pub fn of_another(mut self) -> Self {
        let all = [&mut self.freeze, &mut self.dump, &mut self.ship, &mut self.restore];
        for cost in all.into_iter().chain([&mut self.grant]) {
            cost.samples = 0;
        }
        self
    }

    /// The phases of a downtime in which nothing is left to copy.
    pub fn phases(&self, memory: PageCount) -> Vec<PhaseTime> {
        let ms = |phase| match phase {
            Phase::Freeze => self.freeze.ms,
            Phase::Dump => self.dump_ms(memory),
            Phase::Ship => self.ship.ms,
            Phase::Restore => self.restore.ms,
            Phase::Grant => self.grant.ms,
            // Depends on the method.
            _ => 0.0,
        };
        Phase::DOWNTIME.into_iter().map(|phase| PhaseTime { phase, ms: ms(phase) }).collect()
    }

    /// The downtime if nothing is left to copy.
    pub fn fixed(&self, memory: PageCount) -> Duration {
        let ms: f64 = self.phases(memory).iter().map(|part| part.ms).sum();
        Duration::from_secs_f64(ms / 1e3)
    }

    /// Standard deviation of [`Costs::fixed`].
    pub fn spread(&self) -> Duration {
        let all = [self.freeze, self.dump, self.ship, self.restore, self.grant];
        let variance: f64 = all.iter().map(|cost| cost.spread_ms.powi(2)).sum();
        Duration::from_secs_f64(variance.sqrt() / 1e3)
    }

    /// The same, as far as a forecast is concerned: what was measured on other
    /// hosts, or of other containers only, may be quite different here.
    pub fn doubt(&self, memory: PageCount) -> Duration {
        match self.grant.samples {
            0 => self.spread().max(self.fixed(memory).mul_f64(DOUBT)),
            _ => self.spread(),
        }
    }

    /// What of the time that the last pages take adds to the downtime: they travel
    /// while CRIU is still at work on one host or the other, and slow it down.
    pub fn beyond(&self, sending: Duration, memory: PageCount) -> Duration {
        let beside = self.beside(memory);
        sending.saturating_sub(beside) + sending.min(beside).mul_f64(self.drag())
    }

    /// The sending for which there is room in such a time.
    pub fn room(&self, time: Duration, memory: PageCount) -> Duration {
        let (beside, drag) = (self.beside(memory), self.drag().max(1e-3));
        let drawn_out = beside.mul_f64(drag);
        if time < drawn_out { time.div_f64(drag) } else { beside + time - drawn_out }
    }

    fn drag(&self) -> f64 {
        self.drag.unwrap_or(DRAG).clamp(0.0, 1.0)
    }

    fn beside(&self, memory: PageCount) -> Duration {
        let busy = self.dump_ms(memory) + self.restore.ms;
        Duration::from_secs_f64(self.overlap.clamp(0.0, 1.0) * busy / 1e3)
    }

    /// Putting so much memory into the processes.
    pub fn prefill_time(&self, memory: PageCount) -> Duration {
        Duration::from_secs_f64(memory.bytes().0 as f64 / self.prefill.0.max(1e6))
    }

    fn dump_ms(&self, memory: PageCount) -> f64 {
        self.dump.ms + self.dump_ms_per_gib * gib(memory.bytes())
    }

    /// Learns from a migration that came through. Phases that were drawn out by
    /// the last pages or by filling memory teach nothing of what they cost
    /// alone.
    pub fn learn(&mut self, report: &Report) {
        if report.outcome != Outcome::Moved {
            return;
        }
        let ms = |phase| report.downtime.iter().find(|part| part.phase == phase).map(|p| p.ms);
        let last = report.rounds.iter().filter(|round| round.frozen && !round.pushed);
        let (last_ms, last_bytes) =
            last.fold((0.0, 0), |sum, round| (sum.0 + round.ms, sum.1 + round.bytes_wire.0));
        let quiet = last_bytes <= QUIET.0;
        if let Some(freeze) = ms(Phase::Freeze) {
            self.freeze.learn(freeze);
        }
        if let Some(dump) = ms(Phase::Dump).filter(|dump| quiet || last_ms < 0.8 * dump) {
            let size = self.dump_ms_per_gib * gib(report.memory_bytes);
            let drawn_out = if quiet { 0.0 } else { self.drag() * last_ms };
            if !quiet && self.dump.samples > 0 {
                let more = (dump - size - self.dump.ms) / last_ms;
                self.drag = Some(mix(self.drag, more.clamp(0.0, 1.0)));
            }
            self.dump.learn((dump - size - drawn_out).max(1.0));
        }
        if let Some(ship) = ms(Phase::Ship) {
            self.ship.learn(ship);
        }
        if let Some(grant) = ms(Phase::Grant) {
            self.grant.learn(grant);
        }
        let fills_first = !report.method.may_leave_pages();
        let bytes = report.memory_bytes.0 as f64;
        // Filling begins while the processes are still being restored.
        let filled = ms(Phase::Fill).unwrap_or_default();
        match ms(Phase::Restore).map(|restore| restore + filled).filter(|_| quiet) {
            Some(restore) if fills_first && restore > self.restore.ms + 5.0 => {
                self.learn_prefill(bytes / ((restore - self.restore.ms) / 1e3));
            }
            Some(restore) if !fills_first => self.restore.learn(restore),
            _ => {}
        }
        self.learn_pace(report);
        let lazy = &report.lazy;
        if report.method != Method::PostCopy && lazy.from_source == 0 && lazy.drain_ms > 5.0 {
            let filled = PageCount(lazy.from_store).bytes().0 as f64;
            self.learn_prefill(filled / (lazy.drain_ms / 1e3));
        }
    }

    /// The longest round tells most of how memory goes out.
    fn learn_pace(&mut self, report: &Report) {
        let longest = report.rounds.iter().max_by(|a, b| a.bytes_raw.cmp(&b.bytes_raw));
        let Some(round) = longest.filter(|round| round.bytes_raw >= TELLING && round.ms > 0.0)
        else {
            return;
        };
        let raw = round.bytes_raw.0 as f64;
        self.squeeze = Some(mix(self.squeeze, (round.bytes_wire.0 as f64 / raw).clamp(1e-3, 1.1)));
        if report.goal.bandwidth.is_none() {
            let pace = mix(self.pace.map(|pace| pace.0), raw / (round.ms / 1e3));
            self.pace = Some(Bandwidth(pace));
        }
    }

    fn learn_prefill(&mut self, rate: f64) {
        if rate.is_finite() {
            self.prefill.0 += FORGET * (rate.clamp(1e8, 1e10) - self.prefill.0);
        }
    }
}

/// A mean in which the newest counts most.
fn mix(before: Option<f64>, now: f64) -> f64 {
    before.map_or(now, |before| before + FORGET * (now - before))
}

fn gib(size: ByteSize) -> f64 {
    size.0 as f64 / f64::from(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_what_was_published() {
        // Medians of the downtime by `auto`, in milliseconds, and MiB of memory.
        let published = [(63.3, 78), (75.5, 298), (91.7, 1176), (230.7, 4690)];
        for (published, mib) in published {
            let ms = millis(Costs::default().fixed(PageCount(mib * 256)));
            assert!((ms / published - 1.0).abs() < 0.15, "{mib} MiB: {ms} ms");
        }
    }

    #[test]
    fn what_was_never_seen_here_is_doubted() {
        let memory = PageCount(76_800);
        let mut costs = Costs::default();
        assert_eq!(costs.doubt(memory), costs.fixed(memory).mul_f64(DOUBT));
        costs.grant.learn(27.0);
        assert_eq!(costs.doubt(memory), costs.spread());
    }

    #[test]
    fn sending_beside_the_dump_costs_a_part_of_its_time() {
        let (costs, memory) = (Costs::default(), PageCount(1000));
        let beside = costs.beside(memory);
        assert_eq!(costs.beyond(Duration::ZERO, memory), Duration::ZERO);
        let half = costs.beyond(beside / 2, memory);
        assert!(half > Duration::ZERO && half < beside / 2, "{half:?}");
        let much = beside * 3;
        assert_eq!(costs.beyond(much, memory), beside * 2 + beside.mul_f64(DRAG));
        for sending in [beside / 3, much] {
            let back = costs.room(costs.beyond(sending, memory), memory);
            assert!(back.abs_diff(sending) < Duration::from_micros(1), "{back:?}");
        }
    }

    #[test]
    fn a_longer_way_costs_two_round_trips() {
        let memory = PageCount(1000);
        let near = Costs::default();
        let far = near.at(Duration::from_millis(100));
        let more = millis(far.fixed(memory)) - millis(near.fixed(memory));
        assert!((more - 200.0).abs() < 0.01, "{more}");
        let back = far.at(Duration::ZERO).fixed(memory).as_secs_f64();
        assert!((back - near.fixed(memory).as_secs_f64()).abs() < 1e-6);
    }

    #[test]
    fn a_cost_comes_to_what_is_observed_and_keeps_its_doubt() {
        let mut cost = Cost::measured(40.0, 5.0);
        for _ in 0..30 {
            cost.learn(80.0);
        }
        assert!((79.0..81.0).contains(&cost.ms), "{cost:?}");
        assert!(cost.spread_ms >= 0.03 * cost.ms);
        let mut first = Cost::measured(40.0, 5.0);
        first.learn(20.0);
        assert_eq!((first.ms, first.spread_ms), (20.0, 5.0), "here it costs half of that");
        let before = cost;
        cost.learn(10_000.0);
        assert!(cost.ms < before.ms * 2.2, "one stall moved it to {cost:?}");
        cost.learn(f64::NAN);
        assert!(cost.ms.is_finite());
    }
}
