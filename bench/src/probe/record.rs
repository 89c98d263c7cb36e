//! The record: when answers came, as latencies, gaps and a timeline. Pure.
//!
//! All times are microseconds since the first write was due. A latency runs
//! from the write's *scheduled* time to its acknowledgement; a gap from one
//! acknowledgement to the next (the first from time zero).

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Width of a timeline bucket.
const BUCKET_US: u64 = 10_000;

/// How many of the longest gaps are kept.
const KEPT_GAPS: usize = 8;

/// Latencies above this are counted as this: one minute.
const MAX_LATENCY_US: u64 = 60_000_000;

/// A time without any acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// How long it was, in milliseconds.
    pub ms: f64,
    /// When the acknowledgement before it came.
    pub from_ms: f64,
    /// When the acknowledgement after it came.
    pub to_ms: f64,
}

impl Gap {
    fn between(from_us: u64, to_us: u64) -> Gap {
        Gap { ms: ms(to_us.saturating_sub(from_us)), from_ms: ms(from_us), to_ms: ms(to_us) }
    }
}

/// Latencies of a set of writes, in microseconds from their scheduled time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many writes.
    pub count: u64,
    /// Half were answered within this.
    pub p50_us: u64,
    /// 99 of 100 were.
    pub p99_us: u64,
    /// 999 of 1000 were.
    pub p999_us: u64,
    /// The slowest.
    pub max_us: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        Latency {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }
}

/// One acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was due.
    pub scheduled_us: u64,
    /// How long after that its answer came.
    pub latency_us: u32,
}

impl Sample {
    /// When it was answered, in milliseconds.
    pub fn answered_ms(&self) -> f64 {
        ms(self.scheduled_us + u64::from(self.latency_us))
    }
}

/// 10 ms of the timeline. A bucket in which nothing was acknowledged is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// When the bucket begins.
    pub at_ms: u64,
    /// Writes acknowledged in it.
    pub acks: u32,
    /// 99th percentile of their latencies.
    pub p99_us: u32,
    /// The largest of their latencies.
    pub max_us: u32,
}

/// Takes acknowledgements in the order they came.
pub struct Record {
    histogram: Histogram<u64>,
    samples: Vec<Sample>,
    gaps: Vec<Gap>,
    last_us: u64,
    timeline: Vec<Bucket>,
    open: Vec<u32>,
    open_at: u64,
}

impl Default for Record {
    fn default() -> Self {
        Record {
            histogram: histogram(),
            samples: Vec::new(),
            gaps: Vec::new(),
            last_us: 0,
            timeline: Vec::new(),
            open: Vec::new(),
            open_at: 0,
        }
    }
}

impl Record {
    /// A write due at `scheduled_us` was acknowledged at `now_us`.
    pub fn acknowledged(&mut self, scheduled_us: u64, now_us: u64) {
        let latency = now_us.saturating_sub(scheduled_us).min(MAX_LATENCY_US);
        self.histogram.saturating_record(latency);
        self.samples.push(Sample { scheduled_us, latency_us: latency as u32 });
        if now_us > self.last_us {
            self.gap(now_us);
            self.last_us = now_us;
        }
        let bucket = now_us / BUCKET_US;
        if bucket != self.open_at {
            self.close_bucket();
            self.open_at = bucket;
        }
        self.open.push(latency as u32);
    }

    /// Ends the record. Up to `end_us` answers were waited for, so a silence
    /// from the last one to there is a gap too.
    pub fn finish(mut self, end_us: u64) -> Recorded {
        if end_us > self.last_us {
            self.gap(end_us);
        }
        self.close_bucket();
        Recorded {
            latency: Latency::of(&self.histogram),
            gaps: self.gaps,
            timeline: self.timeline,
            samples: self.samples,
        }
    }

    fn gap(&mut self, now_us: u64) {
        let length = ms(now_us.saturating_sub(self.last_us));
        let place = self.gaps.partition_point(|g| g.ms >= length);
        if place < KEPT_GAPS {
            self.gaps.truncate(KEPT_GAPS - 1);
            self.gaps.insert(place, Gap::between(self.last_us, now_us));
        }
    }

    fn close_bucket(&mut self) {
        self.open.sort_unstable();
        if let Some(max) = self.open.last() {
            let rank = (self.open.len() * 99).div_ceil(100) - 1;
            self.timeline.push(Bucket {
                at_ms: self.open_at * BUCKET_US / 1000,
                acks: self.open.len() as u32,
                p99_us: self.open[rank],
                max_us: *max,
            });
        }
        self.open.clear();
    }
}

/// A finished record.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Of all acknowledged writes.
    pub latency: Latency,
    /// The longest gaps, longest first.
    pub gaps: Vec<Gap>,
    /// 10 ms buckets, by the time of the acknowledgement.
    pub timeline: Vec<Bucket>,
    /// Every acknowledged write, in the order of the answers.
    pub samples: Vec<Sample>,
}

impl Recorded {
    /// Latencies of the writes that were due from `from_ms` up to `to_ms`.
    pub fn latency_between(&self, from_ms: f64, to_ms: f64) -> Latency {
        let mut histogram = histogram();
        for sample in &self.samples {
            if (from_ms..to_ms).contains(&ms(sample.scheduled_us)) {
                histogram.saturating_record(u64::from(sample.latency_us));
            }
        }
        Latency::of(&histogram)
    }

    /// The longest gap that ended from `from_ms` up to `to_ms`.
    pub fn gap_between(&self, from_ms: f64, to_ms: f64) -> Gap {
        let mut before = 0;
        let mut longest = Gap::default();
        for sample in &self.samples {
            let now = sample.scheduled_us + u64::from(sample.latency_us);
            let gap = Gap::between(before, now);
            if (from_ms..to_ms).contains(&gap.to_ms) && gap.ms > longest.ms {
                longest = gap;
            }
            before = before.max(now);
        }
        longest
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).expect("the bounds are constant and valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One write a millisecond; the server is silent from 20 ms to 50 ms and
    /// then answers all that came due at once.
    fn silent_for_30_ms() -> Recorded {
        let mut record = Record::default();
        for due in (0..100_000).step_by(1000) {
            let answered = due + 100;
            let answered = if (20_000..50_000).contains(&answered) { 50_000 } else { answered };
            record.acknowledged(due, answered);
        }
        record.finish(100_000)
    }

    #[test]
    fn a_silence_is_charged_to_every_write_that_came_due_in_it() {
        let recorded = silent_for_30_ms();
        assert_eq!(recorded.latency.count, 100);
        assert_eq!(recorded.latency.max_us / 1000, 30);
        let inside = recorded.latency_between(20.0, 50.0);
        assert_eq!(inside.count, 30);
        assert!(inside.p50_us > 14_000, "half of them waited half of it");
        assert!(recorded.latency_between(60.0, 90.0).max_us <= 101);
    }

    #[test]
    fn the_longest_gap_knows_when_it_was() {
        let recorded = silent_for_30_ms();
        let longest = recorded.gaps[0];
        assert_eq!((longest.from_ms, longest.to_ms), (19.1, 50.0));
        assert_eq!(recorded.gaps.len(), KEPT_GAPS);
        assert!(recorded.gaps.is_sorted_by(|a, b| a.ms >= b.ms));
        assert_eq!(recorded.gap_between(0.0, 100.0), longest);
        assert!(recorded.gap_between(51.0, 100.0).ms <= 1.1);
    }

    #[test]
    fn a_silence_that_never_ended_is_a_gap_too() {
        let mut record = Record::default();
        record.acknowledged(0, 100);
        let recorded = record.finish(500_100);
        assert_eq!(recorded.gaps[0].ms, 500.0);
    }

    #[test]
    fn buckets_count_by_the_time_of_the_answer() {
        let recorded = silent_for_30_ms();
        let acks: u32 = recorded.timeline.iter().map(|b| b.acks).sum();
        assert_eq!(acks, 100);
        assert!(!recorded.timeline.iter().any(|b| b.at_ms == 30), "silence");
        let burst = recorded.timeline.iter().find(|b| b.at_ms == 50);
        let burst = burst.expect("the bucket after the silence");
        assert_eq!((burst.acks, burst.max_us), (40, 30_000));
    }
}
