//! Sizes, rates and times as people write them on a command line or in a plan.

use std::time::Duration;

/// Reads `256MiB`, `1 GiB`, `64M` or plain bytes: binary units.
///
/// # Errors
/// What is wrong with the text, in a sentence.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = whole(text)?;
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err(format!("`{unit}` is no unit: use KiB, MiB or GiB")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than there is".to_owned())
}

/// Reads a rate of written memory, `200MB/s` or `1 GiB`, in bytes a second:
/// MB are a million bytes, MiB are 2²⁰.
///
/// # Errors
/// What is wrong with the text, in a sentence.
pub fn byte_rate(text: &str) -> Result<u64, String> {
    let (number, unit) = whole(text)?;
    let factor = match unit.trim_end_matches("/s") {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(format!("`{unit}` is no rate: use MB/s, GB/s, MiB/s or GiB/s")),
    };
    number.checked_mul(factor).ok_or_else(|| "that is more than there is".to_owned())
}

/// Reads the rate of a link, `100mbit` or `1 Gbit/s`, in bits a second.
///
/// # Errors
/// What is wrong with the text, in a sentence.
pub fn bit_rate(text: &str) -> Result<u64, String> {
    let (number, unit) = whole(text)?;
    let factor = match unit.trim_end_matches("/s") {
        "bit" => 1,
        "kbit" => 1_000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        _ => return Err(format!("`{unit}` is no rate of a link: use Mbit or Gbit")),
    };
    match number.checked_mul(factor) {
        Some(0) => Err("a link that carries nothing cannot be measured".to_owned()),
        Some(bits) => Ok(bits),
        None => Err("that is more than there is".to_owned()),
    }
}

/// Reads `300ms`, `2s` or `5min`.
///
/// # Errors
/// What is wrong with the text, in a sentence.
pub fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = whole(text)?;
    match unit.as_str() {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "min" => number
            .checked_mul(60)
            .map(Duration::from_secs)
            .ok_or_else(|| "that is longer than anybody waits".to_owned()),
        _ => Err(format!("`{unit}` is no time: use ms, s or min")),
    }
}

/// A whole number, and what follows it in lower case.
fn whole(text: &str) -> Result<(u64, String), String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number = number.parse().map_err(|_| "it begins with a whole number, then comes a unit")?;
    Ok((number, unit.trim().to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        assert_eq!(size("256MiB"), Ok(256 << 20));
        assert_eq!(size("1 GiB"), Ok(1 << 30));
        assert_eq!(size("64m"), Ok(64 << 20));
        assert_eq!(size("4096"), Ok(4096));
        for wrong in ["", "MiB", "1.5GiB", "12 parsecs", "99999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_tell_a_million_from_a_mebi() {
        assert_eq!(byte_rate("200MB/s"), Ok(200_000_000));
        assert_eq!(byte_rate("1GiB"), Ok(1 << 30));
        assert_eq!(bit_rate("1Gbit/s"), Ok(1_000_000_000));
        assert_eq!(bit_rate("100mbit"), Ok(100_000_000));
        for wrong in ["1", "0mbit", "3 bananas", "-5mbit"] {
            assert!(bit_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(time("2 s"), Ok(Duration::from_secs(2)));
        assert_eq!(time("5min"), Ok(Duration::from_secs(300)));
        assert!(time("5").is_err() && time("-5ms").is_err());
    }
}
