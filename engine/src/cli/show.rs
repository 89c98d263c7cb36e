//! Events for people and for programs.

use crate::event::{Event, Phase, Report, RoundReport, Timed};
use crate::handover::Outcome;
use std::io::{self, Write};
use tokio::sync::mpsc;

/// Prints events until there are no more: JSON to standard output, lines to
/// standard error, the report to standard output.
pub(super) async fn show(mut events: mpsc::UnboundedReceiver<Timed>, json: bool, lines: bool) {
    while let Some(timed) = events.recv().await {
        let event = &timed.event;
        // A reader that has gone away is no reason to stop a migration.
        if json {
            let text = serde_json::to_string(&timed).unwrap_or_default();
            let _ = writeln!(io::stdout(), "{text}");
        } else if let Event::Finished(report) = event {
            let _ = write!(io::stdout(), "{}", summary(report));
        }
        if lines && let Some(line) = line(event) {
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

fn line(event: &Event) -> Option<String> {
    match event {
        Event::Begin { phase: Phase::PreCopy } => {
            Some("round      dirty       sent  dedup/zero     on wire        ms".to_owned())
        }
        Event::Round(round) => Some(round_line(round)),
        Event::Decision { what, why } => Some(format!("{what}: {why}")),
        Event::Note { text } => Some(format!("note: {text}")),
        Event::End { phase, ms } => Some(format!("{:<10} {ms:>9.1} ms", phase.name())),
        Event::Throttle { percent } => Some(format!("throttle: {percent} % of the CPU time taken")),
        Event::CalledOff { .. }
        | Event::Begin { .. }
        | Event::Progress(_)
        | Event::Forecast(_)
        | Event::Finished(_) => None,
    }
}

fn round_line(round: &RoundReport) -> String {
    format!(
        "{:>5}{} {:>10} {:>10}  {:>10}  {:>10} {:>9.1}",
        round.round.0,
        if round.frozen { "*" } else { " " },
        round.dirty.0,
        round.sent.0,
        round.deduplicated.0 + round.zero.0,
        round.bytes_wire.to_string(),
        round.ms,
    )
}

fn summary(report: &Report) -> String {
    let mut text = match &report.outcome {
        Outcome::Moved => format!("moved {} in {:.1} s", report.container, report.total_ms / 1e3),
        Outcome::Kept { why } => format!("{} stays here: {why}", report.container),
        Outcome::InDoubt { why } => format!(
            "{} is in doubt: {why}\nit is frozen here; `blip resolve` asks the target",
            report.container
        ),
    };
    let parts: Vec<String> = report
        .downtime
        .iter()
        .map(|part| format!("{} {:.1}", part.phase.name(), part.ms))
        .collect();
    text += &format!(
        "\ndowntime {:.1} ms ({})\n{} of memory in {} rounds, {} on the wire\n",
        report.downtime_ms,
        parts.join(", "),
        report.memory_bytes,
        report.rounds.len(),
        report.bytes_sent,
    );
    let lazy = &report.lazy;
    text += &format!(
        "lazy pages: {} faults, {} from the store, {} from the source, drained after {:.1} ms\n",
        lazy.faults, lazy.from_store, lazy.from_source, lazy.drain_ms
    );
    text
}
