//! Memory that processes share: CRIU restores the objects empty, and here they
//! get their content, while everything stands still.
//!
//! **Invariant**: every page that had content on the source is written, or this
//! fails and the arrival with it. A page that never came is not a page of zeros.

use super::intake::{Intake, read};
use crate::cgroup::Freezer;
use crate::protocol::SharedObject;
use crate::track::Task;
use blip_transport::page::{PageAt, PageIndex, PageRun, SpaceId};
use blip_transport::store::{PageStore, StoredPage};
use blip_transport::units::{ByteSize, PAGE_SIZE, PageCount};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Pages one thread writes at once: 1 MiB.
const PORTION: u64 = 256;

/// Why shared memory could not be filled.
#[derive(Debug, thiserror::Error)]
pub(super) enum SharedError {
    /// The restored container has no such process or mapping.
    #[error("no restored process {} has shared memory at {address:#x}", .task.0)]
    Nowhere {
        /// The process, as the container numbers it.
        task: SpaceId,
        /// Where it should be.
        address: u64,
    },
    /// A page has not come.
    #[error("page {} of shared memory never came", .0.0)]
    Missing(PageIndex),
    /// The kernel refused.
    #[error("cannot write shared memory of restored process {}: {source}", .task.0)]
    Write {
        /// The process, as the container numbers it.
        task: SpaceId,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Fills all `objects` of the restored container whose first process is `init`;
/// answers how much that was.
pub(super) fn fill(
    init: i32,
    objects: &[SharedObject],
    intake: &Intake,
) -> Result<ByteSize, SharedError> {
    let tasks = tasks_beside(init);
    let mut filled = PageCount(0);
    for object in objects {
        let file = open(&tasks, object)?;
        let portions = portions(&object.pages);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), SharedError> {
            let mut bytes = vec![0; PORTION as usize * PAGE_SIZE];
            while let Some(&run) = portions.get(next.fetch_add(1, Ordering::Relaxed)) {
                let bytes = &mut bytes[..run.count.bytes().0 as usize];
                gather(&read(&intake.store), object.space, run, bytes)?;
                let written = file.write_all_at(bytes, run.start.address());
                written.map_err(|source| SharedError::Write { task: object.task, source })?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
            let join = |worker: std::thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().try_for_each(join)
        })?;
        filled += PageCount(object.pages.iter().map(|run| run.count.0).sum());
    }
    Ok(filled.bytes())
}

/// The processes of the restored container whose first one is `init`.
fn tasks_beside(init: i32) -> Vec<Task> {
    let processes = Freezer::of(init).and_then(|freezer| freezer.processes());
    processes.unwrap_or_default().into_iter().filter_map(Task::of).collect()
}

/// Opens the object that a task has mapped.
fn open(tasks: &[Task], object: &SharedObject) -> Result<File, SharedError> {
    let nowhere = || SharedError::Nowhere { task: object.task, address: object.address };
    let task = tasks.iter().find(|task| task.space == object.task).ok_or_else(nowhere)?;
    let folder = format!("/proc/{}/map_files", task.pid);
    let range = fs::read_dir(&folder).into_iter().flatten().flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (start, end) = name.split_once('-')?;
        let parse = |text| u64::from_str_radix(text, 16).ok();
        (parse(start)?..parse(end)?).contains(&object.address).then_some(name)
    });
    let path = format!("{folder}/{}", range.ok_or_else(nowhere)?);
    let file = File::options().read(true).write(true).open(path);
    file.map_err(|source| SharedError::Write { task: object.task, source })
}

fn portions(runs: &[PageRun]) -> Vec<PageRun> {
    let cut = |run: &PageRun| {
        let (start, end) = (run.start.0, run.end());
        let starts = (start..end).step_by(PORTION as usize);
        starts.map(move |at| PageRun::new(at, (end - at).min(PORTION))).collect::<Vec<_>>()
    };
    runs.iter().flat_map(cut).collect()
}

/// Copies pages out of the store.
fn gather(
    store: &PageStore,
    space: SpaceId,
    run: PageRun,
    bytes: &mut [u8],
) -> Result<(), SharedError> {
    for (index, page) in run.pages().zip(bytes.chunks_exact_mut(PAGE_SIZE)) {
        match store.get(PageAt { space, index }) {
            Some(StoredPage::Data(data)) => page.copy_from_slice(data),
            Some(StoredPage::Zero) => page.fill(0),
            None => return Err(SharedError::Missing(index)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_hold_every_page_once() {
        let runs = [PageRun::new(3, 1), PageRun::new(10, 2 * PORTION + 5)];
        let cut = portions(&runs);
        assert!(cut.iter().all(|run| run.count.0 <= PORTION));
        let all =
            |runs: &[PageRun]| -> Vec<_> { runs.iter().flat_map(|run| run.pages()).collect() };
        assert_eq!(all(&cut), all(&runs));
    }
}
