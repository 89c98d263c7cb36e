//! Values as people write them: times, rates, shares. Pure.

use crate::kept::KeepLimit;
use crate::plan::ThrottleLimit;
use blip_transport::units::{Bandwidth, ByteSize};
use std::time::Duration;

/// A downtime that somebody could keep.
pub(super) fn downtime(text: &str) -> Result<Duration, String> {
    time(text, "50ms", "nothing moves in no time")
}

/// A time from now.
pub(super) fn deadline(text: &str) -> Result<Duration, String> {
    time(text, "2m", "it is over before it begins")
}

/// A time for which to forward; 0: not at all.
pub(super) fn forward(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    time(text, "10m (the container's name goes before --forward)", "0 alone means: do not")
}

fn time(text: &str, example: &str, no_zero: &str) -> Result<Duration, String> {
    let say = |why: String| format!("{why}; write a time with its unit, such as {example}");
    if text.starts_with('-') {
        return Err(say(format!("'{text}' is negative")));
    }
    if text.trim().parse::<f64>().is_ok_and(|number| number != 0.0) {
        return Err(say(format!("'{text}' has no unit: {text}ms or {text}s?")));
    }
    let time = match text.trim() {
        "0" => Duration::ZERO,
        text => humantime::parse_duration(text).map_err(|e| say(format!("'{text}': {e}")))?,
    };
    if time.is_zero() { Err(say(format!("'{text}' is zero, and {no_zero}"))) } else { Ok(time) }
}

/// Bits a second with `bit`, bytes a second with `B`; decimal prefixes, or
/// binary ones with an `i`.
pub(super) fn bandwidth(text: &str) -> Result<Bandwidth, String> {
    let say = |why: String| {
        format!("{why}; write a rate such as 800Mbit (bits a second) or 100MB (bytes a second)")
    };
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let Ok(number) = number.parse::<f64>() else {
        return Err(say(format!("'{text}' does not begin with a positive number")));
    };
    let unit = unit.trim().trim_end_matches("/s").trim_end_matches("ps");
    let factor = factor(unit).ok_or_else(|| match unit {
        "" => say(format!("'{text}' has no unit")),
        unit => say(format!("'{unit}' is no unit of a rate")),
    })?;
    let rate = number * factor;
    // Below this a freeze's own images take longer than any downtime.
    if rate < 1e4 {
        return Err(say(format!("'{text}' is too little to move anything")));
    }
    Ok(Bandwidth(rate))
}

/// How much memory to keep: in bytes, with a binary or decimal prefix.
pub(super) fn keep(text: &str) -> Result<KeepLimit, String> {
    match text.trim() {
        "auto" => return Ok(KeepLimit::Auto),
        "off" => return Ok(KeepLimit::Most(ByteSize(0))),
        _ => {}
    }
    let say = || format!("'{text}' is neither auto nor off nor a size such as 512MiB or 2GiB");
    let (number, unit) =
        text.trim().split_at(text.trim().find(|c: char| !c.is_ascii_digit()).ok_or_else(say)?);
    let number: u64 = number.parse().map_err(|_| say())?;
    let factor = match unit.trim().strip_suffix('B').ok_or_else(say)? {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(say()),
    };
    number.checked_mul(factor).map(|size| KeepLimit::Most(ByteSize(size))).ok_or_else(say)
}

/// Bytes a second in one `unit`.
fn factor(unit: &str) -> Option<f64> {
    let (prefix, base) = if let Some(prefix) = unit.strip_suffix("bit") {
        (prefix, 0.125)
    } else {
        (unit.strip_suffix('B')?, 1.0)
    };
    let scale = match prefix {
        "" => 1.0,
        "k" | "K" => 1e3,
        "M" | "m" => 1e6,
        "G" | "g" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(scale * base)
}

/// `auto`, `off`, or a share of the CPU time.
pub(super) fn throttle(text: &str) -> Result<ThrottleLimit, String> {
    match text.trim() {
        "auto" => Ok(ThrottleLimit::Auto),
        "off" => Ok(ThrottleLimit::Off),
        text => match text.trim_end_matches('%').parse::<u8>() {
            Ok(percent @ 1..=99) => Ok(ThrottleLimit::Percent(percent)),
            _ => Err(format!(
                "'{text}' is neither auto nor off nor a share from 1% to 99% of the container's \
                 CPU time, such as 40%"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_strictly() {
        assert_eq!(keep("auto"), Ok(KeepLimit::Auto));
        assert_eq!(keep("off"), Ok(KeepLimit::Most(ByteSize(0))));
        assert_eq!(keep("2GiB"), Ok(KeepLimit::Most(ByteSize(2 << 30))));
        for bad in ["", "2", "GiB", "2 apples", "-1GiB", "1.5GiB", "99999999999GiB"] {
            assert!(keep(bad).unwrap_err().contains("such as"), "{bad}");
        }
    }

    #[test]
    fn rates_are_bits_or_bytes_as_they_say() {
        for (text, bytes) in [
            ("800Mbit", 1e8),
            ("1Gbit/s", 1.25e8),
            ("1.5Gbps", 0.0),
            ("100MB/s", 1e8),
            ("64MiB", 67_108_864.0),
            ("500 kB", 5e5),
        ] {
            match bandwidth(text) {
                Ok(rate) => assert_eq!(rate.0, bytes, "{text}"),
                Err(error) => assert!(bytes == 0.0 && error.contains("'Gb'"), "{error}"),
            }
        }
    }

    #[test]
    fn shares_end_at_99_percent() {
        assert_eq!(throttle("40%"), Ok(ThrottleLimit::Percent(40)));
        assert_eq!(throttle("40"), Ok(ThrottleLimit::Percent(40)));
        assert!(throttle("100%").is_err() && throttle("0").is_err() && throttle("some").is_err());
    }
}
