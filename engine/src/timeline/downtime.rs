//! The downtime on an axis of its own, a bar per phase.

use super::axis::{Time, time};
use super::canvas::{Anchor, BLUE, Canvas, GREEN, INK, LEFT, Pen, RED, RIGHT, width};
use super::story::Story;
use super::words::{heading, lane};

const ROW: f64 = 20.0;

pub(super) fn draw(canvas: &mut Canvas, story: &Story) {
    let Some((from, to)) = story.downtime() else { return };
    let (remark, observed) = match story.resumed() {
        Some(_) => ("from the order to freeze to the word that it runs", Some(story.observed())),
        None => ("it did not come to run on the target", None),
    };
    heading(canvas, "The downtime", remark);
    let marks = marks(story, observed.flatten());
    let stops = story.stops();
    let top = canvas.y + 6.0;
    let rows = top + marks.len() as f64 * 15.0 + 6.0;
    let bottom = rows + stops.len() as f64 * ROW + 4.0;
    // A mark far away must not press all else together: it becomes an arrow.
    let near = marks.iter().map(|mark| mark.ms).filter(|ms| *ms <= (to - from) * 2.5);
    let span = near.fold(to - from, f64::max).max(0.1);
    let right = RIGHT - 60.0;
    let axis = Time { from, to: from + span * 1.04, left: LEFT, right };
    axis.draw(canvas, top, bottom, from);
    for (i, mark) in marks.iter().enumerate() {
        let y = top + i as f64 * 15.0;
        draw_mark(canvas, mark, axis, from, [y, bottom]);
    }
    for (i, span) in stops.iter().enumerate() {
        let y = rows + i as f64 * ROW;
        lane(canvas, y + 13.0, &[span.phase.name()]);
        let x = [axis.x(span.from), axis.x(span.to)];
        let text = time(span.to - span.from);
        let tip = format!("{} {text}", span.phase.name());
        canvas.bar(x, [y + 2.0, y + ROW - 3.0], RED, &tip);
        let at = [x[1].max(x[0] + 1.0) + 5.0, y + 13.0];
        canvas.text(at, &text, Pen { halo: true, ..Pen::PLAIN });
    }
    canvas.y = bottom + 18.0;
}

/// A length that the downtime is compared with.
struct Mark {
    ms: f64,
    what: &'static str,
    colour: &'static str,
    dash: &'static str,
}

/// The longest first: no line crosses the label of another below it.
fn marks(story: &Story, observed: Option<f64>) -> Vec<Mark> {
    let mark = |what, colour, dash| move |ms| Mark { ms, what, colour, dash };
    let mut marks: Vec<Mark> = [
        story.target().map(mark("target", GREEN, "7 4")),
        story.predicted().map(mark("predicted", BLUE, "2 3")),
        observed.map(mark("observed", INK, "")),
    ]
    .into_iter()
    .flatten()
    .collect();
    marks.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    marks
}

/// A line from its label down; an arrow if it lies beyond the axis.
fn draw_mark(canvas: &mut Canvas, mark: &Mark, axis: Time, zero: f64, y: [f64; 2]) {
    let label = format!("{} {}", mark.what, time(mark.ms));
    let pen = Pen { colour: mark.colour, bold: true, ..Pen::PLAIN };
    if zero + mark.ms > axis.to {
        let text = format!("{label} →");
        canvas.text([axis.right, y[0] + 11.0], &text, pen.at(Anchor::End));
        return;
    }
    let x = axis.x(zero + mark.ms);
    canvas.path(&[[x, y[0] + 2.0], [x, y[1]]], mark.colour, mark.dash);
    let before = x - 5.0 - width(&label, pen) > LEFT;
    let (at, anchor) = if before { (x - 5.0, Anchor::End) } else { (x + 5.0, Anchor::Start) };
    canvas.text([at, y[0] + 11.0], &label, pen.at(anchor));
}
