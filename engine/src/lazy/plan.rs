//! Which pages a dump left out, for the lazy-pages server to bring.
//!
//! Read from the images of `criu dump --lazy-pages`: the pagemap entries marked
//! lazy are exactly those that `criu restore --lazy-pages` skips. What CRIU was
//! kept from seeing is [added](LazyPlan::add): it skips that just the same.

use crate::criu::image::{
    Image, ImageError, Kind, MmEntry, PageMapEntry, PageMapHead, PsTreeEntry,
};
use crate::track::runs::Runs;
use blip_transport::page::{PageRun, SpaceId};
use blip_transport::units::{PAGE_SIZE, PageCount};
use std::collections::BTreeMap;
use std::path::Path;

/// What one task misses when it is restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskPlan {
    /// The pages left out, ascending, none twice.
    pub missing: Vec<PageRun>,
    /// Where a forked child sees zeros, whatever its parent has
    /// (`MADV_WIPEONFORK`), ascending.
    pub wiped_on_fork: Vec<PageRun>,
}

/// What every task of a dump misses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LazyPlan {
    tasks: BTreeMap<SpaceId, TaskPlan>,
    /// What the images hold.
    present: BTreeMap<SpaceId, Runs>,
}

impl LazyPlan {
    /// The plan for these tasks.
    pub fn new(tasks: impl IntoIterator<Item = (SpaceId, TaskPlan)>) -> Self {
        Self { tasks: tasks.into_iter().collect(), present: BTreeMap::new() }
    }

    /// Reads the plan from a directory of images. Tasks without memory of their
    /// own (the dead that wait to be reaped) have no part in it.
    ///
    /// # Errors
    /// [`ImageError`], if an image is missing or damaged.
    pub fn from_images(dir: &Path) -> Result<Self, ImageError> {
        let mut plan = Self::default();
        let tree = Image::open(dir, "pstree.img", Kind::PsTree)?;
        for entry in tree.entries::<PsTreeEntry>()? {
            match task(dir, entry.pid) {
                Ok((task, present)) => {
                    plan.tasks.insert(SpaceId(entry.pid), task);
                    plan.present.insert(SpaceId(entry.pid), present);
                }
                Err(error) if error.is_missing() => continue,
                Err(error) => return Err(error),
            }
        }
        Ok(plan)
    }

    /// Adds pages that the images do not name. Those that the images hold are
    /// not missing. `false`: the dump knows no such task.
    pub fn add(&mut self, space: SpaceId, pages: &Runs) -> bool {
        let Some(task) = self.tasks.get_mut(&space) else { return false };
        let nothing = Runs::default();
        let present = self.present.get(&space).unwrap_or(&nothing);
        let missing = Runs::from(task.missing.as_slice()).union(&pages.subtract(present));
        task.missing = missing.into_vec();
        true
    }

    /// The tasks that will be restored, and what they miss.
    pub fn tasks(&self) -> impl Iterator<Item = (SpaceId, &TaskPlan)> {
        self.tasks.iter().map(|(&space, task)| (space, task))
    }

    /// What this task misses; `None` if the dump knows no such task.
    pub fn task(&self, space: SpaceId) -> Option<&TaskPlan> {
        self.tasks.get(&space)
    }

    /// How many pages are missing in all.
    pub fn pages(&self) -> PageCount {
        let runs = self.tasks.values().flat_map(|task| &task.missing);
        PageCount(runs.map(|run| run.count.0).sum())
    }
}

/// What a task misses, and which pages the images hold.
fn task(dir: &Path, pid: u32) -> Result<(TaskPlan, Runs), ImageError> {
    let mut pagemap = Image::open(dir, &format!("pagemap-{pid}.img"), Kind::PageMap)?;
    let _: PageMapHead = pagemap.entry()?.ok_or_else(|| pagemap.malformed("it has no head"))?;
    let (mut plan, mut present) = (TaskPlan::default(), Runs::default());
    let mut end = 0;
    while let Some(entry) = pagemap.entry::<PageMapEntry>()? {
        let run = PageRun::new(entry.vaddr / PAGE_SIZE as u64, entry.pages());
        let sound = entry.vaddr % PAGE_SIZE as u64 == 0
            && run.start.0 >= end
            && run.start.0.checked_add(run.count.0).is_some_and(|e| e <= 1 << 52);
        if !sound {
            let what = format!("the run at {:#x} overlaps or is out of range", entry.vaddr);
            return Err(pagemap.malformed(what));
        }
        end = run.end();
        if entry.is_lazy() && run.count.0 > 0 {
            push(&mut plan.missing, run);
        } else {
            present.push(run.start.0, run.end());
        }
    }
    let mut mm = Image::open(dir, &format!("mm-{pid}.img"), Kind::Mm)?;
    if let Some(mm) = mm.entry::<MmEntry>()? {
        for vma in mm.vmas.iter().filter(|vma| vma.wiped_on_fork()) {
            let start = vma.start / PAGE_SIZE as u64;
            let count = (vma.end / PAGE_SIZE as u64).saturating_sub(start);
            push(&mut plan.wiped_on_fork, PageRun::new(start, count));
        }
    }
    Ok((plan, present))
}

/// Appends `run`, joined to the last one if it goes on where that ends.
fn push(runs: &mut Vec<PageRun>, run: PageRun) {
    match runs.last_mut() {
        Some(last) if last.end() == run.start.0 => last.count += run.count,
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::image::{VmaEntry, append, encode};

    fn run(vaddr: u64, pages: u64, flags: u32) -> PageMapEntry {
        PageMapEntry {
            vaddr,
            compat_nr_pages: 0,
            in_parent: None,
            flags: Some(flags),
            nr_pages: Some(pages),
        }
    }

    fn write(dir: &Path, pagemap: &[PageMapEntry]) {
        let process =
            |pid| PsTreeEntry { pid, ppid: 0, pgid: pid, sid: pid, threads: vec![pid, pid + 1] };
        let tree = encode(Kind::PsTree, &[process(1), process(9)]);
        std::fs::write(dir.join("pstree.img"), tree).unwrap();
        let mut image = encode(Kind::PageMap, &[PageMapHead { pages_id: 1 }]);
        append(&mut image, pagemap);
        std::fs::write(dir.join("pagemap-1.img"), image).unwrap();
        let wiped = VmaEntry { start: 0x7000, end: 0x9000, flags: 0, madv: Some(1 << 18) };
        let plain = VmaEntry { start: 0x9000, end: 0xa000, flags: 0, madv: None };
        let mm = encode(Kind::Mm, &[MmEntry { vmas: vec![wiped, plain] }]);
        std::fs::write(dir.join("mm-1.img"), mm).unwrap();
    }

    #[test]
    fn lazy_runs_are_taken_joined_and_the_dead_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let old = PageMapEntry { compat_nr_pages: 3, nr_pages: None, ..run(0x20000, 0, 2) };
        write(dir.path(), &[run(0x1000, 2, 2), run(0x3000, 1, 2), run(0x9000, 4, 4), old]);
        let plan = LazyPlan::from_images(dir.path()).unwrap();
        let task = plan.task(SpaceId(1)).unwrap();
        assert_eq!(task.missing, [PageRun::new(1, 3), PageRun::new(0x20, 3)]);
        assert_eq!(task.wiped_on_fork, [PageRun::new(7, 2)]);
        assert_eq!(plan.pages(), PageCount(6));
        assert_eq!(plan.task(SpaceId(9)), None, "pid 9 has no pagemap: it is dead");
    }

    #[test]
    fn hidden_pages_are_added_but_for_those_in_the_images() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[run(0x1000, 2, 2), run(0x9000, 4, 4)]);
        let mut plan = LazyPlan::from_images(dir.path()).unwrap();
        let hidden = [PageRun::new(2, 3), PageRun::new(7, 3), PageRun::new(12, 4)];
        let hidden = Runs::from(hidden.as_slice());
        assert!(plan.add(SpaceId(1), &hidden));
        let expected = [PageRun::new(1, 4), PageRun::new(7, 2), PageRun::new(13, 3)];
        assert_eq!(plan.task(SpaceId(1)).unwrap().missing, expected);
        assert!(plan.add(SpaceId(1), &hidden), "adding again changes nothing");
        assert_eq!(plan.task(SpaceId(1)).unwrap().missing, expected);
        assert!(!plan.add(SpaceId(9), &hidden), "pid 9 is dead");
    }

    #[test]
    fn damaged_images_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[run(0x5000, 2, 2), run(0x6000, 1, 2)]);
        let error = LazyPlan::from_images(dir.path()).unwrap_err();
        assert!(matches!(error, ImageError::Malformed { .. }), "{error}");

        write(dir.path(), &[run(0x5000, 2, 2)]);
        let path = dir.path().join("pagemap-1.img");
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            // Only a cut right after the head is not to be noticed.
            let head_only = LazyPlan::from_images(dir.path());
            assert!(head_only.is_err() || head_only.unwrap().pages() == PageCount(0), "{len}");
        }
        std::fs::write(&path, std::fs::read(dir.path().join("mm-1.img")).unwrap()).unwrap();
        assert!(LazyPlan::from_images(dir.path()).is_err(), "wrong magic");
    }
}
