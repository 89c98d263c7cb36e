//! Every run as a dot, on a log scale, arm by arm, with median and interval.

use super::scale::Scale;
use super::svg::{Anchor, Font, Svg};
use super::theme::{FAINT, GRID, INK, SMALL, WIDTH, arm_colour, range_label};
use crate::stats::median_interval;

/// A group of rows under one heading.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// What its rows have in common.
    pub title: String,
    /// The rows.
    pub rows: Vec<Row>,
}

/// An arm and its values.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// The arm's name; decides the colour.
    pub name: String,
    /// One value a run.
    pub values: Vec<f64>,
    /// Shown where there are no values.
    pub remark: String,
}

const LEFT: f64 = 180.0;
const RIGHT: f64 = WIDTH - 190.0;
const ROW: f64 = 26.0;
const HEAD: f64 = 30.0;

/// Draws the panels below each other, on one scale. `None` without values.
pub fn draw(title: &str, note: &str, panels: &[Panel], label: fn(f64) -> String) -> Option<String> {
    let all: Vec<f64> =
        panels.iter().flat_map(|p| &p.rows).flat_map(|r| r.values.iter().copied()).collect();
    if all.is_empty() {
        return None;
    }
    let scale = Scale::log(all, LEFT, RIGHT);
    let mut svg = Svg::headed(WIDTH, title, note);
    let top = 62.0;
    let height: f64 = panels.iter().map(|p| HEAD + ROW * p.rows.len() as f64).sum();
    scale.draw_below(&mut svg, top, top + height, label);
    let mut y = top;
    for panel in panels {
        svg.rect((16.0, y + 4.0), (WIDTH - 32.0, HEAD - 8.0), "#f3f3f3", 1.0);
        let font = Font { bold: true, ..Font::default() };
        svg.text((24.0, y + 19.5), &panel.title, Anchor::Start, font);
        y += HEAD;
        for row in &panel.rows {
            draw_row(&mut svg, &scale, y + ROW / 2.0, row, label);
            y += ROW;
        }
    }
    svg.line((LEFT, y), (RIGHT, y), GRID, 1.0);
    Some(svg.finish(y + 30.0, title))
}

fn draw_row(svg: &mut Svg, scale: &Scale, y: f64, row: &Row, label: fn(f64) -> String) {
    svg.text((LEFT - 14.0, y + 4.5), &row.name, Anchor::End, Font::default());
    let faint = Font { size: SMALL, ink: FAINT, ..Font::default() };
    let Some(interval) = median_interval(&row.values) else {
        svg.text((LEFT + 8.0, y + 4.0), &row.remark, Anchor::Start, faint);
        return;
    };
    let colour = arm_colour(&row.name);
    let (low, high) = (scale.at(interval.low), scale.at(interval.high));
    svg.rect((low, y - 5.0), ((high - low).max(1.0), 10.0), colour, 0.22);
    for (n, value) in row.values.iter().enumerate() {
        // A little up and down, so that equal values are seen to be several.
        let aside = ((n % 3) as f64 - 1.0) * 3.0;
        svg.dot((scale.at(*value), y + aside), 3.2, colour, 0.75);
    }
    let middle = scale.at(interval.value);
    svg.line((middle, y - 9.0), (middle, y + 9.0), INK, 2.0);
    let text = Font { bold: true, ..Font::default() };
    svg.text((RIGHT + 16.0, y + 4.5), label(interval.value), Anchor::Start, text);
    let between = range_label(&label(interval.low), &label(interval.high));
    svg.text((RIGHT + 80.0, y + 4.0), between, Anchor::Start, Font { size: 10.5, ..faint });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::theme::time_label;

    #[test]
    fn every_value_is_a_dot_and_a_row_without_any_says_why() {
        let row = |name: &str, values: &[f64]| Row {
            name: name.to_owned(),
            values: values.to_vec(),
            remark: "cannot <do> it".to_owned(),
        };
        let rows = vec![row("pre-copy", &[100.0, 110.0, 120.0]), row("post-copy", &[])];
        let panel = Panel { title: "tiny".to_owned(), rows };
        let svg = draw("Downtime", "", &[panel], time_label).expect("a picture");
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains(">110 ms<") && svg.contains("cannot &lt;do&gt; it"));
        assert_eq!(draw("Downtime", "", &[], time_label), None);
    }
}
