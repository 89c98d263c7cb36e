//! After the end: what this host remembers of a container that left.

use super::Handover;
use crate::event::Event;
use crate::kept::Keepsake;
use crate::ledger::Remains;
use crate::source::subject::Subject;
use std::time::Instant;

impl Handover<'_> {
    /// The container stands still for the last time: what its memory holds is
    /// kept for a while. Nobody waits for that.
    pub(super) async fn keep_memory(&mut self) {
        let Some(pump) = self.copied.pump.take() else { return };
        self.tracking = pump.tracking();
        let Some(keepsake) = Keepsake::begin(self.ticket, self.run.order.keep) else { return };
        // Pages shrink to a quarter at best.
        if pump.memory().0 / 4 > keepsake.limit().0 {
            return;
        }
        let begun = Instant::now();
        let tasks = self.subject.tasks().unwrap_or_default();
        let keeping = tokio::task::spawn_blocking(move || pump.keep(&tasks, keepsake));
        let text = match keeping.await {
            Ok(Ok(size)) => {
                let took = begun.elapsed();
                format!("memory kept here for an hour, should it come back: {size} in {took:.1?}")
            }
            Ok(Err(error)) => format!("memory is not kept here: {error}"),
            Err(error) => format!("memory is not kept here: {error}"),
        };
        self.run.events.send(Event::Note { text });
    }
}

/// Where the container's files stay on this host.
pub(super) fn remains(subject: &Subject) -> Remains {
    let mounts = subject.plan.mounts.iter();
    Remains {
        upper: subject.upper.clone(),
        places: mounts
            .filter(|planned| planned.mount.tree.is_some())
            .map(|planned| (planned.mount.destination.clone(), planned.path.clone()))
            .collect(),
    }
}
