//! What was written to, so that in the freeze nothing else is looked at: which
//! files of a hundred thousand changed, and which parts of large ones, so that a
//! gigabyte of a database is not read again for one page.
//!
//! The kernel tells each time a part of the page cache becomes dirty (the
//! tracepoint `writeback_dirty_folio`) and of each write that bypasses it
//! (`iomap_dio_*`), into a ring of our own. A page that is dirty already says
//! nothing more; so what is told around a synchronisation, after which every
//! page was clean once, counts for the next round as well. What moves content
//! about without touching pages (holes punched, ranges collapsed or cloned)
//! shows in where the file lies on disk, which is compared, too.
//!
//! ext4 tells as well of each inode that it changes in any way: its times when
//! content is written, its owner, mode, size and links (`ext4_mark_inode_dirty`),
//! and its attributes (`ext4_journal_start_inode`, Linux ≥ 6.5).
//!
//! **Invariants**
//! * Too much may be told, too little never: a large folio counts whole, an
//!   inode's number is enough, and after an event was lost every file is read
//!   whole once, and looked at.
//! * Only on ext4 without journalled data and XFS, whose ways of writing are
//!   known to be told.

mod event;
mod extents;
mod filesystem;
mod ring;

use crate::sys::fiemap::{self, Extent};
use blip_transport::files::WriteLog;
use event::{Event, Folio};
use ring::Ring;
use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where content is written.
const CONTENT: [&str; 3] =
    ["writeback/writeback_dirty_folio", "iomap/iomap_dio_rw_begin", "iomap/iomap_dio_complete"];
/// What changes in any way. The second is for attributes alone, and older
/// kernels do not say there which inode it is.
const INODES: [&str; 2] = ["ext4/ext4_mark_inode_dirty", "ext4/ext4_journal_start_inode"];
/// How often the ring is emptied. What is in it when the container freezes is
/// read in the freeze.
const EVERY: Duration = Duration::from_millis(25);
/// More events than this are not kept: then everything is read again.
const MOST: usize = 4 << 20;

/// The kernel's account of all writes of this host.
#[derive(Clone, Debug)]
pub struct Written(Arc<Mutex<Account>>);

#[derive(Debug)]
struct Account {
    ring: Ring,
    /// By inode: what was written, and as which event.
    ranges: HashMap<u64, Vec<(u64, Range<u64>)>>,
    kept: usize,
    /// By inode: the last event that changed it.
    touched: HashMap<u64, u64>,
    /// Counts events.
    now: u64,
    /// The last event after which some were lost.
    lost: u64,
    /// Files that were read whole once: since which event, and where they lay.
    known: HashMap<u64, (u64, Vec<Extent>)>,
    folio: Folio,
}

impl Written {
    /// Begins to listen.
    ///
    /// # Errors
    /// The kernel has no tracing, not these events, or this process no right.
    pub fn listen() -> io::Result<Self> {
        let account = Account {
            ring: Ring::open(&CONTENT, &INODES)?,
            ranges: HashMap::new(),
            kept: 0,
            touched: HashMap::new(),
            now: 1,
            lost: 0,
            known: HashMap::new(),
            folio: Folio::of_this_kernel(),
        };
        let shared = Arc::new(Mutex::new(account));
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new().name("written".into()).spawn(move || {
            while let Some(account) = weak.upgrade() {
                lock(&account).drain();
                drop(account);
                std::thread::sleep(EVERY);
            }
        })?;
        Ok(Self(shared))
    }

    /// The account of one tree, if its file system's ways are known.
    pub fn of(&self, root: &Path) -> Option<TreeLog> {
        let tells_inodes = lock(&self.0).ring.has_all && filesystem::tells_inodes(root);
        filesystem::tells_content(root).then(|| TreeLog {
            account: self.0.clone(),
            cut: 0,
            before: 0,
            tells_inodes,
        })
    }
}

fn lock(account: &Mutex<Account>) -> std::sync::MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was written in one tree.
#[derive(Debug)]
pub struct TreeLog {
    account: Arc<Mutex<Account>>,
    /// The first event that counts for the next round, too; 0 before the first
    /// synchronisation.
    cut: u64,
    /// That of the synchronisation before.
    before: u64,
    tells_inodes: bool,
}

impl WriteLog for TreeLog {
    fn before_sync(&mut self) {
        let mut account = lock(&self.account);
        account.drain();
        (self.before, self.cut) = (self.cut, account.now);
    }

    fn written(&mut self, file: BorrowedFd<'_>, inode: u64) -> Option<Vec<Range<u64>>> {
        let mut account = lock(&self.account);
        account.drain();
        let told = account.take(inode, self.cut);
        let lies = fiemap::extents(file).ok()?;
        if !fiemap::writes_through_the_page_cache(file).unwrap_or(false) {
            return None;
        }
        let moved = account.known.get(&inode).filter(|(since, _)| *since > account.lost);
        let moved = moved.map(|(_, before)| extents::differences(before, &lies));
        let now = account.now;
        account.known.insert(inode, (now, lies));
        let mut ranges = moved?;
        ranges.extend(told);
        Some(ranges)
    }

    fn touched(&mut self) -> Option<HashSet<u64>> {
        if !self.tells_inodes || self.before == 0 {
            return None;
        }
        let mut account = lock(&self.account);
        account.drain();
        // What is told of attributes is told before it is done, and the wait for
        // the journal may lie between: a whole synchronisation is, by then, over.
        account.touched_since(self.before)
    }
}

impl Account {
    /// Takes in what the kernel has told since.
    fn drain(&mut self) {
        while let Some(line) = self.ring.line() {
            self.now += 1;
            match Event::parse(&line, &self.folio) {
                Some(Event::Wrote { inode, range }) => {
                    self.ranges.entry(inode).or_default().push((self.now, range));
                    self.kept += 1;
                }
                Some(Event::Touched { inode }) => drop(self.touched.insert(inode, self.now)),
                Some(Event::Lost) => self.lost = self.now,
                None => {}
            }
        }
        if self.kept + self.touched.len() > MOST {
            self.ranges.clear();
            self.touched.clear();
            (self.kept, self.lost) = (0, self.now);
        }
    }

    /// What was written to a file; what happened since `cut` is told again.
    fn take(&mut self, inode: u64, cut: u64) -> Vec<Range<u64>> {
        let Some(events) = self.ranges.get_mut(&inode) else { return Vec::new() };
        let ranges = events.iter().map(|(_, range)| range.clone()).collect();
        let before = events.len();
        events.retain(|(at, _)| *at > cut);
        self.kept -= before - events.len();
        ranges
    }

    /// Every inode that changed after `cut`, unless that is not known.
    fn touched_since(&self, cut: u64) -> Option<HashSet<u64>> {
        let since = self.touched.iter().filter(|(_, at)| **at > cut);
        (self.lost <= cut).then(|| since.map(|(inode, _)| *inode).collect())
    }
}
