//! The client probe: what a client on the network saw, and what it is owed.
//!
//! An **open-loop** client writes counters over one established connection at
//! a constant arrival rate. A write's latency runs from the moment it was
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
//! are pure: time and answers are arguments. `client` owns the socket and the
//! clock, [`stall`] watches the harness, [`verify`] asks the server afterwards.
//!
//! **Invariants**: the schedule never waits for the server; an acknowledgement
//! is stamped before anything else is done with it; nothing here knows why the
//! server was silent.

mod client;
pub mod ledger;
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

pub use place::{Here, Job, Place, within};
pub use report::{Connection, Mark, ProbeReport};

/// What the client does, where, and how patient it is.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where the server may be. The first is tried first; after each loss or
    /// failed attempt the next one is, so a server that moves between two
    /// known addresses is found without help.
    pub targets: Vec<SocketAddr>,
    /// Writes per second, evenly spaced.
    pub rate: u32,
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
            rate: 5_000,
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
}

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
        Ok(Probe {
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
        let stall = self.watch.take().map(stall::Watch::stop);
        let marks = std::mem::take(&mut *lock(&self.shared.marks));
        let spec = self.spec.clone();
        Ok(ProbeReport::new(spec, self.began, finished, stall.unwrap_or_default(), marks))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(client) = self.client.take() {
            // The panic was reported by the thread itself.
            let _ = client.join();
        }
    }
}

/// Locks even if another thread panicked meanwhile: the data are plain lists.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
