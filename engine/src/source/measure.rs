//! What `blip plan` measures, without staging or freezing anything: how the
//! container writes, how its pages compress, what the link carries.
//!
//! **Invariant**: the tracker is disarmed at the end, also after an error:
//! nothing is left in the container.

use super::peer::{Peer, PeerError};
use super::subject::Subject;
use crate::cgroup::CgroupError;
use crate::plan::LinkFacts;
use crate::plan::dirtying::Dirtying;
use crate::plan::rehearsal::{Speed, Writer};
use crate::protocol::{ProbeReport, ToSource, ToTarget};
use crate::track::read::{ReadError, Reader};
use crate::track::{self, Scan, SpaceScan, Stop, Task, TrackError, Tracker};
use blip_transport::encode::{EncodeOptions, Encoder};
use blip_transport::link::LinkError;
use blip_transport::link::quic::{Priority, StreamKind};
use blip_transport::page::PageRun;
use blip_transport::units::{Bandwidth, ByteSize, PageCount, Round};
use bytes::Bytes;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;

/// The first looks come quickly after one another, then ever more seldom.
const LOOKS: [u32; 7] = [1, 1, 2, 4, 8, 16, 16];
/// Pages compressed to see how they do, and how many lie together.
const SAMPLE: u64 = 4096;
const TOGETHER: u64 = 16;
/// zstd level, as in a round.
const LEVEL: i32 = 1;
/// How long the link is probed.
const PROBE: Duration = Duration::from_millis(800);
const FRAME: usize = 64 << 10;
/// Until then the link is still finding its rate.
const WARM_UP: f64 = 0.4;
/// What a round waits for besides its scan.
const ROUND: Duration = Duration::from_millis(2);

/// Why something could not be measured. The container runs as before.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The tracker.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// The container's processes.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Reading memory.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The target.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The link.
    #[error("the link broke while it was measured: {0}")]
    Link(#[from] LinkError),
    /// A thread of ours panicked.
    #[error("measuring panicked: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

/// How a container writes.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Pages that are ours to move.
    pub resident: PageCount,
    /// For how long it was watched.
    pub watched: Duration,
    /// How fast it dirties pages it has not dirtied just before.
    pub dirty_rate: Bandwidth,
    /// Distinct pages that it dirtied while it was watched.
    pub working_set: PageCount,
    /// The fit behind these.
    pub dirtying: Dirtying,
    /// A scan.
    pub scan: Duration,
    /// How all its pages compress, and how fast this host reads, encodes and
    /// compresses them.
    pub all: Speed,
    /// The same of those it dirtied last.
    pub dirty: Speed,
    /// Which tracker was used, and why.
    pub tracker: String,
}

impl Habits {
    /// The container as a rehearsal takes it, over this link.
    pub fn writer(&self, link: &LinkFacts, cap: Option<Bandwidth>) -> Writer {
        let carried = link.bandwidth.map_or(f64::MAX, |rate| rate.0);
        let carried = cap.map_or(carried, |cap| cap.0.min(carried));
        let over = |speed: Speed| Speed {
            pace: Bandwidth(speed.pace.0.min(carried / speed.squeeze.max(1e-3)).max(1e3)),
            squeeze: speed.squeeze,
        };
        let (working_set, tau, stream) = self.dirtying.shape().unwrap_or((0.0, 1.0, 0.0));
        Writer {
            resident: self.resident,
            working_set: working_set.min(self.resident.0 as f64),
            tau,
            stream,
            all: over(self.all),
            dirty: over(self.dirty),
            overhead: ROUND + self.scan + link.rtt,
        }
    }
}

/// Watches a running container for about `time`.
///
/// # Errors
/// Its memory cannot be tracked or read. It runs as before.
pub async fn habits(subject: &Subject, time: Duration) -> Result<Habits, MeasureError> {
    let (mut tracker, why) = track::for_watching();
    let watched = watch(&mut tracker, subject, time, &why).await;
    // Also after an error.
    spawn_blocking(move || tracker.disarm()).await?;
    watched
}

async fn watch(
    tracker: &mut Box<dyn Tracker>,
    subject: &Subject,
    time: Duration,
    why: &str,
) -> Result<Habits, MeasureError> {
    let mut dirtying = Dirtying::default();
    let parts: u32 = LOOKS.iter().sum();
    let begun = Instant::now();
    let mut before = Instant::now();
    let mut last = look(tracker, subject.tasks()?).await?;
    for part in LOOKS {
        tokio::time::sleep((time / parts * part).saturating_sub(before.elapsed())).await;
        let now = Instant::now();
        last = look(tracker, subject.tasks()?).await?;
        dirtying.observe(now - before, count(&last, |space| &space.dirty));
        before = now;
    }
    let watched = begun.elapsed();
    let resident = count(&last, |space| &space.resident);
    let scan = last.took;
    let (all, dirty) = spawn_blocking(move || compress_samples(&last)).await??;
    let second = dirtying.within(Duration::from_secs(1)).unwrap_or_default();
    let working_set = dirtying.within(watched).unwrap_or_default();
    Ok(Habits {
        resident,
        watched,
        dirty_rate: Bandwidth(second.bytes().0 as f64),
        working_set: PageCount(working_set.0.min(resident.0)),
        dirtying,
        scan,
        all,
        dirty,
        tracker: why.to_owned(),
    })
}

/// One scan, off the async threads.
async fn look(tracker: &mut Box<dyn Tracker>, tasks: Vec<Task>) -> Result<Scan, MeasureError> {
    // The tracker is needed here again even if the scan fails.
    Ok(tokio::task::block_in_place(|| tracker.scan(&tasks, Stop::Live))?)
}

fn count(scan: &Scan, of: impl Fn(&SpaceScan) -> &Vec<PageRun>) -> PageCount {
    PageCount(scan.spaces.iter().flat_map(&of).map(|run| run.count.0).sum())
}

fn compress_samples(scan: &Scan) -> Result<(Speed, Speed), ReadError> {
    let all = compress(scan, |space| &space.resident)?;
    let all = all.unwrap_or(Speed { pace: Bandwidth(f64::from(1 << 28)), squeeze: 1.0 });
    let dirty = compress(scan, |space| &space.dirty)?.unwrap_or(all);
    Ok((all, dirty))
}

/// Reads and compresses a sample; `None` if there is hardly anything.
fn compress(
    scan: &Scan,
    of: impl Fn(&SpaceScan) -> &Vec<PageRun>,
) -> Result<Option<Speed>, ReadError> {
    let total = count(scan, &of);
    if total.0 < 2 * TOGETHER {
        return Ok(None);
    }
    let share = SAMPLE as f64 / total.0 as f64;
    let mut encoder = Encoder::new(EncodeOptions::default());
    encoder.begin_round(Round(0));
    let mut reader = Reader::new();
    let begun = Instant::now();
    let mut read = PageCount(0);
    for space in &scan.spaces {
        let sample = thin_out(of(space), share);
        let taken = reader.each(space.pid, &sample, Stop::Live, |run, bytes| {
            encoder.pages(space.space, run, bytes);
            read += run.count;
        });
        match taken {
            // It may end whenever it wants.
            Ok(_) | Err(ReadError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    encoder.finish_round();
    let reading = begun.elapsed();
    let mut wire = ByteSize(0);
    while let Some(batch) = encoder.next_batch() {
        wire += batch.compress(LEVEL).wire_size();
    }
    // Reading and compressing go on at the same time.
    let slower = reading.max(begun.elapsed() - reading);
    if read.0 == 0 {
        return Ok(None);
    }
    let squeeze = (wire.0 as f64 / read.bytes().0 as f64).clamp(1e-3, 1.1);
    Ok(Some(Speed { pace: Bandwidth::over(read.bytes(), slower), squeeze }))
}

/// About `share` of the pages, evenly, some of them together.
fn thin_out(runs: &[PageRun], share: f64) -> Vec<PageRun> {
    if share >= 1.0 {
        return runs.to_vec();
    }
    let stride = (TOGETHER as f64 / share).max(1.0);
    let mut picked: Vec<PageRun> = Vec::new();
    // Places of the pages are counted through all runs.
    let (mut passed, mut next) = (0.0, 0.0);
    for run in runs {
        let end = passed + run.count.0 as f64;
        while next < end {
            let first = run.start.0 + (next - passed).max(0.0) as u64;
            let from = picked.last().map_or(first, |last| first.max(last.end()));
            let until = (first + TOGETHER).min(run.end());
            if from < until {
                picked.push(PageRun::new(from, until - from));
            }
            next += stride;
        }
        passed = end;
    }
    picked
}

/// Measures the link for less than a second; sends no faster than `cap`.
///
/// # Errors
/// The link broke, or the target did not play its part.
pub async fn link(peer: &mut Peer, cap: Option<Bandwidth>) -> Result<LinkFacts, MeasureError> {
    // Later the link's own queue would count.
    let rtt = peer.link.stats().rtt;
    peer.say(&ToTarget::Probe).await?;
    let mut stream = peer.link.open_bulk(StreamKind::Probe, Priority::BULK).await?;
    let frame = Bytes::from(vec![0; FRAME]);
    let begun = Instant::now();
    let mut sent = 0.0;
    while let Some(left) = PROBE.checked_sub(begun.elapsed()) {
        // A send that would end too late is broken off with the stream.
        match tokio::time::timeout(left, stream.send(frame.clone())).await {
            Ok(result) => result?,
            Err(_) => break,
        }
        sent += FRAME as f64;
        if let Some(cap) = cap {
            let due = Duration::from_secs_f64((sent / cap.0.max(1.0)).min(PROBE.as_secs_f64()));
            tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
        }
    }
    // Not finished: what is still queued here is thrown away.
    drop(stream);
    match peer.hear().await? {
        ToSource::Probed(report) => Ok(LinkFacts { rtt, bandwidth: rate(&report) }),
        other => Err(PeerError::OutOfTurn(format!("{other:?}")).into()),
    }
}

/// The rate after the link has found it.
fn rate(report: &ProbeReport) -> Option<Bandwidth> {
    let (end, bytes) = *report.steps.last()?;
    let warm = report.steps.iter().find(|step| step.0 as f64 >= end as f64 * WARM_UP)?;
    let time = Duration::from_micros(end.saturating_sub(warm.0));
    let came = ByteSize(bytes.0.saturating_sub(warm.1.0));
    (time >= PROBE / 10 && came.0 > 0).then(|| Bandwidth::over(came, time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_over_all_runs() {
        let runs: Vec<PageRun> = (0..100).map(|i| PageRun::new(i * 5_000, 3_000)).collect();
        let picked = thin_out(&runs, 0.01);
        let count: u64 = picked.iter().map(|run| run.count.0).sum();
        assert!((2_500..3_500).contains(&count), "{count}");
        assert!(picked.first().unwrap().start.0 < 5_000);
        assert!(picked.last().unwrap().start.0 > 450_000);
        for pair in picked.windows(2) {
            assert!(pair[0].end() <= pair[1].start.0);
        }
        for run in &picked {
            assert!(runs.iter().any(|of| of.start <= run.start && run.end() <= of.end()));
        }
        assert_eq!(thin_out(&runs, 1.0), runs);
    }

    #[test]
    fn the_rate_leaves_the_warm_up_out() {
        // 10 MB/s for 0.3 s, then 100 MB/s for 0.5 s.
        let bytes =
            |ms: u64| if ms <= 300 { ms * 10_000 } else { 3_000_000 + (ms - 300) * 100_000 };
        let steps = (0..=80).map(|i| (i * 10_000, ByteSize(bytes(i * 10)))).collect();
        let rate = rate(&ProbeReport { steps }).unwrap();
        assert!((rate.0 / 1e8 - 1.0).abs() < 0.01, "{rate:?}");
        assert_eq!(super::rate(&ProbeReport::default()), None);
    }
}
