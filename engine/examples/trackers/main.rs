//! What each tracker costs: how long the tracked process stands still, how
//! much processor time a round takes, what it finds, and what a write costs
//! the process after it. See `results/trackers/README.md`.
//!
//! ```text
//! cargo run --release -p blip-engine --example trackers -- --out results/trackers
//! ```
//!
//! The tracked process is this program itself, started as `writer`. Each case
//! (tracker × size × share dirtied) is a process of its own: one full round,
//! then as many as asked for, each after the writer has dirtied its share; then
//! the writer is stopped, and the last scan is made as in a freeze.

mod writer;

use anyhow::Result;
use blip_engine::criu::predump::PreDumpSpec;
use blip_engine::track::read::Reader;
use blip_engine::track::{
    Hash, SoftDirty, Stop, Task, Tracker, TrackerKind, WriteProtect, capabilities,
};
use blip_transport::encode::{EncodeOptions, Encoder};
use blip_transport::page::SpaceId;
use blip_transport::units::Round;
use clap::{Parser, ValueEnum};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use writer::{Writer, Writes};

/// How long the writer is watched before it is tracked.
const BEFORE: Duration = Duration::from_secs(1);

#[derive(Debug, Parser)]
struct Options {
    /// Trackers to measure; by default all that this kernel can
    #[arg(long, value_enum)]
    tracker: Vec<Kind>,
    /// Sizes of the writer's memory in MiB
    #[arg(long, value_delimiter = ',', default_value = "64,1024,4096")]
    sizes: Vec<u64>,
    /// Shares of it dirtied between rounds, in percent
    #[arg(long, value_delimiter = ',', default_value = "0.1,10,100")]
    shares: Vec<f64>,
    /// Rounds after the first
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Directory for samples.jsonl and summary.md; by default only a table is
    /// printed
    #[arg(long)]
    out: Option<PathBuf>,
    /// The writer has the first core and all else the second: what is seen then
    /// is what tracking does to it, and not that its core is taken
    #[arg(long)]
    apart: bool,
    /// Be the writer
    #[arg(long, hide = true, value_name = "MIB")]
    writer: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    WriteProtect,
    SoftDirty,
    Hash,
}

/// One round of one case.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    tracker: TrackerKind,
    mib: u64,
    percent: f64,
    /// 0: the full one. `null`: the one that finds the writer stopped.
    round: Option<u32>,
    /// Pages the tracker reported.
    dirty_pages: u64,
    /// Of those, pages whose content the target lacked.
    sent_pages: u64,
    /// Bytes after compression.
    wire_bytes: u64,
    scan_ms: f64,
    /// With reading and encoding.
    round_ms: f64,
    /// Longest time, and sum of all times, that the writer stood still.
    stop_max_ms: f64,
    stop_sum_ms: f64,
    /// Longest time a thread of the writer that maps, writes and unmaps a page
    /// ten thousand times a second took for it while the round ran, whatever
    /// held it up; and as long before anything was tracked. `null` once stopped.
    thread_max_ms: Option<f64>,
    untracked_max_ms: f64,
    /// Processor time of this program and of CRIU, scan to end.
    cpu_ms: f64,
    /// What the writes before this round cost the writer.
    writes: Option<Writes>,
    /// Most bytes of images at any time.
    peak_bytes: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(mib) = options.writer {
        if options.apart {
            on_core(WRITERS)?;
        }
        return writer::run(mib);
    }
    if options.apart {
        on_core(OTHERS)?;
    }
    let mut samples = Vec::new();
    for ability in capabilities() {
        let asked = options.tracker.is_empty()
            || options.tracker.iter().any(|&kind| kind_of(kind) == ability.tracker);
        match ability.missing {
            Some(missing) if asked => eprintln!("{} is left out: {missing}", ability.tracker),
            None if asked => {
                for &mib in &options.sizes {
                    for &percent in &options.shares {
                        let (kind, apart) = (ability.tracker, options.apart);
                        let case = Case { kind, mib, percent, apart };
                        eprintln!("{} {mib} MiB {percent} %", case.kind);
                        samples.extend(case.measure(options.rounds)?);
                    }
                }
            }
            _ => {}
        }
    }
    let summary = summary(&samples);
    println!("{summary}");
    if let Some(out) = options.out {
        std::fs::create_dir_all(&out)?;
        let lines: Vec<String> =
            samples.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        std::fs::write(out.join("samples.jsonl"), lines.join("\n") + "\n")?;
        std::fs::write(out.join("summary.md"), summary)?;
    }
    Ok(())
}

/// The cores of the writer and of all else, if they are to be apart.
const WRITERS: usize = 0;
const OTHERS: usize = 1;

/// Keeps the calling thread, and what it will start, on a core.
fn on_core(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn kind_of(kind: Kind) -> TrackerKind {
    match kind {
        Kind::WriteProtect => TrackerKind::WriteProtect,
        Kind::SoftDirty => TrackerKind::SoftDirty,
        Kind::Hash => TrackerKind::Hash,
    }
}

/// What is measured.
#[derive(Clone, Copy)]
struct Case {
    kind: TrackerKind,
    mib: u64,
    percent: f64,
    apart: bool,
}

impl Case {
    fn measure(self, rounds: u32) -> Result<Vec<Sample>> {
        let mut writer = Writer::start(self.mib, self.apart)?;
        let untracked = writer.write(self.percent)?;
        writer.stall()?;
        std::thread::sleep(BEFORE);
        let usual = writer.stall()?;
        let images = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        let tracker: Box<dyn Tracker> = match self.kind {
            TrackerKind::WriteProtect => Box::new(WriteProtect::new()?),
            TrackerKind::Hash => Box::new(Hash::new()),
            TrackerKind::SoftDirty => Box::new(SoftDirty::new(PreDumpSpec {
                pid: writer.pid(),
                rootfs: "/".into(),
                external: Vec::new(),
                directory: images.path().join("pre-dumps"),
            })),
        };
        let mut pump = Pump {
            case: self,
            tracker,
            encoder: Encoder::new(EncodeOptions::default()),
            reader: Reader::new(),
            next: 0,
            usual,
        };
        let task = Task { pid: writer.pid(), space: SpaceId(writer.pid() as u32) };
        let mut samples = Vec::new();
        let mut writes = untracked;
        for round in 0..=rounds {
            if round > 0 {
                writes = writer.write(self.percent)?;
            }
            writer.stall()?;
            let mut sample = pump.round(task, Stop::Live, Some(writes))?;
            sample.thread_max_ms = Some(writer.stall()?);
            samples.push(sample);
        }
        let writes = writer.write(self.percent)?;
        writer.stop()?;
        samples.push(pump.round(task, Stop::Frozen, Some(writes))?);
        Ok(samples)
    }
}

/// One case at work.
struct Pump {
    case: Case,
    tracker: Box<dyn Tracker>,
    encoder: Encoder,
    reader: Reader,
    next: u32,
    usual: f64,
}

impl Pump {
    fn round(&mut self, task: Task, stop: Stop, writes: Option<Writes>) -> Result<Sample> {
        let (begun, cpu) = (Instant::now(), cpu_time()?);
        let number = self.next;
        self.next += 1;
        self.encoder.begin_round(Round(number));
        let scan = self.tracker.scan_against(&[task], stop, &self.encoder)?;
        let (mut wire, mut dirty) = (0, 0);
        for space in &scan.spaces {
            dirty += space.dirty.iter().map(|run| run.count.0).sum::<u64>();
            let encoder = &mut self.encoder;
            let mut take = |run, bytes: &[u8]| {
                encoder.pages(space.space, run, bytes);
                while let Some(batch) = encoder.next_batch() {
                    wire += batch.compress(1).wire_size().0;
                }
            };
            let rest = self.tracker.copy(space.space, &space.dirty, &mut take)?;
            self.reader.each(space.pid, rest.as_slice(), stop, take)?;
        }
        self.tracker.copied();
        let tally = self.encoder.finish_round();
        while let Some(batch) = self.encoder.next_batch() {
            wire += batch.compress(1).wire_size().0;
        }
        let stats = self.tracker.stats();
        Ok(Sample {
            tracker: self.case.kind,
            mib: self.case.mib,
            percent: self.case.percent,
            round: (stop == Stop::Live).then_some(number),
            dirty_pages: dirty,
            sent_pages: (tally.data + tally.delta + tally.zero + tally.deduplicated).0,
            wire_bytes: wire,
            scan_ms: millis(scan.took),
            round_ms: millis(begun.elapsed()),
            stop_max_ms: millis(stats.last.stop_max),
            stop_sum_ms: millis(stats.last.stop_sum),
            thread_max_ms: None,
            untracked_max_ms: self.usual,
            cpu_ms: millis(cpu_time()? - cpu),
            writes,
            peak_bytes: stats.peak.0,
        })
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Processor time of this program and of what it started and has ended.
fn cpu_time() -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            sum += Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000);
        }
    }
    Ok(sum)
}

/// The medians of each case.
fn summary(samples: &[Sample]) -> String {
    let mut text = String::from(
        "| tracker | MiB | dirtied | pages found | pages sent | wire KiB | scan ms | round CPU ms \
         | stop max ms | stop sum ms | thread max ms (untracked → tracked) | write ns (untracked → tracked) | frozen scan ms | frozen \
         scan + read ms | images MiB |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut rest = samples;
    while let Some(first) = rest.first() {
        let same = |s: &&Sample| {
            (s.tracker, s.mib, s.percent.to_bits())
                == (first.tracker, first.mib, first.percent.to_bits())
        };
        let count = rest.iter().take_while(same).count();
        let (case, after) = rest.split_at(count);
        rest = after;
        let rounds: Vec<&Sample> = case.iter().filter(|s| s.round.is_some_and(|r| r > 0)).collect();
        let frozen = case.iter().find(|s| s.round.is_none());
        let mid = |of: fn(&Sample) -> f64| median(rounds.iter().map(|s| of(s)).collect());
        let last = |of: fn(&Sample) -> f64| frozen.map_or(0.0, of);
        let cost = |s: &Sample| s.writes.map_or(0.0, |w| w.mean_ns);
        // The first writes come before any tracking, the next after a full round.
        let tracked = median(rounds.iter().skip(1).map(|s| cost(s)).collect());
        let _ = writeln!(
            text,
            "| {} | {} | {} % | {:.0} | {:.0} | {:.0} | {:.2} | {:.1} | {:.2} | {:.2} | {:.2} → \
             {:.2} | {:.0} → {:.0} | {:.2} | {:.2} | {:.0} |",
            first.tracker,
            first.mib,
            first.percent,
            mid(|s| s.dirty_pages as f64),
            mid(|s| s.sent_pages as f64),
            mid(|s| s.wire_bytes as f64 / 1024.0),
            mid(|s| s.scan_ms),
            mid(|s| s.cpu_ms),
            case.iter().map(|s| s.stop_max_ms).fold(0.0, f64::max),
            case.iter().map(|s| s.stop_sum_ms).sum::<f64>(),
            first.untracked_max_ms,
            case.iter().filter_map(|s| s.thread_max_ms).fold(0.0, f64::max),
            cost(first),
            tracked,
            last(|s| s.scan_ms),
            last(|s| s.round_ms),
            case.iter().map(|s| s.peak_bytes).max().unwrap_or(0) as f64 / 1_048_576.0,
        );
    }
    text
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
