//! What a client saw through one migration: latency over time, a panel for
//! each arm, all on the same scales.

use super::scale::Scale;
use super::svg::{Anchor, Font, Svg};
use super::theme::{FAINT, INK, SMALL, WIDTH, arm_colour, time_label};

/// One migration.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// The arm's name; decides the colour.
    pub name: String,
    /// What the client saw, in a few words.
    pub remark: String,
    /// Requests by the time they were answered: milliseconds after the order
    /// to migrate, and the longest and the 99th percentile of the latencies in
    /// that step, in milliseconds.
    pub steps: Vec<Step>,
    /// The longest silence: from, to, after the order.
    pub gap: Option<(f64, f64)>,
    /// Parts of the migration: name, from, to.
    pub parts: Vec<(String, f64, f64)>,
}

/// Requests answered within a hundredth of a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// Milliseconds after the order.
    pub at_ms: f64,
    /// Longest latency, in milliseconds.
    pub max_ms: f64,
    /// 99th percentile, in milliseconds.
    pub p99_ms: f64,
}

const LEFT: f64 = 76.0;
const RIGHT: f64 = WIDTH - 16.0;
const PANEL: f64 = 120.0;
const HEAD: f64 = 26.0;

/// Up to this length, in milliseconds, steps of 10 ms have a pixel each.
const LINE_UP_TO_MS: f64 = 8_000.0;

/// Draws the panels below each other, from a second before the order to a
/// second after the last of them is done. `None` without any.
pub fn draw(title: &str, note: &str, panels: &[Panel]) -> Option<String> {
    let steps = || panels.iter().flat_map(|p| &p.steps);
    steps().next()?;
    let last = panels.iter().flat_map(|p| p.parts.iter().map(|part| part.2)).fold(0.0, f64::max);
    let (from, to) = (-1_000.0, last.max(1_000.0) + 1_000.0);
    let shown = |step: &&Step| (from..=to).contains(&step.at_ms);
    let x = Scale::span(from, to, LEFT, RIGHT);
    let mut svg = Svg::headed(WIDTH, title, note);
    let mut top = 60.0;
    let highest = steps().filter(shown).map(|s| s.max_ms);
    let bounds: Vec<f64> = highest.chain([0.1]).collect();
    for panel in panels {
        let y = Scale::log(bounds.iter().copied(), top + HEAD + PANEL, top + HEAD);
        draw_panel(&mut svg, &x, &y, top, panel, (from, to));
        top += HEAD + PANEL + 14.0;
    }
    for tick in x.ticks() {
        let at = x.at(tick);
        let font = Font { size: SMALL, ink: FAINT, ..Font::default() };
        let text = if tick == 0.0 { "order".to_owned() } else { format!("{} s", tick / 1e3) };
        svg.text((at, top + 4.0), text, Anchor::Middle, font);
    }
    let middle = ((LEFT + RIGHT) / 2.0, top + 24.0);
    svg.text(middle, "time after the order to migrate", Anchor::Middle, Font::default());
    Some(svg.finish(top + 38.0, title))
}

fn draw_panel(
    svg: &mut Svg,
    x: &Scale,
    y: &Scale,
    top: f64,
    panel: &Panel,
    (from, to): (f64, f64),
) {
    let colour = arm_colour(&panel.name);
    let (above, below) = (top + HEAD, top + HEAD + PANEL);
    let name = Font { bold: true, ink: colour, ..Font::default() };
    svg.text((LEFT, top + 18.0), &panel.name, Anchor::Start, name);
    svg.text((RIGHT, top + 18.0), &panel.remark, Anchor::End, Font::default());
    y.draw_left(svg, LEFT, RIGHT, time_label);
    for (name, begin, end) in &panel.parts {
        let shade = match name.as_str() {
            "pre-copy" => "#0072B2",
            "downtime" => "#222222",
            "brownout" => "#E69F00",
            _ => continue,
        };
        let (begin, end) = (x.at(*begin), x.at(*end));
        svg.rect((begin, above), ((end - begin).max(1.0), PANEL), shade, 0.09);
        if end - begin > 56.0 {
            let font = Font { size: SMALL, ink: FAINT, ..Font::default() };
            svg.text((begin + 5.0, above + 13.0), name, Anchor::Start, font);
        }
    }
    let shown: Vec<_> = panel.steps.iter().filter(|s| (from..=to).contains(&s.at_ms)).collect();
    // No more than a bar a pixel: of those that share one, the longest.
    let pixel = |step: &Step| x.at(step.at_ms).floor();
    let columns: Vec<_> = shown
        .chunk_by(|a, b| pixel(a) == pixel(b))
        .map(|steps| {
            let longest = steps.iter().map(|s| s.max_ms).fold(0.0, f64::max);
            (pixel(steps[0]) as i32, y.at(longest).round() as i32)
        })
        .collect();
    svg.columns(&columns, below, colour);
    // A line for the 99th percentile where it would not be a black band;
    // broken where nothing was answered.
    if to - from < LINE_UP_TO_MS {
        for run in shown.chunk_by(|a, b| b.at_ms - a.at_ms < 25.0) {
            let points: Vec<_> =
                run.iter().map(|s| (x.at(s.at_ms), y.at(s.p99_ms).round())).collect();
            svg.path(&corners(&points), INK, 0.8);
        }
    }
    if let Some((begin, end)) = panel.gap {
        let (begin, end) = (x.at(begin), x.at(end));
        svg.line((begin, below - 3.0), (end, below - 3.0), INK, 3.0);
        let font = Font { size: SMALL, bold: true, halo: true, ..Font::default() };
        let (at, anchor) = if end - begin > 90.0 {
            ((begin + end) / 2.0, Anchor::Middle)
        } else if end + 90.0 < RIGHT {
            (end + 6.0, Anchor::Start)
        } else {
            (begin - 6.0, Anchor::End)
        };
        svg.text((at, below - 6.0), "no answer", anchor, font);
    }
    svg.line((x.at(0.0), above), (x.at(0.0), below), FAINT, 1.0);
    svg.line((LEFT, below), (RIGHT, below), FAINT, 1.0);
}

/// The points without those between two of the same height.
fn corners(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let is_corner = |n: usize| {
        let beside = |m: Option<usize>| m.and_then(|m| points.get(m)).map(|p| p.1);
        let own = Some(points[n].1);
        beside(n.checked_sub(1)) != own || beside(Some(n + 1)) != own
    };
    (0..points.len()).filter(|n| is_corner(*n)).map(|n| points[n]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_near_the_migration_is_drawn() {
        let step = |at_ms| Step { at_ms, max_ms: 2.0, p99_ms: 1.0 };
        let panel = Panel {
            name: "hybrid".to_owned(),
            remark: "gap 120 ms".to_owned(),
            steps: [-5_000.0, -500.0, 300.0, 90_000.0].map(step).to_vec(),
            gap: Some((310.0, 430.0)),
            parts: vec![("downtime".to_owned(), 310.0, 420.0)],
        };
        let svg = draw("Latency", "", &[panel]).expect("a picture");
        // Two steps of four are near, and neither beside the other.
        let columns = svg.lines().find(|l| l.contains("M") && l.contains("V")).expect("columns");
        assert_eq!(columns.matches('M').count(), 2, "{columns}");
        assert!(columns.contains(arm_colour("hybrid")));
        let flat = [(0.0, 5.0), (1.0, 5.0), (2.0, 5.0), (3.0, 1.0)];
        assert_eq!(corners(&flat), [flat[0], flat[2], flat[3]]);
        assert!(svg.contains("no answer") && svg.contains("gap 120 ms"));
        assert!(draw("Latency", "", &[]).is_none());
    }
}
