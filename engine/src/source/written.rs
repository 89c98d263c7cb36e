//! Which parts of large files were written to, so that a gigabyte of a database
//! is not read again inside the freeze for one page that changed.
//!
//! The kernel tells each time a part of the page cache becomes dirty (the
//! tracepoint `writeback_dirty_folio`) and of each write that bypasses it
//! (`iomap_dio_*`), into a ring of our own. A page that is dirty already says
//! nothing more; so what is told around a synchronisation, after which every
//! page was clean once, counts for the next round as well. What moves content
//! about without touching pages (holes punched, ranges collapsed or cloned)
//! shows in where the file lies on disk, which is compared, too.
//!
//! **Invariants**
//! * Too much may be told, too little never: a large folio counts whole, an
//!   inode's number is enough, and after an event was lost every file is read
//!   whole once.
//! * Only on ext4 without journalled data and XFS, whose ways of writing are
//!   known to be told.

use crate::sys::fiemap::{self, Extent};
use blip_transport::files::WriteLog;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, statfs};
use nix::unistd::{SysconfVar, sysconf};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What is told, and what for.
const EVENTS: [&str; 3] =
    ["writeback/writeback_dirty_folio", "iomap/iomap_dio_rw_begin", "iomap/iomap_dio_complete"];
/// Room for events of each CPU, in KiB: some hundred thousand.
const RING_KIB: &str = "8192";
/// How often the ring is emptied.
const EVERY: Duration = Duration::from_millis(100);
/// More events than this are not kept: then everything is read again.
const MOST: usize = 4 << 20;
/// Where the kernel's tracing is mounted for a moment.
const MOUNT: &str = "/run/blip/tracing";

/// The kernel's account of all writes of this host.
#[derive(Clone, Debug)]
pub struct Written(Arc<Mutex<Account>>);

#[derive(Debug)]
struct Account {
    ring: Ring,
    /// By inode: what was written, and as which event.
    ranges: HashMap<u64, Vec<(u64, Range<u64>)>>,
    kept: usize,
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
            ring: Ring::open()?,
            ranges: HashMap::new(),
            kept: 0,
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
        is_told(root).then(|| TreeLog { account: self.0.clone(), cut: 0 })
    }
}

fn lock(account: &Mutex<Account>) -> std::sync::MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was written in one tree.
#[derive(Debug)]
pub struct TreeLog {
    account: Arc<Mutex<Account>>,
    /// The first event that counts for the next round, too.
    cut: u64,
}

impl WriteLog for TreeLog {
    fn before_sync(&mut self) {
        let mut account = lock(&self.account);
        account.drain();
        self.cut = account.now;
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
        let moved = moved.map(|(_, before)| differences(before, &lies));
        let now = account.now;
        account.known.insert(inode, (now, lies));
        let mut ranges = moved?;
        ranges.extend(told);
        Some(ranges)
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
                Some(Event::Lost) => self.lost = self.now,
                None => {}
            }
        }
        if self.kept > MOST {
            self.ranges.clear();
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
}

/// What one line of the ring says.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Wrote { inode: u64, range: Range<u64> },
    Lost,
}

impl Event {
    fn parse(line: &str, folio: &Folio) -> Option<Self> {
        if line.contains(" EVENTS]") && line.contains("[LOST ") {
            return Some(Self::Lost);
        }
        let field = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            let text = rest.split([' ', ',']).next()?;
            match text.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            }
        };
        if line.contains(": writeback_dirty_folio: ") {
            let range = folio.range(field(" index=")?);
            return Some(Self::Wrote { inode: field(" ino=")?, range });
        }
        let inode = field(" ino ");
        if line.contains(": iomap_dio_rw_begin: ") {
            let start = field(" offset ")?;
            let range = start..start.saturating_add(field(" length ")?);
            return Some(Self::Wrote { inode: inode?, range });
        }
        if line.contains(": iomap_dio_complete: ") {
            // The offset is where it ended; an error has no length.
            let end = field(" offset ")?;
            let range = end.saturating_sub(field(" ret ").unwrap_or(0))..end;
            return Some(Self::Wrote { inode: inode?, range });
        }
        None
    }
}

/// How large the pieces of the page cache can be of which only the first page
/// is told.
#[derive(Clone, Copy, Debug)]
struct Folio {
    page: u64,
    most: u64,
}

impl Folio {
    fn of_this_kernel() -> Self {
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096).max(1) as u64;
        let huge = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
        let huge = huge.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Self { page, most: (2u64 << 20).max(huge) }
    }

    /// All that the folio which begins at page `index` can span: it lies at a
    /// multiple of its size.
    fn range(&self, index: u64) -> Range<u64> {
        let most = self.most / self.page;
        let pages = if index == 0 { most } else { most.min(1 << index.trailing_zeros()) };
        let start = index.saturating_mul(self.page);
        start..start.saturating_add(pages * self.page)
    }
}

/// Where two maps of one file differ.
fn differences(before: &[Extent], now: &[Extent]) -> Vec<Range<u64>> {
    let (mut old, mut new) = (before.iter().copied().peekable(), now.iter().copied().peekable());
    let mut ranges = Vec::new();
    let mut differs = |extent: Extent| ranges.push(extent.start..extent.start + extent.len);
    loop {
        match (old.peek().copied(), new.peek().copied()) {
            (None, None) => return ranges,
            (Some(a), Some(b)) if a == b => {
                old.next();
                new.next();
            }
            // One goes on where the other ends: compare what both have.
            (Some(a), Some(b)) if a.same_place(&b) => {
                let len = a.len.min(b.len);
                for (extents, extent) in [(&mut old, a), (&mut new, b)] {
                    extents.next();
                    if extent.len > len {
                        // What is left is looked at as an extent of its own.
                        differs(Extent {
                            start: extent.start + len,
                            len: extent.len - len,
                            ..extent
                        });
                    }
                }
            }
            (Some(a), b) if b.is_none_or(|b| a.start <= b.start) => {
                old.next();
                differs(a);
            }
            (_, Some(b)) => {
                new.next();
                differs(b);
            }
            (Some(_), None) => return ranges,
        }
    }
}

impl Extent {
    fn same_place(&self, other: &Self) -> bool {
        (self.start, self.physical, self.flags) == (other.start, other.physical, other.flags)
    }
}

/// Whether all that changes content on a file system is told.
fn is_told(root: &Path) -> bool {
    let Ok(stat) = statfs(root) else { return false };
    match stat.filesystem_type() {
        XFS_SUPER_MAGIC => true,
        EXT4_SUPER_MAGIC => !journals_data(root),
        _ => false,
    }
}

fn journals_data(root: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::metadata(root) else { return true };
    let device = format!("{}:{}", libc::major(meta.dev()), libc::minor(meta.dev()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut ours = mounts.lines().filter(|l| l.split(' ').nth(2) == Some(&device)).peekable();
    // Not to be found means not to be known.
    ours.peek().is_none() || ours.any(|line| line.contains("data=journal"))
}

/// A ring of trace events that is nobody else's.
#[derive(Debug)]
struct Ring {
    pipe: File,
    /// The directory of all rings, and ours in it.
    instances: File,
    name: String,
    text: Vec<u8>,
}

impl Ring {
    fn open() -> io::Result<Self> {
        // Hosts in namespaces number their processes alike.
        let random = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let name = format!("blip-{}-{}", std::process::id(), random.trim());
        let mounted = Mounted::tracing(&name)?;
        let rings = mounted.0.join("instances");
        remove_abandoned(&rings);
        let ring = rings.join(&name);
        fs::create_dir(&ring)?;
        let begin = || {
            fs::write(ring.join("buffer_size_kb"), RING_KIB)?;
            for event in EVENTS {
                fs::write(ring.join("events").join(event).join("enable"), "1")?;
            }
            let mut options = fs::OpenOptions::new();
            let pipe = options.read(true).custom_flags(libc::O_NONBLOCK);
            let pipe = pipe.open(ring.join("trace_pipe"))?;
            Ok(Self { pipe, instances: File::open(&rings)?, name: name.clone(), text: Vec::new() })
        };
        begin().inspect_err(|_: &io::Error| drop(fs::remove_dir(&ring)))
    }

    /// The next whole line, if there is one.
    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let mut chunk = [0; 8192];
            match self.pipe.read(&mut chunk) {
                Ok(count) if count > 0 => self.text.extend_from_slice(&chunk[..count]),
                _ => return None,
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A ring that is being read cannot go.
        if let Ok(null) = File::open("/dev/null") {
            self.pipe = null;
        }
        let flags = nix::unistd::UnlinkatFlags::RemoveDir;
        let _ = nix::unistd::unlinkat(&self.instances, self.name.as_str(), flags);
    }
}

/// Rings of processes that ended without a chance to remove them.
fn remove_abandoned(rings: &Path) {
    for entry in fs::read_dir(rings).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix("blip-"));
        let pid = rest.and_then(|rest| rest.split('-').next());
        // One that is in use, by a process we do not see, stays.
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The tracing file system, mounted while this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn tracing(name: &str) -> io::Result<Self> {
        let at = Path::new(MOUNT).join(name);
        fs::create_dir_all(&at)?;
        let kind = Some("tracefs");
        let done = mount(kind, &at, kind, MsFlags::empty(), None::<&str>);
        // Dropped if this fails: the directory goes again.
        let mounted = Self(at);
        done?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLIO: Folio = Folio { page: 4096, most: 2 << 20 };

    #[test]
    fn a_folio_counts_as_large_as_it_can_be() {
        assert_eq!(FOLIO.range(3), 3 * 4096..4 * 4096);
        assert_eq!(FOLIO.range(24), 24 * 4096..32 * 4096);
        assert_eq!(FOLIO.range(0), 0..2 << 20);
        assert_eq!(FOLIO.range(1024).end - FOLIO.range(1024).start, 2 << 20);
    }

    #[test]
    fn the_kernels_words_are_understood() {
        let parse = |line| Event::parse(line, &FOLIO);
        let wrote = |inode, range| Some(Event::Wrote { inode, range });
        let line = "dd-1 [000] d..1. 1.2: writeback_dirty_folio: bdi 254:0: ino=77 index=1";
        assert_eq!(parse(line), wrote(77, 4096..8192));
        let line = "dd-1 [0] 1.2: iomap_dio_rw_begin: dev 254:0 ino 0x10 size 0x3000 offset \
                    0x1000 length 0x2000 done_before 0x0 flags DIRECT dio_flags  aio 0";
        assert_eq!(parse(line), wrote(16, 0x1000..0x3000));
        let line = "dd-1 [0] 1.2: iomap_dio_complete: dev 254:0 ino 0x10 size 0x3000 offset \
                    0x3000 flags DIRECT aio 0 error 0 ret 4096";
        assert_eq!(parse(line), wrote(16, 0x2000..0x3000));
        assert_eq!(parse("CPU:1 [LOST 17 EVENTS]"), Some(Event::Lost));
        assert_eq!(parse("something else"), None);
    }

    #[test]
    fn whatever_lies_elsewhere_differs() {
        let at = |start, len, physical| Extent { start, len, physical, flags: 0 };
        let before = [at(0, 100, 1000), at(200, 50, 5000)];
        let differ = |old: &[Extent], new: &[Extent]| -> Vec<(u64, u64)> {
            differences(old, new).into_iter().map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(differ(&before, &before), []);
        // Grown, moved, gone, come.
        assert_eq!(differ(&before[..1], &[at(0, 150, 1000)]), [(100, 150)]);
        assert_eq!(differ(&before[..1], &[at(0, 100, 2000)]), [(0, 100), (0, 100)]);
        assert_eq!(differ(&before, &before[..1]), [(200, 250)]);
        assert_eq!(differ(&before[1..], &before), [(0, 100)]);
    }
}
