//! The client probe: what a client on the network saw, and what it is owed.
//!
//! An **open-loop** client writes counters over one established connection, and
//! another one over a new connection each time, at constant arrival rates. A write's latency runs from the moment it was
//! *scheduled*, so a server that stands still is charged for every request
//! that came due meanwhile, not only for the one that was in its hands
//! (no coordinated omission). The probe knows nothing about blip.
//!
//! What it proves: `INCR` answers with the counter's value, so every
//! acknowledgement must be exactly one above the last. A lower value is a lost
//! write, a higher one a repeated write. Writes whose connection broke before
//! the answer came are ambiguous: they may or may not have happened, and only
//! they.
//!
//! What it measures: the **client gap**, the longest time between two
//! consecutive acknowledgements; latencies; a timeline in 10 ms buckets. The
//! harness' own longest stall is measured beside it and subtracted nowhere.
//!
//! Rooms: [`ledger`] (who is owed what) and [`record`] (when did what happen)
//! are pure: time and answers are arguments. `client` and [`fresh`] own sockets
//! and the clock, [`dialect`] speaks the server's language, [`stall`] watches
//! the harness, [`verify`] asks the server afterwards.
//!
//! **Invariants**: the schedule never waits for the server; an acknowledgement
//! is stamped before anything else is done with it; nothing here knows why the
//! server was silent.

mod client;
mod content;
pub mod dialect;
pub mod fresh;
pub mod ledger;
mod link;
mod place;
pub mod record;
mod report;
pub mod stall;
pub mod verify;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use dialect::Dialect;
use link::Asked;

pub use content::Content;
pub use place::{Here, Job, Place, within};
pub use report::{Connection, Mark, ProbeReport};

/// What the client does, where, and how patient it is.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where the server may be. The first is tried first; after each loss or
    /// failed attempt the next one is, so a server that moves between two
    /// known addresses is found without help.
    pub targets: Vec<SocketAddr>,
    /// How to speak to it.
    pub dialect: Arc<dyn Dialect>,
    /// Requests per second, evenly spaced.
    pub rate: u32,
    /// Requests per second that each have a connection of their own; 0: none.
    pub fresh_rate: u32,
    /// Percentage of the requests that read; the others write.
    pub reads: u8,
    /// What they read; nothing is read without it.
    pub content: Option<Arc<Content>>,
    /// How many counters the writes go round.
    pub counters: u32,
    /// Prefix of the counters' keys; must not be the dataset's.
    pub prefix: String,
    /// Limit for one attempt to connect. Short, so that a lost SYN costs this
    /// and not the kernel's second.
    pub connect_timeout: Duration,
    /// Pause between two attempts to connect.
    pub retry: Duration,
    /// A connection with unanswered writes and no word for this long is given
    /// up. Long, because a migrated connection is expected to live on.
    pub silence: Duration,
    /// How long [`Probe::stop`] waits for outstanding answers.
    pub drain: Duration,
}

impl Default for Spec {
    /// 5 000 writes a second over 1 000 counters, to nobody yet.
    fn default() -> Self {
        Spec {
            targets: Vec::new(),
            dialect: Arc::new(dialect::resp::Resp),
            rate: 5_000,
            fresh_rate: 0,
            reads: 0,
            content: None,
            counters: 1_000,
            prefix: "counter:".to_owned(),
            connect_timeout: Duration::from_millis(20),
            retry: Duration::from_millis(2),
            silence: Duration::from_secs(2),
            drain: Duration::from_secs(2),
        }
    }
}

impl Spec {
    /// The default, to one server.
    pub fn new(target: SocketAddr) -> Self {
        Spec { targets: vec![target], ..Spec::default() }
    }

    /// The counters' keys, in order.
    pub fn keys(&self) -> Vec<String> {
        let key = |n| format!("{}{n}", self.prefix);
        (0..self.counters).map(key).collect()
    }

    /// The keys of the counters that requests over new connections go round.
    pub fn fresh_keys(&self) -> Vec<String> {
        let key = |n| format!("fresh-{}{n}", self.prefix);
        (0..FRESH_COUNTERS).map(key).collect()
    }

    /// What the request of this number asks.
    fn asked(&self, number: u64) -> Asked {
        // A step that has no factor in common with a hundred meets every
        // percent once, and spreads the reads out.
        let reads = number * 61 % 100 < u64::from(self.reads);
        let keys = self.content.as_ref().map_or(0, |c| c.keys.len() as u64);
        if reads && keys > 0 {
            Asked::Read((number * 7919 % keys) as u32)
        } else {
            Asked::Count((number % u64::from(self.counters)) as u32)
        }
    }

    /// The same of a request over a new connection.
    fn asked_by_a_stranger(&self, number: u64) -> Asked {
        match self.asked(number) {
            Asked::Count(_) => Asked::Count((number % u64::from(FRESH_COUNTERS)) as u32),
            read @ Asked::Read(_) => read,
        }
    }
}

/// How many counters requests over new connections go round.
const FRESH_COUNTERS: u32 = 100;

/// Why a probe could not begin or end.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A rate of zero, no counters or no target.
    #[error("the probe needs a rate, a counter and a target, but was given {0:?}")]
    Spec(Box<Spec>),
    /// The thread did not come up, or could not enter its namespace.
    #[error("could not start the probe's thread: {0}")]
    Start(std::io::Error),
    /// The first connection or the counters' first values were not to be had.
    #[error("the probe's first connection failed: {0}")]
    First(String),
    /// The client's thread ended without a result.
    #[error("the probe's thread died; its panic is on standard error")]
    Died,
}

/// A client at work. Dropping it stops it and throws its results away.
pub struct Probe {
    shared: Arc<Shared>,
    origin: Instant,
    began: SystemTime,
    spec: Spec,
    client: Option<JoinHandle<()>>,
    result: mpsc::Receiver<client::Finished>,
    strangers: Option<mpsc::Receiver<Result<fresh::Strangers, String>>>,
    fresh: Option<JoinHandle<()>>,
    watch: Option<stall::Watch>,
}

/// What the probe's owner and its thread tell each other.
pub(crate) struct Shared {
    stop: AtomicBool,
    acked: AtomicU64,
    targets: Mutex<Vec<SocketAddr>>,
    targets_edition: AtomicU64,
    marks: Mutex<Vec<Mark>>,
}

impl Probe {
    /// Connects, reads the counters' first values, and begins to write.
    /// Returns when the first write is due. `place` decides in which network
    /// namespace the sockets are opened.
    ///
    /// # Errors
    /// [`ProbeError`] when the thread or the first connection fails.
    pub fn start(spec: Spec, place: &dyn Place) -> Result<Probe, ProbeError> {
        if spec.rate == 0 || spec.counters == 0 || spec.targets.is_empty() {
            return Err(ProbeError::Spec(Box::new(spec)));
        }
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            acked: AtomicU64::new(0),
            targets: Mutex::new(spec.targets.clone()),
            targets_edition: AtomicU64::new(0),
            marks: Mutex::default(),
        });
        let (ready, is_ready) = mpsc::channel();
        let (done, result) = mpsc::channel();
        let job = {
            let (spec, shared) = (spec.clone(), Arc::clone(&shared));
            Box::new(move || client::run(&spec, &shared, &ready, &done))
        };
        let client = place.start("probe", job).map_err(ProbeError::Start)?;
        let origin = match is_ready.recv() {
            Ok(Ok(origin)) => origin,
            Ok(Err(why)) => return Err(ProbeError::First(why)),
            Err(_) => return Err(ProbeError::Died),
        };
        let mut strangers = None;
        let fresh = match spec.fresh_rate {
            0 => None,
            _ => {
                let (tell, told) = mpsc::channel();
                strangers = Some(told);
                let (spec, shared) = (spec.clone(), Arc::clone(&shared));
                // The receiver lives as long as the probe; without it nobody asks.
                let job = Box::new(move || drop(tell.send(fresh::run(&spec, &shared, origin))));
                Some(place.start("probe-fresh", job).map_err(ProbeError::Start)?)
            }
        };
        Ok(Probe {
            strangers,
            fresh,
            shared,
            origin,
            began: SystemTime::now() - origin.elapsed(),
            spec,
            client: Some(client),
            result,
            watch: stall::Watch::start(origin).ok(),
        })
    }

    /// Names this moment, for tables and pictures.
    pub fn mark(&self, label: &str) {
        let at_ms = self.origin.elapsed().as_secs_f64() * 1e3;
        let label = label.to_owned();
        lock(&self.shared.marks).push(Mark { label, at_ms });
    }

    /// The server is elsewhere now. Unless the probe is connected to `addr`
    /// already, it drops its connection and goes there.
    pub fn set_target(&self, addr: SocketAddr) {
        *lock(&self.shared.targets) = vec![addr];
        self.shared.targets_edition.fetch_add(1, Ordering::Release);
    }

    /// Writes acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Time since the first write was due.
    pub fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Ends the schedule, waits for outstanding answers (at most
    /// [`Spec::drain`]) and reports.
    ///
    /// # Errors
    /// [`ProbeError::Died`] when the client's thread panicked.
    pub fn stop(mut self) -> Result<ProbeReport, ProbeError> {
        self.shared.stop.store(true, Ordering::Release);
        let finished = self.result.recv().map_err(|_| ProbeError::Died)?;
        let fresh = match &self.strangers {
            None => None,
            Some(told) => {
                let told = told.recv().map_err(|_| ProbeError::Died)?;
                Some(told.map_err(ProbeError::First)?)
            }
        };
        let stall = self.watch.take().map(stall::Watch::stop);
        let marks = std::mem::take(&mut *lock(&self.shared.marks));
        let spec = self.spec.clone();
        let mut report =
            ProbeReport::new(spec, self.began, finished, stall.unwrap_or_default(), marks);
        report.fresh = fresh;
        Ok(report)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.client.take().into_iter().chain(self.fresh.take()) {
            // The panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// Locks even if another thread panicked meanwhile: the data are plain lists.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
