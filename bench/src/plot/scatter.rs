//! What was predicted against what came, with the band in which a prediction
//! is good enough.

use super::scale::Scale;
use super::svg::{Anchor, Font, Svg};
use super::theme::{FAINT, INK, SMALL, WIDTH, arm_colour, time_label};

/// A prediction and what came of it, in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Pair {
    /// The arm's name.
    pub name: String,
    /// What was predicted.
    pub predicted: f64,
    /// What was observed.
    pub observed: f64,
}

/// How far off a prediction may be.
pub const TOLERANCE: f64 = 0.25;

const LEFT: f64 = 100.0;
const SIDE: f64 = 440.0;
const TOP: f64 = 66.0;

/// Draws the pairs. `None` without any.
pub fn draw(title: &str, note: &str, pairs: &[Pair]) -> Option<String> {
    if pairs.is_empty() {
        return None;
    }
    let values = || pairs.iter().flat_map(|p| [p.predicted, p.observed]);
    let (x, y) = (Scale::log(values(), LEFT, LEFT + SIDE), Scale::log(values(), TOP + SIDE, TOP));
    let mut svg = Svg::headed(WIDTH, title, note);
    // Observed is the measure: |predicted − observed| ≤ 25 % of observed.
    let ends = [1e-3_f64, 1e9];
    let edge = |factor: f64| -> Vec<(f64, f64)> {
        let steps = (0..=200).map(|n| ends[0] * (ends[1] / ends[0]).powf(f64::from(n) / 200.0));
        steps.map(|observed| (x.at(observed * factor), y.at(observed))).collect()
    };
    let mut band = edge(1.0 - TOLERANCE);
    band.extend(edge(1.0 + TOLERANCE).into_iter().rev());
    svg.area(&band, "#56B4E9", 0.18);
    x.draw_below(&mut svg, TOP, TOP + SIDE, time_label);
    y.draw_left(&mut svg, LEFT, LEFT + SIDE, time_label);
    svg.path(&edge(1.0), INK, 1.0);
    let axis = Font::default();
    svg.text((LEFT + SIDE / 2.0, TOP + SIDE + 38.0), "predicted downtime", Anchor::Middle, axis);
    svg.upward((36.0, TOP + SIDE / 2.0), "observed downtime", axis);
    let mut names: Vec<&str> = pairs.iter().map(|p| p.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for pair in pairs {
        let shape = names.iter().position(|n| *n == pair.name).unwrap_or_default();
        svg.mark((x.at(pair.predicted), y.at(pair.observed)), shape, arm_colour(&pair.name));
    }
    legend(&mut svg, &names, pairs);
    Some(svg.finish(TOP + SIDE + 54.0, title))
}

fn legend(svg: &mut Svg, names: &[&str], pairs: &[Pair]) {
    let left = LEFT + SIDE + 36.0;
    for (n, name) in names.iter().enumerate() {
        let y = TOP + 16.0 + 24.0 * n as f64;
        svg.mark((left, y - 4.5), n, arm_colour(name));
        let own = pairs.iter().filter(|p| p.name == *name);
        let good = own.clone().filter(|p| error(p) <= TOLERANCE).count();
        let text = format!("{name}: {good} of {} within 25 %", own.count());
        svg.text((left + 14.0, y), text, Anchor::Start, Font::default());
    }
    let y = TOP + 34.0 + 24.0 * names.len() as f64;
    let faint = Font { size: SMALL, ink: FAINT, ..Font::default() };
    svg.text((left - 6.0, y), "band: within 25 % of what was observed", Anchor::Start, faint);
    svg.text((left - 6.0, y + 18.0), "above the line: longer than predicted", Anchor::Start, faint);
}

/// How far off a prediction was, as a share of what was observed.
pub fn error(pair: &Pair) -> f64 {
    if pair.observed > 0.0 { (pair.predicted - pair.observed).abs() / pair.observed } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_predictions_are_counted_by_arm() {
        let pair =
            |name: &str, predicted, observed| Pair { name: name.into(), predicted, observed };
        let pairs =
            [pair("hybrid", 100.0, 120.0), pair("hybrid", 100.0, 140.0), pair("auto", 80.0, 70.0)];
        let svg = draw("Prediction", "", &pairs).expect("a picture");
        assert!(svg.contains("hybrid: 1 of 2 within 25 %"));
        assert!(svg.contains("auto: 1 of 1 within 25 %"));
        assert!(draw("Prediction", "", &[]).is_none());
    }
}
