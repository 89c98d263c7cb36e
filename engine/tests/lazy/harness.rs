//! What both sides agree on, a page source made of arithmetic, and the side of
//! the server.

use blip_engine::lazy::{
    LazyError, LazyEvent, LazyHandle, LazyOptions, LazyPlan, LazyServer, LazyStats, Local,
    PageSource, RemoteInbox, TaskPlan, Urgency,
};
use blip_transport::page::{PageAt, PageBytes, PageRun, SpaceId};
use blip_transport::units::PAGE_SIZE;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The pid inside the container of the restored process.
pub(crate) const TASK: SpaceId = SpaceId(7);
/// Where its memory lies.
pub(crate) const BASE: u64 = 0x10_0000_0000;
/// How many pages it has.
pub(crate) const PAGES: u64 = 8192;
/// The same as a page number.
pub(crate) const FIRST: u64 = BASE / PAGE_SIZE as u64;
/// The dump has nothing for these pages of it (holes).
pub(crate) const HOLES: std::ops::Range<u64> = 4000..4100;
/// These are `MADV_WIPEONFORK`.
pub(crate) const WIPED: std::ops::Range<u64> = 6000..6010;
/// The exit code of a restored process that found all as it should be.
pub(crate) const RIGHT: i32 = 42;
/// The exit code of one that found a wrong byte.
pub(crate) const WRONG: i32 = 43;

/// Byte `offset` of page `page` (counted from [`BASE`]).
pub(crate) fn byte(page: u64, offset: usize) -> u8 {
    content(page)[offset]
}

/// Every page is another part of it: copied, as there are many and tests are not
/// optimised.
static NOISE: [u8; 2 * PAGE_SIZE] = noise();

const fn noise() -> [u8; 2 * PAGE_SIZE] {
    let mut bytes = [0; 2 * PAGE_SIZE];
    let (mut state, mut at) = (1u64, 0);
    while at < bytes.len() {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        bytes[at] = (state >> 56) as u8;
        at += 1;
    }
    bytes
}

/// Pages known to be zero: every eleventh, and a long run.
pub(crate) fn is_zero(page: u64) -> bool {
    page % 11 == 3 || (5000..5200).contains(&page) || HOLES.contains(&page)
}

pub(crate) fn content(page: u64) -> PageBytes {
    let mut bytes = [0; PAGE_SIZE];
    if !is_zero(page) {
        let from = page as usize % PAGE_SIZE;
        bytes.copy_from_slice(&NOISE[from..][..PAGE_SIZE]);
        bytes[8..16].copy_from_slice(&page.to_le_bytes());
    }
    bytes
}

/// What the server is to bring.
pub(crate) fn plan() -> LazyPlan {
    let run =
        |range: std::ops::Range<u64>| PageRun::new(FIRST + range.start, range.end - range.start);
    let missing = vec![run(0..HOLES.start), run(HOLES.end..PAGES)];
    LazyPlan::new([(TASK, TaskPlan { missing, wiped_on_fork: vec![run(WIPED)] })])
}

/// Content by arithmetic.
#[derive(Default)]
pub(crate) struct Source {
    /// Pages (from [`BASE`]) that only the source host has.
    pub(crate) absent: HashSet<u64>,
    /// If there, a page is absent when it is first looked for.
    pub(crate) late: Option<Mutex<HashSet<u64>>>,
    /// Added to one byte of this page.
    pub(crate) spoiled: Option<u64>,
    /// How long each look-up takes.
    pub(crate) slow: Duration,
    pub(crate) asked: Mutex<Vec<(PageAt, Urgency)>>,
    /// How often each page was settled.
    pub(crate) settled: Mutex<HashMap<u64, u32>>,
    pub(crate) on_request: Option<Box<dyn Fn(PageAt, Urgency) + Send + Sync>>,
}

impl PageSource for Source {
    fn local(&self, at: PageAt, into: &mut PageBytes) -> Local {
        assert_eq!(at.space, TASK);
        let page = at.index.0 - FIRST;
        assert!(!self.settled.lock().unwrap().contains_key(&page), "{page} has been settled");
        if !self.slow.is_zero() {
            std::thread::sleep(self.slow);
        }
        if self.absent.contains(&page) {
            // The server must not use what it has not been given.
            into.fill(0xEE);
            return Local::Absent;
        }
        if self.late.as_ref().is_some_and(|seen| seen.lock().unwrap().insert(page)) {
            return Local::Absent;
        }
        if is_zero(page) {
            return Local::Zero;
        }
        *into = content(page);
        if self.spoiled == Some(page) {
            into[1234] ^= 1;
        }
        Local::Data
    }

    fn request_remote(&self, at: PageAt, urgency: Urgency) {
        self.asked.lock().unwrap().push((at, urgency));
        if let Some(answer) = &self.on_request {
            answer(at, urgency);
        }
    }

    fn settled(&self, space: SpaceId, run: PageRun) {
        assert_eq!(space, TASK);
        let mut settled = self.settled.lock().unwrap();
        for page in run.pages() {
            *settled.entry(page.0 - FIRST).or_default() += 1;
        }
    }
}

/// A server at work, and the restored process.
pub(crate) struct Scene {
    pub(crate) handle: LazyHandle,
    pub(crate) source: Arc<Source>,
    pub(crate) events: Arc<Mutex<Vec<LazyEvent>>>,
    pub(crate) child: Child,
    _dir: tempfile::TempDir,
}

/// How the server is to behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As ever.
    Normal,
    /// So slow in the background that most pages are faulted in.
    Faults,
    /// Nothing before the restore has finished.
    Late,
}

pub(crate) const PACES: [Pace; 3] = [Pace::Normal, Pace::Faults, Pace::Late];

pub(crate) fn options(pace: Pace) -> LazyOptions {
    use blip_transport::units::PageCount;
    match pace {
        Pace::Normal => LazyOptions::default(),
        Pace::Late => LazyOptions { early: false, ..LazyOptions::default() },
        Pace::Faults => LazyOptions {
            chunk: PageCount(1),
            chunk_under_faults: PageCount(1),
            fault_around: PageCount(1),
            ..LazyOptions::default()
        },
    }
}

/// Starts a server and a restored process that acts out `scenario`.
pub(crate) fn stage(
    scenario: &str,
    pace: Pace,
    source: impl FnOnce(RemoteInbox) -> Source,
) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let server = LazyServer::listen(dir.path()).unwrap();
    let mut source = source(server.inbox());
    if pace == Pace::Faults {
        source.slow = Duration::from_micros(1);
    }
    let source = Arc::new(source);
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = events.clone();
    let handle = server
        .serve(plan(), source.clone(), options(pace), move |event| {
            heard.lock().unwrap().push(event)
        })
        .unwrap();
    let child = start_peer(scenario, dir.path());
    Scene { handle, source, events, child, _dir: dir }
}

/// Starts this binary as a restored process.
pub(crate) fn start_peer(scenario: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["peer::peer", "--exact", "--nocapture", "--test-threads=1"])
        .env("BLIP_LAZY_SCENARIO", scenario)
        .env("BLIP_LAZY_DIR", dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits for a process, but not for ever.
pub(crate) fn outcome(child: &mut Child) -> Option<ExitStatus> {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// Waits for a server, but not for ever.
pub(crate) fn end_of(handle: LazyHandle) -> Result<LazyStats, Arc<LazyError>> {
    let end = Instant::now() + Duration::from_secs(60);
    while !handle.is_over() {
        assert!(Instant::now() < end, "the server hangs: {:?}", handle.stats());
        std::thread::sleep(Duration::from_millis(2));
    }
    handle.wait()
}

impl Scene {
    /// Waits until both sides are done, and demands that all went well.
    pub(crate) fn ends_well(mut self) -> (LazyStats, Arc<Source>) {
        let status = outcome(&mut self.child);
        let stats = self.handle.stats();
        let status = status.unwrap_or_else(|| panic!("the restored process hangs: {stats:?}"));
        assert_eq!(status.code(), Some(RIGHT), "{status} {stats:?}");
        let stats = end_of(self.handle).expect("the server failed");
        let events = self.events.lock().unwrap();
        assert!(matches!(events.last(), Some(LazyEvent::Drained)), "{events:?}");
        (stats, self.source)
    }
}
