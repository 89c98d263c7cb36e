//! Bars of parts that add up.

use super::scale::Scale;
use super::svg::{Anchor, Font, Svg};
use super::theme::{PAPER, SMALL, WIDTH, part_colour, short, time_label};
use crate::stats::median;

/// A bar.
#[derive(Clone, Debug, Default)]
pub struct Bar {
    /// The heading it stands under; drawn where it changes.
    pub group: String,
    /// Its name.
    pub name: String,
    /// Its parts, in milliseconds, in the order of the parts' names.
    pub parts: Vec<f64>,
}

const LEFT: f64 = 200.0;
const RIGHT: f64 = WIDTH - 90.0;
const ROW: f64 = 26.0;
const HEAD: f64 = 28.0;

/// Bars of more than this many times the median are cut.
const CUT: f64 = 4.0;

/// Draws the bars below each other. `None` without bars.
pub fn draw(title: &str, note: &str, names: &[&str], bars: &[Bar]) -> Option<String> {
    let sums: Vec<f64> = bars.iter().map(|b| b.parts.iter().sum()).collect();
    let usual = median(&sums).filter(|sum| *sum > 0.0)?;
    // A bar many times as long as the others would leave nothing of them to
    // see: it is cut, and marked as cut.
    let shown = sums.iter().copied().filter(|sum| *sum <= CUT * usual);
    let scale = Scale::even(shown.fold(usual, f64::max), LEFT, RIGHT);
    let mut svg = Svg::headed(WIDTH, title, note);
    legend(&mut svg, names);
    let top = 84.0;
    let groups = bars.chunk_by(|a, b| a.group == b.group).count() as f64;
    let bottom = top + groups * HEAD + bars.len() as f64 * ROW;
    scale.draw_below(&mut svg, top, bottom, time_label);
    let mut y = top;
    for group in bars.chunk_by(|a, b| a.group == b.group) {
        let font = Font { bold: true, ..Font::default() };
        svg.text((24.0, y + 19.0), &group[0].group, Anchor::Start, font);
        y += HEAD;
        for bar in group {
            draw_bar(&mut svg, &scale, y, bar);
            y += ROW;
        }
    }
    Some(svg.finish(bottom + 30.0, title))
}

fn legend(svg: &mut Svg, names: &[&str]) {
    let mut x = LEFT;
    for (n, name) in names.iter().enumerate() {
        svg.rect((x, 59.0), (12.0, 12.0), part_colour(n), 1.0);
        svg.text((x + 17.0, 69.5), name, Anchor::Start, Font::default());
        x += 34.0 + 7.4 * name.chars().count() as f64;
    }
}

fn draw_bar(svg: &mut Svg, scale: &Scale, y: f64, bar: &Bar) {
    svg.text((LEFT - 14.0, y + 17.0), &bar.name, Anchor::End, Font::default());
    let mut sum = 0.0;
    for (n, part) in bar.parts.iter().enumerate() {
        let (from, to) = (scale.at(sum), scale.at(sum + part));
        svg.rect((from, y + 4.0), (to - from, 18.0), part_colour(n), 1.0);
        // The number where there is room for it; dark or light as needed.
        if to - from > 26.0 {
            let ink = if n % 6 == 1 || n % 6 == 3 { PAPER } else { "#111111" };
            let font = Font { size: SMALL, ink, ..Font::default() };
            svg.text(((from + to) / 2.0, y + 17.0), short(part.round()), Anchor::Middle, font);
        }
        sum += part;
    }
    if !scale.holds(sum) {
        for aside in [0.0, 7.0] {
            let x = RIGHT - 22.0 + aside;
            svg.line((x, y + 24.0), (x + 6.0, y + 2.0), PAPER, 3.0);
        }
    }
    let font = Font { bold: true, ..Font::default() };
    svg.text((scale.at(sum) + 8.0, y + 17.0), time_label(sum), Anchor::Start, font);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_end_to_end_and_the_sum_is_told() {
        let bar = |name: &str, parts: &[f64]| Bar {
            group: "tiny".to_owned(),
            name: name.to_owned(),
            parts: parts.to_vec(),
        };
        let bars = [bar("a", &[2.0, 50.0, 48.0]), bar("b", &[1.0, 20.0, 9.0])];
        let svg = draw("Parts", "", &["freeze", "dump", "restore"], &bars).expect("a picture");
        assert!(svg.contains(">100 ms<") && svg.contains(">30 ms<"));
        assert_eq!(svg.matches(">tiny<").count(), 1);
        assert_eq!(draw("Parts", "", &["freeze"], &[]), None);
    }
}
