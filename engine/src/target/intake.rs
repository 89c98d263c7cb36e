//! What comes over the link besides control messages: pages into the store,
//! images into their directory, files into the container.

use crate::lazy::RemoteInbox;
use crate::protocol::StoredImage;
use crate::sys::sched::Claim;
use blip_transport::files::{Apply, ApplyOptions};
use blip_transport::link::LinkError;
use blip_transport::link::quic::{BlobReceiver, BulkReceiver, Connection, StreamKind};
use blip_transport::page::{PageAt, PageIndex};
use blip_transport::store::{PageStore, StoredPage};
use blip_transport::units::{ByteSize, PAGE_SIZE, Round, TreeId};
use blip_transport::wire::{self, DecodedBatch};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::Notify;

/// Largest image of CRIU's that is taken, without the memory that blip brings.
const MAX_IMAGE: ByteSize = ByteSize(4 << 30);
/// The image that lets a waiting restore go on; it is kept, not written.
pub const INVENTORY: &str = "inventory.img";
/// Lines of the container's log, to go before those it writes here.
pub const LOG: &str = "docker.log";

/// Why something that came could not be used.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A batch of pages is damaged.
    #[error("a batch of pages is damaged: {0}")]
    Batch(#[from] wire::WireError),
    /// The store is full or out of step.
    #[error(transparent)]
    Store(#[from] blip_transport::store::StoreError),
    /// The container's files could not be written.
    #[error("cannot write the container's files: {0}")]
    Files(#[from] blip_transport::files::ApplyError),
    /// An image or the log could not be written.
    #[error("cannot write {path:?}: {source}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something came before there was a place for it.
    #[error("{what} came before the container was staged")]
    TooEarly {
        /// What.
        what: &'static str,
    },
}

/// Where things go once the container is staged.
#[derive(Clone, Debug)]
pub struct Places {
    /// CRIU's images.
    pub images: PathBuf,
    /// Each tree of files: the container's mounted root, its volumes, and what
    /// a stream may do there.
    pub trees: BTreeMap<TreeId, (PathBuf, ApplyOptions)>,
    /// Its log file here, if its driver keeps one.
    pub log: Option<PathBuf>,
}

/// Who waits for pages, and how many have come since it does.
struct Waiting {
    inbox: RemoteInbox,
    pages: u64,
    /// Of the processors, for pages that nobody has asked for.
    claim: Claim,
}

/// How much has come.
#[derive(Debug, Default)]
struct Progress {
    rounds: BTreeMap<Round, (u32, Vec<PageAt>)>,
    /// Rounds of each tree that are in place.
    files: BTreeMap<TreeId, Round>,
    images: u32,
    inventory: Option<Vec<u8>>,
    /// Nothing more will come.
    over: bool,
}

impl Progress {
    /// The round of a tree that comes next.
    fn files_of(&self, tree: TreeId) -> Round {
        self.files.get(&tree).copied().unwrap_or(Round(0))
    }
}

/// Takes in everything that a migration sends.
pub struct Intake {
    /// The container's memory as far as it has come.
    pub store: RwLock<PageStore>,
    places: Mutex<Option<Places>>,
    waiting: Mutex<Option<Waiting>>,
    progress: Mutex<Progress>,
    changed: Notify,
}

impl Intake {
    /// An intake whose store takes at most `limit` bytes.
    pub fn new(limit: ByteSize) -> Arc<Self> {
        Arc::new(Self {
            store: RwLock::new(PageStore::new(limit)),
            places: Mutex::default(),
            waiting: Mutex::default(),
            progress: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Says where images and files go.
    pub fn place(&self, places: Places) {
        *lock(&self.places) = Some(places);
    }

    /// Tells `inbox` of every page that comes from now on. To unpack them takes
    /// as much of the processors as `claim` says.
    pub fn tell(&self, inbox: RemoteInbox, claim: Claim) {
        *lock(&self.waiting) = Some(Waiting { inbox, pages: 0, claim });
    }

    /// How many pages have come since somebody waits for them.
    pub fn late_pages(&self) -> u64 {
        lock(&self.waiting).as_ref().map_or(0, |waiting| waiting.pages)
    }

    /// Takes streams until the link ends or something goes wrong. Whoever waits
    /// for something then waits no longer.
    pub async fn run(self: Arc<Self>, link: Connection) -> IntakeError {
        let error = self.clone().take_all(link).await;
        lock(&self.progress).over = true;
        self.changed.notify_waiters();
        error
    }

    async fn take_all(self: Arc<Self>, link: Connection) -> IntakeError {
        let (failed, mut failure) = tokio::sync::mpsc::channel(1);
        loop {
            let stream = tokio::select! {
                stream = link.accept_bulk() => stream,
                Some(error) = failure.recv() => return error,
            };
            let stream = match stream {
                Ok(stream) => stream,
                Err(e) => return e.into(),
            };
            let (intake, failed) = (self.clone(), failed.clone());
            tokio::spawn(async move {
                if let Err(error) = intake.take(stream).await {
                    let _ = failed.send(error).await;
                }
            });
        }
    }

    async fn take(&self, stream: BulkReceiver) -> Result<(), IntakeError> {
        match stream.kind() {
            StreamKind::Pages(round) => self.take_pages(round, stream).await,
            StreamKind::Files(tree, round) => self.take_files(tree, round, stream).await,
            // Images come before there is an intake.
            StreamKind::Image => Err(IntakeError::TooEarly { what: "an image" }),
            StreamKind::Blobs => self.take_blobs(BlobReceiver::new(stream)).await,
            // Of use only before anything is staged.
            StreamKind::Probe => Ok(()),
        }
    }

    async fn take_pages(&self, round: Round, mut stream: BulkReceiver) -> Result<(), IntakeError> {
        while let Some(frame) = stream.recv().await? {
            let batch = self.unpack(frame).await?;
            let applied = write(&self.store).apply(&batch)?;
            if let Some(waiting) = &mut *lock(&self.waiting) {
                for (space, run) in batch.runs() {
                    waiting.inbox.stored(space, run);
                    waiting.pages += run.count.0;
                }
            }
            let mut progress = lock(&self.progress);
            let entry = progress.rounds.entry(round).or_default();
            entry.0 += 1;
            entry.1.extend(applied.missing);
            drop(progress);
            self.changed.notify_waiters();
        }
        Ok(())
    }

    /// A thread that waits for a page it has asked for must not wait for the
    /// processor behind pages that nobody has.
    async fn unpack(&self, frame: Bytes) -> Result<DecodedBatch, IntakeError> {
        let claim = lock(&self.waiting).as_ref().map_or(Claim::Share, |waiting| waiting.claim);
        if claim == Claim::Share {
            return Ok(wire::decode(frame)?);
        }
        let unpacking = tokio::task::spawn_blocking(move || claim.run(|| wire::decode(frame)));
        Ok(unpacking.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?)
    }

    async fn take_files(
        &self,
        tree: TreeId,
        round: Round,
        mut stream: BulkReceiver,
    ) -> Result<(), IntakeError> {
        // Each builds on the one before; its frames wait in the link.
        let turn = self.until(|progress| (progress.files_of(tree) == round).then_some(())).await;
        if turn.is_none() {
            return Ok(());
        }
        let place = self.places("files")?.trees.remove(&tree);
        let (root, options) = place.ok_or(IntakeError::TooEarly { what: "an unknown tree" })?;
        let (to, mut frames) = tokio::sync::mpsc::channel::<Bytes>(4);
        let applying = tokio::task::spawn_blocking(move || {
            let mut apply = Apply::open(&root, options)?;
            while let Some(frame) = frames.blocking_recv() {
                apply.frame(&frame)?;
            }
            apply.finish()
        });
        while let Some(frame) = stream.recv().await? {
            if to.send(frame).await.is_err() {
                break;
            }
        }
        drop(to);
        applying.await.map_err(|e| IntakeError::Write {
            path: "the container's files".into(),
            source: io::Error::other(e),
        })??;
        lock(&self.progress).files.insert(tree, round.next());
        self.changed.notify_waiters();
        Ok(())
    }

    async fn take_blobs(&self, mut stream: BlobReceiver) -> Result<(), IntakeError> {
        while let Some(blob) = stream.next_whole(MAX_IMAGE).await? {
            let name = blob.name.as_str();
            let places = self.places("images")?;
            match name {
                INVENTORY => lock(&self.progress).inventory = Some(blob.bytes.to_vec()),
                LOG => match &places.log {
                    Some(path) => append(path, &blob.bytes)?,
                    None => continue,
                },
                _ => write_image(&places.images.join(name), &blob.bytes)?,
            }
            if name != LOG {
                lock(&self.progress).images += 1;
            }
            self.changed.notify_waiters();
        }
        Ok(())
    }

    /// Waits until all batches of a round are in the store. Returns the pages
    /// that have to be sent whole; `None` if they will never be.
    pub async fn round_applied(&self, round: Round, batches: u32) -> Option<Vec<PageAt>> {
        self.until(|progress| {
            if batches == 0 {
                return Some(Vec::new());
            }
            let (applied, missing) = progress.rounds.get_mut(&round)?;
            (*applied >= batches).then(|| std::mem::take(missing))
        })
        .await
    }

    /// Waits until the files of so many streams are in place; `None` if they
    /// never will be.
    pub async fn files_applied(&self, streams: u32) -> Option<()> {
        self.until(|progress| {
            let applied: u32 = progress.files.values().map(|next| next.0).sum();
            (applied >= streams).then_some(())
        })
        .await
    }

    /// Waits until that many images have come. Returns the inventory; `None` if
    /// they never will.
    pub async fn images(&self, count: u32) -> Option<Vec<u8>> {
        self.until(|progress| {
            (progress.images >= count).then(|| progress.inventory.take()).flatten()
        })
        .await
    }

    /// Writes an image whose pages are in the store, which then lets go of them.
    ///
    /// # Errors
    /// If a page is missing, or the file cannot be written.
    pub fn write_page_image(
        &self,
        directory: &Path,
        image: &StoredImage,
    ) -> Result<(), IntakeError> {
        let path = directory.join(format!("pages-{}.img", image.number));
        let failed = |source| IntakeError::Write { path: path.clone(), source };
        // Never through a link or over what is there: images come once.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(failed)?;
        file.set_len(image.pages.bytes().0).map_err(failed)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        for index in (0..image.pages.0).map(PageIndex) {
            let at = PageAt { space: image.space, index };
            let mut store = write(&self.store);
            match store.get(at) {
                Some(StoredPage::Data(bytes)) => out.write_all(bytes).map_err(failed)?,
                Some(StoredPage::Zero) => out.write_all(&[0; PAGE_SIZE]).map_err(failed)?,
                None => {
                    return Err(failed(io::Error::other(format!("page {} never came", index.0))));
                }
            }
            store.release(at);
        }
        out.flush().map_err(failed)
    }

    async fn until<T>(&self, mut ready: impl FnMut(&mut Progress) -> Option<T>) -> Option<T> {
        loop {
            // Registered before the look, so that no change is missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (value, over) = {
                let mut progress = lock(&self.progress);
                (ready(&mut progress), progress.over)
            };
            if value.is_some() || over {
                return value;
            }
            changed.await;
        }
    }

    fn places(&self, what: &'static str) -> Result<Places, IntakeError> {
        lock(&self.places).clone().ok_or(IntakeError::TooEarly { what })
    }
}

fn write_image(path: &Path, bytes: &[u8]) -> Result<(), IntakeError> {
    // Never through a link or over what is there: images come once.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(|source| IntakeError::Write { path: path.into(), source })
}

fn append(path: &Path, bytes: &[u8]) -> Result<(), IntakeError> {
    OpenOptions::new()
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|source| IntakeError::Write { path: path.into(), source })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes to a lock that nobody poisons: what panics with it held is a bug
/// that must not cost the pages already there.
pub(super) fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Reads from such a lock.
pub(super) fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}
