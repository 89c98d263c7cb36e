//! Results as text: every row as CSV, and tables that sum them up.

use super::run::{POLICIES, Result, Wish, cases, ways_of_holding};
use super::workload::{Habit, MEMORY, SQUEEZE};
use blip_engine::plan::Method;
use blip_engine::plan::rehearsal::Outcome;
use std::fmt::Write as _;

/// Every row.
pub(super) fn csv(results: &[Result]) -> String {
    let mut text = String::from(
        "wish,workload,link,rtt,policy,met,rest_left,gave_up,downtime_ms,predicted_ms,finished_ms,\
         brownout_ms,remote_ms,rounds,wire_bytes,throttled_percent,regret_ms\n",
    );
    for r in results {
        let predicted = r.predicted_ms.map_or(String::new(), |ms| format!("{ms:.2}"));
        let _ = writeln!(
            text,
            "\"{}\",{},{},{},{},{},{},{},{},{predicted},{},{},{},{},{},{},{}",
            r.wish,
            r.workload,
            r.link,
            r.rtt,
            r.policy,
            r.met,
            r.left,
            r.gave_up,
            r.downtime_ms,
            r.finished_ms,
            r.brownout_ms,
            r.remote_ms,
            r.rounds,
            r.wire.0,
            r.throttled_percent,
            r.regret_ms,
        );
    }
    text
}

/// The tables.
pub(super) fn tables(results: &[Result]) -> String {
    let mut text = String::new();
    for wish in Wish::ALL {
        let of_wish: Vec<&Result> = results.iter().filter(|r| r.wish == wish.name()).collect();
        let _ = writeln!(text, "\n**{}**\n", title(wish));
        text.push_str(
            "| policy | met | downtime: median, p90, worst | rest left | GiB sent | regret: median, p90, worst |\n\
             |---|---|---|---|---|---|\n",
        );
        for policy in POLICIES.iter().map(|(name, _)| *name).chain(["oracle"]) {
            let rows: Vec<&Result> =
                of_wish.iter().copied().filter(|r| r.policy == policy).collect();
            if !rows.is_empty() {
                text.push_str(&row(policy, &rows));
            }
        }
    }
    let _ = writeln!(text, "\n**blip, by workload** (wish: target; 16 links each)\n");
    text.push_str(
        "| workload | met, oracle met | rest left | regret: median, worst | forecast error: median, p90 |\n\
         |---|---|---|---|---|\n",
    );
    for habit in Habit::ALL {
        text.push_str(&by_workload(results, habit));
    }
    text.push_str(&holding());
    text
}

/// What holding hot pages back saves.
fn holding() -> String {
    let mut text = format!(
        "
**Holding hot pages back** (no target; sums and medians over 16 links)

*Classic*: rounds until fewer than 1 000 pages are dirty, 30 at most. *Without*:
`--no-hold-back`. All memory must cross once, {:.2} GiB in all; *again* is what is
sent beyond that, the only bytes that holding back can save. The first round is
smaller with it than without.

| workload, method | GiB sent: classic, without, with | again: without → with | after the first round | downtime: without → with | rounds |
|---|---|---|---|---|---|
",
        16.0 * once(),
    );
    for habit in [Habit::HotSet, Habit::Skewed, Habit::Fast] {
        for method in [Method::PreCopy, Method::Hybrid] {
            let cases = cases();
            let cases = cases.iter().filter(|c| c.habit == habit && c.wish == Wish::Shortest);
            let tries: Vec<_> = cases.map(|case| ways_of_holding(case, method)).collect();
            let [classic, without, with] = [0, 1, 2].map(|way| Holding::of(&tries, way));
            let _ = writeln!(
                text,
                "| {}, {method} | {:.1}, {:.2}, {:.2} | {} | {} | {} → {} | {} → {} |",
                habit.name(),
                classic.sent,
                without.sent,
                with.sent,
                fewer(without.again, with.again),
                fewer(without.later, with.later),
                time(without.downtime),
                time(with.downtime),
                without.rounds,
                with.rounds
            );
        }
    }
    text
}

/// GiB on the link if all memory crosses once.
fn once() -> f64 {
    MEMORY.bytes().0 as f64 * SQUEEZE / f64::from(1 << 30)
}

/// What a way of holding back comes to: GiB in all, medians of the rest.
struct Holding {
    sent: f64,
    again: f64,
    later: f64,
    downtime: f64,
    rounds: f64,
}

impl Holding {
    fn of(tries: &[[Outcome; 3]], way: usize) -> Self {
        let of = |f: &dyn Fn(&Outcome) -> f64| sorted(tries.iter().map(|t| f(&t[way])));
        let sum = |f: &dyn Fn(&Outcome) -> f64| of(f).iter().sum::<f64>();
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        Self {
            sent: sum(&|o| gib(o.wire.0)),
            again: sum(&|o| (gib(o.wire.0) - once()).max(0.0)),
            later: sum(&|o| gib(o.wire.0.saturating_sub(o.first.0))),
            downtime: at(&of(&|o| o.downtime.as_secs_f64() * 1e3), 0.5),
            rounds: at(&of(&|o| f64::from(o.rounds)), 0.5),
        }
    }
}

/// `2.85 → 1.02 (-64 %)`.
fn fewer(without: f64, with: f64) -> String {
    let percent = (with / without.max(1e-9) - 1.0) * 100.0;
    format!("{without:.2} → {with:.2} ({percent:+.0} %)")
}

fn title(wish: Wish) -> &'static str {
    match wish {
        Wish::Shortest => "No target: the shortest downtime",
        Wish::Target => "Target: fixed cost + 60 ms",
        Wish::TargetThrottled => "The same target, with --throttle auto",
        Wish::Deadline => "Deadline: running on the target within 30 s",
    }
}

fn row(policy: &str, rows: &[&Result]) -> String {
    let n = rows.len();
    let met = rows.iter().filter(|r| r.met).count();
    let left = rows.iter().filter(|r| r.left).count();
    let all = |f: fn(&Result) -> f64| sorted(rows.iter().map(|r| f(r)));
    let (down, regret) = (all(|r| r.downtime_ms), all(|r| r.regret_ms));
    let sent = all(|r| r.wire.0 as f64 / f64::from(1 << 30));
    format!(
        "| {policy} | {met} of {n} | {}, {}, {} | {left} | {:.2} | {} |\n",
        time(at(&down, 0.5)),
        time(at(&down, 0.9)),
        time(at(&down, 1.0)),
        sent.iter().sum::<f64>() / n as f64,
        match policy {
            "oracle" => "–".into(),
            _ => format!(
                "{}, {}, {}",
                time(at(&regret, 0.5)),
                time(at(&regret, 0.9)),
                time(at(&regret, 1.0))
            ),
        }
    )
}

fn by_workload(results: &[Result], habit: Habit) -> String {
    let of = |policy: &'static str| {
        results.iter().filter(move |r| {
            r.policy == policy && r.workload == habit.name() && r.wish == Wish::Target.name()
        })
    };
    let met = |policy| of(policy).filter(|r| r.met).count();
    let regret = sorted(of("blip").map(|r| r.regret_ms));
    let error = sorted(of("blip").filter_map(error));
    format!(
        "| {} | {}, {} | {} | {}, {} | {:.0} %, {:.0} % |\n",
        habit.name(),
        met("blip"),
        met("oracle"),
        of("blip").filter(|r| r.left).count(),
        time(at(&regret, 0.5)),
        time(at(&regret, 1.0)),
        at(&error, 0.5) * 100.0,
        at(&error, 0.9) * 100.0,
    )
}

/// How far off the forecast was, relative to the downtime.
pub(super) fn error(result: &Result) -> Option<f64> {
    result.predicted_ms.map(|ms| (ms - result.downtime_ms).abs() / result.downtime_ms.max(0.1))
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn at(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1) as f64;
    sorted.get((share * last).round() as usize).copied().unwrap_or(0.0)
}

fn time(ms: f64) -> String {
    match ms.abs() {
        abs if abs < 9.95 => format!("{ms:.1} ms"),
        abs if abs < 9_999.5 => format!("{ms:.0} ms"),
        _ => format!("{:.0} s", ms / 1e3),
    }
}

/// The folder's README.
pub(super) fn readme(results: &[Result]) -> String {
    let scenarios = Habit::ALL.len() * 16;
    format!(
        "# The planner under virtual time

Made by `cargo run --release -p blip-bench -- simulate`; the same every time. No
container, no network and no clock took part: this says whether the planner
decides well, not how fast blip is.

{scenarios} scenarios: eight workloads in 1 GiB of memory × 100 Mbit/s, 1, 10, 25 Gbit/s ×
round trips of 0.1, 1, 10, 100 ms. Pages compress to 0.8; no more than 1.5 GB/s
can be read and encoded, and no more than 2 MiB are on their way at once, which is
less than blip's links allow by now: a round trip of 100 ms leaves 21 MB/s. Speeds vary by ±8 % and
writing by ±15 % from one quarter of a second to the next; the true fixed costs
differ from what the planner takes them for by up to 10 % per phase.

Workloads: **idle**; **uniform** (20 MB/s anywhere); **hot set** (200 MB/s to
64 MiB); **skewed** (some pages often, many seldom); **phases** (4 s of 150 MB/s
to 128 MiB, 4 s of quiet); **streaming** (walks through 512 MiB at 80 MB/s);
**fast writer** (600 MB/s to 512 MiB); **adversarial** (quiet until a round finds
little, then 250 MB/s for a second).

All policies freeze, restore and serve memory alike; they differ in when they
stop copying, in what they hold back and in whether they leave the rest on the
source. Only blip, and the oracle when it holds pages back, glance into a round
that is under way; the others do not look. The **oracle** knows what comes: it tries every quarter of a second and
every end of a round, with and without holding hot pages back, shipping the rest
or leaving it, in the very world that the planner saw. It does not throttle.

**Regret** is what a choice costs more than the oracle's, in milliseconds of
downtime, at these prices: a second until all is over 1 ms, leaving pages behind
20 ms, a second in which they are missing 5 ms. The prices are an opinion; the
raw rows are in `simulation.csv`. A negative regret is possible where a policy
misses a target that the oracle pays to meet.
{}
![Downtime by workload, link and policy](downtime.svg)

{}

What this leaves out: links that lose packets or start slowly, containers whose
memory grows, the CPU time that copying takes from the container.
",
        tables(results),
        misses(results),
    )
}

/// Where blip missed its target or its deadline.
fn misses(results: &[Result]) -> String {
    let missed = results.iter().filter(|r| r.policy == "blip" && !r.met);
    let lines: Vec<String> = missed
        .map(|r| {
            let (downtime, end) = (time(r.downtime_ms), time(r.finished_ms));
            let expected = r.predicted_ms.map_or("nothing".into(), time);
            format!(
                "* {}, {} at {}, wish {}: downtime {downtime}, {expected} was expected; \
                 running after {end}",
                r.workload, r.link, r.rtt, r.wish
            )
        })
        .collect();
    match lines.is_empty() {
        true => "blip met every target and every deadline.".into(),
        false => format!("What blip missed:\n\n{}", lines.join("\n")),
    }
}
