//! `blip plan`: what each way of moving a container would take.

use super::Places;
use super::goal::GoalArgs;
use super::values::deadline;
use crate::docker::Docker;
use crate::event::{Forecast, Phase, millis};
use crate::experience::Experience;
use crate::plan::rehearsal::{Outcome, rehearse_writer};
use crate::plan::{Costs, Goal, LinkFacts, Method, OnMiss, words};
use crate::source::measure::{self, Habits};
use crate::source::peer::Peer;
use crate::source::subject::Subject;
use anyhow::{Context as _, bail};
use blip_transport::units::{Bandwidth, ByteSize};
use clap::Args;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

/// Looking at both sides and staging, before the first round.
const PREPARING: Duration = Duration::from_millis(400);

/// What to forecast.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The running container, by name or ID
    container: String,
    /// The target, where `blip agent` runs
    #[arg(long, value_name = "HOST[:PORT]")]
    to: String,
    /// How long to watch the container
    #[arg(long = "for", value_name = "TIME", default_value = "5s", value_parser = deadline)]
    watch: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    goal: GoalArgs,
}

pub(super) async fn run(args: PlanArgs, places: Places) -> anyhow::Result<ExitCode> {
    let goal = match args.goal.goal_or_code() {
        Ok(goal) => goal,
        Err(code) => return Ok(code),
    };
    let docker = Docker::connect().await?;
    let subject = Subject::find(&docker, &args.container, &[], false).await?;
    let mut peer = Peer::connect(&args.to, &places.identity).await?;
    let mut experience = Experience::open(&places.state, &peer.link.peer());
    let link = measure::link(&mut peer, goal.bandwidth).await?;
    peer.part().await;
    let habits = measure::habits(&subject, args.watch).await?;
    // What a limit let through says nothing of the link.
    let limited = goal.bandwidth.is_some();
    let seen = LinkFacts { bandwidth: link.bandwidth.filter(|_| !limited), ..link };
    experience.learn_link(seen);
    if let Err(error) = experience.save() {
        tracing::warn!("what was measured will not be remembered: {error}");
    }
    let name = subject.inspection.name.clone();
    let plan = Plan::new(&name, &args.to, &goal, &habits, link, experience.costs(&name));
    let mut findings = subject.findings()?;
    findings.retain(|finding| finding.blocks);
    let text = match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&plan)?),
        false => plan.table(&goal),
    };
    std::io::stdout().write_all(text.as_bytes()).context("printing the plan")?;
    if let Some(finding) = findings.first() {
        bail!("`blip migrate` would refuse: {}: {}", finding.what, finding.remedy);
    }
    Ok(ExitCode::SUCCESS)
}

/// What was measured, and what comes of it.
#[derive(Clone, Debug, Serialize)]
struct Plan {
    container: String,
    target: String,
    watched_ms: f64,
    memory_bytes: ByteSize,
    dirty_rate: Bandwidth,
    working_set_bytes: ByteSize,
    /// Bytes on the link for a byte of memory.
    compresses_to: f64,
    rtt_ms: f64,
    bandwidth: Option<Bandwidth>,
    fixed_cost_ms: f64,
    /// Migrations that the fixed cost was learned from.
    fixed_cost_samples: u32,
    tracker: String,
    methods: Vec<Forecast>,
    auto: Auto,
}

/// What `--method auto` would do.
#[derive(Clone, Debug, Serialize)]
struct Auto {
    decision: String,
    why: String,
    throttled_percent: u8,
    forecast: Option<Forecast>,
}

impl Plan {
    fn new(
        container: &str,
        target: &str,
        goal: &Goal,
        habits: &Habits,
        link: LinkFacts,
        costs: Costs,
    ) -> Self {
        let writer = habits.writer(&link, goal.bandwidth);
        let rehearsed = |goal: Goal| rehearse_writer(goal, costs, link, writer, PREPARING);
        // What comes of it in any case, also if a target is missed.
        let forced = |method| Goal { method, on_miss: OnMiss::Proceed, ..*goal };
        let methods = Method::REAL
            .into_iter()
            .filter_map(|method| forecast(goal, method, &rehearsed(forced(method))))
            .collect();
        let outcome = rehearsed(Goal { method: Method::Auto, ..*goal });
        let (what, why) = outcome
            .decisions
            .last()
            .map(|(_, decision)| (decision.what(), decision.why().to_owned()))
            .unwrap_or_default();
        let method = outcome.forecast.as_ref().map_or(Method::Auto, |forecast| forecast.method);
        Self {
            container: container.into(),
            target: target.into(),
            watched_ms: millis(habits.watched),
            memory_bytes: habits.resident.bytes(),
            dirty_rate: habits.dirty_rate,
            working_set_bytes: habits.working_set.bytes(),
            compresses_to: (habits.all.squeeze * 1e3).round() / 1e3,
            rtt_ms: millis(link.rtt),
            bandwidth: link.bandwidth,
            fixed_cost_ms: millis(costs.at(link.rtt).fixed(habits.resident)),
            fixed_cost_samples: costs.grant.samples,
            tracker: habits.tracker.clone(),
            methods,
            auto: Auto {
                decision: what,
                why,
                throttled_percent: outcome.throttled,
                forecast: forecast(goal, method, &outcome),
            },
        }
    }

    /// For people, in 80 columns.
    fn table(&self, goal: &Goal) -> String {
        let mut text = String::new();
        let carries = self.bandwidth.map_or("unknown".into(), words::rate);
        let learned = match self.fixed_cost_samples {
            0 => "of this container not yet known".to_owned(),
            1 => "learned from 1 migration".to_owned(),
            n => format!("learned from {n} migrations"),
        };
        let _ = writeln!(
            text,
            "{} to {}, watched for {}\n\
             memory      {}, compresses to {:.0} %\n\
             writes      {} dirtied in a second, {} in all that time\n\
             link        {carries}, round trip {}\n\
             fixed cost  {} of downtime, {learned}\n",
            self.container,
            self.target,
            words::time(span(self.watched_ms)),
            self.memory_bytes,
            self.compresses_to * 100.0,
            ByteSize(self.dirty_rate.0 as u64),
            self.working_set_bytes,
            words::time(span(self.rtt_ms)),
            words::time(span(self.fixed_cost_ms)),
        );
        let target = if goal.downtime.is_some() || goal.deadline.is_some() { "target" } else { "" };
        let _ = writeln!(
            text,
            "{:<13} {:>6} {:>10} {:>9} {:>9} {:>9} {:>6}  {target}",
            "method", "rounds", "bytes", "total", "downtime", "brownout", "sure"
        );
        for forecast in &self.methods {
            let met = match forecast.met {
                None => "",
                Some(true) => "met",
                Some(false) => "missed",
            };
            let line = format!(
                "{:<13} {:>6} {:>10} {:>9} {:>9} {:>9} {:>4.0} %  {met}",
                forecast.method.name(),
                forecast.rounds,
                forecast.bytes.to_string(),
                words::time(span(forecast.total_ms)),
                words::time(span(forecast.downtime_ms)),
                words::time(span(forecast.brownout_ms)),
                forecast.confidence * 100.0,
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
        let auto = &self.auto;
        let mut said = format!("auto would {}: {}", auto.decision, auto.why);
        if let Some(forecast) = &auto.forecast {
            let _ = write!(
                said,
                " (downtime {}, total {})",
                words::time(span(forecast.downtime_ms)),
                words::time(span(forecast.total_ms))
            );
        }
        let _ = write!(text, "\n{}", wrapped(&said, 80));
        text
    }
}

/// What a rehearsal came to. Where the planner had no forecast it gave up.
fn forecast(goal: &Goal, method: Method, outcome: &Outcome) -> Option<Forecast> {
    let expected = outcome.forecast.as_ref()?;
    let in_time = goal.deadline.is_none_or(|deadline| outcome.finished <= deadline);
    let short = goal.downtime.is_none_or(|target| outcome.downtime <= target);
    let aims = goal.downtime.is_some() || goal.deadline.is_some();
    // What is left at the freeze is not quite what the planner expected.
    let mut downtime = expected.downtime.clone();
    let off = millis(outcome.downtime) - downtime.iter().map(|part| part.ms).sum::<f64>();
    if let Some(dump) = downtime.iter_mut().find(|part| part.phase == Phase::Dump) {
        dump.ms = (dump.ms + off).max(0.0);
    }
    Some(Forecast {
        method,
        rounds: outcome.rounds + 1,
        bytes: outcome.wire,
        total_ms: millis(outcome.finished + outcome.brownout),
        downtime_ms: millis(outcome.downtime),
        downtime,
        brownout_ms: millis(outcome.brownout),
        met: aims.then_some(in_time && short),
        confidence: expected.confidence,
    })
}

fn span(ms: f64) -> Duration {
    Duration::from_secs_f64(ms.max(0.0) / 1e3)
}

/// Breaks a text into lines of at most `width` characters.
fn wrapped(text: &str, width: usize) -> String {
    let mut lines = String::new();
    let mut length = 0;
    for word in text.split(' ') {
        let long = word.chars().count();
        if length > 0 && length + 1 + long > width {
            lines.push('\n');
            length = 0;
        } else if length > 0 {
            lines.push(' ');
            length += 1;
        }
        lines.push_str(word);
        length += long;
    }
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::dirtying::Dirtying;
    use crate::plan::rehearsal::Speed;
    use blip_transport::units::PageCount;

    fn habits(rate: f64, resident: u64) -> Habits {
        let mut dirtying = Dirtying::default();
        for time in [0.1, 0.1, 0.4, 1.6] {
            let working_set = 16_384.0;
            let pages = working_set * (1.0 - (-time * rate / 4096.0 / working_set).exp());
            dirtying.observe(Duration::from_secs_f64(time), PageCount(pages as u64));
        }
        let speed = Speed { pace: Bandwidth(3e8), squeeze: 0.6 };
        Habits {
            resident: PageCount(resident),
            watched: Duration::from_secs(5),
            dirty_rate: Bandwidth(rate),
            working_set: PageCount(16_384),
            dirtying,
            scan: Duration::from_millis(5),
            all: speed,
            dirty: speed,
            tracker: "write-protect".into(),
        }
    }

    fn plan(goal: &Goal, rate: f64, resident: u64) -> Plan {
        let link = LinkFacts { rtt: Duration::from_micros(200), bandwidth: Some(Bandwidth(1e8)) };
        Plan::new("redis", "hostb", goal, &habits(rate, resident), link, Costs::default())
    }

    #[test]
    fn the_table_fits_in_80_columns_and_names_every_method() {
        let goal = Goal { downtime: Some(Duration::from_millis(200)), ..Goal::default() };
        for resident in [300, 262_144, 200_000_000] {
            let text = plan(&goal, 2e8, resident).table(&goal);
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
            for method in Method::REAL {
                assert!(text.contains(method.name()), "{text}");
            }
            assert!(text.contains("auto would "), "{text}");
        }
    }

    #[test]
    fn methods_differ_as_they_should() {
        let goal = Goal { downtime: Some(Duration::from_millis(200)), ..Goal::default() };
        let plan = plan(&goal, 2e8, 262_144);
        let of = |method| plan.methods.iter().find(|f| f.method == method).unwrap();
        let [stop, pre, post, hybrid] = Method::REAL.map(of);
        assert!(stop.downtime_ms > pre.downtime_ms && pre.downtime_ms > hybrid.downtime_ms);
        assert_eq!((stop.rounds, post.rounds), (1, 1));
        for forecast in &plan.methods {
            let sum: f64 = forecast.downtime.iter().map(|part| part.ms).sum();
            assert!((sum - forecast.downtime_ms).abs() < 0.01, "{forecast:?}");
        }
        assert!(post.brownout_ms > hybrid.brownout_ms && pre.brownout_ms == 0.0);
        assert_eq!((stop.met, post.met, hybrid.met), (Some(false), Some(true), Some(true)));
        assert!(plan.auto.forecast.as_ref().is_some_and(|f| f.met == Some(true)), "{plan:#?}");
        let text = serde_json::to_string(&plan).unwrap();
        assert!(text.contains("\"method\":\"stop-and-copy\""), "{text}");
    }

    #[test]
    fn long_reasons_are_broken_into_lines() {
        assert_eq!(wrapped("one two three", 7), "one two\nthree\n");
    }
}
