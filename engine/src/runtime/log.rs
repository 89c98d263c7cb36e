//! Telling Docker why a runtime command failed.
//!
//! containerd reads the last line of level `error` from the file named by
//! `--log` and shows its `msg` to the user.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use super::args::Global;

/// Writes `why` to the log file of the command, in its format, and to
/// standard error. A log that cannot be written is not another error.
pub(super) fn report(global: &Global, why: &str) {
    let _ = writeln!(std::io::stderr(), "blip runtime: {why}");
    let Some(path) = &global.log else { return };
    let line = if global.log_json {
        serde_json::json!({"level": "error", "msg": why, "time": rfc3339(SystemTime::now())})
            .to_string()
    } else {
        format!("time=\"{}\" level=error msg={why:?}", rfc3339(SystemTime::now()))
    };
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
        let _ = writeln!(file, "{line}");
    }
}

/// `2026-01-02T03:04:05Z`, by the proleptic Gregorian calendar.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let secs = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, of_day) = (secs / 86_400, secs % 86_400);
    let (mut year, mut day) = (1970u64, days);
    let leap = |y: u64| y.is_multiple_of(4) && !y.is_multiple_of(100) || y.is_multiple_of(400);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (h, m, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{:02}T{h:02}:{m:02}:{s:02}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_right_around_leap_days() {
        let at = |secs| rfc3339(UNIX_EPOCH + Duration::from_secs(secs));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(at(1_772_323_200), "2026-03-01T00:00:00Z");
    }

    #[test]
    fn the_reason_reaches_the_log_as_json() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.json");
        let global = Global { log: Some(log.clone()), log_json: true, ..Global::default() };
        report(&global, "no \"room\"");
        let line = std::fs::read_to_string(log).unwrap();
        let json: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
        assert_eq!(json["level"], "error");
        assert_eq!(json["msg"], "no \"room\"");
    }
}
