//! A chain of CRIU's pre-dumps: each holds the pages written since the one
//! before, and stands on its pagemaps.
//!
//! A pre-dump stops the tree for a moment, notes which pages were written and
//! clears the kernel's soft-dirty bits; the bytes are read after that (`read`
//! mode), or held in pipes while it stands still (`splice`).
//!
//! **Invariants**
//! * At most one pre-dump's bytes exist: they go as soon as they were read
//!   ([`Taken::spent`]), and with the chain.
//! * The last pre-dump's pagemaps stay, as the next one looks there for what
//!   it leaves out; older ones go.

use super::image::{Image, ImageError, Kind, PageMapEntry, PageMapHead, dump_stats};
use super::rpc::{self, Environment, Opts, RpcError, Said, Worker};
use crate::memory;
use crate::track::runs::Runs;
use blip_transport::page::{PageRun, SpaceId};
use blip_transport::units::{ByteSize, PAGE_SIZE, PageCount};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one pre-dump may take. Killed, CRIU lets its tasks go.
const LIMIT: Duration = Duration::from_secs(120);
/// Most bytes read from an image at once.
const BATCH: u64 = (1 << 20) / PAGE_SIZE as u64;

/// What is pre-dumped, and where to.
#[derive(Clone, Debug)]
pub struct PreDumpSpec {
    /// Init of the container, as this host numbers it.
    pub pid: i32,
    /// Root of its file system, as this host sees it.
    pub rootfs: PathBuf,
    /// What CRIU must leave to others: `mnt[…]:…`, `net[…]:…`.
    pub external: Vec<String>,
    /// Directory for the images; made here, mode 0700, and removed.
    pub directory: PathBuf,
}

/// Why a pre-dump failed. The container runs.
#[derive(Debug, thiserror::Error)]
pub enum PreDumpError {
    /// CRIU.
    #[error(transparent)]
    Criu(#[from] RpcError),
    /// It took too long.
    #[error("criu was not done with its pre-dump within {LIMIT:?}")]
    TooSlow,
    /// Its images might not fit.
    #[error("a pre-dump may take {needs}, and {path:?} has room for {has}")]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// The most it can take.
        needs: ByteSize,
        /// What there is.
        has: ByteSize,
    },
    /// Its images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file of ours.
    #[error("cannot use {path:?} for pre-dumps: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How the bytes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// After the tree runs again, like a reader from outside. Pages that may
    /// not be read are left out.
    Read,
    /// By pipes, while it stands still.
    Splice,
}

/// The chain.
#[derive(Debug)]
pub struct Chain {
    spec: PreDumpSpec,
    next: u32,
    /// The last good one.
    parent: Option<PathBuf>,
    peak: ByteSize,
}

/// One pre-dump, taken.
#[derive(Debug)]
pub struct Taken {
    /// What it says of each address space.
    pub spaces: BTreeMap<SpaceId, Space>,
    /// How long the tree stood still.
    pub stopped: Duration,
    directory: PathBuf,
}

/// One address space in a pre-dump.
#[derive(Debug)]
pub struct Space {
    /// Pages not written since the pre-dump before.
    pub clean: Runs,
    /// Pages whose bytes are here.
    pub written: Runs,
    pages: File,
    /// Where in `pages` each run begins, counted in pages; by address.
    places: Vec<(PageRun, u64)>,
}

impl Chain {
    /// A chain without a first pre-dump.
    pub fn new(spec: PreDumpSpec) -> Self {
        Self { spec, next: 0, parent: None, peak: ByteSize(0) }
    }

    /// The most that images ever took.
    pub fn peak(&self) -> ByteSize {
        self.peak
    }

    /// The next pre-dump has no parent: it takes all pages.
    pub fn begin_anew(&mut self) {
        if let Some(parent) = self.parent.take() {
            let _ = fs::remove_dir_all(parent);
        }
    }

    /// Makes a pre-dump of at most `expected` bytes. To be called off the async
    /// threads.
    ///
    /// # Errors
    /// [`PreDumpError`]; soft-dirty bits may have been cleared, so that the
    /// chain [begins anew](Self::begin_anew).
    pub fn pre_dump(&mut self, mode: Mode, expected: ByteSize) -> Result<Taken, PreDumpError> {
        self.look_for_room(expected)?;
        let directory = self.spec.directory.join(format!("pre-{}", self.next));
        self.next += 1;
        let taken = self.make(&directory, mode);
        let before = match &taken {
            Ok(_) => self.parent.replace(directory),
            Err(_) => {
                let _ = fs::remove_dir_all(&directory);
                self.parent.take()
            }
        };
        if let Some(before) = before {
            let _ = fs::remove_dir_all(before);
            if let Some(parent) = &self.parent {
                let _ = fs::remove_file(parent.join("parent"));
            }
        }
        taken
    }

    /// Others write to the same file system, and need memory: an image must not
    /// find out that there is none left.
    fn look_for_room(&self, needs: ByteSize) -> Result<(), PreDumpError> {
        let path = &self.spec.directory;
        let at = |source| PreDumpError::File { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at)?;
        let stat = nix::sys::statvfs::statvfs(path).map_err(|errno| at(errno.into()))?;
        let mut has = ByteSize(stat.blocks_available() * stat.fragment_size());
        if is_in_memory(path) {
            has = has.min(memory::available());
        }
        if has.0 < needs.0 + needs.0 / 8 {
            return Err(PreDumpError::NoRoom { path: path.clone(), needs, has });
        }
        Ok(())
    }

    fn make(&mut self, directory: &Path, mode: Mode) -> Result<Taken, PreDumpError> {
        let at = |source| PreDumpError::File { path: directory.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at)?;
        let images = File::open(directory).map_err(at)?;
        let opts = self.options(&images, mode);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(at)?;
        runtime.block_on(async {
            let mut worker =
                Worker::start(Some(&directory.join("pre-dump.log")), Environment::new())?;
            let done = async {
                worker.pre_dump(opts).await?;
                while let Said::At(_) = worker.next().await? {
                    worker.answer(true).await?;
                }
                Ok::<(), RpcError>(())
            };
            let done = tokio::time::timeout(LIMIT, done).await;
            worker.kill().await;
            done.map_err(|_| PreDumpError::TooSlow)?.map_err(PreDumpError::from)
        })?;
        self.peak = self.peak.max(size_of_pages(directory).map_err(at)?);
        Taken::open(directory)
    }

    fn options(&self, images: &File, mode: Mode) -> Opts {
        let parent = self.parent.as_ref().and_then(|parent| parent.file_name());
        Opts {
            images_dir_fd: images.as_raw_fd(),
            work_dir_fd: Some(images.as_raw_fd()),
            pid: Some(self.spec.pid),
            log_level: Some(2),
            log_file: Some("pre-dump.log".into()),
            root: Some(self.spec.rootfs.to_string_lossy().into_owned()),
            external: self.spec.external.clone(),
            track_mem: Some(true),
            parent_img: parent.map(|name| format!("../{}", name.to_string_lossy())),
            pre_dump_mode: Some(match mode {
                Mode::Splice => rpc::PRE_DUMP_SPLICE,
                Mode::Read => rpc::PRE_DUMP_READ,
            }),
            ..Opts::default()
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.spec.directory);
    }
}

fn is_in_memory(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

fn size_of_pages(directory: &Path) -> io::Result<ByteSize> {
    let mut size = 0;
    for entry in fs::read_dir(directory)? {
        size += entry?.metadata()?.len();
    }
    Ok(ByteSize(size))
}

impl Taken {
    /// Reads what a finished pre-dump says.
    fn open(directory: &Path) -> Result<Self, PreDumpError> {
        let at = |source| PreDumpError::File { path: directory.to_owned(), source };
        let mut spaces = BTreeMap::new();
        for entry in fs::read_dir(directory).map_err(at)? {
            let name = entry.map_err(at)?.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix("pagemap-"));
            let pid = pid.and_then(|name| name.strip_suffix(".img")?.parse().ok());
            if let Some(pid) = pid {
                spaces.insert(SpaceId(pid), Space::open(directory, pid)?);
            }
        }
        let stopped = dump_stats(directory).map(|stats| stats.stopped()).unwrap_or_default();
        Ok(Self { spaces, stopped, directory: directory.to_owned() })
    }

    /// The bytes were read, or never will be: they make room. What the next
    /// pre-dump needs stays.
    pub fn spent(self) {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for entry in entries {
            if entry.file_name().as_encoded_bytes().starts_with(b"pages-")
                && let Ok(file) = File::options().write(true).open(entry.path())
            {
                let _ = file.set_len(0);
            }
        }
    }
}

impl Space {
    fn open(directory: &Path, pid: u32) -> Result<Self, PreDumpError> {
        let mut pagemap = Image::open(directory, &format!("pagemap-{pid}.img"), Kind::PageMap)?;
        let head: PageMapHead =
            pagemap.entry()?.ok_or_else(|| pagemap.malformed("it has no head"))?;
        let path = directory.join(format!("pages-{}.img", head.pages_id));
        let pages = File::open(&path).map_err(|source| PreDumpError::File { path, source })?;
        let (mut clean, mut written, mut places) = (Runs::default(), Runs::default(), Vec::new());
        let (mut end, mut at) = (0, 0);
        while let Some(entry) = pagemap.entry::<PageMapEntry>()? {
            let run = PageRun::new(entry.vaddr / PAGE_SIZE as u64, entry.pages());
            if run.start.0 < end || run.start.0.checked_add(run.count.0).is_none() {
                return Err(pagemap.malformed(format!("a run at {:#x}", entry.vaddr)).into());
            }
            end = run.end();
            if entry.is_present() {
                written.push(run.start.0, run.end());
                places.push((run, at));
                at += run.count.0;
            } else if entry.is_in_parent() {
                clean.push(run.start.0, run.end());
            }
        }
        let has = pages.metadata().map(|data| data.len()).unwrap_or(0);
        if has != PageCount(at).bytes().0 {
            let what = format!("it speaks of {at} pages, and there are {has} bytes of them");
            return Err(pagemap.malformed(what).into());
        }
        Ok(Self { clean, written, pages, places })
    }

    /// Hands over those of `runs` that are here; answers the others.
    pub fn each(&self, runs: &[PageRun], take: &mut dyn FnMut(PageRun, &[u8])) -> io::Result<Runs> {
        let asked = Runs::from(runs);
        let mut buffer = vec![0; (BATCH as usize) * PAGE_SIZE];
        for run in asked.intersect(&self.written).as_slice() {
            let first = self.places.partition_point(|(place, _)| place.end() <= run.start.0);
            let places = self.places[first..].iter();
            for (place, offset) in places.take_while(|(place, _)| place.start.0 < run.end()) {
                let (mut at, to) = (place.start.0.max(run.start.0), place.end().min(run.end()));
                while at < to {
                    let part = PageRun::new(at, BATCH.min(to - at));
                    let bytes = &mut buffer[..part.count.bytes().0 as usize];
                    let from = PageCount(offset + at - place.start.0).bytes();
                    self.pages.read_exact_at(bytes, from.0)?;
                    take(part, bytes);
                    at = part.end();
                }
            }
        }
        Ok(asked.subtract(&self.written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::image::{append, encode};

    fn entry(page: u64, count: u64, flags: u32) -> PageMapEntry {
        PageMapEntry {
            vaddr: page * PAGE_SIZE as u64,
            compat_nr_pages: 0,
            in_parent: None,
            flags: Some(flags),
            nr_pages: Some(count),
        }
    }

    fn images(pages: u64) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut pagemap = encode(Kind::PageMap, &[PageMapHead { pages_id: 3 }]);
        append(
            &mut pagemap,
            &[entry(10, 2, 6), entry(12, 3, 1), entry(20, 600, 6), entry(900, 1, 4)],
        );
        fs::write(dir.path().join("pagemap-7.img"), pagemap).unwrap();
        let bytes = (0..pages).flat_map(|page| vec![page as u8; PAGE_SIZE]).collect::<Vec<_>>();
        fs::write(dir.path().join("pages-3.img"), bytes).unwrap();
        dir
    }

    #[test]
    fn pages_are_found_where_the_pagemap_puts_them() {
        let dir = images(603);
        let taken = Taken::open(dir.path()).unwrap();
        let space = &taken.spaces[&SpaceId(7)];
        assert_eq!(space.clean.as_slice(), [PageRun::new(12, 3)]);
        assert_eq!(space.written.pages(), PageCount(603));
        let mut seen = Vec::new();
        let asked = [PageRun::new(9, 4), PageRun::new(21, 599), PageRun::new(900, 2)];
        let rest = space
            .each(&asked, &mut |run, bytes| {
                assert_eq!(bytes.len() as u64, run.count.bytes().0);
                seen.extend(
                    run.pages().map(|page| page.0).zip(bytes.iter().step_by(PAGE_SIZE).copied()),
                );
            })
            .unwrap();
        assert_eq!(
            rest.as_slice(),
            [PageRun::new(9, 1), PageRun::new(12, 1), PageRun::new(901, 1)]
        );
        let expected = (10..12).map(|page| (page, page as u8 - 10));
        let expected = expected.chain((21..620).map(|page| (page, (page - 18) as u8)));
        assert!(seen.into_iter().eq(expected.chain([(900, 602_u64 as u8)])));
        taken.spent();
        assert_eq!(fs::metadata(dir.path().join("pages-3.img")).unwrap().len(), 0);
        assert!(fs::metadata(dir.path().join("pagemap-7.img")).unwrap().len() > 0);
    }

    #[test]
    fn a_pages_file_of_another_length_is_an_error() {
        for pages in [602, 604] {
            let error = Taken::open(images(pages).path()).unwrap_err();
            assert!(matches!(error, PreDumpError::Image(ImageError::Malformed { .. })), "{error}");
        }
    }
}
