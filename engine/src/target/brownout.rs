//! How a brownout goes: what the lazy-pages server has done, in steps of time.

use crate::event::{LazySample, millis};
use crate::lazy::LazyMeter;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// The first step; it doubles whenever there are too many of them.
const STEP: Duration = Duration::from_millis(10);
/// Most steps that are kept.
const MOST: usize = 240;

/// What the server had done at a time.
#[derive(Clone, Copy, Debug)]
struct Count {
    at: Instant,
    faults: u64,
    pages: u64,
    from_source: u64,
}

/// Looks at a server again and again, until it is dropped.
pub(super) struct Brownout {
    counts: Arc<Mutex<Vec<Count>>>,
    task: JoinHandle<()>,
}

impl Brownout {
    /// Begins to look. `late` tells how many pages have come unasked.
    pub(super) fn watch(meter: LazyMeter, late: impl Fn() -> u64 + Send + 'static) -> Self {
        let counts = Arc::<Mutex<Vec<Count>>>::default();
        let kept = counts.clone();
        let task = tokio::spawn(async move {
            let mut step = STEP;
            loop {
                let (faults, pages, asked) = meter.read();
                let from_source = asked + late();
                let count = Count { at: Instant::now(), faults, pages, from_source };
                if note(&kept, count) {
                    step *= 2;
                }
                tokio::time::sleep(step).await;
            }
        });
        Self { counts, task }
    }

    /// What was seen, from `resumed` on.
    pub(super) fn samples(&self, resumed: Instant) -> Vec<LazySample> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        between(&counts, resumed)
    }
}

impl Drop for Brownout {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps a count; whether half of them had to go for it.
fn note(kept: &Mutex<Vec<Count>>, count: Count) -> bool {
    let mut counts = kept.lock().unwrap_or_else(PoisonError::into_inner);
    counts.push(count);
    let full = counts.len() > MOST;
    if full {
        thin_out(&mut counts);
    }
    full
}

/// Every other count; the first stays, from which the others are told.
fn thin_out(counts: &mut Vec<Count>) {
    let mut number = 0;
    counts.retain(|_| {
        number += 1;
        number % 2 == 1
    });
}

fn between(counts: &[Count], resumed: Instant) -> Vec<LazySample> {
    let signed = |at: Instant| match at.checked_duration_since(resumed) {
        Some(after) => millis(after),
        None => -millis(resumed.duration_since(at)),
    };
    let steps = counts.windows(2).map(|pair| LazySample {
        at_ms: signed(pair[1].at),
        faults: pair[1].faults - pair[0].faults,
        pages: pair[1].pages - pair[0].pages,
        from_source: pair[1].from_source - pair[0].from_source,
    });
    // Steps in which nothing happened tell nothing.
    steps.filter(|step| step.faults + step.pages > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(many: u64) -> (Instant, Vec<Count>) {
        let begun = Instant::now();
        let count = |n: u64| Count {
            at: begun + Duration::from_millis(10 * n),
            faults: n,
            pages: 100 * n,
            from_source: 10 * n,
        };
        (begun, (0..many).map(count).collect())
    }

    #[test]
    fn samples_tell_what_each_step_added() {
        let (begun, counts) = counts(4);
        let samples = between(&counts, begun + Duration::from_millis(20));
        let at: Vec<f64> = samples.iter().map(|sample| sample.at_ms).collect();
        assert_eq!(at, [-10.0, 0.0, 10.0]);
        assert!(samples.iter().all(|s| (s.faults, s.pages, s.from_source) == (1, 100, 10)));
    }

    #[test]
    fn thinning_out_loses_nothing_but_detail() {
        let (begun, mut counts) = counts(241);
        let sum = |counts: &[Count]| between(counts, begun).iter().map(|s| s.pages).sum::<u64>();
        let before = sum(&counts);
        thin_out(&mut counts);
        assert_eq!((counts.len(), sum(&counts)), (121, before));
    }
}
