//! Words and numbers as a terminal has them: 80 columns, no colour.

use blip_transport::units::{Bandwidth, ByteSize};

/// The width that every line keeps to, in characters.
pub(crate) const WIDTH: usize = 80;

/// A time with its unit, from milliseconds: `83.4 ms`, `3.41 s`, `2 min 05 s`.
pub(crate) fn time(ms: f64) -> String {
    if ms < 999.95 {
        return format!("{ms:.1} ms");
    }
    let seconds = ms / 1e3;
    if seconds < 99.995 {
        return format!("{seconds:.2} s");
    }
    let seconds = seconds.round() as u64;
    format!("{} min {:02} s", seconds / 60, seconds % 60)
}

/// A time from microseconds: `85 µs`, `1.2 ms`.
pub(crate) fn micros(us: u64) -> String {
    if us < 1000 { format!("{us} µs") } else { time(us as f64 / 1e3) }
}

/// A rate in binary units: `52.1 MiB/s`.
pub(crate) fn rate(rate: Bandwidth) -> String {
    format!("{}/s", ByteSize(rate.0.max(0.0) as u64))
}

/// [`time`] where there is no room for all its digits: `83 ms`, `3.4 s`.
pub(crate) fn brief_time(ms: f64) -> String {
    match ms {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms if ms < 99_950.0 => format!("{:.1} s", ms / 1e3),
        ms => format!("{:.0} min", ms / 6e4),
    }
}

/// [`rate`] where there is no room for all its digits: `52 MiB/s`.
pub(crate) fn brief_rate(rate: Bandwidth) -> String {
    let text = self::rate(rate);
    match text.split_once('.') {
        Some((whole, rest)) if whole.len() > 1 => {
            format!("{whole}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        _ => text,
    }
}

/// A number and its noun: `1 fault`, `2 faults`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// `text` in lines of at most [`WIDTH`], the first after `head`, the others
/// under it. A number stays with what it counts; a word that is longer than a
/// line is cut into pieces.
pub(crate) fn hang(head: &str, text: &str) -> String {
    let indent = head.chars().count();
    let room = WIDTH.saturating_sub(indent).max(8);
    let mut lines: Vec<String> = vec![String::new()];
    for word in &words(text) {
        let mut rest: &str = word;
        loop {
            let line = lines.last_mut().map_or(0, |line| line.chars().count());
            let gap = usize::from(line > 0);
            let length = rest.chars().count();
            if line + gap + length <= room {
                push(&mut lines, gap, rest);
                break;
            }
            if line > 0 {
                lines.push(String::new());
                continue;
            }
            let cut = rest.char_indices().nth(room).map_or(rest.len(), |(at, _)| at);
            push(&mut lines, 0, &rest[..cut]);
            rest = &rest[cut..];
            lines.push(String::new());
        }
    }
    let pad = " ".repeat(indent);
    let mut out = format!("{head}{}", lines[0]).trim_end().to_owned();
    for line in lines.iter().skip(1).filter(|line| !line.is_empty()) {
        out += &format!("\n{pad}{line}");
    }
    out
}

/// The words of a text, a number and the word after it as one.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut number = false;
    for word in text.split_whitespace() {
        match words.last_mut() {
            Some(last) if number => *last += &format!(" {word}"),
            _ => words.push(word.to_owned()),
        }
        number = word.parse::<f64>().is_ok();
    }
    words
}

fn push(lines: &mut [String], gap: usize, word: &str) {
    if let Some(line) = lines.last_mut() {
        line.push_str(&" ".repeat(gap));
        line.push_str(word);
    }
}

/// What others wrote may hold control characters, which would move the cursor
/// or set colours: they are made visible.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_unit_that_fits() {
        let said = [0.04, 83.44, 999.94, 999.96, 3412.0, 99_990.0, 125_000.0].map(time);
        assert_eq!(
            said,
            ["0.0 ms", "83.4 ms", "999.9 ms", "1.00 s", "3.41 s", "99.99 s", "2 min 05 s"]
        );
    }

    #[test]
    fn a_text_hangs_under_its_head() {
        let text = "one two three four five six seven eight nine ten eleven twelve thirteen \
                    fourteen fifteen";
        let hung = hang("       note: ", text);
        assert_eq!(
            hung,
            "       note: one two three four five six seven eight nine ten eleven twelve\n             \
             thirteen fourteen fifteen"
        );
    }

    #[test]
    fn a_number_is_not_parted_from_its_unit() {
        assert_eq!(
            hang(&" ".repeat(66), "at most 4.5 MiB"),
            format!("{}at most\n{}4.5 MiB", " ".repeat(66), " ".repeat(66))
        );
    }

    #[test]
    fn a_word_longer_than_a_line_is_cut_into_pieces() {
        let hung = hang(&" ".repeat(60), &"x".repeat(45));
        let lengths: Vec<_> = hung.lines().map(|line| line.trim().len()).collect();
        assert_eq!(lengths, [20, 20, 5]);
    }

    #[test]
    fn nothing_after_a_head_leaves_no_blanks() {
        assert_eq!(hang("  note  ", ""), "  note");
    }
}
