//! The report at the end of a migration: target, prediction and observation
//! side by side, and what is not known.

use crate::event::{Forecast, Phase, PhaseTime, Report};
use crate::handover::Outcome;
use crate::text::{count, hang, micros, printable, time};
use blip_transport::units::ByteSize;

/// Under which all else hangs.
const LABEL: usize = 11;

/// The report as text of at most 80 columns, with a line break at its end.
/// `why`: the reason of the last decision, if there was one.
pub(crate) fn summary(report: &Report, why: Option<&str>) -> String {
    let mut parts = vec![headline(report), String::new()];
    parts.push(field("method", &method(report, why)));
    if let Some(downtime) = downtime(report) {
        parts.extend([String::new(), downtime, String::new()]);
    }
    parts.extend(brownout(report).map(|text| field("brownout", &text)));
    parts.push(field("memory", &memory(report)));
    parts.extend(files(report).map(|text| field("files", &text)));
    if report.throttled_percent > 0 {
        let taken = report.throttled_percent;
        let text = format!("at most {taken} % of the CPU time was taken, and all given back");
        parts.push(field("throttle", &text));
    }
    parts.push(field("tracker", &tracker(report)));
    parts.extend(report.notes.iter().map(|note| field("note", note)));
    parts.extend(report.unknowns.iter().map(|unknown| field("not known", unknown)));
    parts.join("\n") + "\n"
}

fn headline(report: &Report) -> String {
    let (name, took) = (printable(&report.container), time(report.total_ms));
    match &report.outcome {
        Outcome::Moved => hang("", &format!("{name} moved in {took}")),
        Outcome::Kept { why } => hang("", &printable(&format!("{name} stays here: {why}"))),
        Outcome::InDoubt { why } => {
            let what = format!(
                "{name} is in doubt: {why}; it is frozen here, and `blip resolve` asks the target"
            );
            hang("", &printable(&what))
        }
    }
}

fn field(label: &str, text: &str) -> String {
    hang(&format!("  {label:<LABEL$}"), &printable(text))
}

fn method(report: &Report, why: Option<&str>) -> String {
    let name = report.method.name();
    let asked = if report.goal.method == report.method { ", as asked for" } else { "" };
    why.map_or(format!("{name}{asked}"), |why| format!("{name}{asked}: {why}"))
}

/// A table of the phases, and the ratio below it. `None`: it was never frozen,
/// and nothing was wanted of its downtime.
fn downtime(report: &Report) -> Option<String> {
    let observed = (!report.downtime.is_empty()).then_some(report);
    let (goal, predicted) = (report.goal.downtime_ms, &report.predicted);
    if observed.is_none() && goal.is_none() && predicted.is_none() {
        return None;
    }
    let shown = phases(report);
    let mut lines = vec![row("", shown.iter().map(|phase| phase.name().to_owned()), "downtime")];
    if let Some(goal) = goal {
        lines.push(row("target", shown.iter().map(|_| String::new()), &time(goal)));
    }
    let cells = |parts: &[PhaseTime]| -> Vec<String> {
        shown.iter().map(|&phase| cell(parts, phase)).collect()
    };
    if let Some(forecast) = predicted {
        let parts = cells(&forecast.downtime).into_iter();
        lines.push(row("predicted", parts, &time(forecast.downtime_ms)));
    }
    let never = || "never frozen".to_owned();
    let total = observed.map_or_else(never, |report| time(report.downtime_ms));
    lines.push(row("observed", cells(&report.downtime).into_iter(), &total));
    let verdict = verdict(report, predicted.as_ref());
    if !verdict.is_empty() {
        lines.push(field("", &verdict));
    }
    Some(lines.join("\n"))
}

/// The phases that have a column: all that were seen or foretold.
fn phases(report: &Report) -> Vec<Phase> {
    let foretold = report.predicted.iter().flat_map(|forecast| &forecast.downtime);
    let named: Vec<Phase> = report.downtime.iter().chain(foretold).map(|part| part.phase).collect();
    Phase::DOWNTIME.into_iter().filter(|phase| named.contains(phase)).collect()
}

/// One row, its lengths in milliseconds; the last column has its unit.
fn row(label: &str, cells: impl Iterator<Item = String>, total: &str) -> String {
    let cells: String = cells.map(|cell| format!("{cell:>8}")).collect();
    format!("  {label:<LABEL$}{cells}{total:>14}")
}

fn cell(parts: &[PhaseTime], phase: Phase) -> String {
    let mut parts = parts.iter().filter(|part| part.phase == phase).peekable();
    match parts.peek() {
        None => "-".to_owned(),
        Some(_) => format!("{:.1}", parts.map(|part| part.ms).sum::<f64>()),
    }
}

fn verdict(report: &Report, predicted: Option<&Forecast>) -> String {
    let mut said = Vec::new();
    if let Some(forecast) = predicted.filter(|f| f.downtime_ms > 0.0)
        && !report.downtime.is_empty()
    {
        let ratio = report.downtime_ms / forecast.downtime_ms;
        said.push(format!("observed / predicted = {ratio:.2}"));
        said.push(format!("the prediction was {:.0} % sure", forecast.confidence * 100.0));
    }
    match report.met {
        Some(true) => said.push("the target is met".into()),
        Some(false) => said.push("the target is MISSED".into()),
        None => {}
    }
    said.join("; ")
}

/// The time after the resume in which memory was still on its way.
fn brownout(report: &Report) -> Option<String> {
    if report.outcome != Outcome::Moved {
        return None;
    }
    let lazy = &report.lazy;
    let place = if lazy.drain_ms > 0.0 {
        format!("{} until the last page was in place", time(lazy.drain_ms))
    } else {
        "none: every page was in place before it ran".to_owned()
    };
    if lazy.faults == 0 {
        return Some(place);
    }
    Some(format!(
        "{place}; {} had to wait, half of them at most {}, 99 % at most {}",
        count(lazy.faults, "fault"),
        micros(lazy.p50_us),
        micros(lazy.p99_us)
    ))
}

fn tracker(report: &Report) -> String {
    let mut text = report.tracker.clone();
    let took = &report.tracking;
    if took.peak_bytes.0 > 0 {
        text += &format!("; at most {} for pages on their way", took.peak_bytes);
    }
    if took.fell_back > 0 {
        let rounds = count(u64::from(took.fell_back), "round");
        text += &format!("; {rounds} took all pages, as a pre-dump failed");
    }
    text
}

/// `None`: it has none.
fn files(report: &Report) -> Option<String> {
    let (first, frozen) = (report.files.first, report.files.frozen);
    (first.scanned > 0).then(|| {
        format!(
            "{} in {}; in the freeze {} changed, {} sent",
            count(first.scanned, "file"),
            count(report.files.passes.into(), "round"),
            frozen.changed,
            frozen.bytes_wire
        )
    })
}

fn memory(report: &Report) -> String {
    let page = blip_transport::units::PAGE_SIZE as u64;
    let later = ByteSize(report.lazy.from_source * page);
    let after = if later.0 > 0 { format!(", {later} after the freeze") } else { String::new() };
    format!(
        "{} in {}; {} over the link in all{after}",
        report.memory_bytes,
        count(report.rounds.len() as u64, "round"),
        report.bytes_sent
    )
}
