//! How long a silent host is borne with, and steps that wait for somebody.

use blip_transport::link::quic::Settings;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Seconds without a sign of life after which the other host counts as gone,
/// where the usual second is too short: on emulated machines, and in tests that
/// stop a host. The shorter of both ends' counts.
const VARIABLE: &str = "BLIP_PATIENCE";

/// A step that waits while a file exists, which a variable names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// All is copied ahead and decided; the container runs on.
    Freeze,
    /// Both copies stand still, complete and the same, for whoever wants to
    /// compare them.
    Grant,
}

const GLANCE: Duration = Duration::from_millis(20);

/// The settings of this host's links.
pub fn link_settings() -> Settings {
    let usual = Settings::default();
    Settings { idle_timeout: asked().unwrap_or(usual.idle_timeout), ..usual }
}

/// How long nothing may be heard of the target while the container stands still:
/// five signs of life missed, and it runs again within two seconds.
pub fn silence_limit() -> Duration {
    asked().unwrap_or(Duration::from_secs(1))
}

impl Hold {
    /// What waits.
    pub fn name(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Grant => "grant",
        }
    }

    /// The file that holds it back, if there is one.
    pub fn file(self) -> Option<PathBuf> {
        let variable = match self {
            Self::Freeze => "BLIP_HOLD_FREEZE_WHILE",
            Self::Grant => "BLIP_HOLD_WHILE",
        };
        std::env::var_os(variable).map(PathBuf::from).filter(|path| path.exists())
    }
}

/// Returns when the file is gone.
pub async fn until_gone(path: &Path) {
    while path.exists() {
        tokio::time::sleep(GLANCE).await;
    }
}

fn asked() -> Option<Duration> {
    let seconds = std::env::var(VARIABLE).ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}
