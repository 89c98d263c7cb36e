//! What the samples say, as tables.

use super::table::Table;
use super::{ArmRuns, Bench, Group};
use crate::plot::theme::{range_label, short, time_label};
use crate::run::sample::{Ended, Sample};
use crate::stats::{Interval, faster, holm, median, median_interval, ratio_interval};

/// All tables that have something to say.
pub(super) fn all(bench: &Bench) -> Vec<Table> {
    let mut tables: Vec<Table> = bench.groups.iter().map(|g| outcome(bench, g)).collect();
    if let Some(first) = tables.first_mut() {
        first.note = format!("{} {READING}", first.note);
    }
    tables.extend([prediction(bench), claims(bench), latencies(bench), noise(bench)]);
    tables.retain(|t| !t.rows.is_empty());
    tables
}

/// How to read the tables of outcomes.
const READING: &str = "Medians, [95 % confidence]. *Ratio*: median client gap over the shortest one. \
                       *Client gap*: longest time without an answer, from the order on. *Downtime*, \
                       *total*, *brownout*: as the mover tells them. *Sent*: bytes over the link ÷ \
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
            of(arm.values(|s| Some(s.migration.as_ref()?.lazy.drain_ms)), time_label),
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

/// Bytes sent, as a share of the memory that was moved.
pub(super) fn sent_share(sample: &Sample) -> Option<f64> {
    let report = sample.migration.as_ref()?;
    let memory = report.memory_bytes as f64;
    (memory > 0.0).then(|| report.bytes_sent as f64 / memory)
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

/// What clients felt, part by part.
fn latencies(bench: &Bench) -> Table {
    let mut rows = Vec::new();
    for (group, arm) in movers(bench) {
        let part = |name: &str, value: fn(&crate::probe::record::Latency) -> u64| {
            let found = arm.values(|s| {
                let part = s.client.parts.iter().find(|p| p.name == name)?;
                (part.latency.count > 0).then(|| value(&part.latency) as f64 / 1e3)
            });
            of(found, time_label)
        };
        let three = |name: &str| {
            format!(
                "{} / {} / {}",
                part(name, |l| l.p50_us),
                part(name, |l| l.p99_us),
                part(name, |l| l.p999_us)
            )
        };
        if arm.gaps().is_empty() {
            continue;
        }
        let names = ["before", "pre-copy", "downtime", "brownout", "after"];
        let mut row = vec![format!("{}: {}", group.title(), arm.name)];
        row.extend(names.map(three));
        row.push(of(arm.values(|s| s.client.recovery_ms), time_label));
        rows.push(row);
    }
    Table {
        title: "Latency of requests, by when they were due".to_owned(),
        note: "p50 / p99 / p99.9, medians of the runs', from the moment a request was *due* (open \
               loop). *Recovered*: from the end of the longest gap until a tenth of a second was as \
               quick as before."
            .to_owned(),
        heads: vec![
            "scenario, link: arm", "before", "pre-copy", "downtime", "brownout", "after",
            "recovered",
        ],
        rows,
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
