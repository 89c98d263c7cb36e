//! Memory that processes share: anonymous shared mappings, System V segments,
//! and files in memory (`memfd_create`).
//!
//! No tracking of page tables can say what changed of it: it is written through
//! any mapper, through descriptors, and by processes that come and go between
//! two looks. So it is read and compared with what the target was sent, object
//! by object, each once however many share it, on all cores.
//!
//! While the container runs, pages are only *offered ahead*. When it stands
//! still there are two kinds of objects:
//! * those that blip [brings](Shared::still) itself: CRIU is kept from them
//!   (`criu/preload.rs`), what changed is sent, and the target puts all of it
//!   into the restored object before anything runs there;
//! * all others, which are in CRIU's images: their pages travel by name where
//!   the target has the content already.
//!
//! Either way the comparison that counts is made while all stand still, of all
//! of the content: nothing here can be unsound.
//!
//! Objects are read through descriptors, not mappings: that leaves holes holes.

use super::compare::{self, Source};
use super::maps::shared_objects;
use super::runs::Runs;
use super::{Sent, Stop, Task};
use blip_transport::page::{PageAt, PageIndex, PageRun, SpaceId};
use blip_transport::units::{PAGE_SIZE, PageCount};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

/// Spaces from here on hold shared objects; no process has such a number.
const FIRST_SPACE: u32 = 1 << 31;
/// Objects at most: the numbers above are for images.
const MOST: u32 = 1 << 30;
/// Bytes read at once.
const BATCH: usize = 1 << 20;
/// Objects with less content are no work for CRIU.
const WORTH_IT: u64 = 1 << 20;

/// Finds and reads shared objects.
#[derive(Debug, Default)]
pub struct Shared {
    /// The number of each object.
    numbers: BTreeMap<Inode, u32>,
}

/// What tells shared objects of one host apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inode {
    /// The file system.
    pub device: u64,
    /// The object on it.
    pub number: u64,
}

/// An object of a container that stands still, to be brought by blip.
#[derive(Debug)]
pub struct Still {
    /// Where its pages go.
    pub space: SpaceId,
    /// Which it is.
    pub inode: Inode,
    /// A process that has it mapped, …
    pub task: SpaceId,
    /// … and an address in that mapping.
    pub address: u64,
    /// Its pages that have content.
    pub pages: Runs,
    file: File,
}

impl Still {
    /// Sends what the target was not sent.
    ///
    /// # Errors
    /// If it cannot be read, although nobody runs.
    pub fn send(&self, sent: &mut dyn Offer) -> io::Result<PageCount> {
        offer(self.space, &self.file, &self.pages, Stop::Frozen, sent)
    }

    /// Reads one page.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn page(&self, index: PageIndex, take: &mut dyn FnMut(PageRun, &[u8])) -> io::Result<()> {
        Object::of(&self.file).each(&[PageRun { start: index, count: PageCount(1) }], take)
    }
}

impl Shared {
    /// Hands over every page of the objects that `tasks` share now, unless the
    /// target was sent just that; answers how many pages were handed over. What
    /// cannot be read now is found later, or left to CRIU.
    pub fn each(
        &mut self,
        tasks: &[Task],
        sent: &mut dyn Offer,
        go_on: impl Fn() -> bool,
    ) -> PageCount {
        let mut offered = PageCount(0);
        for (space, file) in self.objects(tasks) {
            if !go_on() {
                break;
            }
            let pages = content(&file).unwrap_or_default();
            offered += offer(space, &file, &pages, Stop::Live, sent).unwrap_or(PageCount(0));
        }
        offered
    }

    /// The objects of `tasks`, which stand still, that blip can bring: mapped,
    /// large, and to be written from outside. Where none was met while they ran
    /// nothing is looked for.
    pub fn still(&mut self, tasks: &[Task]) -> Vec<Still> {
        let mut found = BTreeMap::new();
        if self.numbers.is_empty() {
            return Vec::new();
        }
        for task in tasks {
            for (start, end) in shared_objects(task.pid).unwrap_or_default() {
                let Ok(file) = File::open(map_file(task.pid, start, end)) else { continue };
                let Some((space, inode)) = self.number(&file) else { continue };
                if found.contains_key(&space) || !is_ours(&file).unwrap_or(false) {
                    continue;
                }
                let Ok(pages) = content(&file) else { continue };
                let still = Still { space, inode, task: task.space, address: start, pages, file };
                found.insert(space, still);
            }
        }
        found.into_values().collect()
    }

    /// Every object once.
    fn objects(&mut self, tasks: &[Task]) -> Vec<(SpaceId, File)> {
        let mut found = BTreeMap::new();
        for path in tasks.iter().flat_map(|task| paths(task.pid)) {
            let Ok(file) = File::open(path) else { continue };
            if let Some((space, _)) = self.number(&file) {
                found.entry(space).or_insert(file);
            }
        }
        found.into_iter().collect()
    }

    fn number(&mut self, file: &File) -> Option<(SpaceId, Inode)> {
        let data = file.metadata().ok()?;
        let inode = Inode { device: data.dev(), number: data.ino() };
        let next = self.numbers.len() as u32;
        let number = *self.numbers.entry(inode).or_insert(next);
        (number < MOST).then_some((SpaceId(FIRST_SPACE + number), inode))
    }
}

/// Whether an object is worth the while, and can be filled after it was made.
fn is_ours(file: &File) -> io::Result<bool> {
    // Pages of hugetlbfs are written by nobody but their mappers.
    let small_pages = fstatfs(file)?.filesystem_type() == TMPFS_MAGIC;
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    let closed = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE;
    let open = seals.is_ok_and(|seals| !seals.intersects(closed));
    Ok(small_pages && open && file.metadata()?.blocks() * 512 >= WORTH_IT)
}

/// Takes pages, and knows what it was given before.
pub trait Offer: Sent {
    /// What it knows.
    fn as_sent(&self) -> &dyn Sent;

    /// Takes the bytes of one page.
    fn page(&mut self, at: PageAt, bytes: &[u8]);
}

/// Where the objects of a process can be opened: its mappings, and its
/// descriptors of files that are mapped nowhere.
fn paths(pid: i32) -> Vec<PathBuf> {
    let ranges = shared_objects(pid).unwrap_or_default();
    let mapped = ranges.iter().map(|&(start, end)| map_file(pid, start, end));
    let mut paths: Vec<PathBuf> = mapped.collect();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    paths.extend(open.map(|entry| entry.path()).filter(|path| {
        std::fs::read_link(path)
            .is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"))
    }));
    paths
}

fn map_file(pid: i32, start: u64, end: u64) -> PathBuf {
    format!("/proc/{pid}/map_files/{start:x}-{end:x}").into()
}

/// The pages of an object that are no holes.
fn content(file: &File) -> io::Result<Runs> {
    let mut pages = Runs::default();
    let page = PAGE_SIZE as u64;
    let mut at = 0;
    loop {
        let start = match lseek(file, at, Whence::SeekData) {
            // Behind the last of them.
            Err(Errno::ENXIO) => return Ok(pages),
            start => start?,
        };
        at = lseek(file, start, Whence::SeekHole)?;
        pages.push(start as u64 / page, (at as u64).div_ceil(page));
    }
}

/// An object, read by one thread.
struct Object<'a> {
    file: &'a File,
    buffer: Vec<u8>,
}

impl<'a> Object<'a> {
    fn of(file: &'a File) -> Self {
        Self { file, buffer: vec![0; BATCH] }
    }
}

impl Source for Object<'_> {
    type Error = io::Error;

    fn each(&mut self, runs: &[PageRun], take: &mut dyn FnMut(PageRun, &[u8])) -> io::Result<()> {
        for run in runs {
            let mut at = run.start.0;
            while at < run.end() {
                let part = PageRun::new(at, (run.end() - at).min((BATCH / PAGE_SIZE) as u64));
                at = part.end();
                let bytes = &mut self.buffer[..part.count.bytes().0 as usize];
                fill(self.file, part.start.address(), bytes)?;
                take(part, bytes);
            }
        }
        Ok(())
    }
}

/// Reads as far as the object goes, and zeros behind its end: its last page may
/// be cut, and it may have shrunk.
fn fill(file: &File, mut at: u64, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, at) {
            Ok(0) => {
                bytes.fill(0);
                return Ok(());
            }
            Ok(read) => {
                at += read as u64;
                bytes = &mut bytes[read..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Hands over those of an object's pages that the target was not sent as they
/// are; answers how many.
fn offer(
    space: SpaceId,
    file: &File,
    pages: &Runs,
    stop: Stop,
    sent: &mut dyn Offer,
) -> io::Result<PageCount> {
    let changed = compare::changed(space, pages, stop, sent.as_sent(), || Object::of(file))?;
    Object::of(file).each(changed.as_slice(), &mut |run, bytes| {
        for (index, bytes) in run.pages().zip(bytes.chunks_exact(PAGE_SIZE)) {
            sent.page(PageAt { space, index }, bytes);
        }
    })?;
    Ok(changed.pages())
}

/// Whether a space is a process' own.
pub fn is_process(space: SpaceId) -> bool {
    space.0 < FIRST_SPACE
}

/// Where the pages of an image of CRIU's go, `number` of them before.
pub fn image_space(number: u32) -> SpaceId {
    SpaceId(FIRST_SPACE + MOST + number % MOST)
}

/// Reads a file of whole pages, in order.
///
/// # Errors
/// If it cannot be read, or is none.
pub fn each_page_of(
    file: &File,
    mut take: impl FnMut(PageRun, &[u8]),
) -> std::io::Result<PageCount> {
    let length = file.metadata()?.len();
    if length % PAGE_SIZE as u64 != 0 {
        return Err(std::io::Error::other(format!("{length} bytes are no whole pages")));
    }
    let mut buffer = vec![0; BATCH];
    let mut at = 0;
    while at < length {
        let part = &mut buffer[..BATCH.min((length - at) as usize)];
        file.read_exact_at(part, at)?;
        let run = PageRun {
            start: PageIndex(at / PAGE_SIZE as u64),
            count: PageCount((part.len() / PAGE_SIZE) as u64),
        };
        take(run, part);
        at += part.len() as u64;
    }
    Ok(PageCount(length / PAGE_SIZE as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip_transport::page::ContentHash;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::OwnedFd;

    #[derive(Default)]
    struct Book(BTreeMap<PageAt, ContentHash>, Vec<PageAt>);

    impl Sent for Book {
        fn content(&self, at: PageAt) -> Option<ContentHash> {
            self.0.get(&at).copied()
        }
    }

    impl Offer for Book {
        fn as_sent(&self) -> &dyn Sent {
            self
        }

        fn page(&mut self, at: PageAt, bytes: &[u8]) {
            self.0.insert(at, ContentHash::of(bytes.try_into().unwrap()));
            self.1.push(at);
        }
    }

    fn memory() -> (File, Task) {
        let fd: OwnedFd = memfd_create(c"blip-shared-test", MFdFlags::MFD_CLOEXEC).unwrap();
        let pid = std::process::id() as i32;
        (File::from(fd), Task { pid, space: SpaceId(1) })
    }

    #[test]
    fn an_object_is_offered_once_and_then_only_what_changed() {
        let (file, task) = memory();
        let _second = file.try_clone().unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(&[1; 3 * PAGE_SIZE], 5 * PAGE_SIZE as u64).unwrap();
        file.write_all_at(&[2; 10], (1 << 30) - 10).unwrap();
        let ino = file.metadata().unwrap().ino();
        let (mut shared, mut book) = (Shared::default(), Book::default());
        let offered = |shared: &mut Shared, book: &mut Book| {
            book.1.clear();
            shared.each(&[task, task], book, || true);
            let own = |at: &&PageAt| {
                let number =
                    shared.numbers.iter().find(|(inode, _)| inode.number == ino).unwrap().1;
                at.space == SpaceId(FIRST_SPACE + number)
            };
            book.1.iter().filter(own).map(|at| at.index.0).collect::<Vec<_>>()
        };
        let last = (1 << 30) / PAGE_SIZE as u64 - 1;
        assert_eq!(offered(&mut shared, &mut book), [5, 6, 7, last]);
        assert_eq!(offered(&mut shared, &mut book), [0_u64; 0]);
        file.write_all_at(&[9; 1], 6 * PAGE_SIZE as u64).unwrap();
        assert_eq!(offered(&mut shared, &mut book), [6]);
        assert_eq!(file.metadata().unwrap().blocks() * 512 / PAGE_SIZE as u64, 4, "holes stay");
    }

    #[test]
    fn spaces_of_objects_and_of_images_are_apart() {
        assert!(image_space(0).0 > FIRST_SPACE + MOST - 1);
        assert!(image_space(MOST - 1) > image_space(0));
    }

    #[test]
    fn a_file_is_read_in_order_and_must_be_whole_pages() {
        let (file, _) = memory();
        let pages = BATCH / PAGE_SIZE + 3;
        for page in 0..pages {
            file.write_all_at(&[page as u8; PAGE_SIZE], (page * PAGE_SIZE) as u64).unwrap();
        }
        let mut seen = Vec::new();
        let count = each_page_of(&file, |run, bytes| {
            seen.extend(
                run.pages().map(|p| p.0 as u8).zip(bytes.iter().step_by(PAGE_SIZE).copied()),
            );
        });
        assert_eq!(count.unwrap(), PageCount(pages as u64));
        assert!(seen.len() == pages && seen.iter().all(|(page, byte)| page == byte));
        file.set_len(100).unwrap();
        assert!(each_page_of(&file, |_, _| ()).is_err());
    }
}
