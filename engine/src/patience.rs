//! How long a silent host is borne with.

use blip_transport::link::quic::Settings;
use std::time::Duration;

/// Seconds without a sign of life after which the other host counts as gone,
/// where the usual second is too short: on emulated machines, and in tests that
/// stop a host. The shorter of both ends' counts.
const VARIABLE: &str = "BLIP_PATIENCE";

/// The settings of this host's links.
pub fn link_settings() -> Settings {
    let seconds = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
    let usual = Settings::default();
    let idle_timeout = seconds.map_or(usual.idle_timeout, Duration::from_secs);
    Settings { idle_timeout, ..usual }
}
