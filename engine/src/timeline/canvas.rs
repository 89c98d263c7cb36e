//! A growing sheet of SVG: shapes and text, drawn from top to bottom.

use std::fmt::Write as _;

/// Width of the picture in pixels.
pub(super) const WIDTH: f64 = 900.0;
/// Where the time axes begin and end, from the left.
pub(super) const LEFT: f64 = 104.0;
/// See [`LEFT`].
pub(super) const RIGHT: f64 = 874.0;

pub(super) const INK: &str = "#222222";
pub(super) const FAINT: &str = "#6b6b6b";
pub(super) const GRID: &str = "#e3e3e3";
pub(super) const BLUE: &str = "#0072b2";
pub(super) const SKY: &str = "#56b4e9";
pub(super) const GREEN: &str = "#009e73";
pub(super) const ORANGE: &str = "#e69f00";
pub(super) const RED: &str = "#d55e00";
pub(super) const PURPLE: &str = "#cc79a7";
pub(super) const GREY: &str = "#b5b5b5";

const FONT: &str = "Verdana, 'DejaVu Sans', sans-serif";
/// The usual size of text in pixels.
pub(super) const SIZE: f64 = 11.0;

/// On which side of its point a text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// Where a text is, for those who must keep clear of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Label {
    pub(super) text: String,
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

/// How a text looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pen {
    pub(super) size: f64,
    pub(super) colour: &'static str,
    pub(super) bold: bool,
    /// With a white rim, where lines may run below it.
    pub(super) halo: bool,
    pub(super) anchor: Anchor,
}

impl Pen {
    pub(super) const PLAIN: Self =
        Self { size: SIZE, colour: INK, bold: false, halo: false, anchor: Anchor::Start };
    pub(super) const FAINT: Self = Self { colour: FAINT, ..Self::PLAIN };
    pub(super) const HEAD: Self = Self { bold: true, size: 12.0, ..Self::PLAIN };

    pub(super) fn at(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }
}

/// The picture so far.
#[derive(Debug)]
pub(super) struct Canvas {
    title: String,
    body: String,
    /// Where the next thing goes, from the top.
    pub(super) y: f64,
    /// Every text that was written.
    pub(super) labels: Vec<Label>,
}

impl Canvas {
    pub(super) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: String::new(), y: 0.0, labels: Vec::new() }
    }

    /// A filled box; at least a pixel wide, so that it is seen. `tip` is shown
    /// by browsers when the pointer is on it.
    pub(super) fn bar(&mut self, x: [f64; 2], y: [f64; 2], fill: &str, tip: &str) {
        let width = number((x[1] - x[0]).max(1.0));
        let height = number((y[1] - y[0]).max(0.0));
        let (x, y, tip) = (number(x[0]), number(y[0]), escape(tip));
        let _ = writeln!(
            self.body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\">\
             <title>{tip}</title></rect>"
        );
    }

    /// A straight line; `dash` as in SVG, empty for none.
    pub(super) fn line(&mut self, from: [f64; 2], to: [f64; 2], colour: &str, dash: &str) {
        let [x1, y1, x2, y2] = [from[0], from[1], to[0], to[1]].map(number);
        let dash = dashed(dash);
        let _ = writeln!(
            self.body,
            "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"{colour}\"{dash}/>"
        );
    }

    /// A line through points.
    pub(super) fn path(&mut self, points: &[[f64; 2]], colour: &str, dash: &str) {
        if points.is_empty() {
            return;
        }
        let list: Vec<String> =
            points.iter().map(|[x, y]| format!("{},{}", number(*x), number(*y))).collect();
        let _ = writeln!(
            self.body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" \
             stroke-linejoin=\"round\"{}/>",
            list.join(" "),
            dashed(dash)
        );
    }

    /// A filled circle.
    pub(super) fn dot(&mut self, at: [f64; 2], radius: f64, fill: &str, tip: &str) {
        let ([x, y], radius) = (at.map(number), number(radius));
        let tip = escape(tip);
        let _ = writeln!(
            self.body,
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" fill=\"{fill}\"><title>{tip}</title></circle>"
        );
    }

    /// A line of text whose baseline is at `at`.
    pub(super) fn text(&mut self, at: [f64; 2], text: &str, pen: Pen) {
        let width = width(text, pen);
        let left = match pen.anchor {
            Anchor::Start => at[0],
            Anchor::Middle => at[0] - width / 2.0,
            Anchor::End => at[0] - width,
        };
        self.labels.push(Label {
            text: text.to_owned(),
            left,
            right: left + width,
            top: at[1] - pen.size * 0.8,
            bottom: at[1] + pen.size * 0.25,
        });
        let anchor = match pen.anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let weight = if pen.bold { " font-weight=\"bold\"" } else { "" };
        let halo = if pen.halo {
            " stroke=\"#ffffff\" stroke-width=\"3\" stroke-linejoin=\"round\" paint-order=\"stroke\""
        } else {
            ""
        };
        let [x, y] = at.map(number);
        let (size, colour) = (number(pen.size), pen.colour);
        let _ = writeln!(
            self.body,
            "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" fill=\"{colour}\"{anchor}{weight}{halo}>{}</text>",
            escape(text)
        );
    }

    /// The whole file.
    pub(super) fn finish(self) -> String {
        let (width, height) = (number(WIDTH), number(self.y + 14.0));
        let title = escape(&self.title);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" font-family=\"{FONT}\">\n\
             <title>{title}</title>\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

/// About how wide a text is, in pixels. Rather too wide than too narrow.
pub(super) fn width(text: &str, pen: Pen) -> f64 {
    let em: f64 = text
        .chars()
        .map(|c| match c {
            'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '\'' | '|' | ' ' => 0.36,
            't' | 'f' | 'r' | '(' | ')' | '-' | '/' => 0.46,
            'm' | 'w' | 'M' | 'W' | '%' | '@' => 1.0,
            '0'..='9' => 0.64,
            c if c.is_ascii_lowercase() => 0.63,
            c if c.is_ascii() => 0.75,
            _ => 1.0,
        })
        .sum();
    em * pen.size * if pen.bold { 1.14 } else { 1.0 }
}

/// `text` in lines no wider than `room` pixels, at most `most` of them; what is
/// left over is cut off with dots.
pub(super) fn wrap(text: &str, room: f64, most: usize, pen: Pen) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.peek() {
        let full = lines.len() >= most;
        let Some(line) = lines.last_mut() else { break };
        let longer = if line.is_empty() { (*word).to_owned() } else { format!("{line} {word}") };
        if line.is_empty() || width(&longer, pen) <= room {
            *line = shortened(&longer, room, pen);
            words.next();
        } else if !full {
            lines.push(String::new());
        } else {
            *line = shortened(&format!("{longer} …"), room, pen);
            break;
        }
    }
    lines
}

/// `text`, cut off with dots if it is wider than `room` pixels.
pub(super) fn shortened(text: &str, room: f64, pen: Pen) -> String {
    if width(text, pen) <= room {
        return text.to_owned();
    }
    let mut kept = text.trim_end_matches('…').to_owned();
    while !kept.is_empty() && width(&kept, pen) + pen.size > room {
        kept.pop();
    }
    format!("{}…", kept.trim_end())
}

fn dashed(dash: &str) -> String {
    if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") }
}

/// A length as SVG has it. What is no number is drawn at the edge.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return "0".to_owned();
    }
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Text that may stand in XML. Characters that may not are left out.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\u{fffe}' | '\u{ffff}' => {}
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_is_called_cannot_break_the_picture() {
        assert_eq!(escape("<a b=\"&\">\u{1b}[0m"), "&lt;a b=&quot;&amp;&quot;&gt;[0m");
    }

    #[test]
    fn a_text_that_is_too_long_ends_in_dots_within_its_room() {
        let lines = wrap(&"many words ".repeat(40), 200.0, 2, Pen::PLAIN);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].ends_with('…'), "{lines:?}");
        assert!(lines.iter().all(|line| width(line, Pen::PLAIN) <= 200.0));
        let word = wrap(&"x".repeat(99), 100.0, 2, Pen::PLAIN);
        assert!(width(&word[0], Pen::PLAIN) <= 100.0);
    }

    #[test]
    fn no_number_is_no_infinity() {
        assert_eq!([f64::NAN, f64::INFINITY, 1.0, 1.25].map(number), ["0", "0", "1", "1.2"]);
    }
}
