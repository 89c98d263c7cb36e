//! The log of a migration: a line per phase, round and decision, for a file as
//! well as for a terminal.

use crate::event::{Event, Forecast, Phase, RoundReport, Timed};
use crate::plan::Method;
use crate::text::{count, hang, printable, rate, time};
use blip_transport::units::{Bandwidth, ByteSize};
use std::time::Duration;

/// Makes lines of events, and remembers what need not be said again.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// The method of the forecast that was shown last.
    method: Option<Method>,
}

impl Lines {
    /// What to print for an event, without the last line break; `None`:
    /// nothing.
    pub(crate) fn of(&mut self, timed: &Timed) -> Option<String> {
        let (label, text) = match &timed.event {
            Event::Begin { phase: phase @ (Phase::Stage | Phase::PreCopy | Phase::Drain) } => {
                (phase.name().to_owned(), beginning(*phase).to_owned())
            }
            Event::End { phase, ms } => (phase.name().to_owned(), format!("done in {}", time(*ms))),
            Event::Round(report) => {
                let label = if report.frozen { "frozen" } else { "round" };
                (format!("{label} {}", report.round), round(report))
            }
            Event::Decision { what, why } => ("decision".into(), format!("{what}: {why}")),
            Event::Forecast(forecast) if self.method != Some(forecast.method) => {
                self.method = Some(forecast.method);
                ("forecast".into(), foretold(forecast))
            }
            Event::Throttle { percent: 0 } => {
                ("throttle".into(), "the container has all its CPU time again".into())
            }
            Event::Throttle { percent } => {
                ("throttle".into(), format!("{percent} % of the container's CPU time is taken"))
            }
            Event::Note { text } => ("note".into(), text.clone()),
            Event::CalledOff { why } => ("called off".into(), why.clone()),
            Event::Begin { .. } | Event::Progress(_) | Event::Forecast(_) | Event::Finished(_) => {
                return None;
            }
        };
        Some(entry(timed.at_ms, &label, &text))
    }
}

/// One entry of the log: `   1.23 s  label      text`.
fn entry(at_ms: f64, label: &str, text: &str) -> String {
    let head = format!("{:>7.2} s  {label:<10} ", at_ms / 1e3);
    hang(&head, &printable(text))
}

fn beginning(phase: Phase) -> &'static str {
    match phase {
        Phase::Stage => "the target prepares the container",
        Phase::PreCopy => "copying while the container runs",
        Phase::Drain => "it runs on the target; what memory is left follows",
        _ => "",
    }
}

fn round(report: &RoundReport) -> String {
    let took = Duration::from_secs_f64((report.ms / 1e3).max(0.0));
    let speed = Bandwidth::over(report.bytes_wire, took);
    let mut text = format!(
        "{} dirty, {} sent in {}, {}",
        report.dirty.bytes(),
        report.bytes_wire,
        time(report.ms),
        rate(speed)
    );
    if report.held_back.0 > 0 {
        text += &format!("; {} held back", report.held_back.bytes());
    }
    text
}

fn foretold(forecast: &Forecast) -> String {
    format!(
        "{}: {} of downtime after {} and {}, {:.0} % sure",
        forecast.method,
        time(forecast.downtime_ms),
        count(forecast.rounds.into(), "round"),
        ByteSize(forecast.bytes.0),
        forecast.confidence * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::WIDTH;
    use blip_transport::units::{PageCount, Round};

    fn line(at_ms: f64, event: Event) -> String {
        Lines::default().of(&Timed { at_ms, event }).unwrap()
    }

    fn report() -> RoundReport {
        RoundReport {
            round: Round(12),
            dirty: PageCount(65_536),
            bytes_wire: ByteSize(150 << 20),
            ms: 1500.0,
            ..RoundReport::default()
        }
    }

    #[test]
    fn a_round_is_one_line() {
        assert_eq!(
            line(1920.4, Event::Round(report())),
            "   1.92 s  round 12   256.0 MiB dirty, 150.0 MiB sent in 1.50 s, 100.0 MiB/s"
        );
    }

    #[test]
    fn pages_held_back_are_named() {
        let report = RoundReport { frozen: true, held_back: PageCount(512), ..report() };
        assert_eq!(
            line(1_920_400.0, Event::Round(report)),
            "1920.40 s  frozen 12  256.0 MiB dirty, 150.0 MiB sent in 1.50 s, 100.0 MiB/s;\n\
             \x20                     2.0 MiB held back"
        );
    }

    #[test]
    fn a_long_reason_hangs_under_its_label_within_80_columns() {
        let event = Event::Decision {
            what: "freeze".into(),
            why: "1234 pages would take about 4.1 ms, and two rounds in a row found no fewer \
                  than the one before them did; \x1b[31mred"
                .into(),
        };
        let text = line(2100.0, event);
        assert_eq!(
            text,
            "   2.10 s  decision   freeze: 1234 pages would take about 4.1 ms, and two rounds\n\
             \x20                     in a row found no fewer than the one before them did;\n\
             \x20                     [31mred"
        );
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn a_forecast_is_said_again_only_for_another_method() {
        let mut lines = Lines::default();
        let mut forecast = |method| {
            let forecast = Forecast {
                method,
                rounds: 4,
                bytes: ByteSize(3 << 30),
                total_ms: 3000.0,
                downtime_ms: 83.0,
                downtime: Vec::new(),
                brownout_ms: 0.0,
                met: Some(true),
                confidence: 0.8,
            };
            lines.of(&Timed { at_ms: 0.0, event: Event::Forecast(forecast) })
        };
        assert_eq!(
            forecast(Method::Hybrid).unwrap(),
            "   0.00 s  forecast   hybrid: 83.0 ms of downtime after 4 rounds and 3.0 GiB,\n\
             \x20                     80 % sure"
        );
        assert_eq!(forecast(Method::Hybrid), None);
        assert!(forecast(Method::PostCopy).is_some());
    }
}
