//! What the rounds so far say of the container and of the link.

mod forecast;

use super::costs::Costs;
use super::dirtying::Dirtying;
use super::{Goal, LinkFacts, RoundFacts, RoundSoFar};
use blip_transport::units::{Bandwidth, ByteSize, PAGE_SIZE, PageCount};
use std::time::Duration;

/// Rounds shorter than this say nothing about the link.
const TELLING: PageCount = PageCount(256);
/// Rounds whose rate counts.
const RATES: usize = 5;
/// A link of which nothing is known.
const UNKNOWN_LINK: Bandwidth = Bandwidth(110e6);
/// What a round costs besides its pages: a look at each page table, and the
/// target's word that it has everything.
const ROUND: Duration = Duration::from_millis(2);
const SCAN_PER_GIB: Duration = Duration::from_millis(5);
/// From the decision to freeze until the container stands still: it writes on
/// while its newest connections are waited for, and while others are held back.
pub const APPROACH: Duration = Duration::from_millis(20);

/// How fast a round's pages went out.
#[derive(Clone, Copy, Debug)]
struct Pace {
    pages: PageCount,
    took: Duration,
    wire: ByteSize,
}

/// Whether the rest is put in place before the container resumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Within the freeze.
    Shipped,
    /// After the resume.
    Left,
}

/// Everything known so far.
#[derive(Clone, Debug)]
pub struct Model {
    goal: Goal,
    costs: Costs,
    link: LinkFacts,
    memory: PageCount,
    elapsed: Duration,
    throttle: u8,
    last: Option<RoundFacts>,
    rounds: u32,
    paces: Vec<Pace>,
    overhead: Option<Duration>,
    /// All that is dirtied; while pages are held back, all but those.
    all: Dirtying,
    outside: Dirtying,
    wire: ByteSize,
}

impl Model {
    /// Knows nothing but what experience says.
    pub fn new(goal: Goal, costs: Costs, link: LinkFacts) -> Self {
        Self {
            goal,
            costs: costs.at(link.rtt),
            link,
            memory: PageCount(0),
            elapsed: Duration::ZERO,
            throttle: 0,
            last: None,
            rounds: 0,
            paces: Vec::new(),
            overhead: None,
            all: Dirtying::default(),
            outside: Dirtying::default(),
            wire: ByteSize(0),
        }
    }

    /// What is known before any round.
    pub fn begin(&mut self, memory: PageCount, elapsed: Duration) {
        (self.memory, self.elapsed) = (memory, elapsed);
    }

    /// Takes in a finished round.
    pub fn learn(&mut self, round: &RoundFacts) {
        self.learn_of_scan(round);
        self.learn_of_looks(round);
        let read = PageCount(round.dirty.0.saturating_sub(round.held_back.0));
        if read >= TELLING {
            self.paces.push(Pace { pages: read, took: round.took, wire: round.wire });
        } else {
            let least = self.overhead.unwrap_or(round.took);
            self.overhead = Some((least + round.took) / 2);
        }
        self.memory = round.resident;
        self.elapsed = round.elapsed;
        self.throttle = round.throttle;
        self.wire += round.wire;
        self.rounds += 1;
        self.last = Some(round.clone());
    }

    /// What a round's scan found was dirtied since the last look before it.
    fn learn_of_scan(&mut self, round: &RoundFacts) {
        let Some(last) = &self.last else { return };
        let scanned = round.elapsed.saturating_sub(round.took);
        let before = match last.watched.looks[..] {
            [] => last.elapsed.saturating_sub(last.took),
            _ => last.elapsed.saturating_sub(last.watched.since),
        };
        let time = cpu_time(scanned.saturating_sub(before), last.throttle);
        let known = last.held_back.0 + last.watched.again.0;
        let fresh = PageCount(round.dirty.0.saturating_sub(known));
        if last.held_back.0 == 0 {
            self.all.observe(time, fresh);
            self.outside.clear();
        } else {
            self.outside.observe(time, fresh);
        }
    }

    fn learn_of_looks(&mut self, round: &RoundFacts) {
        if round.held_back.0 > 0 && !round.watched.looks.is_empty() {
            // Other pages are held back now than before.
            self.outside.clear();
        }
        for look in &round.watched.looks {
            let time = cpu_time(look.time, round.throttle);
            self.all.observe(time, look.written);
            if round.held_back.0 > 0 {
                self.outside.observe(time, look.outside);
            }
        }
    }

    /// What is known in the middle of a round.
    #[must_use]
    pub fn within(&self, round: &RoundSoFar) -> Self {
        let mut now = self.clone();
        now.elapsed = round.elapsed;
        now.wire += round.wire;
        if round.done >= TELLING {
            now.paces.push(Pace { pages: round.done, took: round.took, wire: round.wire });
        }
        now
    }

    /// The user's wishes.
    pub fn goal(&self) -> &Goal {
        &self.goal
    }

    /// The costs, as of this link.
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// Since the command began.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Finished rounds.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// The last of them.
    pub fn last(&self) -> Option<&RoundFacts> {
        self.last.as_ref()
    }

    /// Intervals between scans so far; each shows how much is dirtied.
    pub fn intervals(&self) -> usize {
        self.all.observations().max(self.outside.observations())
    }

    /// Memory that must be moved.
    pub fn memory(&self) -> PageCount {
        self.memory
    }

    /// The downtime with nothing left to copy, memory put in place first if the
    /// method wants that.
    pub fn fixed(&self) -> Duration {
        let fixed = self.costs.fixed(self.memory);
        fixed + self.prefill()
    }

    /// Putting all memory in place before the resume, if the method does so.
    pub fn prefill(&self) -> Duration {
        match self.goal.method.may_leave_pages() {
            true => Duration::ZERO,
            false => self.costs.prefill_time(self.memory),
        }
    }

    /// How fast pages go out, in bytes of memory a second: a low percentile of
    /// the recent rounds.
    pub fn rate(&self) -> Bandwidth {
        let overhead = self.overhead();
        // The first round holds what compresses best: zeros and what is there
        // twice. It counts only while there is no other.
        let recent = match &self.paces[..] {
            [first] => std::slice::from_ref(first),
            [] => return self.untried_rate(),
            [_, others @ ..] => &others[others.len().saturating_sub(RATES)..],
        };
        let mut rates: Vec<f64> = recent.iter().map(|pace| pace.rate(overhead).0).collect();
        rates.sort_by(f64::total_cmp);
        Bandwidth(rates[(rates.len() - 1) / 4].max(1.0))
    }

    /// Before any round: what experience says, or what the link carries.
    fn untried_rate(&self) -> Bandwidth {
        let squeeze = self.costs.squeeze.unwrap_or(1.0).max(1e-3);
        let carried = |link: Bandwidth| link.0 / squeeze;
        let link = self.link.bandwidth.filter(|known| known.0 > 1e3).map(carried);
        let pace = self.costs.pace.map(|pace| pace.0);
        let known = match (pace, link) {
            (Some(pace), Some(link)) => pace.min(link),
            (pace, link) => pace.or(link).unwrap_or(UNKNOWN_LINK.0),
        };
        Bandwidth(self.goal.bandwidth.map_or(known, |cap| known.min(carried(cap))))
    }

    /// Bytes on the link for a byte of memory.
    fn squeeze(&self) -> f64 {
        let Some(pace) = self.paces.last() else { return self.costs.squeeze.unwrap_or(1.0) };
        (pace.wire.0 as f64 / pace.pages.bytes().0 as f64).clamp(0.001, 1.1)
    }

    /// What a round costs besides its pages.
    fn overhead(&self) -> Duration {
        let gib = self.memory.bytes().0 as f64 / f64::from(1 << 30);
        let guess = ROUND + SCAN_PER_GIB.mul_f64(gib) + self.link.rtt;
        self.overhead.unwrap_or(guess)
    }

    /// Reading and sending so many pages.
    pub fn time_for(&self, pages: PageCount) -> Duration {
        Duration::from_secs_f64(pages.bytes().0 as f64 / self.rate().0.max(1.0))
    }

    /// How many pages can be read and sent in such a time.
    pub fn pages_in(&self, time: Duration) -> PageCount {
        PageCount((self.rate().0 * time.as_secs_f64() / PAGE_SIZE as f64) as u64)
    }

    /// A round of so many pages.
    pub fn round_time(&self, pages: PageCount) -> Duration {
        self.overhead() + self.time_for(pages)
    }

    /// Pages held back at present.
    pub fn held(&self) -> PageCount {
        self.last.as_ref().map_or(PageCount(0), |last| last.held_back)
    }

    /// Of the [rest](Self::rest), how many pages are written again and again:
    /// those that would be held back.
    pub fn hot(&self) -> PageCount {
        let Some(last) = &self.last else { return PageCount(0) };
        let rest = self.rest();
        let hot = match last.watched.looks[..] {
            [_, _, ..] => last.watched.hot.0,
            // The first scan finds everything dirty: pages cannot be hot before
            // the third.
            _ if last.dirty.0 > 0 && self.rounds > 2 => {
                let share = (last.hot.0 as f64 / last.dirty.0 as f64).min(1.0);
                (rest.0 as f64 * share) as u64
            }
            _ => 0,
        };
        PageCount(hot.max(last.held_back.0).min(rest.0))
    }

    /// Pages dirtied within `time` with `throttle` percent of the CPU taken.
    pub fn dirtied(&self, time: Duration, throttle: u8) -> PageCount {
        let cpu_time = cpu_time(time, throttle);
        let known = self.all.within(cpu_time);
        let guess = || {
            let outside = self.outside.within(cpu_time)?;
            Some(outside + self.held())
        };
        // Nothing seen yet: as if it wrote a fifth of its memory.
        let pages = known.or_else(guess).unwrap_or(PageCount(self.memory.0 / 5));
        PageCount(pages.0.min(self.memory.0))
    }

    /// The same, but without `held` pages that are dirty anyway.
    pub fn dirtied_outside(&self, held: PageCount, time: Duration, throttle: u8) -> PageCount {
        if let Some(seen) = self.outside.within(cpu_time(time, throttle)) {
            return PageCount(seen.0.min(self.memory.0.saturating_sub(held.0)));
        }
        let all = self.dirtied(time, throttle);
        let share = |last: &RoundFacts| held.0 as f64 / last.dirty.0.max(1) as f64;
        let share = self.last.as_ref().map_or(0.0, share);
        PageCount((all.0 as f64 * (1.0 - share.clamp(0.0, 0.9))).ceil() as u64)
    }

    /// What would have to be sent if the container were frozen now: what was
    /// dirtied during the last round, and what was held back.
    pub fn rest(&self) -> PageCount {
        let Some(last) = &self.last else { return self.memory };
        let held = last.held_back;
        let (known, time) = match last.watched.looks[..] {
            [] => (held, last.took),
            _ => (held + last.watched.again, last.watched.since),
        };
        let time = time + APPROACH;
        let fresh = match held {
            PageCount(0) => self.dirtied(time, last.throttle),
            _ => self.dirtied_outside(held, time, last.throttle),
        };
        PageCount((known + fresh).0.min(self.memory.0))
    }

    /// The same in the middle of a round.
    pub fn rest_within(&self, round: &RoundSoFar) -> PageCount {
        let undone = PageCount(round.dirty.0.saturating_sub(round.done.0));
        let written = self.dirtied(round.took + APPROACH, self.throttle);
        PageCount((undone.0 + written.0).min(self.memory.0.max(undone.0)))
    }

    /// The rest after one more round that sends everything, and the length of
    /// that round.
    pub fn after_sending(&self, throttle: u8) -> (PageCount, Duration) {
        let time = self.round_time(self.rest());
        (self.dirtied(time + APPROACH, throttle), time)
    }

    /// The rest after one more round that holds hot pages back, how many those
    /// would be, and the length of that round.
    pub fn after_holding(&self, throttle: u8) -> (PageCount, PageCount, Duration) {
        let (rest, held) = (self.rest(), self.hot());
        let time = self.round_time(PageCount(rest.0 - held.0));
        (held + self.dirtied_outside(held, time + APPROACH, throttle), held, time)
    }

    /// How far off a rest usually is, relative to itself.
    pub fn doubt(&self) -> f64 {
        if self.rounds == 0 {
            return if self.link.bandwidth.is_some() { 0.15 } else { 0.5 };
        }
        match (self.outside.observations(), self.all.observations()) {
            // Seen once, it may have been the same few pages all the time: then
            // a shorter round leaves no less.
            (0, 1) => {
                let found = self.last.as_ref().map_or(0, |last| last.dirty.0) as f64;
                (found / self.rest().0.max(1) as f64 - 1.0).max(self.all.error())
            }
            (0, _) => self.all.error(),
            _ => self.outside.error(),
        }
    }
}

/// A throttled container has less time to write in.
fn cpu_time(time: Duration, throttle: u8) -> Duration {
    time.mul_f64(f64::from(100 - throttle.min(99)) / 100.0)
}

impl Pace {
    fn rate(&self, overhead: Duration) -> Bandwidth {
        let least = self.took / 2;
        Bandwidth::over(self.pages.bytes(), self.took.saturating_sub(overhead).max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Look, Watched};
    use blip_transport::units::Round;

    fn round(n: u32, at_ms: u64, took_ms: u64, dirty: u64) -> RoundFacts {
        RoundFacts {
            round: Round(n),
            took: Duration::from_millis(took_ms),
            elapsed: Duration::from_millis(at_ms),
            resident: PageCount(262_144),
            dirty: PageCount(dirty),
            hot: PageCount(0),
            held_back: PageCount(0),
            wire: PageCount(dirty).bytes(),
            throttle: 0,
            watched: Watched::default(),
        }
    }

    fn model() -> Model {
        let link = LinkFacts { rtt: Duration::ZERO, bandwidth: None };
        let mut model = Model::new(Goal::default(), Costs::default(), link);
        model.begin(PageCount(262_144), Duration::ZERO);
        model
    }

    #[test]
    fn small_rounds_say_what_a_round_costs_and_nothing_of_the_link() {
        let mut model = model();
        model.learn(&round(0, 10_000, 10_000, 262_144));
        model.learn(&round(1, 11_000, 1_000, 24_000));
        model.learn(&round(2, 11_008, 8, 30));
        let rate = model.rate().0;
        assert!((95e6..103e6).contains(&rate), "{rate}");
        assert!(model.time_for(PageCount(30)) < Duration::from_millis(2));
        assert_eq!(model.overhead(), Duration::from_millis(8));
    }

    #[test]
    fn the_rate_is_a_low_one_of_the_recent_rounds() {
        let mut model = model();
        model.learn(&round(0, 5_000, 5_000, 262_144));
        for (n, took) in [100, 120, 300, 110, 105].into_iter().enumerate() {
            model.learn(&round(n as u32 + 1, 6_000 + n as u64 * 400, took, 4_000));
        }
        let rate = model.rate().0;
        assert!((130e6..165e6).contains(&rate), "{rate}");
    }

    #[test]
    fn a_cap_counts_before_the_first_round() {
        let goal = Goal { bandwidth: Some(Bandwidth(10e6)), ..Goal::default() };
        let link = LinkFacts { rtt: Duration::ZERO, bandwidth: Some(Bandwidth(1e9)) };
        let model = Model::new(goal, Costs::default(), link);
        assert_eq!(model.rate(), Bandwidth(10e6));
    }

    #[test]
    fn what_is_left_behind_costs_no_downtime() {
        let model = model();
        let much = PageCount(110_000);
        assert!(model.downtime(much, Rest::Shipped) > model.time_for(much));
        let left = model.downtime(much, Rest::Left);
        assert_eq!(left, model.downtime(PageCount(0), Rest::Shipped));
    }

    #[test]
    fn a_watched_round_says_what_is_left() {
        let mut model = model();
        let look = |ms, written, outside| Look {
            time: Duration::from_millis(ms),
            written: PageCount(written),
            outside: PageCount(outside),
        };
        let watched = Watched {
            looks: vec![look(100, 4_000, 10), look(400, 11_000, 40), look(2_000, 16_000, 200)],
            again: PageCount(300),
            hot: PageCount(15_250),
            since: Duration::from_millis(100),
        };
        let held_back = PageCount(15_000);
        model.learn(&RoundFacts { held_back, watched, ..round(0, 9_000, 9_000, 262_144) });
        assert_eq!(model.intervals(), 3);
        let rest = model.rest().0;
        assert!((15_300..15_340).contains(&rest), "{rest}");
        assert_eq!(model.hot(), PageCount(15_250));
        let (left, held, _) = model.after_holding(0);
        assert!(held.0 == 15_250 && left.0 < 15_280, "{left:?}");
        let sent = model.after_sending(0).0.0;
        assert!((9_000..15_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_forecast_adds_up() {
        let mut model = model();
        model.learn(&round(0, 5_000, 5_000, 262_144));
        model.learn(&round(1, 7_000, 2_000, 90_000));
        let forecast = model.forecast(model.rest(), Rest::Shipped, model.elapsed());
        let sum: f64 = forecast.downtime.iter().map(|part| part.ms).sum();
        assert!((sum - forecast.downtime_ms).abs() < 0.01, "{forecast:?}");
        let total = 7_000.0 + forecast.downtime_ms + forecast.brownout_ms;
        assert!((total - forecast.total_ms).abs() < 0.01);
        assert!(forecast.confidence > 0.2 && forecast.confidence < 1.0);
    }
}
