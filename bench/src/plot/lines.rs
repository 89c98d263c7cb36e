//! A line for each arm, on two log scales.

use super::scale::Scale;
use super::svg::{Anchor, Font, Svg};
use super::theme::{FAINT, SMALL, WIDTH, arm_colour};
use crate::stats::median_interval;

/// An arm's line.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// The arm's name.
    pub name: String,
    /// Where, and the values of all runs there.
    pub points: Vec<(f64, Vec<f64>)>,
}

const LEFT: f64 = 90.0;
const RIGHT: f64 = WIDTH - 170.0;
const TOP: f64 = 66.0;
const BOTTOM: f64 = 386.0;
/// Room for a label of the horizontal axis.
const LABEL: f64 = 64.0;

/// Words and labels of a picture of lines.
#[derive(Clone, Copy)]
pub struct Words<'a> {
    /// What it shows.
    pub title: &'a str,
    /// In small.
    pub note: &'a str,
    /// Below the horizontal axis.
    pub across: &'a str,
    /// A label of the horizontal axis.
    pub x: fn(f64) -> String,
    /// A label of the vertical axis.
    pub y: fn(f64) -> String,
}

/// Draws the lines through medians. `None` if no line has two points.
pub fn draw(words: Words<'_>, lines: &[Line]) -> Option<String> {
    if lines.iter().all(|l| l.points.len() < 2) {
        return None;
    }
    let points = || lines.iter().flat_map(|l| &l.points);
    let mut places: Vec<f64> = points().map(|(x, _)| *x).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let x = Scale::log(places.iter().copied(), LEFT, RIGHT);
    let y = Scale::log(points().flat_map(|(_, v)| v.iter().copied()), BOTTOM, TOP);
    let mut svg = Svg::headed(WIDTH, words.title, words.note);
    let faint = Font { size: SMALL, ink: FAINT, ..Font::default() };
    y.draw_left(&mut svg, LEFT, RIGHT, words.y);
    let mut free = f64::NEG_INFINITY;
    for place in &places {
        // Arms that measured nearly the same share a label.
        if x.at(*place) >= free {
            free = x.at(*place) + LABEL;
            svg.text((x.at(*place), BOTTOM + 18.0), (words.x)(*place), Anchor::Middle, faint);
        }
    }
    svg.text(((LEFT + RIGHT) / 2.0, BOTTOM + 40.0), words.across, Anchor::Middle, Font::default());
    let mut ends = Vec::new();
    for (shape, line) in lines.iter().enumerate() {
        let colour = arm_colour(&line.name);
        let mut path = Vec::new();
        for (place, values) in &line.points {
            let Some(interval) = median_interval(values) else { continue };
            let at = (x.at(*place), y.at(interval.value));
            svg.line((at.0, y.at(interval.low)), (at.0, y.at(interval.high)), colour, 1.5);
            svg.mark(at, shape, colour);
            path.push(at);
        }
        svg.path(&path, colour, 2.0);
        ends.extend(path.last().map(|end| (end.1, line.name.as_str())));
    }
    label_ends(&mut svg, ends);
    Some(svg.finish(BOTTOM + 54.0, words.title))
}

/// Names beside the lines' ends, pushed apart where they would overlap.
fn label_ends(svg: &mut Svg, mut ends: Vec<(f64, &str)>) {
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut lowest = f64::NEG_INFINITY;
    for (y, name) in ends {
        let y = y.max(lowest + 16.0);
        lowest = y;
        let font = Font { ink: arm_colour(name), bold: true, ..Font::default() };
        svg.text((RIGHT + 14.0, y + 4.5), name, Anchor::Start, font);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::theme::time_label;

    #[test]
    fn a_line_needs_two_places() {
        let words = Words {
            title: "t",
            note: "",
            across: "memory",
            x: |m| format!("{m} MiB"),
            y: time_label,
        };
        let line = |points: &[f64]| Line {
            name: "hybrid".to_owned(),
            points: points.iter().map(|p| (*p, vec![100.0, 120.0])).collect(),
        };
        assert!(draw(words, &[line(&[64.0])]).is_none());
        let svg = draw(words, &[line(&[64.0, 256.0])]).expect("a picture");
        assert!(svg.contains(">64 MiB<") && svg.contains(">hybrid<"));
    }
}
