//! The demo's printout: what a newcomer wants to see, in 80 columns.
//!
//! Pure: a report goes in, text comes out. Colour is a [`Palette`]; without one
//! nothing is lost, for every mark is also a word or a sign.

use std::fmt::Write as _;

use blip_transport::units::ByteSize;

use super::report::{DemoReport, Outcome, PhaseTime, RoundReport, Series};

const WIDTH: usize = 80;
const BAR: usize = 44;

/// Escape sequences around what is emphasised; empty ones for plain text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Palette {
    head: &'static str,
    aside: &'static str,
    bar: &'static str,
    good: &'static str,
    bad: &'static str,
    end: &'static str,
}

impl Palette {
    /// No colour.
    pub const PLAIN: Palette = Palette { head: "", aside: "", bar: "", good: "", bad: "", end: "" };

    /// The terminal's own colours, sparingly.
    pub const COLOUR: Palette = Palette {
        head: "\x1b[1m",
        aside: "\x1b[2m",
        bar: "\x1b[36m",
        good: "\x1b[32m",
        bad: "\x1b[31m",
        end: "\x1b[0m",
    };
}

/// The printout without colour.
pub fn render(report: &DemoReport) -> String {
    render_in(report, &Palette::PLAIN)
}

/// The printout in the given colours.
pub fn render_in(report: &DemoReport, palette: &Palette) -> String {
    let mut page = Page { text: String::new(), palette };
    page.opening(report);
    page.rounds(report);
    page.downtime(report);
    page.client(report);
    page.lazy(report);
    page.proof(report);
    page.place(report);
    page.text
}

/// The table of several migrations and their medians.
pub fn render_series(series: &Series, palette: &Palette) -> String {
    let mut page = Page { text: String::new(), palette };
    page.section(&format!("{} migrations", series.runs.len()), "");
    page.aside("     run  outcome   client gap     downtime       total        sent  verified");
    let line = |gap, downtime, total, sent: f64| {
        let sent = ByteSize(sent as u64).to_string();
        format!("{gap:>10.1} ms{downtime:>10.1} ms{total:>9.0} ms{sent:>12}")
    };
    for (number, run) in (1..).zip(&series.runs) {
        let m = &run.migration;
        let times = line(run.client_gap_ms, m.downtime_ms, m.total_ms, m.bytes_sent as f64);
        let verified = if run.verified { "yes" } else { "NO" };
        page.line(&format!("  {number:>6} {:>8}{times}{verified:>10}", m.outcome.name()));
    }
    let times = line(series.client_gap_ms, series.downtime_ms, series.total_ms, series.bytes_sent);
    let verified = if series.verified { "all" } else { "NOT ALL" };
    page.line(&format!("  {:>6} {:>8}{times}{verified:>10}", "median", ""));
    page.text
}

struct Page<'a> {
    text: String,
    palette: &'a Palette,
}

impl Page<'_> {
    fn line(&mut self, text: &str) {
        self.text.push_str(text.trim_end());
        self.text.push('\n');
    }

    fn aside(&mut self, text: &str) {
        let Palette { aside, end, .. } = *self.palette;
        self.line(&format!("{aside}{text}{end}"));
    }

    /// A heading, its number, and in small what the number means.
    fn section(&mut self, title: &str, meaning: &str) {
        let Palette { head, aside, end, .. } = *self.palette;
        self.line("");
        let gap = if meaning.is_empty() { "" } else { "   " };
        self.line(&format!("{head}{title}{end}{gap}{aside}{meaning}{end}"));
    }

    fn opening(&mut self, report: &DemoReport) {
        let Palette { head, aside, good, bad, end, .. } = *self.palette;
        let (title, mood) = match report.migration.outcome {
            Outcome::Moved if report.verified => ("blip moved a busy Redis to another host", good),
            Outcome::Moved => ("blip moved a busy Redis, but not all of it is there", bad),
            Outcome::Kept => ("blip left Redis where it was", bad),
            Outcome::InDoubt => ("blip does not know who runs Redis: ask `blip resolve`", bad),
        };
        let verdict = if report.verified { "verified" } else { "NOT VERIFIED" };
        let space = " ".repeat(WIDTH.saturating_sub(width(title) + verdict.len()));
        self.line(&format!("{head}{title}{end}{space}{mood}{verdict}{end}"));
        let load = format!(
            "{} of data, {} acknowledged writes a second all the while",
            ByteSize(report.setting.data_bytes),
            grouped(u64::from(report.probe.rate)),
        );
        self.line(&format!("{aside}{load}{end}"));
        if let Some(why) = &report.migration.why {
            self.line(&format!("{bad}{why}{end}"));
        }
        self.line(&format!("{aside}{}{end}", "─".repeat(WIDTH)));
    }

    fn rounds(&mut self, report: &DemoReport) {
        let m = &report.migration;
        if m.rounds.is_empty() {
            return;
        }
        self.section("Copied ahead", "pages of 4 KiB, while Redis went on");
        self.aside(
            "   round     dirty      sent      zero unchanged   deduped        wire        ms",
        );
        for round in &m.rounds {
            self.round(round);
        }
        let share = percent(m.bytes_sent, m.memory_bytes);
        let [memory, sent] = [m.memory_bytes, m.bytes_sent].map(ByteSize);
        self.aside(&format!(
            "  {memory} of memory, {sent} sent in all ({share}), in {}",
            time(m.total_ms)
        ));
    }

    fn round(&mut self, round: &RoundReport) {
        let name = if round.frozen { "frozen".to_owned() } else { round.round.to_string() };
        let mut line = format!("  {name:>6}");
        for pages in [round.dirty, round.sent, round.zero, round.unchanged, round.deduplicated] {
            // Writing to a string cannot fail.
            let _ = write!(line, "{:>10}", grouped(pages));
        }
        let wire = ByteSize(round.bytes_wire).to_string();
        self.line(&format!("{line}{wire:>12}{:>10.1}", round.ms));
    }

    fn downtime(&mut self, report: &DemoReport) {
        let m = &report.migration;
        if m.downtime.is_empty() && m.downtime_ms == 0.0 {
            return;
        }
        let title = format!("Downtime {}", time(m.downtime_ms));
        self.section(&title, "frozen on the source → running on the target");
        let longest = m.downtime.iter().map(|p| p.ms).fold(0.0, f64::max);
        for phase in &m.downtime {
            self.bar(phase, longest);
        }
    }

    fn bar(&mut self, phase: &PhaseTime, longest: f64) {
        let Palette { bar, end, .. } = *self.palette;
        let eighths = if longest > 0.0 { phase.ms / longest * (BAR * 8) as f64 } else { 0.0 };
        // A phase that took any time is seen.
        let eighths = (eighths.round() as usize).max(usize::from(phase.ms > 0.0));
        let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
        let full = "█".repeat(eighths / 8);
        self.line(&format!("  {:<12}{:>9.1} ms  {bar}{full}{part}{end}", phase.phase, phase.ms));
    }

    fn client(&mut self, report: &DemoReport) {
        let probe = &report.probe;
        let title = format!("Client gap {}", time(report.client_gap_ms));
        self.section(&title, "the longest time a client got no answer");
        self.line(&format!(
            "  before the move {}; the harness' own longest stall {}, not subtracted",
            time(report.usual_gap_ms),
            time(probe.stall.longest_ms),
        ));
        let [p50, p99, max] = [probe.latency.p50_us, probe.latency.p99_us, probe.latency.max_us]
            .map(|us| time(us as f64 / 1e3));
        self.line(&format!("  latency: half within {p50}, 99 % within {p99}, all within {max}"));
        let connection = match probe.reconnects {
            0 => "the client's one connection lived on".to_owned(),
            n => format!(
                "connections lost: {n}, with {} writes unanswered",
                grouped(probe.unanswered)
            ),
        };
        self.line(&format!("  {connection}"));
    }

    fn lazy(&mut self, report: &DemoReport) {
        let lazy = &report.migration.lazy;
        if lazy.faults + lazy.from_store + lazy.from_source == 0 {
            return;
        }
        let meaning = "memory arrives after the container runs again";
        self.section(&format!("Complete after {}", time(lazy.drain_ms)), meaning);
        self.line(&format!(
            "  {} faults, half served within {} µs, 99 % within {} µs",
            grouped(lazy.faults),
            grouped(lazy.p50_us),
            grouped(lazy.p99_us),
        ));
        self.line(&format!(
            "  {} pages were there already, {} came late from the source",
            grouped(lazy.from_store),
            grouped(lazy.from_source),
        ));
    }

    fn proof(&mut self, report: &DemoReport) {
        self.section("Proof", "");
        if let Some(proof) = &report.proof {
            let writes = &proof.writes;
            let kept = writes.missing == 0 && writes.surplus == 0 && proof.faults == 0;
            self.check(
                kept && writes.acked > 0,
                &format!(
                    "{} of {} acknowledged writes are there, {}",
                    grouped(writes.found),
                    grouped(writes.acked),
                    if kept { "each of them once" } else { "see below" },
                ),
            );
            let short = |hex: &str| hex.chars().take(16).collect::<String>();
            let same = proof.before == proof.after && proof.server_agrees != Some(false);
            self.check(
                same,
                &if same {
                    let keys = grouped(proof.after.keys);
                    format!("{keys} keys: BLAKE3 {}… before and after", short(&proof.after.blake3))
                } else {
                    let [was, is] = [&proof.before, &proof.after].map(|d| short(&d.blake3));
                    format!("the dataset was {was}… and is {is}…")
                },
            );
            self.check(
                proof.same_process,
                if proof.same_process {
                    "the same Redis process answers: it never restarted"
                } else {
                    "another Redis process answers"
                },
            );
        }
        for objection in &report.objections {
            self.check(false, objection);
        }
    }

    fn check(&mut self, holds: bool, text: &str) {
        let Palette { good, bad, end, .. } = *self.palette;
        let mark = if holds { format!("{good}✓{end}") } else { format!("{bad}✗{end}") };
        self.line(&format!("  {mark} {text}"));
    }

    fn place(&mut self, report: &DemoReport) {
        let v = &report.migration.versions;
        let machine = &report.setting.machine;
        let redis = &report.setting.redis;
        let named = [
            ("blip", v.blip.to_string()),
            ("docker", v.docker.to_string()),
            ("criu", v.criu.to_string()),
            ("runc", v.runc.to_string()),
            ("redis", redis.clone()),
            ("kernel", machine.kernel.clone()),
        ];
        let named: Vec<String> = named
            .iter()
            .filter(|(_, version)| !version.is_empty())
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        let memory = ByteSize(machine.memory_bytes);
        let mut machine_is = vec![format!("{} cores", machine.cores), memory.to_string()];
        machine_is.extend((!machine.processor.is_empty()).then(|| machine.processor.clone()));
        self.section("Where", "");
        for parts in [named, vec![report.setting.hosts.clone()], machine_is] {
            for line in wrapped(&parts) {
                self.line(&line);
            }
        }
    }
}

/// Parts joined by ` · `, two columns in, broken between parts at the width.
fn wrapped(parts: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts.iter().filter(|p| !p.is_empty()) {
        match lines.last_mut() {
            Some(line) if width(line) + 3 + width(part) <= WIDTH => {
                line.push_str(" · ");
                line.push_str(part);
            }
            _ => lines.push(format!("  {part}")),
        }
    }
    lines
}

/// Milliseconds as a person says them: `0.4 ms`, `38.2 ms`, `412 ms`, `4.5 s`.
fn time(ms: f64) -> String {
    match ms {
        _ if ms < 100.0 => format!("{ms:.1} ms"),
        _ if ms < 10_000.0 => format!("{} ms", grouped(ms.round() as u64)),
        _ => format!("{:.1} s", ms / 1e3),
    }
}

/// Digits in groups of three: `41 212`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "–".to_owned(),
        _ => format!("{:.0} %", part as f64 / whole as f64 * 100.0),
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests;
