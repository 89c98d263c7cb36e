//! Writing SVG: a few shapes, and text that is escaped.

use std::fmt::{Display, Write as _};

use super::theme::{FAINT, INK, PAPER, SMALL, TEXT};

/// A picture in the making.
pub struct Svg {
    width: f64,
    body: String,
}

/// Where a text is relative to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// How a text looks.
#[derive(Clone, Copy, Debug)]
pub struct Font {
    /// In px.
    pub size: f64,
    /// Colour.
    pub ink: &'static str,
    /// Whether it is bold.
    pub bold: bool,
    /// Whether it stands on its own ground, to be read over lines.
    pub halo: bool,
}

impl Default for Font {
    fn default() -> Self {
        Font { size: TEXT, ink: INK, bold: false, halo: false }
    }
}

impl Svg {
    /// An empty picture of this width.
    pub fn new(width: f64) -> Svg {
        Svg { width, body: String::new() }
    }

    /// A picture of this width with what it shows above it, and a note in small.
    pub fn headed(width: f64, title: &str, note: &str) -> Svg {
        let mut svg = Svg::new(width);
        let bold = Font { size: 16.0, bold: true, ..Font::default() };
        let faint = Font { size: SMALL, ink: FAINT, ..Font::default() };
        svg.text((16.0, 26.0), title, Anchor::Start, bold);
        svg.text((16.0, 45.0), note, Anchor::Start, faint);
        svg
    }

    /// A straight line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), ink: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.put(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{ink}" stroke-width="{width}"/>"#
        ));
    }

    /// A line of dashes.
    pub fn dashes(&mut self, from: (f64, f64), to: (f64, f64), ink: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.put(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{ink}" stroke-dasharray="4 3"/>"#
        ));
    }

    /// A filled rectangle from its upper left corner.
    pub fn rect(&mut self, at: (f64, f64), size: (f64, f64), fill: &str, opacity: f64) {
        let ((x, y), (w, h)) = (at, (size.0.max(0.0), size.1.max(0.0)));
        self.put(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" fill="{fill}" fill-opacity="{opacity}"/>"#
        ));
    }

    /// A dot.
    pub fn dot(&mut self, at: (f64, f64), radius: f64, fill: &str, opacity: f64) {
        let (x, y) = at;
        self.put(format_args!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" fill="{fill}" fill-opacity="{opacity}"/>"#
        ));
    }

    /// A line through points.
    pub fn path(&mut self, points: &[(f64, f64)], ink: &str, width: f64) {
        let d = path_of(points);
        self.put(format_args!(
            r#"<path d="{d}" fill="none" stroke="{ink}" stroke-width="{width}" stroke-linejoin="round"/>"#
        ));
    }

    /// Columns that stand on `below`, one for each whole x, as one shape;
    /// neighbours of the same height become one, so that calm stretches cost
    /// nothing.
    pub fn columns(&mut self, columns: &[(i32, i32)], below: f64, fill: &str) {
        let mut d = String::new();
        let mut rest = columns;
        while let Some(&(x, y)) = rest.first() {
            let same = rest.iter().zip(x..).take_while(|((at, top), n)| at == n && *top == y);
            let width = same.count();
            // Writing to a string cannot fail.
            let _ = write!(d, "M{x} {below:.0}V{y}h{width}V{below:.0}");
            rest = &rest[width..];
        }
        self.put(format_args!(r#"<path d="{d}" fill="{fill}"/>"#));
    }

    /// An area within points.
    pub fn area(&mut self, points: &[(f64, f64)], fill: &str, opacity: f64) {
        let d = path_of(points);
        self.put(format_args!(r#"<path d="{d}Z" fill="{fill}" fill-opacity="{opacity}"/>"#));
    }

    /// A mark whose shape tells it apart where its colour does not: a circle,
    /// a square, a diamond, two triangles, by turns.
    pub fn mark(&mut self, at: (f64, f64), shape: usize, fill: &str) {
        const SIZE: f64 = 4.5;
        let (x, y) = at;
        let corners: &[(f64, f64)] = match shape % 5 {
            0 => return self.dot(at, SIZE, fill, 0.85),
            1 => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            2 => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
            3 => &[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
            _ => &[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
        };
        let points: Vec<_> =
            corners.iter().map(|(dx, dy)| (x + dx * SIZE, y + dy * SIZE)).collect();
        self.area(&points, fill, 0.85);
    }

    /// A text.
    pub fn text(&mut self, at: (f64, f64), text: impl Display, anchor: Anchor, font: Font) {
        let (x, y) = at;
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let Font { size, ink, bold, halo } = font;
        let mut looks = if bold { r#" font-weight="600""#.to_owned() } else { String::new() };
        if halo {
            looks += &format!(r#" paint-order="stroke" stroke="{PAPER}" stroke-width="3""#);
        }
        let text = escaped(&text.to_string());
        self.put(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}" fill="{ink}"{looks}>{text}</text>"#
        ));
    }

    /// A text that runs upwards.
    pub fn upward(&mut self, at: (f64, f64), text: impl Display, font: Font) {
        let (x, y) = at;
        let Font { size, ink, .. } = font;
        let text = escaped(&text.to_string());
        self.put(format_args!(
            r#"<text transform="translate({x:.1} {y:.1}) rotate(-90)" text-anchor="middle" font-size="{size}" fill="{ink}">{text}</text>"#
        ));
    }

    /// The picture, on white ground: README pages may be dark.
    pub fn finish(self, height: f64, title: &str) -> String {
        let (width, body, title) = (self.width, self.body, escaped(title));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" \
             font-family=\"system-ui, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif\">\n\
             <title>{title}</title>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"{PAPER}\"/>\n{body}</svg>\n"
        )
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.body, "{element}");
    }
}

fn path_of(points: &[(f64, f64)]) -> String {
    let mut d = String::new();
    for (n, (x, y)) in points.iter().enumerate() {
        let verb = if n == 0 { 'M' } else { 'L' };
        let _ = write!(d, "{verb}{x:.1} {y:.1}");
    }
    d
}

/// Text as XML wants it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out() {
        let mut svg = Svg::new(100.0);
        svg.text((1.0, 2.0), "<b> & \"c\"", Anchor::Start, Font::default());
        let text = svg.finish(10.0, "a < b");
        assert!(text.contains("&lt;b&gt; &amp; &quot;c&quot;") && text.contains("a &lt; b"));
        assert!(!text.contains("<b>"));
    }

    #[test]
    fn sizes_are_never_negative() {
        let mut svg = Svg::new(100.0);
        svg.rect((0.0, 0.0), (-3.0, 5.0), INK, 1.0);
        assert!(svg.finish(10.0, "").contains(r#"width="0.0""#));
    }
}
