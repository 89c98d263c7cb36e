//! Inside the freeze: dumping, and sending everything the target needs to
//! restore.

use super::Handover;
use crate::event::{Event, Phase};
use crate::lazy::LazyPlan;
use crate::protocol::{
    MemoryPlan, MissingPages, RestoreOrder, SharedObject, StoredImage, ToTarget,
};
use crate::source::freeze::Still;
use crate::source::gauge::Gauge;
use crate::source::peer::PeerError;
use crate::source::pump::{self, Pump, RoundDone, Take};
use crate::source::{Manner, MigrateError};
use crate::target::intake::{INVENTORY, LOG};
use crate::track::runs::Runs;
use crate::track::shared::{self, image_space};
use crate::track::{Stop, Task};
use blip_transport::files::Pace;
use blip_transport::link::quic::{BlobName, Priority};
use blip_transport::page::PageAt;
use blip_transport::units::{ByteSize, PAGE_SIZE, PageCount, Round};
use bytes::Bytes;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinHandle;

/// An image of fewer pages is not worth a round of its own, …
const WORTH_PAGES: ByteSize = ByteSize(8 << 20);
/// … but over a link with a longer round trip than that, where bytes are dear.
const NEAR: Duration = Duration::from_millis(5);
const WORTH_PAGES_AFAR: ByteSize = ByteSize(64 << 10);

/// Images that stay here.
const NOT_SENT: [&str; 3] = ["dump.log", "criu.conf", "descriptors.json"];

impl Handover<'_> {
    /// Dumps and sends everything the target needs, and orders the restore.
    pub(super) async fn ship(&mut self, still: Still) -> Result<(), MigrateError> {
        let tasks = self.subject.tasks()?;
        let round = self.next_round();
        let trees = self.copied.trees.take();
        let link = self.peer.link.clone();
        let mut pump = self.take_pump()?;
        let objects = pump.find_still(&tasks);
        let gauge = Gauge::default();
        let order = self.frozen_round(round, &tasks, self.copied.planner.most_shipped());
        let _interrupted = self.cut_short_at_interrupt(&gauge);
        let files = async {
            match trees {
                Some(trees) => trees.round(Pace::Frozen, &link).await.map(|(trees, _)| Some(trees)),
                None => Ok(None),
            }
        };
        // CRIU writes its images while the last pages and files are on their
        // way. Everything that is read stands still.
        let (frozen, pages, files) =
            tokio::join!(still.dump(&tasks, &objects), pump.round(order, &gauge, &link), files);
        // First of all what the way back needs.
        self.frozen = Some(frozen?);
        tracing::debug!(since_freeze = ?self.clock.last.elapsed(), "dumped, last pages read");
        let (pump, done) = pages?;
        self.copied.pump = Some(pump);
        if *self.run.order.interrupt.borrow() {
            return Err(MigrateError::Interrupted);
        }
        self.confirm(round, done.batches).await?;
        self.leave_after_all(&done);
        self.report(done);
        if let Some(trees) = files? {
            let trees = trees.names(&link).await?;
            self.peer.say(&ToTarget::FilesEnd { streams: trees.streams() }).await?;
            self.unconfirmed += 1;
            // Kept: to let go of the kernel's write log takes tens of milliseconds.
            self.copied.trees = Some(trees);
            tracing::debug!(since_freeze = ?self.clock.last.elapsed(), "files sent");
        }
        self.clock.end(self.run, Phase::Dump);
        self.send_images().await?;
        self.clock.end(self.run, Phase::Ship);
        self.run.events.send(Event::Begin { phase: Phase::Restore });
        // The target restores all but the memory meanwhile.
        let touched = self.copy_what_criu_touched(tasks).await?;
        let shared = self.send_shared().await?;
        let plan = self.complete().await?;
        self.serve_missing_pages();
        self.peer.say(&ToTarget::Memory(plan)).await?;
        tracing::debug!(since_ship = ?self.clock.last.elapsed(), "memory is complete");
        // Said when it holds nobody up.
        for done in [Some(touched), shared].into_iter().flatten() {
            self.report(done);
        }
        Ok(())
    }

    /// CRIU has run code in the tasks and put everything back; pages it wrote
    /// to on the way count as written.
    async fn copy_what_criu_touched(
        &mut self,
        tasks: Vec<Task>,
    ) -> Result<RoundDone, MigrateError> {
        let round = self.next_round();
        let link = self.peer.link.clone();
        let order = self.frozen_round(round, &tasks, None);
        let done = self.take_pump()?.round(order, &Gauge::default(), &link).await?;
        self.sent(done).await
    }

    fn report(&mut self, done: RoundDone) {
        self.copied.rounds.push(done.report.clone());
        self.run.events.send(Event::Round(done.report));
    }

    /// The memory that processes share, as far as CRIU was kept from it.
    async fn send_shared(&mut self) -> Result<Option<RoundDone>, MigrateError> {
        if self.copied.pump.as_ref().is_none_or(|pump| pump.still().is_empty()) {
            return Ok(None);
        }
        let round = self.next_round();
        let link = self.peer.link.clone();
        let done = self.take_pump()?.send_still(round, &link).await?;
        let done = self.sent(done).await?;
        let (all, wire) = (done.report.scanned.bytes(), done.report.bytes_wire);
        let text = format!("shared memory holds {} bytes, {} crossed the link", all.0, wire.0);
        self.run.events.send(Event::Note { text });
        Ok(Some(done))
    }

    /// If the last scan found more than is worth the downtime, all of it stays
    /// here until the container runs there.
    fn leave_after_all(&mut self, done: &RoundDone) {
        if self.copied.manner.leaves || !done.left {
            return;
        }
        self.copied.manner = Manner::LAZY;
        let elapsed = self.run.events.elapsed();
        if let Some(decision) = self.copied.planner.when_frozen(done.due, elapsed) {
            self.run.announce(&decision);
        }
    }

    /// A scan of what stands still, and what becomes of the pages it finds: `most`
    /// of them are shipped, if any are.
    fn frozen_round(&self, round: Round, tasks: &[Task], most: Option<PageCount>) -> pump::Order {
        let take = match most {
            _ if self.copied.manner.leaves => Take::Nothing,
            Some(most) => Take::UpTo(most),
            None => Take::All,
        };
        pump::Order { round, tasks: tasks.to_vec(), stop: Stop::Frozen, take, watch: false }
    }

    /// Ends a long last round if the user has had enough.
    fn cut_short_at_interrupt(&self, gauge: &Gauge) -> AbortOnDrop {
        let (gauge, mut interrupt) = (gauge.clone(), self.run.order.interrupt.clone());
        AbortOnDrop(tokio::spawn(async move {
            if interrupt.wait_for(|stop| *stop).await.is_ok() {
                gauge.cut_short();
            }
        }))
    }

    /// Every page that the images leave out must be with the target, unless it
    /// is to follow: what CRIU calls lazy, or was kept from seeing, and the
    /// target does not hold is read now.
    async fn complete(&mut self) -> Result<MemoryPlan, MigrateError> {
        let images = self.images()?;
        let mut plan = LazyPlan::from_images(&images)
            .map_err(|e| MigrateError::Target(format!("CRIU's images are unusable: {e}")))?;
        self.add_hidden(&mut plan)?;
        let Manner { leaves, resident } = self.copied.manner;
        let pump = self.copied.pump.as_ref();
        // What is left behind is absent, every page of it: not worth a list.
        let absent: Vec<_> = plan
            .tasks()
            .filter(|_| !leaves)
            .flat_map(|(space, task)| {
                pump.map(|pump| pump.absent(space, &task.missing)).unwrap_or_default()
            })
            .collect();
        let tasks = plan
            .tasks()
            .map(|(space, task)| MissingPages {
                space,
                missing: task.missing.clone(),
                wiped_on_fork: task.wiped_on_fork.clone(),
                hot: pump.map(|pump| pump.hot(space)).unwrap_or_default(),
            })
            .collect();
        let shared = pump.map(|pump| pump.still().iter().map(told).collect()).unwrap_or_default();
        self.memory = plan.pages().bytes();
        if !absent.is_empty() {
            tracing::debug!(pages = absent.len(), "pages only CRIU knew of");
            self.patch(absent).await?;
        }
        Ok(MemoryPlan { tasks, shared, resident, pushed: leaves })
    }

    /// Images of pages go as pages if there is much in them: what was sent ahead
    /// of them goes by name.
    async fn send_page_images(&mut self) -> Result<Vec<StoredImage>, MigrateError> {
        let directory = self.images()?;
        let state = |source| MigrateError::State { path: directory.clone(), source };
        let (mut stored, mut files) = (Vec::new(), Vec::new());
        let near = self.peer.link.stats().rtt <= NEAR;
        let worth = if near { WORTH_PAGES } else { WORTH_PAGES_AFAR };
        let mut whole = 0;
        for (number, path) in page_images(&directory).map_err(state)? {
            let file = File::open(&path).map_err(state)?;
            let size = ByteSize(file.metadata().map_err(state)?.len());
            if size < worth {
                whole += size.0;
                continue;
            }
            let pages = PageCount(size.0 / PAGE_SIZE as u64);
            let space = image_space(number);
            stored.push(StoredImage { number, space, pages });
            files.push((space, file));
        }
        if !files.is_empty() {
            let round = self.next_round();
            let link = self.peer.link.clone();
            let pages = PageCount(stored.iter().map(|image| image.pages.0).sum());
            let done = self.take_pump()?.images(round, files, pages, &link).await?;
            let done = self.sent(done).await?;
            let raw = done.report.dirty.bytes().0 + whole;
            let wire = done.report.bytes_wire.0 + whole;
            let text = format!("images hold {raw} bytes of pages, {wire} crossed the link");
            self.run.events.send(Event::Note { text });
        }
        Ok(stored)
    }

    /// The pages that CRIU was kept from seeing are those the last scan found.
    fn add_hidden(&self, plan: &mut LazyPlan) -> Result<(), MigrateError> {
        let hidden = self.frozen.iter().flat_map(|frozen| &frozen.hidden);
        for (space, hidden) in hidden {
            let resident = self.copied.pump.as_ref().and_then(|pump| pump.resident().get(space));
            // Its pages would be nowhere.
            let resident = resident.ok_or_else(|| {
                MigrateError::Target(format!("the last scan did not see process {}", space.0))
            })?;
            let added = Runs::from(resident.as_slice()).intersect(hidden);
            if !plan.add(*space, &added) {
                let what = format!("CRIU's images do not hold process {}", space.0);
                return Err(MigrateError::Target(what));
            }
        }
        Ok(())
    }

    pub(super) async fn patch(&mut self, pages: Vec<PageAt>) -> Result<(), MigrateError> {
        let round = self.next_round();
        let link = self.peer.link.clone();
        let done = self.take_pump()?.patch(round, pages, &link).await?;
        self.sent(done).await.map(drop)
    }

    async fn send_images(&mut self) -> Result<(), MigrateError> {
        let directory = self.images()?;
        let mut order = RestoreOrder { images: 0, stored: self.send_page_images().await? };
        let mut blobs =
            self.peer.link.open_blobs(Priority::AHEAD).await.map_err(PeerError::from)?;
        if let (Some(log), Some(name)) = (&mut self.copied.log, BlobName::new(LOG)) {
            let added = log.added();
            blobs.send_file(&name, added).await.map_err(PeerError::from)?;
        }
        for (name, bytes) in read_images(&directory, &order.stored)? {
            blobs.send_file(&name, bytes).await.map_err(PeerError::from)?;
            order.images += 1;
        }
        blobs.finish();
        Ok(self.peer.say(&ToTarget::Restore(order)).await?)
    }

    pub(super) fn images(&self) -> Result<std::path::PathBuf, MigrateError> {
        let frozen = self.frozen.as_ref();
        frozen.map(|frozen| frozen.images.clone()).ok_or(MigrateError::Interrupted)
    }

    pub(super) async fn confirm(&mut self, round: Round, batches: u32) -> Result<(), MigrateError> {
        self.peer.say(&ToTarget::RoundEnd { round, batches }).await?;
        self.unconfirmed += 1;
        Ok(())
    }

    /// A round is out: takes the pump back, and the target hears of it.
    async fn sent(&mut self, (pump, done): (Pump, RoundDone)) -> Result<RoundDone, MigrateError> {
        self.copied.pump = Some(pump);
        self.confirm(done.report.round, done.batches).await?;
        Ok(done)
    }

    /// The pump is lost with the round that failed.
    pub(super) fn take_pump(&mut self) -> Result<Pump, MigrateError> {
        let lost = || MigrateError::Target("an earlier round had failed".into());
        self.copied.pump.take().ok_or_else(lost)
    }

    pub(super) fn next_round(&mut self) -> Round {
        let round = self.copied.next;
        self.copied.next = round.next();
        round
    }
}

/// What the target must know of a shared object.
fn told(object: &shared::Still) -> SharedObject {
    SharedObject {
        space: object.space,
        task: object.task,
        address: object.address,
        pages: object.pages.as_slice().to_vec(),
    }
}

/// A helping task that ends with whoever started it.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The number in the name of an image of pages.
fn page_image(name: &str) -> Option<u32> {
    name.strip_prefix("pages-")?.strip_suffix(".img")?.parse().ok()
}

/// The images of pages.
fn page_images(directory: &Path) -> std::io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if let Some(number) = entry.file_name().to_str().and_then(page_image) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Every image but those that are stored, the inventory last: it lets the waiting
/// restore go on.
fn read_images(
    directory: &Path,
    stored: &[StoredImage],
) -> Result<Vec<(BlobName, Bytes)>, MigrateError> {
    let is_stored = |name: &str| {
        page_image(name).is_some_and(|number| stored.iter().any(|image| image.number == number))
    };
    let state = |source| MigrateError::State { path: directory.into(), source };
    let mut images = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(state)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if NOT_SENT.contains(&name.as_str()) || name == LOG || is_stored(&name) {
            continue;
        }
        let Some(blob) = BlobName::new(&name) else { continue };
        images.push((blob, std::fs::read(entry.path()).map_err(state)?.into()));
    }
    images.sort_by_key(|(name, _)| name.as_str() == INVENTORY);
    Ok(images)
}
