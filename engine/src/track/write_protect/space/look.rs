//! The scans themselves: steps 2 to 5 of the parent module's head.

use super::super::super::direct_io::DirectIo;
use super::super::super::maps::Mappings;
use super::super::super::resident::Content;
use super::super::super::runs::{Runs, byte_range};
use super::super::super::{Stop, TrackError};
use super::super::STOP_LIMIT;
use super::super::walk::{Pace, walk};
use super::{Found, Halt, Space, Visit};
use crate::sys::pagemap::{HUGE, Pagemap, WPALLOWED, WRITTEN};
use crate::sys::ptrace::{HoldError, hold};
use crate::sys::wp::Refused;
use std::time::Duration;

/// What one look works with.
pub(super) struct Look<'a> {
    pub(super) pagemap: &'a mut Pagemap,
    pub(super) mappings: &'a Mappings,
    /// The pages of all mappings that are ours.
    pub(super) ours: Runs,
    pub(super) found: &'a mut Found,
}

impl Space {
    /// Steps 2 to 5 of the module's head.
    pub(super) fn clearing_look(
        &mut self,
        look: &mut Look<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<(), Halt> {
        let content = visit.content;
        let pace = Pace::Considerate;
        let halt = self.halt("scan the pages");

        let mut stale = Runs::default();
        walk(look.pagemap, &self.armed, content.unarmed(), pace, |from, to, _| {
            stale.push(from, to)
        })
        .map_err(&halt)?;
        self.armed = self.armed.subtract(&look.mappings.around(&stale));
        let fresh = look.ours.subtract(&self.armed);
        let registered = self.register(look, &fresh)?;
        let armed = self.armed.union(&registered);

        if !self.clear(look, &armed, visit)? {
            return self.plain_look(look, Stop::Live, content);
        }

        let mut unarmed = Runs::default();
        walk(look.pagemap, &armed, content.unarmed(), pace, |from, to, _| unarmed.push(from, to))
            .map_err(&halt)?;
        let mut others = Runs::default();
        let rest = look.ours.subtract(&armed);
        walk(look.pagemap, &rest, content.query(false), pace, |from, to, _| others.push(from, to))
            .map_err(&halt)?;

        let found = &mut *look.found;
        found.resident = found.resident.union(&unarmed).union(&others);
        let new = found.resident.intersect(&fresh);
        found.dirty = found.dirty.union(&unarmed).union(&others).union(&new);
        self.pay_debts(look);
        self.debt = Runs::default();
        self.distrust = false;
        self.armed = armed.subtract(&look.mappings.around(&unarmed));
        Ok(())
    }

    /// The clearing scan of `armed`. `false` if it would have been unsound: the
    /// process has direct I/O and could not be stopped; nothing was done then.
    fn clear(
        &mut self,
        look: &mut Look<'_>,
        armed: &Runs,
        visit: &mut Visit<'_>,
    ) -> Result<bool, Halt> {
        let halt = self.halt("scan the pages");
        let query = visit.content.query(true);
        let Look { pagemap, found, .. } = look;
        let mut huge = Runs::default();
        let mut scan = |pace| {
            walk(pagemap, armed, query, pace, |from, to, categories| {
                found.resident.push(from, to);
                if categories & WRITTEN != 0 {
                    found.dirty.push(from, to);
                }
                if categories & HUGE != 0 {
                    huge.push(from, to);
                }
            })
        };
        let result = if self.direct_io == DirectIo::Synchronous {
            hold(self.pid, 0, STOP_LIMIT, |_| scan(Pace::Flat))
        } else {
            Ok((scan(Pace::Considerate), Duration::ZERO))
        };
        self.huge = self.huge.union(&huge);
        match result {
            Ok((result, stopped)) => {
                visit.cost.stopped(stopped);
                result.map(|()| true).map_err(halt)
            }
            Err(HoldError::Gone { .. }) => Err(Halt::Gone),
            Err(HoldError::Busy { .. }) => {
                visit.cost.stopped(STOP_LIMIT);
                Ok(false)
            }
            Err(error) => Err(Halt::Failed(TrackError::Arm(error.into()))),
        }
    }

    /// A scan that clears nothing, and so forgets nothing either.
    pub(super) fn plain_look(
        &mut self,
        look: &mut Look<'_>,
        stop: Stop,
        content: Content,
    ) -> Result<(), Halt> {
        let pace = if stop == Stop::Frozen { Pace::Flat } else { Pace::Considerate };
        let found = &mut *look.found;
        walk(look.pagemap, &look.ours, content.query(false), pace, |from, to, categories| {
            found.resident.push(from, to);
            if categories & (WPALLOWED | WRITTEN) != WPALLOWED {
                found.dirty.push(from, to);
            }
        })
        .map_err(self.halt("scan the pages"))?;
        let new = found.resident.subtract(&self.armed);
        found.dirty = found.dirty.union(&new);
        if stop == Stop::Frozen && self.direct_io == DirectIo::Asynchronous {
            found.dirty = found.resident.clone();
        }
        self.pay_debts(look);
        Ok(())
    }

    /// Adds what earlier scans owe.
    fn pay_debts(&self, look: &mut Look<'_>) {
        let found = &mut *look.found;
        let owed = if self.distrust { &found.resident } else { &self.debt };
        found.dirty = found.dirty.union(&owed.intersect(&found.resident));
        found.scanned = std::mem::take(&mut look.ours);
    }

    /// Registers `fresh`; returns what is registered now. What turns out to be
    /// droppable is taken from `look.ours`.
    pub(super) fn register(&mut self, look: &mut Look<'_>, fresh: &Runs) -> Result<Runs, Halt> {
        let Some(protector) = &self.protector else { return Ok(Runs::default()) };
        let mut registered = Runs::default();
        let mut refused = Runs::default();
        for run in fresh.as_slice() {
            let (start, end) = byte_range(*run);
            if protector.register(start, end).is_ok() {
                registered.push(run.start.0, run.end());
                continue;
            }
            // One mapping refused is all refused: try them one by one.
            let mut one = Runs::default();
            one.push(run.start.0, run.end());
            for part in look.mappings.parts_of(&one) {
                let (start, end) = byte_range(part);
                match protector.register(start, end) {
                    Ok(()) => registered.push(part.start.0, part.end()),
                    Err(Refused::Unsuitable) => refused.push(part.start.0, part.end()),
                    Err(Refused::Taken) => {}
                    Err(Refused::Dead) => return Err(Halt::Gone),
                }
            }
        }
        if !refused.is_empty() {
            let halt = self.halt("read the flags of the mappings");
            let flagged = Mappings::read_with_flags(self.pid).map_err(halt)?;
            let droppable = refused.subtract(&flagged.pages());
            look.ours = look.ours.subtract(&droppable);
            self.droppable = self.droppable.union(&droppable);
        }
        Ok(registered)
    }

    /// Those known droppable mappings that still are.
    pub(super) fn still_droppable(&self, mappings: &Mappings) -> Runs {
        let mut still = Runs::default();
        if let Some(protector) = &self.protector {
            for part in mappings.parts_of(&self.droppable) {
                let (start, end) = byte_range(part);
                if protector.register(start, end) == Err(Refused::Unsuitable) {
                    still.push(part.start.0, part.end());
                }
            }
        }
        still
    }
}
