//! What the samples say, as tables.

use super::table::Table;
use super::{ArmRuns, Bench, Group};
use crate::plot::theme::{range_label, short, time_label};
use crate::probe::record::Latency;
use crate::run::sample::{Ended, Part, Sample};
use crate::stats::{Interval, faster, holm, median, median_interval, ratio_interval};

/// All tables that have something to say.
pub(super) fn all(bench: &Bench) -> Vec<Table> {
    let mut tables: Vec<Table> = bench.groups.iter().map(|g| outcome(bench, g)).collect();
    if let Some(first) = tables.first_mut() {
        first.note = format!("{} {READING}", first.note);
    }
    tables.extend([
        prediction(bench),
        claims(bench),
        latencies(bench),
        strangers(bench),
        noise(bench),
    ]);
    tables.retain(|t| !t.rows.is_empty());
    tables
}

/// How to read the tables of outcomes.
const READING: &str = "Medians, [95 % confidence]. *Ratio*: median client gap over the shortest one. \
                       *Client gap*: longest time without an answer, from the order on. *Downtime*, \
                       *total*, *brownout*: as the mover tells them; of peers as the bench times them. *Sent*: bytes over the link ÷ \
                       memory moved. *Failed*: requests never answered well. *Verified*: runs in \
                       which the workload moved and every proof held; the others enter no median.";

/// Who was how fast: ratios first.
fn outcome(bench: &Bench, group: &Group) -> Table {
    let best = group.best().map(ArmRuns::gaps).unwrap_or_default();
    let rows = group.movers().map(|arm| {
        let gaps = arm.gaps();
        let ratio = ratio_interval(&gaps, &best);
        let mut row = vec![
            arm.name.clone(),
            ratio.map_or_else(|| "–".to_owned(), |r| format!("{}×", short(r.value))),
            interval(median_interval(&gaps)),
            interval(median_interval(&arm.downtimes())),
            of(arm.values(|s| Some(s.migration.as_ref()?.total_ms)), time_label),
            of(arm.values(sent_share), |share| format!("{}×", short(share))),
            of(arm.values(drained), time_label),
            of(arm.values(|s| Some(s.client.failed as f64)), short),
            format!("{} of {}", arm.good().count(), arm.samples.len()),
        ];
        if gaps.is_empty() {
            row[2] = arm.excuse();
        }
        row
    });
    let what = bench.scenarios.get(&group.scenario).cloned().unwrap_or_default();
    let own = group.own().map(ArmRuns::gaps).and_then(|gaps| median(&gaps));
    let own = own.map_or_else(String::new, |gap| {
        format!(" With nothing moved the client's longest gap is {}.", time_label(gap))
    });
    Table {
        title: group.title(),
        note: format!("{what}.{own}"),
        heads: vec![
            "arm",
            "ratio",
            "client gap",
            "downtime",
            "total",
            "sent",
            "brownout",
            "failed",
            "verified",
        ],
        rows: rows.collect(),
    }
}

/// How long memory followed after the resume; of blip only.
fn drained(sample: &Sample) -> Option<f64> {
    let report = sample.migration.as_ref().filter(|_| sample.peer.is_none())?;
    Some(report.lazy.drain_ms)
}

/// Bytes sent, as a share of the memory that was moved.
pub(super) fn sent_share(sample: &Sample) -> Option<f64> {
    let report = sample.migration.as_ref()?;
    let memory = report.memory_bytes as f64;
    // Peers do not count; what left the host is close enough.
    let sent = if report.bytes_sent > 0 { report.bytes_sent } else { sample.host_bytes };
    (memory > 0.0).then(|| sent as f64 / memory)
}

/// What was predicted of a run, and what came, in milliseconds.
pub(super) fn predicted(sample: &Sample) -> Option<(f64, f64)> {
    let report = sample.migration.as_ref()?;
    Some((report.predicted.as_ref()?.downtime_ms, report.downtime_ms))
}

/// How far a prediction was off, as a share of what came.
fn error(sample: &Sample) -> Option<f64> {
    let (predicted, observed) = predicted(sample)?;
    (observed > 0.0).then(|| (predicted - observed).abs() / observed)
}

/// Target, prediction, observation.
fn prediction(bench: &Bench) -> Table {
    let mut rows = Vec::new();
    let mut errors = Vec::new();
    for (group, arm) in movers(bench) {
        let own = arm.values(error);
        if own.is_empty() {
            continue;
        }
        errors.extend(own.iter().copied());
        let report = |s: &Sample| s.migration.clone();
        let target = arm.good().filter_map(report).find_map(|r| r.goal.downtime_ms);
        let met: Vec<bool> = arm.good().filter_map(report).filter_map(|r| r.met).collect();
        let methods: Vec<String> = arm.good().filter_map(report).map(|r| r.method).collect();
        let throttled = arm.values(|s| Some(f64::from(s.migration.as_ref()?.throttled_percent)));
        rows.push(vec![
            format!("{}: {}", group.title(), arm.name),
            most_common(&methods),
            target.map_or_else(|| "–".to_owned(), time_label),
            of(arm.values(|s| Some(predicted(s)?.0)), time_label),
            of(arm.values(|s| Some(predicted(s)?.1)), time_label),
            of(own, percent),
            match met.len() {
                0 => "–".to_owned(),
                all => format!("{} of {all}", met.iter().filter(|m| **m).count()),
            },
            of(throttled, |p| format!("{} %", short(p))),
        ]);
    }
    let overall = median(&errors).map_or_else(String::new, |error| {
        format!(" **Over all {} runs the median error is {}.**", errors.len(), percent(error))
    });
    Table {
        title: "Target, prediction, observation".to_owned(),
        note: format!(
            "Medians. *Predicted*: the downtime blip forecast when it froze the container. \
             *Error*: |predicted − observed| ÷ observed, the median of the runs'.{overall}"
        ),
        heads: vec![
            "scenario, link: arm",
            "method",
            "target",
            "predicted",
            "observed",
            "error",
            "met",
            "throttled",
        ],
        rows,
    }
}

/// Whether the best is better than the others, or just luckier.
fn claims(bench: &Bench) -> Table {
    let mut all = Vec::new();
    for group in &bench.groups {
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        let Some(best) = group.best() else { continue };
        for other in group.movers().filter(|a| a.name != best.name) {
            let (a, b) = (best.gaps(), other.gaps());
            let (Some(test), Some(ratio)) = (faster(&a, &b), ratio_interval(&b, &a)) else {
                continue;
            };
            values.push(test.p);
            rows.push(vec![
                format!("{}: {} against {}", group.title(), best.name, other.name),
                format!("{}×", short(ratio.value)),
                format!("{} – {}", short(ratio.low), short(ratio.high)),
                format!("{} / {}", a.len(), b.len()),
                format!("{:.4}", test.p),
            ]);
        }
        for (row, p) in rows.iter_mut().zip(holm(&values)) {
            row.push(format!("{p:.4}"));
            row.push(if p < 0.05 { "yes" } else { "not shown" }.to_owned());
        }
        all.extend(rows);
    }
    Table {
        title: "Is the shortest gap really shorter?".to_owned(),
        note: "The arm with the shortest median client gap against each other arm. *Ratio*: the \
               other's median ÷ its own, with 95 % confidence (bootstrap). *p*: share of all ways \
               to deal the runs out to the two arms that favour it as much (permutation test, \
               one-sided). *Corrected*: for all claims of one scenario and link together (Holm). Five runs \
               against five cannot give a p below 0.004."
            .to_owned(),
        heads: vec!["claim", "ratio", "confidence", "runs", "p", "corrected", "holds"],
        rows: all,
    }
}

/// The parts of a run, in their order.
const PARTS: [&str; 5] = ["before", "pre-copy", "downtime", "brownout", "after"];

/// p50 / p99 / p99.9 of a part, medians of the runs'.
fn three(arm: &ArmRuns, name: &str, parts: impl Fn(&Sample) -> &[Part]) -> String {
    let one = |value: fn(&Latency) -> u64| {
        let found = arm.values(|s| {
            let part = parts(s).iter().find(|p| p.name == name)?;
            (part.latency.count > 0).then(|| value(&part.latency) as f64 / 1e3)
        });
        of(found, time_label)
    };
    format!("{} / {} / {}", one(|l| l.p50_us), one(|l| l.p99_us), one(|l| l.p999_us))
}

/// What clients felt, part by part.
fn latencies(bench: &Bench) -> Table {
    let rows = movers(bench).filter(|(_, arm)| !arm.gaps().is_empty()).map(|(group, arm)| {
        let mut row = vec![format!("{}: {}", group.title(), arm.name)];
        row.extend(PARTS.map(|name| three(arm, name, |s| &s.client.parts)));
        row.push(of(arm.values(|s| s.client.recovery_95_ms), time_label));
        row
    });
    Table {
        title: "Latency of requests, by when they were due".to_owned(),
        note: "p50 / p99 / p99.9, medians of the runs', from the moment a request was *due* (open \
               loop), over a connection that was there before. *Recovered*: from the end of the \
               longest gap until a tenth of a second had 95 % of the answers in time that such a \
               stretch had before the order; in time is an answer within twice the usual p99, or a \
               millisecond above it, so what had piled up does not count."
            .to_owned(),
        heads: [&["scenario, link: arm"], &PARTS[..], &["recovered"]].concat(),
        rows: rows.collect(),
    }
}

/// What clients felt that were not connected before.
fn strangers(bench: &Bench) -> Table {
    let fresh = |s: &Sample| s.client.fresh.clone();
    fn parts(sample: &Sample) -> &[Part] {
        sample.client.fresh.as_ref().map_or(&[], |fresh| &fresh.parts)
    }
    let met = |arm: &ArmRuns| arm.good().any(|s| s.client.fresh.is_some());
    let rows = movers(bench).filter(|(_, arm)| met(arm)).map(|(group, arm)| {
        let name = format!("{}: {}", group.title(), arm.name);
        let mut row = vec![name, of(arm.values(|s| Some(fresh(s)?.gap_ms)), time_label)];
        row.push(of(arm.values(|s| Some(fresh(s)?.failed as f64)), short));
        row.extend(PARTS.map(|name| three(arm, name, parts)));
        row
    });
    Table {
        title: "New connections".to_owned(),
        note:
            "One for each request, twenty a second unless the plan says otherwise, at times that \
               do not depend on the server; latencies from the moment a request was due, the \
               handshake included. *Gap*: the longest time without an answer to any of them; it \
               cannot be shorter than the time between two. *Failed*: refused, reset, or never \
               answered, from the order on. A SYN that finds nobody is sent again by the client's \
               kernel after a second."
                .to_owned(),
        heads: [&["scenario, link: arm", "gap", "failed"], &PARTS[..]].concat(),
        rows: rows.collect(),
    }
}

/// What to hold against all of this.
fn noise(bench: &Bench) -> Table {
    let rows = bench.groups.iter().filter_map(|group| {
        let own = group.own()?;
        let all = || group.arms.iter().flat_map(|a| &a.samples);
        let worst = |value: fn(&Sample) -> f64| all().map(value).fold(0.0, f64::max);
        let warned = all().filter(|s| !s.noise.warnings.is_empty()).count();
        let failed = all().filter(|s| s.ended == Ended::Failed).count();
        Some(vec![
            group.title(),
            interval(median_interval(&own.gaps())),
            time_label(own.gaps().into_iter().fold(0.0, f64::max)),
            time_label(worst(|s| s.client.stall.longest_ms)),
            format!("{} %", short(worst(|s| s.noise.steal_percent))),
            short(worst(|s| s.noise.load)),
            format!("{warned} of {}", all().count()),
            failed.to_string(),
        ])
    });
    Table {
        title: "What the bench itself costs".to_owned(),
        note: "With nothing moved: the client's longest gap in two seconds, median and worst. \
               Then the worst of all runs: how long the bench itself was not scheduled, time \
               taken by a hypervisor, load in the minute before. It is subtracted nowhere."
            .to_owned(),
        heads: vec![
            "scenario, link",
            "own gap",
            "worst",
            "own stall",
            "stolen",
            "load",
            "warned",
            "failed",
        ],
        rows: rows.collect(),
    }
}

fn movers(bench: &Bench) -> impl Iterator<Item = (&Group, &ArmRuns)> {
    bench.groups.iter().flat_map(|group| group.movers().map(move |arm| (group, arm)))
}

/// A median in words; a dash of none.
fn of(values: Vec<f64>, label: impl Fn(f64) -> String) -> String {
    median(&values).map_or_else(|| "–".to_owned(), label)
}

fn interval(interval: Option<Interval>) -> String {
    let Some(Interval { value, low, high, .. }) = interval else { return "–".to_owned() };
    format!("**{}** [{}]", time_label(value), range_label(&time_label(low), &time_label(high)))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn most_common(words: &[String]) -> String {
    let count = |word: &String| words.iter().filter(|w| *w == word).count();
    words.iter().max_by_key(|w| count(w)).cloned().unwrap_or_default()
}
