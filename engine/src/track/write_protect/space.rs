//! One address space under asynchronous write protection.
//!
//! **A live scan, in order**
//! 1. List our mappings ([`super::super::maps`]).
//! 2. Forget that those were armed which are not any more: the process has
//!    unmapped them and mapped something else there.
//! 3. Register (arm) what is new.
//! 4. *Clearing scan* of all that is armed: reports pages with content, whether
//!    they were written, and protects those that were, atomically per page.
//! 5. *Plain scan* for pages with content in mappings that are not armed.
//!
//! **Why it is sound.** A page is reported clean only if all of this holds: the
//! kernel says its mapping is armed (the clearing scan skips others, and scan 5
//! finds those); it says the page was not written; and the page lay in
//! [`Space::armed`] *before* step 3, that is, the last scan has already looked at
//! this very mapping. The set holds nothing the last scan did not look at, so a
//! mapping that came, moved here, was locked for a while, or was missed because
//! `/proc` reads across changes, is dirty as a whole. Whatever changes after its
//! page was scanned is written for the next scan.
//!
//! Holes are never armed: both scans ask for pages with content. (Protecting a
//! hole leaves a marker that CRIU would dump as a swapped page.)

mod glance;
mod look;

use super::super::direct_io::DirectIo;
use super::super::identity::{Identity, is_gone};
use super::super::maps::Mappings;
use super::super::resident::Content;
use super::super::runs::{Runs, byte_range};
use super::super::{ScanCost, SpaceScan, Stop, Task, TrackError};
use super::STOP_LIMIT;
use super::walk::PAUSE;
use crate::sys::inject::{InjectError, userfaultfd_of};
use crate::sys::pagemap::Pagemap;
use crate::sys::ptrace::HoldError;
use crate::sys::wp::{WriteProtect, collapse, same_address_space};
use blip_transport::page::PageRun;
use look::Look;
use std::io;
use std::time::Duration;

/// How often a scan is begun anew when the process executes another program.
const TRIES: u32 = 3;
/// The pause before that: it may be about to end.
const RETRY: Duration = Duration::from_millis(1);
/// Bytes unregistered at once when tracking ends.
const DISARM_BITE: u64 = 8 << 20;

/// What a scan of one space needs to know of the others, and tells.
pub(super) struct Visit<'a> {
    pub(super) content: Content,
    /// Host process IDs of the spaces already armed.
    pub(super) armed_elsewhere: &'a [i32],
    pub(super) cost: &'a mut ScanCost,
}

/// What came of a visit.
pub(super) enum Visited {
    Found(SpaceScan),
    /// The process has no memory (any more).
    Gone,
    /// Nothing to report yet. It shares the memory of another space, as between
    /// `vfork` and `execve`, and to copy that twice now would be a waste; or it
    /// is just ending. The final scan makes up for it.
    Later,
}

/// All that is known of one address space.
#[derive(Debug, Default)]
pub(super) struct Space {
    pid: i32,
    identity: Option<Identity>,
    /// The userfaultfd; `None` until the process could be stopped for it.
    protector: Option<WriteProtect>,
    /// What the last scan looked at and found armed.
    armed: Runs,
    /// Cleared in the kernel but not delivered: dirty in the next scan.
    debt: Runs,
    /// The clean pages of the last scan cannot be trusted.
    distrust: bool,
    /// Reported since it was new or restarted.
    announced: bool,
    /// Reported ever: it is to be reported gone.
    known: bool,
    direct_io: DirectIo,
    /// `MAP_DROPPABLE` mappings: not ours, and never registrable.
    droppable: Runs,
    /// What was huge pages before writes to protected ones split them.
    huge: Runs,
}

/// What the scans of one visit have found.
#[derive(Default)]
struct Found {
    resident: Runs,
    dirty: Runs,
    scanned: Runs,
}

/// Why a look was broken off.
enum Halt {
    /// The process, or its address space, is gone: look who is there now.
    Gone,
    Failed(TrackError),
}

impl Space {
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn is_armed(&self) -> bool {
        self.protector.is_some()
    }

    /// Whether it, or what ran here before, was ever reported.
    pub(super) fn known(&self) -> bool {
        self.known
    }

    pub(super) fn give_back(&mut self, runs: &[PageRun]) {
        self.debt = self.debt.union(&Runs::from(runs));
    }

    /// Makes a report that was never delivered undone.
    pub(super) fn unreport(&mut self, found: &SpaceScan) {
        self.give_back(&found.dirty);
        self.announced &= !found.restarted;
    }

    /// Undoes the arming, in bites: closing would hold the owner's `mmap_lock`
    /// for the whole of its memory. Then forms the huge pages again.
    pub(super) fn disarm(self) {
        let Some(protector) = self.protector else { return };
        for run in self.armed.as_slice() {
            let (mut at, end) = byte_range(*run);
            while at < end {
                let to = ((at / DISARM_BITE + 1) * DISARM_BITE).min(end);
                protector.unregister(at, to);
                std::thread::sleep(PAUSE);
                at = to;
            }
        }
        drop(protector);
        let huge: Vec<(u64, u64)> = self.huge.as_slice().iter().copied().map(byte_range).collect();
        collapse(self.pid, &huge);
    }

    /// Scans it.
    pub(super) fn scan(
        &mut self,
        task: Task,
        stop: Stop,
        visit: &mut Visit<'_>,
    ) -> Result<Visited, TrackError> {
        let identity = || {
            let look = |source| TrackError::Look { what: "read the state", pid: task.pid, source };
            Identity::read(task.pid).map_err(look)
        };
        for _ in 0..TRIES {
            let before = identity()?;
            if before.is_none() {
                return Ok(Visited::Gone);
            }
            self.meet(task.pid, before);
            let shares = |&other: &i32| same_address_space(other, task.pid);
            if stop == Stop::Live && !self.is_armed() && visit.armed_elsewhere.iter().any(shares) {
                return Ok(Visited::Later);
            }
            let mut found = Found::default();
            match self.look(stop, visit, &mut found) {
                Ok(()) => {
                    // All was opened between two looks at the same program, so
                    // all belongs to one address space.
                    if identity()? == before {
                        return Ok(Visited::Found(self.report(task, found)));
                    }
                }
                Err(Halt::Gone) => {}
                Err(Halt::Failed(error)) => {
                    self.give_back(found.dirty.as_slice());
                    return Err(error);
                }
            }
            // Not the program it was: nothing found may count, nor be known.
            self.identity = None;
            std::thread::sleep(RETRY);
        }
        if stop == Stop::Live {
            return Ok(Visited::Later);
        }
        Err(TrackError::Restless { pid: task.pid, tries: TRIES })
    }

    /// Begins anew if this is not the program it was.
    fn meet(&mut self, pid: i32, identity: Option<Identity>) {
        let dead = self.protector.as_ref().is_some_and(|protector| !protector.alive());
        if self.pid != pid || self.identity != identity || dead {
            *self = Self { pid, identity, known: self.known, ..Self::default() };
        }
    }

    fn report(&mut self, task: Task, found: Found) -> SpaceScan {
        let restarted = !self.announced;
        (self.announced, self.known) = (true, true);
        SpaceScan::of(task, restarted, &found.scanned, found.resident, found.dirty)
    }

    /// Looks at the whole space once.
    fn look(&mut self, stop: Stop, visit: &mut Visit<'_>, found: &mut Found) -> Result<(), Halt> {
        if stop == Stop::Live && !self.is_armed() {
            self.arm(visit.cost)?;
        }
        let halt = self.halt("list the mappings");
        let mappings = Mappings::read(self.pid).map_err(&halt)?;
        if !mappings.any {
            return Err(Halt::Gone);
        }
        let halt = self.halt("look at the descriptors");
        let io_before = self.direct_io;
        let io = DirectIo::of(self.pid, mappings.aio).map_err(&halt)?;
        self.direct_io = io.max(io_before);
        let halt = self.halt("open the pagemap");
        let mut pagemap = Pagemap::open(self.pid).map_err(&halt)?;

        self.droppable = self.still_droppable(&mappings);
        let ours = mappings.pages().subtract(&self.droppable);
        self.armed = self.armed.intersect(&ours);
        let mut look = Look { pagemap: &mut pagemap, mappings: &mappings, ours, found };
        if stop == Stop::Live && self.is_armed() {
            self.clearing_look(&mut look, visit)?;
            if io_before == DirectIo::None && self.direct_io == DirectIo::None {
                // One that was opened meanwhile may have been at work already.
                let halt = self.halt("look at the descriptors");
                self.direct_io = DirectIo::of(self.pid, mappings.aio).map_err(&halt)?;
                self.distrust = self.direct_io != DirectIo::None;
            }
            Ok(())
        } else {
            // Nothing will be cleared; but the kernel forms no huge page out of
            // holes in registered memory. Done while all stand still, that
            // would add pages that no scan has seen and CRIU expects us to have.
            let fresh = look.ours.subtract(&self.armed);
            self.register(&mut look, &fresh)?;
            self.plain_look(&mut look, stop, visit.content)
        }
    }

    /// Gets the process its userfaultfd, if it can be stopped in time.
    fn arm(&mut self, cost: &mut ScanCost) -> Result<(), Halt> {
        match userfaultfd_of(self.pid, STOP_LIMIT) {
            Ok(fetched) => {
                cost.injected += 1;
                cost.stopped(fetched.stopped);
                let halt = self.halt("switch on write protection");
                self.protector = Some(WriteProtect::enable(fetched.fd).map_err(halt)?);
                Ok(())
            }
            Err(InjectError::Hold(HoldError::Gone { .. })) => Err(Halt::Gone),
            Err(InjectError::Hold(HoldError::Busy { .. })) => {
                cost.untracked += 1;
                cost.stopped(STOP_LIMIT);
                Ok(())
            }
            Err(error) => Err(Halt::Failed(TrackError::Arm(error))),
        }
    }

    /// Makes errors of `/proc` what they mean.
    fn halt(&self, what: &'static str) -> impl Fn(io::Error) -> Halt + use<> {
        let pid = self.pid;
        move |source| {
            if is_gone(&source) {
                Halt::Gone
            } else {
                Halt::Failed(TrackError::Look { what, pid, source })
            }
        }
    }
}
