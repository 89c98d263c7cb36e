//! The network between the hosts.

use std::fmt;
use std::time::Duration;

use blip_transport::units::Bandwidth;
use serde::{Deserialize, Serialize};

use crate::quantity;
use crate::relay::Weather;

/// What each host's cable carries, each way, and what becomes of the mover's
/// datagrams: `1gbit`, `unshaped+20ms+1pct`, `1gbit+cut-500ms-after-2s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Link {
    /// Bits a second; `None`: as fast as the kernel is.
    pub bits: Option<u64>,
    /// How long datagrams are on their way, each way, in microseconds.
    pub delay_us: u64,
    /// How many of a million are lost, each way.
    pub loss_ppm: u32,
    /// A time in which nothing passes.
    pub cut: Option<Cut>,
}

/// A cut, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// When it begins, after the order to migrate.
    pub after_ms: u64,
    /// How long it lasts.
    pub for_ms: u64,
}

/// The seed of all losses: every run loses the same datagrams.
const SEED: u64 = 0xb11b;

impl Link {
    /// Bytes a second.
    pub fn bandwidth(self) -> Option<Bandwidth> {
        self.bits.map(|bits| Bandwidth(bits as f64 / 8.0))
    }

    /// What a relay is to do, if there is one.
    pub fn weather(self) -> Option<Weather> {
        let delay = Duration::from_micros(self.delay_us);
        let weather = Weather { delay, loss_ppm: self.loss_ppm, seed: SEED };
        let is_fair = delay.is_zero() && self.loss_ppm == 0 && self.cut.is_none();
        (!is_fair).then_some(weather)
    }
}

impl TryFrom<String> for Link {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mut link = Link::default();
        for part in text.split('+').map(str::trim) {
            if part == "unshaped" {
                link.bits = None;
            } else if let Some(cut) = part.strip_prefix("cut-") {
                link.cut = Some(cut_from(cut)?);
            } else if let Some(share) = part.strip_suffix("pct").or(part.strip_suffix('%')) {
                link.loss_ppm = loss(share)?;
            } else if part.ends_with("ms") {
                let delay = quantity::time(part)?;
                if delay > Duration::from_secs(1) {
                    return Err(format!("a delay of {part} is more than a second"));
                }
                link.delay_us = delay.as_micros() as u64;
            } else {
                link.bits = Some(quantity::bit_rate(part)?);
            }
        }
        Ok(link)
    }
}

fn loss(share: &str) -> Result<u32, String> {
    let percent: f64 = share.trim().parse().map_err(|_| format!("`{share}` is no percentage"))?;
    if !(0.0..=50.0).contains(&percent) {
        return Err(format!("a loss of {percent} % is not between 0 and 50"));
    }
    Ok((percent * 10_000.0).round() as u32)
}

/// `500ms-after-2s`
fn cut_from(text: &str) -> Result<Cut, String> {
    let both = text.split_once("-after-");
    let (length, after) =
        both.ok_or_else(|| format!("`cut-{text}` is not like `cut-500ms-after-2s`"))?;
    let ms = |text| quantity::time(text).map(|time| time.as_millis() as u64);
    Ok(Cut { after_ms: ms(after)?, for_ms: ms(length)? })
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];
        match self.bits {
            None => f.write_str("unshaped")?,
            Some(bits) => {
                let fits = units.into_iter().find(|(_, unit)| bits % unit == 0);
                fits.map_or(Ok(()), |(name, unit)| write!(f, "{}{name}", bits / unit))?;
            }
        }
        if self.delay_us > 0 {
            write!(f, "+{}ms", self.delay_us as f64 / 1e3)?;
        }
        if self.loss_ppm > 0 {
            write!(f, "+{}pct", f64::from(self.loss_ppm) / 1e4)?;
        }
        match self.cut {
            None => Ok(()),
            Some(Cut { after_ms, for_ms }) => write!(f, "+cut-{for_ms}ms-after-{after_ms}ms"),
        }
    }
}

impl From<Link> for String {
    fn from(link: Link) -> String {
        link.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_have_one_name() {
        for (text, name) in [
            ("unshaped", "unshaped"),
            ("1000 Mbit", "1gbit"),
            ("100mbit", "100mbit"),
            ("1gbit + 20ms + 1%", "1gbit+20ms+1pct"),
            ("0.5pct", "unshaped+0.5pct"),
            ("1gbit+cut-500ms-after-2s", "1gbit+cut-500ms-after-2000ms"),
        ] {
            let link = Link::try_from(text.to_owned()).expect(text);
            assert_eq!(link.to_string(), name);
            assert_eq!(Link::try_from(name.to_owned()), Ok(link));
        }
    }

    #[test]
    fn only_bad_weather_needs_a_relay_and_nonsense_is_refused() {
        let link = |text: &str| Link::try_from(text.to_owned());
        assert_eq!(link("1gbit").expect("a link").weather(), None);
        let weather = link("20ms+1%").expect("a link").weather().expect("weather");
        assert_eq!((weather.delay.as_millis(), weather.loss_ppm), (20, 10_000));
        assert!(link("unshaped+cut-1s-after-1s").expect("a link").weather().is_some());
        for nonsense in ["fast", "90%", "2000ms", "cut-1s", "x%"] {
            assert!(link(nonsense).is_err(), "{nonsense}");
        }
    }
}
