//! Having a workload moved, by blip or by a peer.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::Value;

use super::sample::Ended;
use crate::baseline::Baseline;
use crate::demo::report::{MigrateReport, Outcome};
use crate::probe::Probe;
use crate::rig::{Order, Rig};

/// What came of an order to migrate.
#[derive(Default)]
pub(super) struct Moved {
    pub(super) ended: Ended,
    pub(super) why: Option<String>,
    pub(super) report: Option<MigrateReport>,
    pub(super) events: Vec<Value>,
}

/// Has blip move it; tells the name of each phase as it begins.
pub(super) fn by_blip(rig: &Rig, order: &Order<'_>, begins: &mut dyn FnMut(&str)) -> Result<Moved> {
    let mut moved = Moved::default();
    let ended = rig.migrate(order, &mut |line| {
        if let Some(report) = MigrateReport::from_line(line)? {
            moved.report = Some(report);
            return Ok(());
        }
        let Ok(event) = serde_json::from_str::<Value>(line) else { return Ok(()) };
        if event["event"] == "begin" {
            begins(event["phase"].as_str().unwrap_or_default());
        }
        if event["event"] != "progress" {
            moved.events.push(event);
        }
        Ok(())
    })?;
    let said = ended.said.trim();
    if ended.killed {
        let limit = order.limit.unwrap_or_default().as_secs();
        bail!("`blip migrate` was killed after {limit} s; it had said: {said}");
    }
    let Some(report) = &moved.report else {
        bail!("`blip migrate` ended ({}) without a report: {said}", ended.status);
    };
    moved.ended = match report.outcome {
        Outcome::Moved => Ended::Moved,
        Outcome::Kept => Ended::Kept,
        Outcome::InDoubt => Ended::InDoubt,
    };
    moved.why.clone_from(&report.why);
    Ok(moved)
}

/// Has a peer move its workload; the bench is the one who looks at the clock.
pub(super) fn by_peer(peer: &mut dyn Baseline, rig: &Rig, probe: &Probe) -> Result<Moved> {
    let began = Instant::now();
    peer.migrate(rig, &mut |label| probe.mark(label))?;
    let report = MigrateReport {
        outcome: Outcome::Moved,
        total_ms: began.elapsed().as_secs_f64() * 1e3,
        ..MigrateReport::default()
    };
    Ok(Moved { ended: Ended::Moved, report: Some(report), ..Moved::default() })
}
