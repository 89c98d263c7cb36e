//! One page that needs nothing else.

use std::fmt::Write as _;

use super::pictures::Picture;
use super::table::{Table, escaped, marked};

const STYLE: &str = "\
body{font:15px/1.5 system-ui,'Segoe UI','Helvetica Neue',Arial,sans-serif;color:#222;background:#fff;\
max-width:980px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.7rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}\
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}\
th,td{padding:.3rem .5rem;border-bottom:1px solid #e2e2e2;text-align:right;vertical-align:top}\
th{border-bottom:2px solid #999;font-weight:600}th:first-child,td:first-child{text-align:left}\
.note{color:#555;font-size:13px}figure{margin:1.2rem 0}svg{max-width:100%;height:auto;border:1px solid #eee}\
ul{padding-left:1.2rem}code{font-size:.92em;background:#f3f3f3;padding:0 .25em}";

/// The page.
pub(super) fn page(
    title: &str,
    facts: &[String],
    pictures: &[Picture],
    tables: &[Table],
) -> String {
    let title = escaped(title);
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n<ul>\n"
    );
    for fact in facts {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "<li>{}</li>", marked(fact));
    }
    text += "</ul>\n";
    for picture in pictures {
        let _ =
            writeln!(text, "<figure id=\"{}\">{}</figure>", escaped(&picture.name), picture.svg);
    }
    for table in tables {
        text += &table.html();
    }
    text + "</html>\n"
}
