//! The picture of one migration: a self-contained SVG, made of its events.
//!
//! Three panels, one below the other:
//! * the whole migration on one time axis: phases, how much every round found
//!   dirty and sent, rates, throttling, decisions;
//! * the downtime on an axis of its own, because it is milliseconds in a run of
//!   seconds: a bar per phase, and where target and prediction lie;
//! * the brownout: faults and pages after the resume.
//!
//! Pure: events in, text out. The colours are those of Okabe and Ito ("Color
//! Universal Design", 2008), told apart by the colour-blind as well; nothing is
//! told by colour alone. A test holds every label against every other: none
//! overlap.

mod axis;
mod brownout;
mod canvas;
mod downtime;
mod overview;
#[cfg(test)]
mod samples;
mod story;
#[cfg(test)]
mod tests;
mod words;

use crate::event::Timed;
use canvas::Canvas;
use story::Story;

/// Draws the migration that `events` tell of, 900 pixels wide. The events may
/// end anywhere; what they do not tell is left out.
pub fn svg(events: &[Timed]) -> String {
    draw(events).finish()
}

fn draw(events: &[Timed]) -> Canvas {
    let story = Story::of(events);
    let mut canvas = Canvas::new(&words::headline(&story));
    words::title(&mut canvas, &story);
    overview::draw(&mut canvas, &story);
    downtime::draw(&mut canvas, &story);
    brownout::draw(&mut canvas, &story);
    words::decisions(&mut canvas, &story);
    canvas
}
