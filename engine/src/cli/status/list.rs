//! `blip status`: what is under way on this host, what is in doubt, and what
//! ended.

use crate::cgroup::{Freezer, Version};
use crate::cli::Places;
use crate::cli::forward::line as forward_line;
use crate::forward::{self, Forward};
use crate::history::{End, Ended, History, Running, Side, now};
use crate::ledger::{Ledger, SourceRecord, TargetRecord, TargetStep};
use crate::text::{brief_time, hang, printable, time};
use clap::Args;
use serde::Serialize;
use std::io::{self, Write};
use std::process::ExitCode;

/// How to list.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// How many of the ended migrations to list, the latest first
    #[arg(long, value_name = "N", default_value_t = 10)]
    last: usize,
}

/// All that there is to tell.
#[derive(Default, Serialize)]
struct Status {
    /// Under way.
    running: Vec<Running>,
    /// Frozen here; may have been granted away.
    in_doubt: Vec<Doubt>,
    /// Came in, and did not get to their end.
    unfinished: Vec<TargetRecord>,
    /// Still forwarded from here.
    forwarded: Vec<Forward>,
    /// Ended, the latest first.
    ended: Vec<Ended>,
}

#[derive(Serialize)]
struct Doubt {
    #[serde(flatten)]
    record: SourceRecord,
    /// Whether it still stands still here.
    frozen: bool,
}

pub(crate) fn status(args: &StatusArgs, places: &Places) -> anyhow::Result<ExitCode> {
    let status = gather(args.last, places)?;
    let mut out = io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?;
    } else {
        write!(out, "{}", text(&status, now()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn gather(last: usize, places: &Places) -> anyhow::Result<Status> {
    let history = History::of(&places.state);
    let running = history.running();
    // Records are written ahead: those of a migration under way say nothing.
    let at_work = |ticket: String| running.iter().any(|state| state.ticket == ticket);
    let departures: Vec<SourceRecord> = super::departures(places)?.all()?;
    let in_doubt = departures
        .into_iter()
        .filter(|record| !at_work(record.ticket.to_string()))
        .map(|record| Doubt { frozen: is_frozen(&record), record })
        .collect();
    let arrivals: Vec<TargetRecord> = Ledger::open(&places.state.join("arrivals"))?.all()?;
    let open = |step| matches!(step, TargetStep::Staged | TargetStep::Granted);
    let unfinished = arrivals
        .into_iter()
        .filter(|record| open(record.step) && !at_work(record.ticket.to_string()))
        .collect();
    let forwarded = forward::all()?;
    Ok(Status { in_doubt, unfinished, forwarded, ended: history.ended(last), running })
}

fn is_frozen(record: &SourceRecord) -> bool {
    let version = if record.unified { Version::V2 } else { Version::V1 };
    Freezer { path: record.freezer.clone(), version }.is_frozen().unwrap_or(false)
}

/// The lists, at most 80 columns wide.
fn text(status: &Status, now: u64) -> String {
    let mut parts = Vec::new();
    let mut list = |title: &str, entries: Vec<String>| {
        if !entries.is_empty() {
            parts.push(format!("{title}\n{}\n", entries.join("\n")));
        }
    };
    list("Under way", status.running.iter().map(|state| running(state, now)).collect());
    list("In doubt", status.in_doubt.iter().map(doubt).collect());
    list("Came in and did not finish", status.unfinished.iter().map(unfinished).collect());
    let forwarded = status.forwarded.iter();
    list("Forwarded", forwarded.map(|forward| forward_line(forward, now)).collect());
    list("Ended", status.ended.iter().map(|ended| one_ended(ended, now)).collect());
    if parts.is_empty() {
        return "No migration is under way, and none is remembered.\n".into();
    }
    parts.join("\n")
}

fn running(state: &Running, now: u64) -> String {
    let phase = match (state.phase, state.round) {
        (Some(crate::event::Phase::PreCopy), Some(round)) => format!("round {}", round.next()),
        (Some(phase), _) => phase.name().replace('_', "-"),
        (None, _) => "begins".into(),
    };
    let age = now.saturating_sub(state.began);
    let age = brief_time(age as f64 * 1e3);
    let tail = format!("pid {}", state.pid);
    row(&age, &state.container, state.side, &state.peer, &phase, &tail, &state.ticket)
}

fn one_ended(ended: &Ended, now: u64) -> String {
    let outcome = match (ended.outcome, ended.side) {
        (End::Moved, Side::Source) => "moved",
        (End::Moved, Side::Target) => "arrived",
        (End::Kept, Side::Source) => "stayed",
        (End::Kept, Side::Target) => "left out",
        (End::InDoubt, _) => "in doubt",
        (End::Died, _) => "died",
    };
    let ago = ago(now.saturating_sub(ended.ended));
    let downtime = ended.downtime_ms.map_or("-".to_owned(), time);
    let ticket = &ended.ticket;
    let row = row(&ago, &ended.container, ended.side, &ended.peer, outcome, &downtime, ticket);
    match &ended.why {
        Some(why) => row + "\n" + &hang(&" ".repeat(14), &printable(why)),
        None => row,
    }
}

/// 2 + 12 + 16 + 23 + 10 + 9 + 8 columns.
fn row(
    when: &str,
    name: &str,
    side: Side,
    peer: &str,
    how: &str,
    tail: &str,
    ticket: &str,
) -> String {
    let way = match side {
        Side::Source => format!("to {peer}"),
        Side::Target => format!("from {peer}"),
    };
    let (name, way) = (cut(name, 15), cut(&way, 21));
    format!("  {when:<11} {name:<15} {way:<21} {how:<8} {tail:>9} {ticket:.8}")
}

/// At most so many characters, the last one a dot if there were more.
fn cut(text: &str, most: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

fn doubt(doubt: &Doubt) -> String {
    let record = &doubt.record;
    let state = if doubt.frozen { "is frozen here" } else { "runs here" };
    let text = format!(
        "{} {state} and may have been granted to {}; `blip resolve` asks. Ticket {}",
        record.name, record.target, record.ticket
    );
    hang("  ", &printable(&text))
}

fn unfinished(record: &TargetRecord) -> String {
    let container = record.container.as_deref().unwrap_or("none");
    let state = match record.step {
        TargetStep::Granted => "may have run here",
        _ => "never ran here",
    };
    hang("  ", &format!("container {container:.12}, {state}. Ticket {}", record.ticket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Phase;
    use crate::handover::Ticket;
    use crate::text::WIDTH;
    use blip_transport::units::Round;

    fn at_work(side: Side, container: &str, peer: &str) -> Running {
        Running {
            ticket: Ticket(0x0123_4567 << 96).to_string(),
            side,
            container: container.into(),
            peer: peer.into(),
            phase: Some(Phase::PreCopy),
            round: Some(Round(2)),
            began: 988,
            pid: 4711,
            started: 1,
        }
    }

    fn gone(outcome: End, ended: u64) -> Ended {
        Ended {
            ticket: Ticket(0x89ab_cdef << 96).to_string(),
            side: Side::Source,
            container: "web".into(),
            peer: "hostb".into(),
            outcome,
            why: None,
            began: 900,
            ended,
            method: None,
            downtime_ms: Some(79.42),
            target_ms: None,
            predicted_ms: None,
            bytes_sent: None,
        }
    }

    #[test]
    fn a_host_tells_what_goes_on_and_what_went_on() {
        let why =
            "the downtime would be 2.41 s, 24 times the target, and --on-miss abort was given";
        let status = Status {
            running: vec![
                at_work(Side::Source, "web", "hostb"),
                at_work(Side::Target, "a-container-with-a-long-name", "fe80::dead:beef:dead:beef"),
            ],
            ended: vec![
                gone(End::Moved, 995),
                Ended { why: Some(why.into()), downtime_ms: None, ..gone(End::Kept, 400) },
                Ended { side: Side::Target, ..gone(End::Moved, 400) },
            ],
            ..Status::default()
        };
        let text = text(&status, 1000);
        assert_eq!(
            text,
            "\
Under way
  12.0 s      web             to hostb              round 3   pid 4711 01234567
  12.0 s      a-container-wi… from fe80::dead:beef… round 3   pid 4711 01234567

Ended
  5 s ago     web             to hostb              moved      79.4 ms 89abcdef
  10 min ago  web             to hostb              stayed           - 89abcdef
              the downtime would be 2.41 s, 24 times the target, and --on-miss
              abort was given
  10 min ago  web             from hostb            arrived    79.4 ms 89abcdef
"
        );
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn what_needs_somebody_to_act_has_its_whole_ticket() {
        let record = SourceRecord {
            ticket: Ticket(7),
            container: "cafe".into(),
            name: "web".into(),
            init: 1,
            freezer: "/none".into(),
            unified: true,
            target: "hostb:4433".into(),
            remove_source: false,
            close_connections: false,
            forward: None,
            by_docker: None,
            remains: Default::default(),
            at: 0,
        };
        let arrival = TargetRecord {
            ticket: Ticket(8),
            container: Some("0123456789abcdef".into()),
            step: TargetStep::Granted,
            source: "key".into(),
            made: Default::default(),
        };
        let status = Status {
            in_doubt: vec![Doubt { record, frozen: true }],
            unfinished: vec![arrival],
            ..Status::default()
        };
        assert_eq!(
            text(&status, 0),
            "\
In doubt
  web is frozen here and may have been granted to hostb:4433; `blip resolve`
  asks. Ticket 00000000000000000000000000000007

Came in and did not finish
  container 0123456789ab, may have run here. Ticket
  00000000000000000000000000000008
"
        );
    }

    #[test]
    fn a_host_with_nothing_to_tell_says_so() {
        let text = text(&Status::default(), 0);
        assert_eq!(text, "No migration is under way, and none is remembered.\n");
    }
}
