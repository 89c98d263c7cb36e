//! Widths, sizes and colours.

/// Width of every picture, in px: what a README shows without shrinking it.
pub const WIDTH: f64 = 860.0;

/// Size of ordinary text, in px.
pub const TEXT: f64 = 13.0;

/// Size of text beside the point, in px.
pub const SMALL: f64 = 11.5;

/// Ordinary ink.
pub const INK: &str = "#222222";

/// Ink of what is beside the point.
pub const FAINT: &str = "#6b6b6b";

/// Lines of a grid.
pub const GRID: &str = "#e2e2e2";

/// The ground.
pub const PAPER: &str = "#ffffff";

/// Colours that are told apart by (nearly) all eyes (Okabe and Ito 2008); the
/// yellow is left out, which is not seen on white.
const COLOURS: [&str; 7] =
    ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555"];

/// The colour of an arm: a method has the same in every picture.
pub fn arm_colour(name: &str) -> &'static str {
    match name {
        "none" => "#999999",
        "pre-copy" => COLOURS[0],
        "stop-and-copy" => COLOURS[1],
        "hybrid" => COLOURS[2],
        "auto" | "default" => COLOURS[3],
        "post-copy" => COLOURS[4],
        other => {
            let sum = other.bytes().fold(0_usize, |sum, b| sum * 31 % 1009 + usize::from(b));
            if other.starts_with("auto") { COLOURS[3] } else { COLOURS[5 + sum % 2] }
        }
    }
}

/// The colour of the nth of a few parts.
pub fn part_colour(n: usize) -> &'static str {
    // Neighbours differ in lightness as well.
    const PARTS: [&str; 6] = ["#56B4E9", "#004a75", "#E69F00", "#009E73", "#CC79A7", "#999999"];
    PARTS[n % PARTS.len()]
}

/// A time in milliseconds as a short label: `40 ms`, `1.5 s`.
pub fn time_label(ms: f64) -> String {
    match ms {
        ms if ms >= 300_000.0 => format!("{} min", short(ms / 60_000.0)),
        ms if ms >= 1_000.0 => format!("{} s", short(ms / 1_000.0)),
        ms if ms >= 1.0 || ms == 0.0 => format!("{} ms", short(ms)),
        ms => format!("{} µs", short(ms * 1_000.0)),
    }
}

/// Three digits that matter at most.
pub fn short(value: f64) -> String {
    let text = match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Two labels as one, the unit told once if it is the same.
pub fn range_label(low: &str, high: &str) -> String {
    let unit = |label: &str| label.split_once(' ').map(|(_, unit)| unit.to_owned());
    match (low.split_once(' '), unit(high)) {
        (Some((number, own)), Some(other)) if own == other => format!("{number} – {high}"),
        _ => format!("{low} – {high}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short() {
        for (ms, label) in [
            (0.25, "250 µs"),
            (1.0, "1 ms"),
            (41.3, "41.3 ms"),
            (153.7, "154 ms"),
            (1_500.0, "1.5 s"),
            (90_000.0, "90 s"),
            (450_000.0, "7.5 min"),
            (0.0, "0 ms"),
        ] {
            assert_eq!(time_label(ms), label);
        }
        assert_eq!(short(100.0), "100", "its zeros are not cut off");
    }

    #[test]
    fn a_unit_is_told_once() {
        assert_eq!(range_label("1 ms", "2 ms"), "1 – 2 ms");
        assert_eq!(range_label("900 ms", "1 s"), "900 ms – 1 s");
    }
}
