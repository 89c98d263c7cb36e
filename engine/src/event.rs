//! What happens during a migration, once: one stream of [`Event`]s feeds the
//! terminal, the JSON output, the timeline picture and the bench; the
//! [`Report`] sums it up.

use crate::handover::Outcome;
use crate::history::{End, Journal};
use crate::plan::{Goal, Method, OnMiss, ThrottleLimit};
use blip_transport::units::{Bandwidth, ByteSize, PageCount, Round};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A step of a migration, in the order in which they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Look at both sides; touch nothing.
    Preflight,
    /// Prepare the target up to, but not including, its processes.
    Stage,
    /// Rounds of copying while the container runs.
    PreCopy,
    /// Stop the container.
    Freeze,
    /// CRIU writes the state without memory; the last pages are read.
    Dump,
    /// The last pages, the images and the files reach the target.
    Ship,
    /// The target recreates the processes.
    Restore,
    /// All memory is put into them before they run: pre-copy and stop-and-copy.
    Fill,
    /// Ticket, grant, and the target's word that it runs.
    Grant,
    /// The remaining pages move into the container.
    Drain,
    /// The source is ended for good.
    Retire,
}

impl Phase {
    /// The phases that make up the downtime.
    pub const DOWNTIME: [Self; 6] =
        [Self::Freeze, Self::Dump, Self::Ship, Self::Restore, Self::Fill, Self::Grant];

    /// The phase's name as it is printed and as JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Stage => "stage",
            Self::PreCopy => "pre_copy",
            Self::Freeze => "freeze",
            Self::Dump => "dump",
            Self::Ship => "ship",
            Self::Restore => "restore",
            Self::Fill => "fill",
            Self::Grant => "grant",
            Self::Drain => "drain",
            Self::Retire => "retire",
        }
    }
}

/// What one pre-copy round did. The final one, inside the freeze, is the last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
    /// Its number, from 0.
    pub round: Round,
    /// Whether the container was frozen.
    pub frozen: bool,
    /// Whether it went after the container, which ran on the target already.
    #[serde(default)]
    pub pushed: bool,
    /// Pages looked at.
    pub scanned: PageCount,
    /// Pages that had to be read.
    pub dirty: PageCount,
    /// Pages whose bytes were sent.
    pub sent: PageCount,
    /// Pages of zeros, sent as a mark.
    pub zero: PageCount,
    /// Pages rewritten with what the target already had.
    pub unchanged: PageCount,
    /// Pages sent as a reference to content the target holds.
    pub deduplicated: PageCount,
    /// Dirty pages that were not read, because they are dirtied round after
    /// round or because the round was cut short.
    pub held_back: PageCount,
    /// Bytes of the dirty pages.
    pub bytes_raw: ByteSize,
    /// Bytes that went over the link for them.
    pub bytes_wire: ByteSize,
    /// Length of the round in milliseconds.
    pub ms: f64,
    /// The longest time any thread of the container was stopped for tracking,
    /// in milliseconds.
    pub stall_ms: f64,
}

/// What a pass over all files came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FilesPass {
    /// Files, directories and links looked at.
    pub scanned: u64,
    /// Those that had changed or were gone.
    pub changed: u64,
    /// Bytes read to find out.
    pub bytes_read: ByteSize,
    /// Bytes that went over the link for them.
    pub bytes_wire: ByteSize,
    /// Length of the pass in milliseconds.
    pub ms: f64,
}

/// How the writable layer, volumes and tmpfs mounts went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FilesReport {
    /// Passes while the container ran.
    pub passes: u32,
    /// The first of them: all that the target lacked.
    pub first: FilesPass,
    /// The last of them, if there were two.
    pub last: FilesPass,
    /// What was done while the container stood still.
    pub frozen: FilesPass,
}

/// One part of the downtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// Its length in milliseconds, on the source's clock.
    pub ms: f64,
}

/// How memory came into the restored container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LazyReport {
    /// Page faults that had to wait for the server.
    pub faults: u64,
    /// Of all pages, those that came out of the target's store.
    pub from_store: u64,
    /// Those that came from the frozen source after the restore had begun,
    /// asked for or not.
    pub from_source: u64,
    /// Median time to serve a fault in µs: from reading the event to the end
    /// of the copy.
    pub p50_us: u64,
    /// 99th percentile of the same.
    pub p99_us: u64,
    /// From resume until the last page was in place, in milliseconds; zero if
    /// all were in place before.
    pub drain_ms: f64,
    /// How the brownout went, in steps of time.
    #[serde(default)]
    pub samples: Vec<LazySample>,
}

/// What the lazy-pages server did in one step of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LazySample {
    /// The end of the step, in milliseconds after the resume; negative before.
    pub at_ms: f64,
    /// Page faults that had to wait for the server.
    pub faults: u64,
    /// Pages put into the container.
    pub pages: u64,
    /// Those of them that came from the source.
    pub from_source: u64,
}

/// What was asked for, as reports have it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoalReport {
    /// Longest downtime wanted, in milliseconds; `null`: as short as possible.
    pub downtime_ms: Option<f64>,
    /// When the container was to run on the target, in milliseconds after the
    /// start.
    pub deadline_ms: Option<f64>,
    /// What to do at a miss.
    pub on_miss: OnMiss,
    /// The method asked for.
    pub method: Method,
    /// Most that may go over the link, in bytes a second.
    pub bandwidth: Option<Bandwidth>,
    /// How far the container may be slowed down.
    pub throttle: ThrottleLimit,
}

impl From<&Goal> for GoalReport {
    fn from(goal: &Goal) -> Self {
        Self {
            downtime_ms: goal.downtime.map(millis),
            deadline_ms: goal.deadline.map(millis),
            on_miss: goal.on_miss,
            method: goal.method,
            bandwidth: goal.bandwidth,
            throttle: goal.throttle,
        }
    }
}

/// What the planner expects of a migration by one method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// The method.
    pub method: Method,
    /// Rounds of copying, the frozen one included.
    pub rounds: u32,
    /// Bytes over the link.
    pub bytes: ByteSize,
    /// From the start to the container running on the target, with all memory
    /// there, in milliseconds.
    pub total_ms: f64,
    /// Downtime in milliseconds.
    pub downtime_ms: f64,
    /// Its parts, in milliseconds.
    pub downtime: Vec<PhaseTime>,
    /// From resume until the last page is in place, in milliseconds.
    pub brownout_ms: f64,
    /// Whether that meets the target; `null` without a target.
    pub met: Option<bool>,
    /// How sure the planner is that the downtime lies within a quarter of the
    /// forecast, 0 to 1.
    pub confidence: f64,
}

/// How far a round is, and what a freeze now would cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The round, from 0.
    pub round: Round,
    /// Pages of it that have been read so far.
    pub done: PageCount,
    /// Pages it has to read.
    pub dirty: PageCount,
    /// Bytes over the link since the start.
    pub bytes_wire: ByteSize,
    /// Over the link at present, in bytes a second.
    pub throughput: Bandwidth,
    /// How fast the container dirties pages, in bytes a second; `null` while
    /// unknown.
    pub dirty_rate: Option<Bandwidth>,
    /// The downtime if it were frozen at the end of this round, in
    /// milliseconds; `null` while unknown.
    pub predicted_downtime_ms: Option<f64>,
}

/// What tracking took, beside the stalls that each round reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackingReport {
    /// The most bytes of the source's memory or disk that were taken for pages
    /// on their way, beside the container's own.
    pub peak_bytes: ByteSize,
    /// Rounds in which what was clean could not be told, so that all pages were
    /// taken.
    pub fell_back: u32,
}

/// What took part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// This program.
    pub blip: String,
    /// Docker on the source and on the target.
    pub docker: [String; 2],
    /// CRIU on both.
    pub criu: [String; 2],
    /// runc on both.
    pub runc: [String; 2],
    /// Kernel release on both.
    pub kernel: [String; 2],
}

/// The sum of a migration, printed with `--json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Who runs the container now.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The container's name.
    pub container: String,
    /// Its ID on the target, if it moved.
    pub target_id: Option<String>,
    /// From the order to freeze until the source learned that the container
    /// runs on the target, in milliseconds. It includes half a round trip of
    /// the link, and says nothing of what clients saw.
    pub downtime_ms: f64,
    /// Its parts.
    pub downtime: Vec<PhaseTime>,
    /// From the start of the command to its end, in milliseconds.
    pub total_ms: f64,
    /// Every round, the frozen one last.
    pub rounds: Vec<RoundReport>,
    /// Its files.
    #[serde(default)]
    pub files: FilesReport,
    /// Bytes that left the source in all streams, after compression.
    pub bytes_sent: ByteSize,
    /// Bytes that came back: answers, and what the target said it still had of
    /// an earlier move.
    #[serde(default)]
    pub bytes_received: ByteSize,
    /// Memory that was blip's to move: the resident private memory at the end.
    pub memory_bytes: ByteSize,
    /// How memory came into the container.
    pub lazy: LazyReport,
    /// What was asked for.
    pub goal: GoalReport,
    /// The method that was used in the end.
    pub method: Method,
    /// What the planner expected when it froze the container; `null` if it
    /// never did.
    pub predicted: Option<Forecast>,
    /// Whether the downtime met the target; `null` without a target or without
    /// a downtime.
    pub met: Option<bool>,
    /// The most CPU time that was taken from the container, in percent.
    pub throttled_percent: u8,
    /// What blip cannot know from where it stands, in words.
    pub unknowns: Vec<String>,
    /// Which tracker was used and why.
    pub tracker: String,
    /// What that took.
    #[serde(default)]
    pub tracking: TrackingReport,
    /// What took part.
    pub versions: Versions,
    /// What an operator should know and blip did not refuse.
    pub notes: Vec<String>,
}

/// An event and its time. `--json` prints them as one object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// Milliseconds since the command began.
    pub at_ms: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// A phase began.
    Begin {
        /// Which.
        phase: Phase,
    },
    /// A phase ended well.
    End {
        /// Which.
        phase: Phase,
        /// How long it took, in milliseconds.
        ms: f64,
    },
    /// A round ended.
    Round(RoundReport),
    /// A round is under way; a few times a second.
    Progress(Progress),
    /// Something was decided.
    Decision {
        /// What.
        what: String,
        /// The reason, in words and numbers.
        why: String,
    },
    /// The planner's forecast for the method it follows, as of now.
    Forecast(Forecast),
    /// The container's CPU time is cut by this much; 0: it has all of it again.
    Throttle {
        /// In percent.
        percent: u8,
    },
    /// Something worth knowing.
    Note {
        /// In words.
        text: String,
    },
    /// It ended before the container was frozen, which runs on as before.
    CalledOff {
        /// Why.
        why: String,
    },
    /// The migration ended.
    Finished(Box<Report>),
}

/// Milliseconds of `time`, as reports have them.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Where events go. Whoever does not listen misses them; nothing waits.
#[derive(Clone, Debug)]
pub struct Events {
    begun: Instant,
    listener: tokio::sync::mpsc::UnboundedSender<Timed>,
    journal: Arc<OnceLock<Journal>>,
}

impl Events {
    /// A stream that begins now, and its listening end.
    pub fn channel() -> (Self, tokio::sync::mpsc::UnboundedReceiver<Timed>) {
        let (listener, receiver) = tokio::sync::mpsc::unbounded_channel();
        (Self { begun: Instant::now(), listener, journal: Arc::default() }, receiver)
    }

    /// Keeps the host's journal of this migration from now on.
    pub fn record_in(&self, journal: Journal) {
        let _ = self.journal.set(journal);
    }

    /// Tells what happened.
    pub fn send(&self, event: Event) {
        if let Some(journal) = self.journal.get() {
            match &event {
                Event::Begin { phase } => journal.phase(*phase),
                Event::Round(round) => journal.round(round.round),
                Event::CalledOff { why } => journal.ended_as(End::Kept, Some(why.clone())),
                Event::Finished(report) => journal.ended(report),
                _ => {}
            }
        }
        let _ = self.listener.send(Timed { at_ms: millis(self.begun.elapsed()), event });
    }

    /// Time since the stream began.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}
