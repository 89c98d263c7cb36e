//! After the resume: faults that had to wait, and pages that came in.

use super::axis::{Height, Time, time};
use super::canvas::{Anchor, BLUE, Canvas, GREY, INK, LEFT, ORANGE, Pen, RIGHT, SKY, width};
use super::story::Story;
use super::words::{heading, lane};
use crate::event::{LazyReport, LazySample};
use crate::text::{count, micros};

const LANE: f64 = 64.0;
const GAP: f64 = 12.0;

pub(super) fn draw(canvas: &mut Canvas, story: &Story) {
    let Some(lazy) = story.report.as_ref().map(|report| &report.lazy) else { return };
    if story.resumed().is_none() || (lazy.drain_ms <= 0.0 && lazy.faults == 0) {
        return;
    }
    heading(canvas, "The brownout", &remark(lazy));
    let steps = steps(lazy);
    if !steps.is_empty() {
        samples(canvas, lazy, &steps);
    }
}

fn remark(lazy: &LazyReport) -> String {
    let faults = match lazy.faults {
        0 => "no fault had to wait".to_owned(),
        number => format!(
            "{} had to wait, half of them at most {}, 99 % at most {}",
            count(number, "fault"),
            micros(lazy.p50_us),
            micros(lazy.p99_us)
        ),
    };
    match lazy.drain_ms {
        ms if ms > 0.0 => format!("{} until all memory was in place; {faults}", time(ms)),
        _ => faults,
    }
}

/// One step of time with its beginning.
type Step = (f64, LazySample);

/// The samples with their beginnings: where the one before ended. The first is
/// taken to be as long as the second.
fn steps(lazy: &LazyReport) -> Vec<Step> {
    let samples = &lazy.samples;
    let first = match samples.as_slice() {
        [first, second, ..] => 2.0 * first.at_ms - second.at_ms,
        [only] => only.at_ms.min(0.0) - 1.0,
        [] => 0.0,
    };
    let ends = samples.iter().map(|sample| sample.at_ms);
    std::iter::once(first).chain(ends).zip(samples.iter().copied()).collect()
}

/// Events a second in a step.
fn per_second(step: &Step, number: u64) -> f64 {
    number as f64 * 1e3 / (step.1.at_ms - step.0).max(1e-3)
}

fn samples(canvas: &mut Canvas, lazy: &LazyReport, steps: &[Step]) {
    let from = steps.iter().map(|step| step.0).fold(0.0, f64::min);
    let to = steps.iter().map(|step| step.1.at_ms).fold(lazy.drain_ms.max(1.0), f64::max);
    let axis = Time { from, to: to + (to - from) * 0.01, left: LEFT, right: RIGHT };
    legend(canvas);
    let top = canvas.y + 6.0;
    let marks = top + 18.0;
    let bottom = marks + 2.0 * LANE + GAP;
    axis.draw(canvas, top, bottom, 0.0);
    let peak = |of: fn(&LazySample) -> u64| {
        steps.iter().map(|step| per_second(step, of(&step.1))).fold(0.0, f64::max)
    };
    let faults = Height::linear(marks + 4.0, marks + LANE, peak(|sample| sample.faults));
    let pages = Height::linear(marks + LANE + GAP, bottom, peak(|sample| sample.pages));
    lane(canvas, marks + 14.0, &["faults"]);
    lane(canvas, marks + LANE + GAP + 10.0, &["pages"]);
    for scale in [faults, pages] {
        amounts(canvas, scale);
    }
    for step in steps {
        let sample = step.1;
        let x = [axis.x(step.0), axis.x(sample.at_ms)];
        let waited = faults.y(per_second(step, sample.faults));
        canvas.bar(x, [waited, faults.bottom], ORANGE, &count(sample.faults, "fault"));
        let own = sample.pages.saturating_sub(sample.from_source);
        let tip = format!("{own} pages from the store, {} from the source", sample.from_source);
        let (all, below) =
            (pages.y(per_second(step, sample.pages)), pages.y(per_second(step, own)));
        canvas.bar(x, [all, below], BLUE, &tip);
        canvas.bar(x, [below, pages.bottom], SKY, &tip);
    }
    for scale in [faults, pages] {
        canvas.line([LEFT, scale.bottom], [RIGHT, scale.bottom], GREY, "");
    }
    mark(canvas, axis.x(0.0), [top, bottom], "it runs", true);
    if lazy.drain_ms > 0.0 {
        mark(canvas, axis.x(lazy.drain_ms), [top, bottom], "all in place", false);
    }
    canvas.y = bottom + 18.0;
}

fn legend(canvas: &mut Canvas) {
    canvas.y += 12.0;
    let mut x = LEFT;
    let keys = [
        (ORANGE, "faults that had to wait"),
        (SKY, "pages from the target's store"),
        (BLUE, "pages from the source"),
    ];
    for (colour, text) in keys {
        canvas.bar([x, x + 10.0], [canvas.y - 9.0, canvas.y + 1.0], colour, "");
        canvas.text([x + 15.0, canvas.y], text, Pen::PLAIN);
        x += width(text, Pen::PLAIN) + 36.0;
    }
}

/// Two rates at the left, below the lane's name.
fn amounts(canvas: &mut Canvas, scale: Height) {
    for value in scale.ticks(1.0).into_iter().filter(|value| scale.y(*value) > scale.top + 12.0) {
        let y = scale.y(value);
        canvas.line([LEFT, y], [RIGHT, y], super::canvas::GRID, "");
        let label = format!("{}/s", short(value));
        canvas.text([LEFT - 6.0, y + 4.0], &label, Pen::FAINT.at(Anchor::End));
    }
}

/// `1200`, `12 k`, `1.2 M`.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", v / 1e6),
        v if v >= 1e4 => format!("{} k", v / 1e3),
        v => format!("{v}"),
    }
}

/// A moment and its name: left or right of it, as the other has no room.
fn mark(canvas: &mut Canvas, x: f64, y: [f64; 2], what: &str, after: bool) {
    canvas.line([x, y[0]], [x, y[1]], INK, "");
    let (at, anchor) = if after { (x + 5.0, Anchor::Start) } else { (x - 5.0, Anchor::End) };
    canvas.text([at, y[0] + 11.0], what, Pen { bold: true, ..Pen::PLAIN }.at(anchor));
}
