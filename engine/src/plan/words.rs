//! Numbers as the planner's reasons print them.

use blip_transport::units::{Bandwidth, PageCount};
use std::time::Duration;

/// `12 480 pages (48.8 MiB)`.
pub fn pages(count: PageCount) -> String {
    let noun = if count.0 == 1 { "page" } else { "pages" };
    format!("{} {noun} ({})", grouped(count.0), count.bytes())
}

/// Digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// `3.9 ms`, `391 ms`, `12.3 s`.
pub fn time(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        _ if ms < 9.95 => format!("{ms:.1} ms"),
        _ if ms < 9_999.5 => format!("{ms:.0} ms"),
        _ if ms < 99_950.0 => format!("{:.1} s", ms / 1e3),
        _ => format!("{:.0} s", ms / 1e3),
    }
}

/// `125 MB/s`, decimal like every link.
pub fn rate(rate: Bandwidth) -> String {
    match rate.0 {
        r if r >= 9.95e9 => format!("{:.0} GB/s", r / 1e9),
        r if r >= 1e9 => format!("{:.1} GB/s", r / 1e9),
        r if r >= 9.95e6 => format!("{:.0} MB/s", r / 1e6),
        r if r >= 1e6 => format!("{:.1} MB/s", r / 1e6),
        r => format!("{:.0} kB/s", r / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_as_people_would() {
        assert_eq!(pages(PageCount(12_480)), "12 480 pages (48.8 MiB)");
        assert_eq!(pages(PageCount(1)), "1 page (4.0 KiB)");
        assert_eq!(grouped(1_234_567), "1 234 567");
        assert_eq!(time(Duration::from_micros(3_940)), "3.9 ms");
        assert_eq!(time(Duration::from_millis(391)), "391 ms");
        assert_eq!(time(Duration::from_millis(12_345)), "12.3 s");
        assert_eq!(rate(Bandwidth(125e6)), "125 MB/s");
        assert_eq!(rate(Bandwidth(3.125e9)), "3.1 GB/s");
    }
}
