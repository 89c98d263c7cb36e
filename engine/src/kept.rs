//! Memory of containers that left this host: should one come back, what it
//! still has the same is not sent again.
//!
//! One file for each handover, the page batches of one round, each behind its
//! length. They are in memory (`/run` is), readable by root only, and gone with
//! a reboot.
//!
//! **Invariants**
//! * Nothing is kept where no agent runs: nothing could come back. The agent
//!   removes what is too old, and everything when it ends.
//! * What is kept is a hint. It is read with the checks of the wire, and what
//!   the container has otherwise by now is sent.

use crate::handover::Ticket;
use crate::memory;
use blip_transport::units::ByteSize;
use blip_transport::wire::{Batch, DecodedBatch, MAX_FRAME_BYTES, decode};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where it is kept.
const ROOT: &str = "/run/blip/kept";
/// Locked as long as an agent runs.
const AGENT: &str = "agent";
/// Nobody comes back after that.
const LONGEST: Duration = Duration::from_secs(3600);
/// Between two looks for what is too old.
const ROUND: Duration = Duration::from_secs(60);

/// Keeps the memory of others while it lives.
#[derive(Debug)]
pub struct Keeper {
    root: PathBuf,
    _lock: File,
}

impl Keeper {
    /// Allows memory to be kept on this host, until [`end`](Self::end).
    ///
    /// # Errors
    /// If the directory cannot be made, or another agent keeps memory already.
    pub fn start() -> io::Result<Self> {
        Self::at(Path::new(ROOT))
    }

    fn at(root: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(root.join(AGENT))?;
        lock.try_lock()?;
        sweep(root, LONGEST);
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Removes what is too old, now and then, for ever.
    pub async fn tidy(&self) {
        loop {
            tokio::time::sleep(ROUND).await;
            sweep(&self.root, LONGEST);
        }
    }

    /// Removes everything.
    pub fn end(&self) {
        if let Err(error) = fs::remove_dir_all(&self.root) {
            tracing::warn!("kept memory stays in {:?}: {error}", self.root);
        }
    }
}

fn sweep(root: &Path, longest: Duration) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|meta| meta.modified()).ok();
        let old = age.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > longest);
        if old && entry.file_name() != AGENT {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Frees all that is kept here: the memory is needed.
pub fn forget_all() {
    sweep(Path::new(ROOT), Duration::ZERO);
}

/// The memory of one container on its way to be kept; nothing is, unless it is
/// [finished](Self::finish).
#[derive(Debug)]
pub struct Keepsake {
    out: BufWriter<File>,
    path: PathBuf,
    left: u64,
    size: u64,
}

/// How much of a container's memory may be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeepLimit {
    /// A quarter of what is free here.
    #[default]
    Auto,
    /// So much; 0: none.
    Most(ByteSize),
}

impl Keepsake {
    /// Begins one; `None` where nothing is to be kept.
    pub fn begin(ticket: Ticket, limit: KeepLimit) -> Option<Self> {
        Self::begin_in(Path::new(ROOT), ticket, limit)
    }

    fn begin_in(root: &Path, ticket: Ticket, limit: KeepLimit) -> Option<Self> {
        let agent = File::open(root.join(AGENT)).ok()?;
        if agent.try_lock_shared().is_ok() {
            return None;
        }
        // Others need what is free, and the directory is theirs, too.
        let room = nix::sys::statvfs::statvfs(root).ok()?;
        let room = room.blocks_available() * room.fragment_size() / 2;
        let left = match limit {
            KeepLimit::Auto => room.min(memory::available().0 / 4),
            KeepLimit::Most(most) => room.min(most.0),
        };
        if left == 0 {
            return None;
        }
        let path = root.join(format!("{ticket}.new"));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).ok()?;
        Some(Self { out: BufWriter::with_capacity(1 << 20, file), path, left, size: 0 })
    }

    /// The most it may hold.
    pub fn limit(&self) -> ByteSize {
        ByteSize(self.left + self.size)
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// If it is too much, or cannot be written.
    pub fn put(&mut self, batch: Batch) -> io::Result<()> {
        let bytes = batch.into_bytes();
        let size = bytes.len() as u64 + 4;
        self.left = self.left.checked_sub(size).ok_or(io::ErrorKind::StorageFull)?;
        self.size += size;
        self.out.write_all(&(bytes.len() as u32).to_le_bytes())?;
        self.out.write_all(&bytes)
    }

    /// Keeps it; answers how much it is.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> io::Result<ByteSize> {
        self.out.flush()?;
        fs::rename(&self.path, self.path.with_extension("pages"))?;
        Ok(ByteSize(self.size))
    }
}

impl Drop for Keepsake {
    fn drop(&mut self) {
        // Gone already if it was finished.
        let _ = fs::remove_file(&self.path);
    }
}

fn path(ticket: Ticket) -> PathBuf {
    Path::new(ROOT).join(format!("{ticket}.pages"))
}

/// Hands over every batch that is kept of a handover; answers whether there is
/// anything.
///
/// # Errors
/// If it cannot be read, or is damaged: nothing of it may be used.
pub fn recall<E: From<io::Error>>(
    ticket: Ticket,
    take: impl FnMut(&DecodedBatch) -> Result<(), E>,
) -> Result<bool, E> {
    match File::open(path(ticket)) {
        Ok(file) => read(file, take).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn read<E: From<io::Error>>(
    file: File,
    mut take: impl FnMut(&DecodedBatch) -> Result<(), E>,
) -> Result<(), E> {
    let mut left = file.metadata()?.len();
    let mut file = BufReader::with_capacity(1 << 20, file);
    while left > 0 {
        let mut length = [0; 4];
        file.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        }
        let mut frame = vec![0; length];
        file.read_exact(&mut frame)?;
        left = left.saturating_sub(4 + length as u64);
        take(&decode(frame.into()).map_err(io::Error::other)?)?;
    }
    Ok(())
}

/// Forgets what is kept of a handover.
pub fn forget(ticket: Ticket) {
    let _ = fs::remove_file(path(ticket));
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip_transport::encode::{EncodeOptions, Encoder};
    use blip_transport::page::{PageRun, SpaceId};
    use blip_transport::units::Round;
    use std::os::unix::fs::PermissionsExt;

    fn batches() -> Vec<Batch> {
        let mut encoder = Encoder::new(EncodeOptions::default());
        encoder.begin_round(Round(0));
        let bytes: Vec<u8> = (0..40 * 4096).map(|i| (i / 4096) as u8).collect();
        encoder.pages(SpaceId(1), PageRun::new(5, 40), &bytes);
        encoder.finish_round();
        std::iter::from_fn(|| encoder.next_batch()).map(|raw| raw.compress(1)).collect()
    }

    #[test]
    fn memory_is_kept_while_an_agent_runs_and_only_then() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("kept");
        let begin = |limit| Keepsake::begin_in(&root, Ticket(7), limit);
        assert!(begin(KeepLimit::Auto).is_none());
        let keeper = Keeper::at(&root).unwrap();
        assert!(Keeper::at(&root).is_err(), "one at a time");
        assert!(begin(KeepLimit::Most(ByteSize(0))).is_none());
        let mut keepsake = begin(KeepLimit::Auto).unwrap();
        let kept = batches();
        let pages = kept.len();
        kept.into_iter().for_each(|batch| keepsake.put(batch).unwrap());
        keepsake.finish().unwrap();
        let path = root.join(format!("{}.pages", Ticket(7)));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut seen = 0;
        let count = |_: &DecodedBatch| {
            seen += 1;
            Ok::<_, io::Error>(())
        };
        read(File::open(&path).unwrap(), count).unwrap();
        assert_eq!(seen, pages);
        keeper.end();
        assert!(!root.exists());
    }

    #[test]
    fn too_much_is_not_kept_at_all() {
        let root = tempfile::tempdir().unwrap();
        let _keeper = Keeper::at(root.path()).unwrap();
        let limit = KeepLimit::Most(ByteSize(100));
        let mut keepsake = Keepsake::begin_in(root.path(), Ticket(7), limit).unwrap();
        let mut put = batches().into_iter().map(|batch| keepsake.put(batch));
        assert!(put.any(|put| put.is_err()));
        drop(put);
        drop(keepsake);
        sweep(root.path(), Duration::ZERO);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "the agent's lock");
    }
}
