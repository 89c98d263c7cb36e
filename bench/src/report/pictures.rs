//! What the samples say, as pictures.

use std::path::Path;

use super::tables::{predicted, sent_share};
use super::{ArmRuns, Bench, Group};
use crate::plot::theme::{short, time_label};
use crate::plot::{bars, latency, lines, scatter, strip};
use crate::run::record;
use crate::run::sample::Sample;
use crate::stats::median;

/// A picture and the name of its file.
pub(super) struct Picture {
    pub(super) name: String,
    pub(super) svg: String,
}

/// The parts of a downtime, in their order.
const PARTS: [&str; 6] = ["freeze", "dump", "ship", "restore", "fill", "grant"];

/// All pictures that have something to show, the best first.
pub(super) fn all(bench: &Bench, dir: &Path) -> Vec<Picture> {
    let mut pictures = Vec::new();
    let mut add = |name: &str, svg: Option<String>| {
        if let Some(svg) = svg {
            pictures.push(Picture { name: name.to_owned(), svg });
        }
    };
    for group in &bench.groups {
        add(&format!("latency-{}-{}", group.scenario, group.link), through(group, dir));
    }
    add("client-gap", dots(bench, "Client gap", GAP, |arm| arm.gaps()));
    add("downtime", dots(bench, "Downtime", DOWNTIME, |arm| arm.downtimes()));
    add("parts", parts(bench));
    add("prediction", prediction(bench));
    add("bytes", sent(bench));
    add("memory", against_memory(bench, "Client gap", ArmRuns::gaps));
    add("memory-downtime", against_memory(bench, "Downtime", ArmRuns::downtimes));
    add("dirty-rate", against_rate(bench));
    pictures
}

const GAP: &str = "The longest time without an answer, as clients saw it. A dot is a run; the bar is \
                   the 95 % confidence of the median; log scale.";
const DOWNTIME: &str = "From the order to freeze until the target runs: as blip tells it, of peers as \
                        the bench times it. Dots: runs; bar: 95 % confidence; log scale.";

fn dots(
    bench: &Bench,
    title: &str,
    note: &str,
    values: impl Fn(&ArmRuns) -> Vec<f64>,
) -> Option<String> {
    strip::draw(title, note, &panels(bench, values), time_label)
}

fn panels(bench: &Bench, values: impl Fn(&ArmRuns) -> Vec<f64>) -> Vec<strip::Panel> {
    let row = |arm: &ArmRuns| strip::Row {
        name: arm.name.clone(),
        values: values(arm),
        remark: arm.excuse(),
    };
    let panel = |group: &Group| strip::Panel {
        title: group.title(),
        rows: group.movers().map(row).collect(),
    };
    bench.groups.iter().map(panel).collect()
}

/// One migration of each arm, the one whose gap is the median.
fn through(group: &Group, dir: &Path) -> Option<String> {
    let panels: Vec<_> = group.movers().filter_map(|arm| panel(arm, dir)).collect();
    let title = format!("What clients saw: {}", group.title());
    let note = "The run with the median gap of each arm. Bars: longest latency of the requests \
                answered in each 10 ms; thin line: 99th percentile. Log scale.";
    latency::draw(&title, note, &panels)
}

fn panel(arm: &ArmRuns, dir: &Path) -> Option<latency::Panel> {
    let sample = typical(arm)?;
    let trace = record::trace(dir, &sample.cell).ok()?;
    let order = trace.marks.iter().find(|m| m.label == "migrate")?.at_ms;
    let step = |bucket: &crate::probe::record::Bucket| latency::Step {
        at_ms: bucket.at_ms as f64 - order,
        max_ms: f64::from(bucket.max_us) / 1e3,
        p99_ms: f64::from(bucket.p99_us) / 1e3,
    };
    let gap = sample.client.gap;
    let told = sample.migration.as_ref().map(|m| m.downtime_ms);
    // Peers tell none.
    let downtime = told.filter(|ms| *ms > 0.0);
    let downtime = downtime.map_or_else(String::new, |d| format!(", downtime {}", time_label(d)));
    Some(latency::Panel {
        name: arm.name.clone(),
        remark: format!("longest silence {}{downtime}", time_label(gap.ms)),
        steps: trace.timeline.iter().map(step).collect(),
        gap: Some((gap.from_ms - order, gap.to_ms - order)),
        parts: sample
            .client
            .parts
            .iter()
            .filter(|p| !["before", "after"].contains(&p.name.as_str()))
            .map(|p| (p.name.clone(), p.from_ms - order, p.to_ms - order))
            .collect(),
    })
}

/// The run whose gap is the median, or the shorter of two in the middle.
fn typical(arm: &ArmRuns) -> Option<&Sample> {
    let mut runs: Vec<_> = arm.good().collect();
    runs.sort_by(|a, b| a.client.gap_ms.total_cmp(&b.client.gap_ms));
    runs.get(runs.len().checked_sub(1)? / 2).copied()
}

fn parts(bench: &Bench) -> Option<String> {
    let mut all = Vec::new();
    for group in &bench.groups {
        for arm in group.movers() {
            let part = |name: &str| {
                let ms = arm.values(|s| {
                    let parts = &s.migration.as_ref()?.downtime;
                    Some(parts.iter().find(|p| p.phase == name)?.ms)
                });
                median(&ms).unwrap_or_default()
            };
            let parts: Vec<f64> = PARTS.iter().map(|name| part(name)).collect();
            if parts.iter().sum::<f64>() > 0.0 {
                all.push(bars::Bar { group: group.title(), name: arm.name.clone(), parts });
            }
        }
    }
    let note = "Medians of each part on their own, in ms, on the source's clock.";
    bars::draw("Where the downtime goes", note, &PARTS, &all)
}

fn prediction(bench: &Bench) -> Option<String> {
    let mut pairs = Vec::new();
    for arm in bench.groups.iter().flat_map(Group::movers) {
        for (predicted, observed) in arm.good().filter_map(predicted) {
            pairs.push(scatter::Pair { name: arm.name.clone(), predicted, observed });
        }
    }
    let note = "One mark a run: what blip forecast when it froze the container, and what came.";
    scatter::draw("Prediction against observation", note, &pairs)
}

fn sent(bench: &Bench) -> Option<String> {
    let panels = panels(bench, |arm| arm.values(sent_share));
    let note = "Bytes over the link ÷ memory moved. A dot is a run; the bar is the 95 % confidence of \
                the median; log scale.";
    strip::draw("Bytes sent", note, &panels, |share| format!("{}×", short(share)))
}

/// Scenarios that differ in their size alone: Redis, and nothing else said.
fn is_a_size(group: &&Group) -> bool {
    let size = group.scenario.strip_prefix("redis-").unwrap_or_default();
    size.strip_suffix(['m', 'g']).is_some_and(|n| n.parse::<u32>().is_ok())
}

/// The same workload over the same link, told by the memory that was moved.
fn against_memory(
    bench: &Bench,
    what: &str,
    values: impl Fn(&ArmRuns) -> Vec<f64>,
) -> Option<String> {
    let link = &bench.groups.iter().find(is_a_size)?.link;
    let place = |arm: &ArmRuns| {
        let memory = arm.values(|s| Some(s.migration.as_ref()?.memory_bytes as f64));
        // Runs of a scenario differ by a few pages; the axis should not.
        Some((median(&memory)? / f64::from(1 << 20)).round())
    };
    let groups = bench.groups.iter().filter(is_a_size).filter(|g| g.link == *link);
    let note = format!("Redis over {link}. Medians with 95 % confidence; both scales logarithmic.");
    let words = lines::Words {
        title: &format!("{what} against memory"),
        note: &note,
        across: "memory moved",
        x: |mib| format!("{mib} MiB"),
        y: time_label,
    };
    lines::draw(words, &lines_of(groups, place, values))
}

/// Writers that differ in how fast they write: what is sent, told by the rate
/// that was measured before the order.
fn against_rate(bench: &Bench) -> Option<String> {
    let is_a_rate = |group: &&Group| group.scenario.starts_with("rate-");
    let link = &bench.groups.iter().find(is_a_rate)?.link;
    let place = |arm: &ArmRuns| {
        let rate = median(&arm.values(|s| s.workload.rate_before))?;
        // Two digits: the arms of a scenario are to stand above each other.
        let digit = 10_f64.powf(rate.log10().floor() - 1.0);
        (rate > 0.0).then(|| (rate / digit).round() * digit / 1e6)
    };
    let groups = bench.groups.iter().filter(is_a_rate).filter(|g| g.link == *link);
    let what = bench.groups.iter().find(is_a_rate).and_then(|g| bench.scenarios.get(&g.scenario));
    let what =
        what.and_then(|w| w.split_once("--rate")).map_or(String::new(), |w| w.0.replace('`', ""));
    let note = format!("{what}over {link}. Medians with 95 % confidence; both scales logarithmic.");
    let words = lines::Words {
        title: "Bytes sent against dirty rate",
        note: &note,
        across: "memory written before the order, in MB/s of 4 KiB pages touched",
        x: |rate| format!("{rate} MB/s"),
        y: |share| format!("{}×", short(share)),
    };
    lines::draw(words, &lines_of(groups, place, |arm| arm.values(sent_share)))
}

/// A line for each arm, a point for each group.
fn lines_of<'a>(
    groups: impl Iterator<Item = &'a Group>,
    place: impl Fn(&ArmRuns) -> Option<f64>,
    values: impl Fn(&ArmRuns) -> Vec<f64>,
) -> Vec<lines::Line> {
    let mut all: Vec<lines::Line> = Vec::new();
    for arm in groups.flat_map(Group::movers) {
        let (Some(place), values) = (place(arm), values(arm)) else { continue };
        if values.is_empty() {
            continue;
        }
        match all.iter_mut().find(|l| l.name == arm.name) {
            Some(line) => line.points.push((place, values)),
            None => {
                all.push(lines::Line { name: arm.name.clone(), points: vec![(place, values)] });
            }
        }
    }
    for line in &mut all {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    all
}
