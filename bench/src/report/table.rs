//! A table, as Markdown and as HTML.

use std::fmt::Write as _;

/// A table of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// What it shows.
    pub(super) title: String,
    /// How to read it, in a sentence or two.
    pub(super) note: String,
    /// Heads of its columns; the first is of the rows' names.
    pub(super) heads: Vec<&'static str>,
    /// Its rows, as long as there are heads.
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    /// Under a heading, with the note below.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n", self.title);
        let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        text += &row(self.heads.iter().map(|h| (*h).to_owned()).collect());
        let rule = |n: usize| if n == 0 { "---" } else { "---:" }.to_owned();
        text += &row((0..self.heads.len()).map(rule).collect());
        for cells in &self.rows {
            text += &row(cells.iter().map(|c| c.replace('|', "\\|").replace('\n', " ")).collect());
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n{}\n", self.note);
        text
    }

    /// The same in HTML.
    pub(super) fn html(&self) -> String {
        let mut text = format!("<h2>{}</h2>\n<table>\n<tr>", escaped(&self.title));
        for head in &self.heads {
            let _ = write!(text, "<th>{}</th>", escaped(head));
        }
        text += "</tr>\n";
        for row in &self.rows {
            text += "<tr>";
            for cell in row {
                let _ = write!(text, "<td>{}</td>", marked(cell));
            }
            text += "</tr>\n";
        }
        let _ = write!(text, "</table>\n<p class=\"note\">{}</p>\n", marked(&self.note));
        text
    }
}

/// Text as HTML wants it.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The same, with Markdown's bold and code where they come in pairs.
pub(super) fn marked(text: &str) -> String {
    let mut text = escaped(text);
    for (mark, tag) in [("**", "b"), ("`", "code")] {
        while text.matches(mark).count() >= 2 {
            text = text.replacen(mark, &format!("<{tag}>"), 1);
            text = text.replacen(mark, &format!("</{tag}>"), 1);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_table_in_two_languages() {
        let table = Table {
            title: "A & B".to_owned(),
            note: "`x` is **big**".to_owned(),
            heads: vec!["arm", "gap"],
            rows: vec![vec!["a|b".to_owned(), "< 1".to_owned()]],
        };
        let markdown = table.markdown();
        assert!(markdown.contains("| arm | gap |\n| --- | ---: |\n| a\\|b | < 1 |"), "{markdown}");
        let html = table.html();
        assert!(html.contains("<td>a|b</td><td>&lt; 1</td>") && html.contains("A &amp; B"));
        assert!(html.contains("<code>x</code> is <b>big</b>"));
    }
}
