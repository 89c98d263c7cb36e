//! What the lazy-pages server measures.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Counts and times of one lazy restore.
///
/// Fault latency runs from the moment the kernel's message has been read to the
/// moment the page has been put in place. It leaves out what the thread waits
/// before that (waking this server, the chunk of background filling in work)
/// and after (waking the thread): together the thread sees more, typically by
/// 10–100 µs.
#[derive(Clone)]
pub struct LazyStats {
    /// Page faults reported by the kernel.
    pub faults: u64,
    /// Faults answered from the store.
    pub from_store: u64,
    /// Faults answered by the source host.
    pub from_source: u64,
    /// Faults answered with zeros: known zero pages, and memory nobody had used.
    pub zero: u64,
    /// Pages filled before anybody asked.
    pub prefilled: u64,
    /// Pages of those that were filled before the restore had finished.
    pub prefilled_early: u64,
    /// Pages the process threw away before they were filled.
    pub dropped: u64,
    /// Missing pages that were found filled.
    pub raced: u64,
    /// Times the kernel had no memory for a page and had to be asked again.
    pub no_memory: u64,
    /// Latency of faults answered from the store or with zeros, nanoseconds.
    pub local_latency: Histogram<u64>,
    /// Latency of faults answered by the source host, nanoseconds.
    pub remote_latency: Histogram<u64>,
    /// From the start of the server to the end of CRIU's restore.
    pub restored: Option<Duration>,
    /// From the start of the server until nothing was missing any more.
    pub finished: Option<Duration>,
}

/// [`LazyStats`] in plain numbers, for reports.
#[derive(Clone, Debug, Serialize)]
pub struct LazySummary {
    /// See [`LazyStats::faults`].
    pub faults: u64,
    /// See [`LazyStats::from_store`].
    pub from_store: u64,
    /// See [`LazyStats::from_source`].
    pub from_source: u64,
    /// See [`LazyStats::zero`].
    pub zero: u64,
    /// See [`LazyStats::prefilled`].
    pub prefilled: u64,
    /// See [`LazyStats::prefilled_early`].
    pub prefilled_early: u64,
    /// See [`LazyStats::dropped`].
    pub dropped: u64,
    /// See [`LazyStats::raced`].
    pub raced: u64,
    /// See [`LazyStats::no_memory`].
    pub no_memory: u64,
    /// Median of the local latency, µs.
    pub local_p50_us: f64,
    /// 99th percentile of the local latency, µs.
    pub local_p99_us: f64,
    /// Median of the remote latency, µs.
    pub remote_p50_us: f64,
    /// 99th percentile of the remote latency, µs.
    pub remote_p99_us: f64,
    /// [`LazyStats::drain`], ms.
    pub drain_ms: Option<f64>,
}

impl LazyStats {
    pub(super) fn new() -> Self {
        Self {
            faults: 0,
            from_store: 0,
            from_source: 0,
            zero: 0,
            prefilled: 0,
            prefilled_early: 0,
            dropped: 0,
            raced: 0,
            no_memory: 0,
            local_latency: histogram(),
            remote_latency: histogram(),
            restored: None,
            finished: None,
        }
    }

    /// From the end of CRIU's restore until nothing was missing any more: the
    /// brownout. Zero if everything was in place before; `None` while it lasts.
    pub fn drain(&self) -> Option<Duration> {
        Some(self.finished?.saturating_sub(self.restored?))
    }

    /// In plain numbers.
    pub fn summary(&self) -> LazySummary {
        let us = |h: &Histogram<u64>, q| h.value_at_quantile(q) as f64 / 1000.0;
        LazySummary {
            faults: self.faults,
            from_store: self.from_store,
            from_source: self.from_source,
            zero: self.zero,
            prefilled: self.prefilled,
            prefilled_early: self.prefilled_early,
            dropped: self.dropped,
            raced: self.raced,
            no_memory: self.no_memory,
            local_p50_us: us(&self.local_latency, 0.5),
            local_p99_us: us(&self.local_latency, 0.99),
            remote_p50_us: us(&self.remote_latency, 0.5),
            remote_p99_us: us(&self.remote_latency, 0.99),
            drain_ms: self.drain().map(|d| d.as_secs_f64() * 1000.0),
        }
    }
}

impl std::fmt::Debug for LazyStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.summary().fmt(f)
    }
}

/// 100 ns to 100 s with two digits; later values count as 100 s.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 100_000_000_000, 2).expect("constant bounds are valid")
}
