//! What a user sees of a migration.
//!
//! * On a terminal: a log of phases, rounds and decisions, and under it one line
//!   that tells how it stands now.
//! * Elsewhere: the log alone, which reads well in a file.
//! * With `--json`: every event on standard output ([`guide`] documents them),
//!   and the log only if `--progress plain` asks for it.
//!
//! The log goes to standard error, the report to standard output. What is
//! printed is made by functions of events to text; only [`show`] and
//! [`live::Live::draw`] write.

pub(crate) mod guide;
mod lines;
mod live;
mod summary;
#[cfg(test)]
mod summary_tests;

use crate::event::{Event, Timed};
use clap::ValueEnum;
use lines::Lines;
use live::Live;
pub(crate) use live::Stderr;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};
use summary::summary;
use tokio::sync::mpsc;

/// How often the line of a terminal is drawn anew without an event.
const TICK: Duration = Duration::from_millis(250);

/// How to show what happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Progress {
    /// A log, and on a terminal a line that tells how it stands; nothing of
    /// both with --json
    #[default]
    Auto,
    /// The log alone
    Plain,
    /// Only the report
    None,
}

/// How one migration is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    json: bool,
    log: bool,
    live: bool,
    target_ms: Option<f64>,
}

impl Style {
    /// What the user asked for, on the terminal or file that standard error is.
    /// `target`: the downtime wanted.
    pub(crate) fn new(json: bool, progress: Progress, target: Option<Duration>) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let terminal = io::stderr().is_terminal() && !dumb;
        let auto = progress == Progress::Auto && !json;
        Self {
            json,
            log: auto || progress == Progress::Plain,
            live: auto && terminal,
            target_ms: target.map(crate::event::millis),
        }
    }
}

/// Says something to the user while a migration is being shown.
pub(crate) fn say(text: &str) {
    let _ = writeln!(Stderr, "blip: {text}");
}

/// Prints events until there are no more.
pub(crate) async fn show(mut events: mpsc::UnboundedReceiver<Timed>, style: Style) {
    let mut screen = Screen::new(style);
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => screen.event(&event),
                None => break,
            },
            _ = tick.tick(), if style.live => screen.draw(),
        }
    }
    live::wipe();
}

/// What is shown, and what it needs to remember.
struct Screen {
    style: Style,
    lines: Lines,
    live: Live,
    /// The reason of the last decision.
    why: Option<String>,
    /// The time of the last event, on its clock and on this one.
    clock: (f64, Instant),
}

impl Screen {
    fn new(style: Style) -> Self {
        Self {
            style,
            lines: Lines::default(),
            live: Live::new(style.target_ms),
            why: None,
            clock: (0.0, Instant::now()),
        }
    }

    /// A reader that has gone away is no reason to stop a migration: what
    /// cannot be written is not.
    fn event(&mut self, timed: &Timed) {
        self.clock = (timed.at_ms, Instant::now());
        self.live.on(timed);
        if self.style.log
            && let Some(line) = self.lines.of(timed)
        {
            live::wipe();
            let _ = writeln!(io::stderr(), "{line}");
        }
        if self.style.json {
            let text = serde_json::to_string(timed).unwrap_or_default();
            let _ = writeln!(io::stdout(), "{text}");
        }
        match &timed.event {
            Event::Decision { why, .. } => self.why = Some(why.clone()),
            Event::Finished(report) if !self.style.json => {
                live::wipe();
                let gap = if self.style.log { "\n" } else { "" };
                let _ = write!(io::stdout(), "{gap}{}", summary(report, self.why.as_deref()));
            }
            _ => {}
        }
        if self.style.live {
            self.draw();
        }
    }

    fn draw(&self) {
        let (at_ms, seen) = self.clock;
        self.live.draw(at_ms + crate::event::millis(seen.elapsed()));
    }
}
