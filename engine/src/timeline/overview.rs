//! The whole migration on one time axis.

use super::axis::{self, Height, Time, time};
use super::canvas::{
    Anchor, BLUE, Canvas, FAINT, GREEN, GREY, GRID, INK, LEFT, ORANGE, PURPLE, Pen, RED, RIGHT,
    SKY, width,
};
use super::story::{Span, Story};
use super::words::{self, heading, lane};
use crate::event::{Phase, RoundReport};
use crate::text::brief_time;
use blip_transport::units::Bandwidth;
use std::time::Duration;

pub(super) fn draw(canvas: &mut Canvas, story: &Story) {
    heading(canvas, "The whole migration", "");
    let axis = Time { from: 0.0, to: story.end.max(1.0) * 1.01, left: LEFT, right: RIGHT };
    legend(canvas, story);
    let top = canvas.y + 8.0;
    // The grid lies under everything: its height is known before it is drawn.
    let bottom = top + height(story);
    axis.draw(canvas, top, bottom, 0.0);
    canvas.y = top;
    if let Some((from, to)) = story.downtime() {
        let tip = format!("stands still for {}", time(to - from));
        canvas.bar([axis.x(from), axis.x(to)], [top, bottom], "#f7d9c4", &tip);
    }
    phases(canvas, story, axis);
    decisions(canvas, story, axis);
    rounds(canvas, story, axis);
    rates(canvas, story, axis);
    throttle(canvas, story, axis);
    canvas.y = bottom + 18.0;
}

const PHASES: f64 = 26.0;
const MARKS: f64 = 26.0;
const ROUNDS: f64 = 112.0;
const RATES: f64 = 96.0;
const THROTTLE: f64 = 62.0;

fn height(story: &Story) -> f64 {
    let lanes = [
        (!story.decisions.is_empty(), MARKS),
        (has_rounds(story), ROUNDS),
        (has_rates(story), RATES),
        (has_throttle(story), THROTTLE),
    ];
    PHASES + lanes.iter().map(|(there, height)| if *there { *height } else { 0.0 }).sum::<f64>()
}

/// The colour of a phase; all that stand still have one.
fn colour(phase: Phase) -> &'static str {
    match phase {
        Phase::Preflight => GREY,
        Phase::Stage => PURPLE,
        Phase::PreCopy => BLUE,
        Phase::Drain => ORANGE,
        Phase::Retire => FAINT,
        _ => RED,
    }
}

/// Names, colours and lengths of the phases, in their order.
fn legend(canvas: &mut Canvas, story: &Story) {
    let mut entries: Vec<(&'static str, String)> = Vec::new();
    let mut stood = false;
    for span in story.phases.iter().filter(|span| span.to - span.from >= 0.05) {
        let stops = Phase::DOWNTIME.contains(&span.phase);
        if stops && stood {
            continue;
        }
        stood |= stops;
        let (name, length) = match story.downtime() {
            Some((from, to)) if stops => ("stands still", to - from),
            _ => (name(span.phase), span.to - span.from),
        };
        entries.push((colour(span.phase), format!("{name} {}", brief_time(length))));
    }
    canvas.y += 12.0;
    let mut x = LEFT;
    for (colour, text) in entries {
        let wide = width(&text, Pen::PLAIN) + 30.0;
        if x + wide > RIGHT && x > LEFT {
            x = LEFT;
            canvas.y += 16.0;
        }
        canvas.bar([x, x + 10.0], [canvas.y - 9.0, canvas.y + 1.0], colour, "");
        canvas.text([x + 15.0, canvas.y], &text, Pen::PLAIN);
        x += wide;
    }
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::PreCopy => "pre-copy",
        other => other.name(),
    }
}

fn phases(canvas: &mut Canvas, story: &Story, axis: Time) {
    let y = [canvas.y + 6.0, canvas.y + 20.0];
    lane(canvas, canvas.y + 17.0, &["phases"]);
    // The short one that matters is drawn last, over its neighbours.
    let stops = |span: &&Span| Phase::DOWNTIME.contains(&span.phase);
    for span in story.phases.iter().filter(|span| !stops(span)) {
        let tip = format!("{} {}", name(span.phase), time(span.to - span.from));
        canvas.bar([axis.x(span.from), axis.x(span.to)], y, colour(span.phase), &tip);
    }
    if let Some((from, to)) = story.downtime() {
        let x = axis.x(from);
        let tip = format!("stands still for {}", time(to - from));
        canvas.bar([x, axis.x(to).max(x + 2.0)], [y[0] - 3.0, y[1] + 3.0], RED, &tip);
    }
    canvas.y += PHASES;
}

/// Numbers where the kind of decision changes, ticks where it does not.
fn decisions(canvas: &mut Canvas, story: &Story, axis: Time) {
    if story.decisions.is_empty() {
        return;
    }
    lane(canvas, canvas.y + 16.0, &["decisions"]);
    let y = canvas.y + 12.0;
    for &at in story.decisions.iter().flat_map(|decided| decided.at.iter().skip(1)) {
        let x = axis.x(at);
        canvas.line([x, y - 4.0], [x, y + 4.0], INK, "");
    }
    let pen = Pen { colour: "#ffffff", bold: true, size: 10.0, ..Pen::PLAIN };
    let pen = pen.at(Anchor::Middle);
    let told: Vec<_> = words::told(story).flatten().collect();
    let wanted: Vec<f64> =
        told.iter().map(|(_, d)| axis.x(d.at.first().copied().unwrap_or_default())).collect();
    // Side by side where they come at once; a thread leads to the moment.
    let placed = spread(&wanted, 18.0, LEFT, RIGHT);
    for ((number, decided), (x, at)) in told.iter().zip(placed.into_iter().zip(wanted)) {
        canvas.line([at, y + 12.0], [x, y], INK, "");
        canvas.dot([x, y], 8.5, INK, &format!("{}: {}", decided.what, decided.why));
        canvas.text([x, y + 3.6], &number.to_string(), pen);
    }
    canvas.y += MARKS;
}

/// As near to where they want to be as they can with `gap` between them.
fn spread(wanted: &[f64], gap: f64, left: f64, right: f64) -> Vec<f64> {
    let mut placed: Vec<f64> = Vec::with_capacity(wanted.len());
    for &x in wanted {
        let free = placed.last().map_or(left, |last| last + gap);
        placed.push(x.max(free));
    }
    let mut limit = right;
    for x in placed.iter_mut().rev() {
        *x = x.min(limit);
        limit = *x - gap;
    }
    placed
}

/// The strip above a lane that says what is in it; returns the lane's top.
fn strip(canvas: &mut Canvas, what: &str, keys: &[(&str, &str, &str)]) -> f64 {
    canvas.text([LEFT, canvas.y + 15.0], what, Pen::FAINT);
    let mut x = LEFT + width(what, Pen::FAINT) + 16.0;
    let y = canvas.y + 11.0;
    for &(colour, dash, text) in keys {
        if dash == "bar" {
            canvas.bar([x, x + 10.0], [y - 5.0, y + 5.0], colour, "");
        } else {
            canvas.path(&[[x - 6.0, y], [x + 12.0, y]], colour, dash);
        }
        canvas.text([x + 17.0, canvas.y + 15.0], text, Pen::PLAIN);
        x += width(text, Pen::PLAIN) + 44.0;
    }
    canvas.y + 22.0
}

fn has_rounds(story: &Story) -> bool {
    story.rounds.iter().any(|(_, _, round)| round.dirty.0 > 0)
}

/// Dirty pages of every round, and what was sent for them, as bytes.
fn rounds(canvas: &mut Canvas, story: &Story, axis: Time) {
    if !has_rounds(story) {
        return;
    }
    let keys = [(SKY, "bar", "dirty"), (BLUE, "bar", "sent for them")];
    let top = strip(canvas, "bytes per round (log scale)", &keys);
    let bottom = canvas.y + ROUNDS - 4.0;
    let sizes = || {
        let of = |(_, _, round): &(f64, f64, RoundReport)| {
            [round.dirty.bytes().0 as f64, round.bytes_wire.0 as f64]
        };
        story.rounds.iter().flat_map(of).filter(|bytes| *bytes > 0.0)
    };
    let least = sizes().min_by(f64::total_cmp).unwrap_or(1.0);
    let most = sizes().max_by(f64::total_cmp).unwrap_or(1.0);
    let scale = Height::bytes(top, bottom, least, most);
    scale.draw(canvas, [LEFT, RIGHT], 1.0, axis::bytes);
    for (from, to, round) in &story.rounds {
        let (dirty, wire) = (round.dirty.bytes(), round.bytes_wire);
        let tip = format!("round {}: {dirty} dirty, {wire} sent", round.round);
        let (left, right) = (axis.x(*from), axis.x(*to));
        let right = if right - left > 4.0 { right - 1.0 } else { right };
        let middle = (left + right) / 2.0;
        canvas.bar([left, right], [scale.y(dirty.0 as f64), bottom], SKY, &tip);
        canvas.bar([middle, right], [scale.y(wire.0 as f64), bottom], BLUE, &tip);
    }
    canvas.line([LEFT, bottom], [RIGHT, bottom], GREY, "");
    canvas.y += ROUNDS;
}

fn has_rates(story: &Story) -> bool {
    !story.progress.is_empty() || !throughput(story).is_empty()
}

/// How fast bytes went over the link, and how fast pages were dirtied.
fn rates(canvas: &mut Canvas, story: &Story, axis: Time) {
    if !has_rates(story) {
        return;
    }
    let link = throughput(story);
    let dirtied: Vec<(f64, f64)> = story
        .progress
        .iter()
        .filter_map(|(at, progress)| Some((*at, progress.dirty_rate?.0)))
        .collect();
    let keys = [(BLUE, "", "over the link"), (ORANGE, "5 3", "dirtied")];
    let shown = if dirtied.is_empty() { &keys[..1] } else { &keys[..] };
    let top = strip(canvas, "rates", shown);
    let bottom = canvas.y + RATES - 4.0;
    let most = link.iter().chain(&dirtied).map(|(_, rate)| *rate).fold(0.0, f64::max);
    let scale = Height::linear(top, bottom, most);
    scale.draw(canvas, [LEFT, RIGHT], unit(most), axis::rate);
    let points = |of: &[(f64, f64)]| -> Vec<[f64; 2]> {
        of.iter().map(|(at, rate)| [axis.x(*at), scale.y(*rate)]).collect()
    };
    canvas.path(&points(&dirtied), ORANGE, "5 3");
    canvas.path(&points(&link), BLUE, "");
    canvas.line([LEFT, bottom], [RIGHT, bottom], GREY, "");
    canvas.y += RATES;
}

/// As it was told on the way; else the mean of every round.
fn throughput(story: &Story) -> Vec<(f64, f64)> {
    if !story.progress.is_empty() {
        return story.progress.iter().map(|(at, p)| (*at, p.throughput.0)).collect();
    }
    let live = story.rounds.iter().filter(|(_, _, round)| !round.frozen);
    live.flat_map(|(from, to, round)| {
        let took = Duration::from_secs_f64((to - from).max(0.0) / 1e3);
        let rate = Bandwidth::over(round.bytes_wire, took).0;
        [(*from, rate), (*to, rate)]
    })
    .collect()
}

/// The binary unit that suits a value.
fn unit(value: f64) -> f64 {
    [1e0, 1024.0, 1048576.0, 1073741824.0]
        .into_iter()
        .rev()
        .find(|unit| value >= *unit)
        .unwrap_or(1.0)
}

fn has_throttle(story: &Story) -> bool {
    story.throttle.iter().any(|(_, percent)| *percent > 0)
}

/// CPU time that was taken, as steps.
fn throttle(canvas: &mut Canvas, story: &Story, axis: Time) {
    if !has_throttle(story) {
        return;
    }
    let top = strip(canvas, "CPU time taken", &[(GREEN, "", "percent")]);
    let bottom = canvas.y + THROTTLE - 4.0;
    let scale = Height::linear(top, bottom, 100.0);
    for percent in [50.0, 100.0] {
        let y = scale.y(percent);
        canvas.line([LEFT, y], [RIGHT, y], GRID, "");
        canvas.text([LEFT - 6.0, y + 4.0], &format!("{percent} %"), Pen::FAINT.at(Anchor::End));
    }
    let mut points = vec![[LEFT, bottom]];
    let mut level = bottom;
    for (at, percent) in &story.throttle {
        points.push([axis.x(*at), level]);
        level = scale.y(f64::from(*percent));
        points.push([axis.x(*at), level]);
    }
    points.push([axis.x(story.end), level]);
    canvas.path(&points, GREEN, "");
    canvas.line([LEFT, bottom], [RIGHT, bottom], GREY, "");
    canvas.y += THROTTLE;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_that_come_at_once_stand_side_by_side_within_the_axis() {
        assert_eq!(spread(&[5.0, 6.0, 50.0], 10.0, 0.0, 100.0), [5.0, 15.0, 50.0]);
        assert_eq!(spread(&[97.0, 98.0, 99.0], 10.0, 0.0, 100.0), [80.0, 90.0, 100.0]);
    }
}
