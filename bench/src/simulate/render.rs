//! The downtimes as a picture: one panel a workload, one column a link.

use super::run::{LINKS, POLICIES, Result, TRIPS, Wish};
use super::workload::Habit;
use std::fmt::Write as _;

const PANEL: (f64, f64) = (300.0, 190.0);
const MARGIN: (f64, f64) = (62.0, 84.0);
const GAP: (f64, f64) = (24.0, 46.0);
/// Milliseconds at the bottom and at the top of each panel.
const RANGE: (f64, f64) = (80.0, 200_000.0);
const COLORS: [(&str, &str); 6] = [
    ("blip", "#0b6e4f"),
    ("3 rounds", "#c9a227"),
    ("10 rounds", "#d97706"),
    ("dirty < 1000", "#8a5fbf"),
    ("post-copy", "#3b82c4"),
    ("oracle", "#111111"),
];

/// Downtimes with no target over a round trip of 1 ms.
pub(super) fn downtimes(results: &[Result]) -> String {
    let columns = 4;
    let rows = Habit::ALL.len().div_ceil(columns);
    let width = MARGIN.0 + columns as f64 * (PANEL.0 + GAP.0);
    let height = MARGIN.1 + rows as f64 * (PANEL.1 + GAP.1) + 6.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{}\" y=\"26\" font-size=\"17\" font-weight=\"bold\">Simulated downtime, \
         no target, 1 GiB, round trip 1 ms</text>\n",
        MARGIN.0
    );
    legend(&mut svg);
    for (i, habit) in Habit::ALL.into_iter().enumerate() {
        let x = MARGIN.0 + (i % columns) as f64 * (PANEL.0 + GAP.0);
        let y = MARGIN.1 + (i / columns) as f64 * (PANEL.1 + GAP.1);
        panel(&mut svg, results, habit, (x, y), i % columns == 0);
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String) {
    let mut x = MARGIN.0 + 6.0;
    for (name, color) in COLORS {
        mark(svg, name, color, x, 47.0);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"51\">{}</text>", x + 10.0, escaped(name));
        x += 34.0 + 7.0 * name.len() as f64;
    }
}

fn panel(svg: &mut String, results: &[Result], habit: Habit, at: (f64, f64), labels: bool) {
    let (x, y) = at;
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        y - 6.0,
        habit.name()
    );
    for (ms, text) in [(100.0, "0.1 s"), (1e3, "1 s"), (1e4, "10 s"), (1e5, "100 s")] {
        let line = y + height_of(ms);
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{}\" y1=\"{line}\" y2=\"{line}\" stroke=\"#ddd\"/>",
            x + PANEL.0
        );
        if labels {
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#666\">{text}</text>",
                x - 6.0,
                line + 4.0
            );
        }
    }
    let wanted = |r: &&Result| {
        r.workload == habit.name() && r.wish == Wish::Shortest.name() && r.rtt == TRIPS[1].0
    };
    let step = PANEL.0 / LINKS.len() as f64;
    for (column, (link, _)) in LINKS.into_iter().enumerate() {
        let left = x + column as f64 * step;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\" font-size=\"11\">{link}</text>",
            left + step / 2.0,
            y + PANEL.1 + 15.0
        );
        for r in results.iter().filter(wanted).filter(|r| r.link == link) {
            let place = COLORS.iter().position(|(name, _)| *name == r.policy).unwrap_or(0);
            let dx = step * (place as f64 + 1.0) / (POLICIES.len() as f64 + 2.0);
            let (name, color) = COLORS[place];
            mark(svg, name, color, left + dx, y + height_of(r.downtime_ms));
        }
    }
    let _ = writeln!(
        svg,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#999\"/>",
        PANEL.0, PANEL.1
    );
}

fn mark(svg: &mut String, name: &str, color: &str, x: f64, y: f64) {
    let shape = match name {
        "oracle" => format!(
            "<path d=\"M{} {y}h10M{x} {}v10\" stroke=\"{color}\" stroke-width=\"2\"/>",
            x - 5.0,
            y - 5.0
        ),
        "blip" => format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"5.5\" fill=\"{color}\"/>"),
        _ => format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"4\" fill=\"{color}\"/>"),
    };
    let _ = writeln!(svg, "{shape}");
}

fn height_of(ms: f64) -> f64 {
    let share = (ms.max(RANGE.0) / RANGE.0).ln() / (RANGE.1 / RANGE.0).ln();
    ((1.0 - share) * PANEL.1 * 10.0).round() / 10.0
}

fn escaped(text: &str) -> String {
    text.replace('<', "&lt;")
}
