//! Memory that processes share: anonymous shared mappings, System V segments,
//! and files in memory (`memfd_create`).
//!
//! CRIU writes all of it into its images inside the freeze, and no tracking of
//! page tables can say what changed: it is written through any mapper, through
//! descriptors, and by processes that come and go between two looks. So it is
//! read and compared, object by object, each once however many share it; and
//! what is read here is only ever *offered ahead*. The truth is CRIU's image:
//! its pages travel by name where the target has their content already. So
//! nothing here can be unsound: a page that changed is sent again.
//!
//! Objects are read through descriptors, not mappings: that leaves holes holes.

use super::maps::shared_objects;
use super::{Sent, Task};
use blip_transport::page::{ContentHash, PageAt, PageIndex, PageRun, SpaceId};
use blip_transport::units::{PAGE_SIZE, PageCount};
use nix::unistd::{Whence, lseek};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

/// Spaces from here on hold shared objects; no process has such a number.
const FIRST_SPACE: u32 = 1 << 31;
/// Objects at most: the numbers above are for images.
const MOST: u32 = 1 << 30;
/// Bytes read at once.
const BATCH: usize = 1 << 20;

/// Finds and reads shared objects.
#[derive(Debug, Default)]
pub struct Shared {
    /// The number of each object, by device and inode.
    numbers: BTreeMap<(u64, u64), u32>,
}

impl Shared {
    /// Hands over every page of the objects that `tasks` share now, unless the
    /// target was sent just that; answers how many pages were looked at. What
    /// cannot be read is left to CRIU.
    pub fn each(
        &mut self,
        tasks: &[Task],
        sent: &mut dyn Offer,
        go_on: impl Fn() -> bool,
    ) -> PageCount {
        let mut looked_at = 0;
        for (space, file) in self.objects(tasks) {
            looked_at += offer(space, &file, sent, &go_on);
        }
        PageCount(looked_at)
    }

    /// Every object once.
    fn objects(&mut self, tasks: &[Task]) -> Vec<(SpaceId, File)> {
        let mut found = BTreeMap::new();
        for path in tasks.iter().flat_map(|task| paths(task.pid)) {
            let Ok(file) = File::open(path) else { continue };
            let Ok(data) = file.metadata() else { continue };
            let next = self.numbers.len() as u32;
            let number = *self.numbers.entry((data.dev(), data.ino())).or_insert(next);
            if number < MOST {
                found.entry(SpaceId(FIRST_SPACE + number)).or_insert(file);
            }
        }
        found.into_iter().collect()
    }
}

/// Takes pages, and knows what it was given before.
pub trait Offer: Sent {
    /// Takes the bytes of one page.
    fn page(&mut self, at: PageAt, bytes: &[u8]);
}

/// Where the objects of a process can be opened: its mappings, and its
/// descriptors of files that are mapped nowhere.
fn paths(pid: i32) -> Vec<PathBuf> {
    let ranges = shared_objects(pid).unwrap_or_default();
    let mapped =
        ranges.iter().map(|(start, end)| format!("/proc/{pid}/map_files/{start:x}-{end:x}"));
    let mut paths: Vec<PathBuf> = mapped.map(PathBuf::from).collect();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    paths.extend(open.map(|entry| entry.path()).filter(|path| {
        std::fs::read_link(path)
            .is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"))
    }));
    paths
}

fn offer(space: SpaceId, file: &File, sent: &mut dyn Offer, go_on: &impl Fn() -> bool) -> u64 {
    let mut buffer = vec![0; BATCH];
    let (mut at, mut looked_at) = (0, 0);
    while go_on() {
        let Ok(start) = lseek(file, at, Whence::SeekData) else { break };
        let Ok(end) = lseek(file, start, Whence::SeekHole) else { break };
        let mut first = start / PAGE_SIZE as i64 * PAGE_SIZE as i64;
        at = end;
        while first < end && go_on() {
            let length = BATCH.min((end - first) as usize).next_multiple_of(PAGE_SIZE);
            let read = file.read_at(&mut buffer[..length], first as u64).unwrap_or(0);
            // The last page of an object may be cut.
            let whole = read.next_multiple_of(PAGE_SIZE);
            buffer[read..whole].fill(0);
            let run = PageRun::new(first as u64 / PAGE_SIZE as u64, (whole / PAGE_SIZE) as u64);
            for (index, bytes) in run.pages().zip(buffer[..whole].chunks_exact(PAGE_SIZE)) {
                offer_page(PageAt { space, index }, bytes, sent);
            }
            looked_at += run.count.0;
            if read < length {
                break;
            }
            first += length as i64;
        }
    }
    looked_at
}

fn offer_page(at: PageAt, bytes: &[u8], sent: &mut dyn Offer) {
    let now = bytes.try_into().ok().map(ContentHash::of);
    if now.is_some() && sent.content(at) != now {
        sent.page(at, bytes);
    }
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
                let number = shared.numbers.iter().find(|((_, other), _)| *other == ino).unwrap().1;
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
