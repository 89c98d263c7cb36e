//! The container's files, on their way out: its writable layer and whatever
//! of its mounts is copied, each as a tree of its own.

use super::subject::Subject;
use super::written::{TreeLog, Written};
use crate::event::{FilesPass, FilesReport, millis};
use crate::mounts::Origin;
use crate::target::stage::docker_own;
use blip_transport::files::{
    Exclude, Manifest, Marks, Pace, RoundTotals, ScanError, Scanner, Tree, WriteLog,
};
use blip_transport::link::LinkError;
use blip_transport::link::quic::{Connection, Priority, StreamKind};
use blip_transport::units::{ByteSize, Round, TreeId};
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// The container's writable layer.
pub const LAYER: TreeId = TreeId(0);

/// A round that is shorter than this leaves little for the freeze.
const LITTLE_TIME: Duration = Duration::from_millis(250);
/// And so does one that sends less than this.
const LITTLE: ByteSize = ByteSize(1 << 20);
/// Between two rounds ahead.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// What went wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Looking at them.
    #[error("cannot carry the container's files: {0}")]
    Scan(#[from] ScanError),
    /// Sending them.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A thread of ours panicked.
    #[error("the file scanner panicked: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

/// The container's log, so that `docker logs` on the target begins where it
/// began here. Docker only appends to it.
pub struct Log {
    path: PathBuf,
    sent: u64,
}

impl Log {
    /// The log file in which Docker keeps what the container says, if its
    /// driver keeps one.
    pub fn of(path: Option<&str>) -> Option<Self> {
        let path = path.filter(|path| !path.is_empty())?;
        Some(Self { path: path.into(), sent: 0 })
    }

    /// What was added since the last call. A log that cannot be read is not
    /// worth a migration: it ends here.
    pub fn added(&mut self) -> Bytes {
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.sent))?;
            let mut added = Vec::new();
            file.read_to_end(&mut added)?;
            Ok(added)
        });
        let added = read.unwrap_or_else(|error| {
            tracing::warn!("the log {:?} does not travel: {error}", self.path);
            Vec::new()
        });
        self.sent += added.len() as u64;
        added.into()
    }
}

/// All files that travel with a container, and what the target has of them.
pub struct Trees {
    all: Vec<Outgoing>,
    /// Streams sent so far.
    streams: u32,
    /// What all rounds so far came to.
    report: FilesReport,
}

/// One tree and what the target has of it.
struct Outgoing {
    id: TreeId,
    scanner: Scanner,
    known: Manifest,
    next: Round,
    /// What was written to large files, where that can be known.
    log: Option<TreeLog>,
}

/// What a round of all trees came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct FilesRound {
    /// Entries looked at.
    pub scanned: u64,
    /// Entries that changed or went.
    pub changed: u64,
    /// Bytes read to find out.
    pub read: ByteSize,
    /// Bytes sent, after compression.
    pub wire: ByteSize,
    /// Files of which not every name was looked at.
    loose: u64,
    /// How long it took.
    pub took: Duration,
}

impl FilesRound {
    /// Whether one more like this could as well happen inside the freeze.
    fn is_little(&self) -> bool {
        self.took < LITTLE_TIME && self.wire < LITTLE
    }

    fn enter(&self, pace: Pace, report: &mut FilesReport) {
        let pass = match pace {
            Pace::Live if report.passes == 0 => &mut report.first,
            Pace::Live => &mut report.last,
            Pace::Frozen | Pace::Names => &mut report.frozen,
        };
        if pace == Pace::Live {
            report.passes += 1;
            *pass = FilesPass::default();
        }
        pass.scanned += self.scanned;
        pass.changed += self.changed;
        pass.bytes_read += self.read;
        pass.bytes_wire += self.wire;
        pass.ms += millis(self.took);
    }
}

impl Trees {
    /// The trees of `subject`, of which the target has what `known` says.
    pub fn open(
        subject: &Subject,
        mut known: BTreeMap<TreeId, Manifest>,
    ) -> Result<Self, FilesError> {
        let written = Written::listen().inspect_err(|error| {
            tracing::info!("large files that change are read whole: {error}");
        });
        let mut all = Vec::new();
        let mut add = |id, scanner, root: &Path| {
            let log = written.as_ref().ok().and_then(|written| written.of(root));
            let known = known.remove(&id).unwrap_or_default();
            all.push(Outgoing { id, scanner, known, next: Round(0), log });
        };
        if let Some(upper) = &subject.upper {
            let exclude = docker_own(&subject.bundle.mounted);
            add(LAYER, Scanner::open(upper, Tree::Upper(Marks::Trusted), exclude)?, upper);
        }
        for planned in &subject.plan.mounts {
            let Some(id) = planned.mount.tree else { continue };
            add(id, scanner(&planned.mount.origin, &planned.path)?, &planned.path);
        }
        for tmpfs in &subject.tmpfs {
            let Some(id) = tmpfs.told.tree else { continue };
            let path = tmpfs.path();
            add(id, Scanner::open(&path, Tree::Plain, Exclude::default())?, &path);
        }
        Ok(Self { all, streams: 0, report: FilesReport::default() })
    }

    /// What all rounds came to.
    pub fn report(&self) -> FilesReport {
        self.report
    }

    /// How many streams the target has been sent in all rounds.
    pub fn streams(&self) -> u32 {
        self.streams
    }

    /// Sends what changed since the last round. Trees go one after the other
    /// while the container runs, and all at once when it stands still.
    pub async fn round(
        self,
        pace: Pace,
        link: &Connection,
    ) -> Result<(Self, FilesRound), FilesError> {
        let begun = Instant::now();
        let streams = self.streams + self.all.len() as u32;
        let rounds = self.all.into_iter().map(|tree| tree.round(pace, link));
        let rounds = match pace {
            Pace::Live => stream::iter(rounds).buffered(1).try_collect::<Vec<_>>().await?,
            Pace::Frozen | Pace::Names => try_join_all(rounds).await?,
        };
        let mut sum = FilesRound::default();
        let mut all = Vec::new();
        for (tree, totals) in rounds {
            sum.scanned += totals.scanned;
            sum.changed += totals.changed + totals.removed;
            sum.read += ByteSize(totals.read_bytes);
            sum.wire += ByteSize(totals.frame_bytes);
            sum.loose += totals.loose;
            all.push(tree);
        }
        sum.took = begun.elapsed();
        tracing::debug!(?pace, ?sum, "files");
        let mut report = self.report;
        sum.enter(pace, &mut report);
        Ok((Self { all, streams, report }, sum))
    }
}

impl Trees {
    /// Sends what CRIU's dump has changed since a frozen round: it gives deleted
    /// files that are open a name again.
    pub async fn names(self, link: &Connection) -> Result<Self, FilesError> {
        let (trees, done) = self.round(Pace::Names, link).await?;
        if done.loose == 0 {
            return Ok(trees);
        }
        Ok(trees.round(Pace::Frozen, link).await?.0)
    }
}

fn scanner(origin: &Origin, path: &Path) -> Result<Scanner, ScanError> {
    let (Origin::Path { directory: false, .. }, Some(parent), Some(name)) =
        (origin, path.parent(), path.file_name())
    else {
        return Scanner::open(path, Tree::Plain, Exclude::default());
    };
    Scanner::open_entry(parent, name.as_encoded_bytes())
}

impl Outgoing {
    async fn round(
        mut self,
        pace: Pace,
        link: &Connection,
    ) -> Result<(Self, RoundTotals), FilesError> {
        let kind = StreamKind::Files(self.id, self.next);
        self.next = self.next.next();
        let (frames, mut out) = mpsc::channel::<Bytes>(4);
        let scanning = tokio::task::spawn_blocking(move || {
            let mut sink = |frame: Bytes| frames.blocking_send(frame).map_err(io::Error::other);
            let log = self.log.as_mut().map(|log| log as &mut dyn WriteLog);
            let sent = self.scanner.round_with(&self.known, pace, log, &mut sink);
            sent.map(|sent| {
                self.known = sent.manifest;
                (self, sent.totals)
            })
        });
        let mut stream = link.open_bulk(kind, Priority::AHEAD).await?;
        while let Some(frame) = out.recv().await {
            stream.send(frame).await?;
        }
        let done = scanning.await??;
        stream.finish();
        Ok(done)
    }
}

/// Rounds of files that go on beside the rounds of memory, until somebody wants
/// to freeze the container.
pub struct Ahead {
    stop: watch::Sender<bool>,
    calm: watch::Receiver<bool>,
    task: JoinHandle<Result<Trees, FilesError>>,
}

impl Ahead {
    /// Goes on with `trees`, whose `first` round has been sent.
    pub fn start(trees: Trees, first: &FilesRound, link: Connection) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (tell, calm) = watch::channel(first.is_little());
        let task = tokio::spawn(ahead(trees, link, stopped, tell));
        Self { stop, calm, task }
    }

    /// Whether what is left is little, or does not become less.
    pub fn calm(&self) -> bool {
        *self.calm.borrow() || self.task.is_finished()
    }

    /// Waits until it is [calm](Self::calm), or has failed.
    pub async fn until_calm(&self) {
        let _ = self.calm.clone().wait_for(|calm| *calm).await;
    }

    /// Ends with the round that is under way.
    pub async fn finish(mut self) -> Result<Trees, FilesError> {
        let _ = self.stop.send(true);
        (&mut self.task).await?
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ahead(
    mut trees: Trees,
    link: Connection,
    mut stopped: watch::Receiver<bool>,
    calm: watch::Sender<bool>,
) -> Result<Trees, FilesError> {
    let mut last = None;
    loop {
        let (returned, done) = trees.round(Pace::Live, &link).await?;
        trees = returned;
        let shrinks = last.is_none_or(|last: ByteSize| done.wire.0 < last.0 / 5 * 4);
        calm.send_replace(done.is_little() || !shrinks);
        last = Some(done.wire);
        // Looking takes CPU time that is the container's, too.
        let pause = (done.took * 2).max(SHORTEST_PAUSE);
        if let Ok(stop) = tokio::time::timeout(pause, stopped.wait_for(|stop| *stop)).await {
            drop(stop);
            return Ok(trees);
        }
    }
}
