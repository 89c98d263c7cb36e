//! The one line of a terminal that tells how it stands now.
//!
//! It is drawn over itself. Whoever else writes to the terminal meanwhile does
//! so through [`Stderr`], which wipes the line first; it comes back with the
//! next event or tick.

use crate::event::{Event, Phase, Progress, Timed};
use crate::text::{WIDTH, brief_rate, brief_time, time};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the line is on the terminal now.
static DRAWN: AtomicBool = AtomicBool::new(false);

/// Back to the first column, and wipe.
const WIPE: &str = "\r\x1b[2K";

/// What the line is made of.
#[derive(Debug, Default)]
pub(crate) struct Live {
    phase: Option<(Phase, f64)>,
    progress: Option<Progress>,
    /// The downtime wanted, in milliseconds.
    target_ms: Option<f64>,
}

impl Live {
    /// A line for a migration that is to have at most so much downtime.
    pub(crate) fn new(target_ms: Option<f64>) -> Self {
        Self { target_ms, ..Self::default() }
    }

    /// Takes in an event.
    pub(crate) fn on(&mut self, timed: &Timed) {
        match &timed.event {
            Event::Begin { phase } => {
                self.phase = Some((*phase, timed.at_ms));
                self.progress = None;
            }
            Event::Progress(progress) => self.progress = Some(*progress),
            Event::Finished(_) | Event::CalledOff { .. } => self.phase = None,
            _ => {}
        }
    }

    /// The line at a time, in milliseconds since the command began, at most
    /// [`WIDTH`] minus one characters: the last column makes some terminals
    /// begin a new line. Empty: nothing is going on.
    pub(crate) fn text(&self, now_ms: f64) -> String {
        let Some((phase, since)) = self.phase else { return String::new() };
        let text = match &self.progress {
            Some(progress) => round(progress, self.target_ms),
            None => format!("{} ({})", doing(phase), time((now_ms - since).max(0.0))),
        };
        text.chars().take(WIDTH - 1).collect()
    }

    /// Draws it, over what was there.
    pub(crate) fn draw(&self, now_ms: f64) {
        let text = self.text(now_ms);
        // No wrap: on a narrow terminal the rest is cut off.
        let _ = write!(io::stderr(), "{WIPE}\x1b[?7l{text}\x1b[?7h");
        DRAWN.store(!text.is_empty(), Ordering::Relaxed);
    }
}

/// Wipes the line, if it is there.
pub(crate) fn wipe() {
    if DRAWN.swap(false, Ordering::Relaxed) {
        let _ = write!(io::stderr(), "{WIPE}");
    }
}

/// Standard error for those who write lines to it while the line may be there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        wipe();
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn doing(phase: Phase) -> &'static str {
    match phase {
        Phase::Preflight => "looking at both hosts",
        Phase::Stage => "the target prepares the container",
        Phase::PreCopy => "copying while the container runs",
        Phase::Drain => "it runs on the target; what memory is left follows",
        Phase::Retire => "ending what is left here",
        _ => "the container stands still",
    }
}

fn round(progress: &Progress, target_ms: Option<f64>) -> String {
    let done = progress.done.0.min(progress.dirty.0) * 100 / progress.dirty.0.max(1);
    let written = progress.dirty_rate.map_or("?".to_owned(), brief_rate);
    let downtime = progress.predicted_downtime_ms.map_or("?".to_owned(), brief_time);
    let target = target_ms.map_or(String::new(), |target| format!(" / {}", brief_time(target)));
    format!(
        "round {} {done:>3}%  sent {}  dirtied {written}  downtime now {downtime}{target}",
        progress.round,
        brief_rate(progress.throughput),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip_transport::units::{Bandwidth, ByteSize, PageCount, Round};

    fn at(at_ms: f64, event: Event) -> Timed {
        Timed { at_ms, event }
    }

    fn progress() -> Progress {
        Progress {
            round: Round(3),
            done: PageCount(450),
            dirty: PageCount(1000),
            bytes_wire: ByteSize(1 << 30),
            throughput: Bandwidth(115.6e6),
            dirty_rate: Some(Bandwidth(54.7e6)),
            predicted_downtime_ms: Some(83.04),
        }
    }

    #[test]
    fn a_round_says_what_a_freeze_now_would_cost() {
        let mut live = Live::new(Some(100.0));
        live.on(&at(10.0, Event::Begin { phase: Phase::PreCopy }));
        assert_eq!(live.text(1010.0), "copying while the container runs (1.00 s)");
        live.on(&at(11.0, Event::Progress(progress())));
        assert_eq!(
            live.text(12.0),
            "round 3  45%  sent 110 MiB/s  dirtied 52 MiB/s  downtime now 83 ms / 100 ms"
        );
        live.target_ms = None;
        assert_eq!(
            live.text(12.0),
            "round 3  45%  sent 110 MiB/s  dirtied 52 MiB/s  downtime now 83 ms"
        );
    }

    #[test]
    fn what_is_not_known_yet_is_a_question() {
        let mut live = Live::new(None);
        live.on(&at(0.0, Event::Begin { phase: Phase::PreCopy }));
        live.on(&at(0.0, Event::Progress(Progress::default())));
        assert_eq!(live.text(0.0), "round 0   0%  sent 0 B/s  dirtied ?  downtime now ?");
    }

    #[test]
    fn after_the_end_there_is_no_line() {
        let mut live = Live::new(None);
        live.on(&at(0.0, Event::Begin { phase: Phase::Stage }));
        live.on(&at(9.0, Event::CalledOff { why: "interrupted".into() }));
        assert_eq!(live.text(10.0), "");
    }
}
