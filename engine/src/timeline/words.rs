//! What stands above and below the panels.

use super::axis::time;
use super::canvas::{Canvas, INK, LEFT, Pen, RED, RIGHT, shortened, width, wrap};
use super::story::{Decided, Story};
use crate::handover::Outcome;
use crate::text::brief_time;

const MARGIN: f64 = 26.0;

/// The migration in one line.
pub(super) fn headline(story: &Story) -> String {
    let Some(report) = &story.report else {
        return match &story.called_off {
            Some(why) => format!("called off after {}: {why}", time(story.end)),
            None => "a migration that did not end".to_owned(),
        };
    };
    let name = &report.container;
    match &report.outcome {
        Outcome::Moved => {
            format!("{name}: moved by {} in {}", report.method, time(report.total_ms))
        }
        Outcome::Kept { why } => format!("{name}: stays, {why}"),
        Outcome::InDoubt { why } => format!("{name}: in doubt, {why}"),
    }
}

/// Title and verdict.
pub(super) fn title(canvas: &mut Canvas, story: &Story) {
    let pen = Pen { size: 16.0, bold: true, ..Pen::PLAIN };
    for line in wrap(&headline(story), RIGHT - MARGIN, 2, pen) {
        canvas.y += 24.0;
        canvas.text([MARGIN, canvas.y + 4.0], &line, pen);
    }
    let Some(report) = &story.report else {
        canvas.y += 10.0;
        return;
    };
    let known = |ms: Option<f64>, absent: &str| ms.map_or(absent.to_owned(), time);
    let frozen = !report.downtime.is_empty();
    let moved = report.outcome == Outcome::Moved;
    let observed = known(frozen.then_some(report.downtime_ms), "never frozen");
    let mut x = MARGIN;
    canvas.y += 22.0;
    let fields = [
        ("downtime target ", known(story.target(), "none")),
        ("predicted ", known(story.predicted(), "not")),
        (if moved { "observed " } else { "stood still " }, observed),
    ];
    for (what, value) in fields {
        canvas.text([x, canvas.y], what, Pen { size: 13.0, ..Pen::FAINT });
        x += width(what, Pen { size: 13.0, ..Pen::PLAIN });
        let pen = Pen { size: 13.0, bold: true, ..Pen::PLAIN };
        canvas.text([x, canvas.y], &value, pen);
        x += width(&value, pen) + 22.0;
    }
    let verdict = match report.met {
        Some(true) => "target met",
        Some(false) => "target missed",
        None => "",
    };
    let colour = if report.met == Some(false) { RED } else { INK };
    canvas.text([x, canvas.y], verdict, Pen { size: 13.0, bold: true, colour, ..Pen::PLAIN });
    canvas.y += 6.0;
}

/// Panel headings are alike.
pub(super) fn heading(canvas: &mut Canvas, text: &str, remark: &str) {
    canvas.y += 30.0;
    canvas.text([MARGIN, canvas.y], text, Pen::HEAD);
    let x = MARGIN + width(text, Pen::HEAD) + 12.0;
    canvas.text([x, canvas.y], &shortened(remark, RIGHT - x, Pen::FAINT), Pen::FAINT);
    canvas.y += 8.0;
}

/// The name of a lane, left of it, in one or two lines.
pub(super) fn lane(canvas: &mut Canvas, y: f64, lines: &[&str]) {
    for (i, line) in lines.iter().enumerate() {
        canvas.text([MARGIN, y + i as f64 * 13.0], line, Pen { colour: INK, ..Pen::PLAIN });
    }
}

/// How many decisions are told from the beginning and to the end, if there are
/// more than both.
const TOLD: [usize; 2] = [7, 6];

/// The decisions that are told, with their numbers; `None` stands for those
/// left out between.
pub(super) fn told(story: &Story) -> impl Iterator<Item = Option<(usize, &Decided)>> {
    let all = story.decisions.len();
    let (first, last) =
        if all > TOLD[0] + TOLD[1] + 1 { (TOLD[0], all - TOLD[1]) } else { (all, all) };
    let numbered = || story.decisions.iter().enumerate().map(|(i, d)| Some((i + 1, d)));
    let gap = (first < last).then_some(None);
    numbered().take(first).chain(gap).chain(numbered().skip(last))
}

/// The reasons, numbered like the marks on the axis.
pub(super) fn decisions(canvas: &mut Canvas, story: &Story) {
    if story.decisions.is_empty() {
        return;
    }
    heading(canvas, "Decisions", "the numbers are those on the time axis");
    canvas.y += 4.0;
    let x = LEFT + 62.0;
    for told in told(story) {
        canvas.y += 16.0;
        let Some((number, decided)) = told else {
            let left_out = story.decisions.len() - TOLD[0] - TOLD[1];
            canvas.text([x, canvas.y], &format!("… {left_out} more …"), Pen::FAINT);
            continue;
        };
        let pen = Pen { bold: true, ..Pen::PLAIN };
        canvas.text([MARGIN, canvas.y], &number.to_string(), pen);
        canvas.text([MARGIN + 24.0, canvas.y], &when(decided), Pen::FAINT);
        let text = format!("{}: {}", decided.what, decided.why);
        for (i, line) in wrap(&text, RIGHT - x, 3, Pen::PLAIN).iter().enumerate() {
            canvas.y += if i > 0 { 14.0 } else { 0.0 };
            canvas.text([x, canvas.y], line, Pen::PLAIN);
        }
    }
    canvas.y += 4.0;
}

/// When it was first decided so, and how often.
fn when(decided: &Decided) -> String {
    let first = brief_time(decided.at.first().copied().unwrap_or_default());
    match decided.at.len() {
        0 | 1 => first,
        times => format!("{first}, {times} ×"),
    }
}
