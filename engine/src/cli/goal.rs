//! The flags that say what the user wants of a migration, and what is wrong
//! with them.

use super::exit;
use super::values::{bandwidth, deadline, downtime, throttle};
use crate::plan::{Goal, Method, OnMiss, ThrottleLimit};
use blip_transport::units::Bandwidth;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use std::process::ExitCode;
use std::time::Duration;

/// What is wanted of a migration.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Goals")]
pub(super) struct GoalArgs {
    /// Longest downtime wanted, such as 50ms (default: as short as blip can)
    #[arg(long, value_name = "TIME", value_parser = downtime, allow_hyphen_values = true)]
    downtime: Option<Duration>,
    /// The container is to run on the target this long from now, such as 2m
    #[arg(long, value_name = "TIME", value_parser = deadline, allow_hyphen_values = true)]
    deadline: Option<Duration>,
    /// What to do if the downtime or the deadline will be missed (default:
    /// post-copy, or abort where the method leaves nothing behind)
    #[arg(long, value_enum, value_name = "WHAT")]
    on_miss: Option<OnMiss>,
    /// How to move the memory
    #[arg(long, value_enum, default_value_t = Method::Auto, hide_default_value = true)]
    method: Method,
    /// Most that may go over the link, headers included, such as 800Mbit or 100MB
    #[arg(long, value_name = "RATE", value_parser = bandwidth, allow_hyphen_values = true)]
    bandwidth: Option<Bandwidth>,
    /// Rounds of copying ahead, at most (default: 30)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: Option<u32>,
    /// Slow the container down if its writes outrun the link: auto, off, or at
    /// most this share of its CPU time, such as 40%
    #[arg(long, value_name = "auto|off|MAX%", value_parser = throttle, allow_hyphen_values = true)]
    throttle: Option<ThrottleLimit>,
    /// Send pages again each time they are dirtied, instead of holding back
    /// those that are written again and again
    #[arg(long)]
    no_hold_back: bool,
    /// Make exactly so many rounds, whatever they find, hold nothing back, and
    /// freeze: classic pre-copy, to compare with (needs --method pre-copy)
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1000),
        conflicts_with_all = ["downtime", "deadline", "on_miss", "max_rounds", "throttle"]
    )]
    rounds: Option<u32>,
}

impl ValueEnum for Method {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::StopAndCopy, Self::PreCopy, Self::PostCopy, Self::Hybrid]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(match self {
            Self::Auto => "copy ahead, then whatever meets the goal best",
            Self::StopAndCopy => "freeze, copy everything, resume",
            Self::PreCopy => "copy ahead; all memory is there before the container resumes",
            Self::PostCopy => "resume at once; all memory follows as it is needed",
            Self::Hybrid => "copy ahead; what was dirtied last follows as it is needed",
        }))
    }
}

impl ValueEnum for OnMiss {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::PostCopy, Self::Proceed, Self::Abort]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::PostCopy => PossibleValue::new("post-copy")
                .help("resume in time and let the rest follow; its pages are slow until then"),
            Self::Proceed => {
                PossibleValue::new("proceed").help("move anyway, with the least downtime there is")
            }
            Self::Abort => PossibleValue::new("abort").help("give up; the container stays here"),
        })
    }
}

impl GoalArgs {
    /// The goal, or the exit code of a command line that contradicts itself,
    /// once the user has been told how.
    pub(super) fn goal_or_code(&self) -> Result<Goal, ExitCode> {
        self.goal().map_err(|contradiction| {
            eprintln!("blip: {contradiction}");
            ExitCode::from(exit::USAGE)
        })
    }

    /// The goal, or what contradicts what in it.
    fn goal(&self) -> Result<Goal, String> {
        self.contradiction().map_or(Ok(()), Err)?;
        let fallback = if self.method.may_leave_pages() { OnMiss::PostCopy } else { OnMiss::Abort };
        // Without a target nothing can be missed: it is done as well as can be.
        let aims = self.downtime.is_some() || self.deadline.is_some();
        let fallback = if aims { fallback } else { OnMiss::Proceed };
        Ok(Goal {
            downtime: self.downtime,
            deadline: self.deadline,
            on_miss: self.on_miss.unwrap_or(fallback),
            method: self.method,
            bandwidth: self.bandwidth,
            max_rounds: self.max_rounds.unwrap_or(Goal::default().max_rounds),
            throttle: self.throttle.unwrap_or_default(),
            hold_back: !self.no_hold_back,
            rounds: self.rounds,
        })
    }

    fn contradiction(&self) -> Option<String> {
        let method = self.method;
        let rounds = method.copies_ahead();
        if self.on_miss == Some(OnMiss::PostCopy) && !method.may_leave_pages() {
            return Some(format!(
                "--on-miss post-copy contradicts --method {method}, which leaves nothing to copy \
                 afterwards; use --method auto or hybrid, or --on-miss proceed or abort"
            ));
        }
        if self.on_miss.is_some() && self.downtime.is_none() && self.deadline.is_none() {
            return Some(
                "--on-miss says what to do when a goal will be missed, but there is none; add \
                 --downtime or --deadline"
                    .into(),
            );
        }
        if self.max_rounds.is_some() && !rounds {
            return Some(format!(
                "--max-rounds contradicts --method {method}, which copies no rounds ahead; drop \
                 one of them"
            ));
        }
        if self.rounds.is_some() && method != Method::PreCopy {
            return Some(format!(
                "--rounds contradicts --method {method}: it makes classic pre-copy, to compare \
                 with; add --method pre-copy"
            ));
        }
        if self.throttle.is_some_and(|limit| limit.percent() > 0) && !rounds {
            return Some(format!(
                "--throttle contradicts --method {method}: there are no rounds that it could help \
                 to converge; use --method auto or pre-copy"
            ));
        }
        match (self.downtime, self.deadline) {
            (Some(downtime), Some(deadline)) if downtime >= deadline => Some(format!(
                "--downtime {} contradicts --deadline {}: the downtime alone would take as long; \
                 give a longer deadline",
                humantime::format_duration(downtime),
                humantime::format_duration(deadline)
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        goal: GoalArgs,
    }

    fn goal(line: &str) -> Result<Goal, String> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        let parsed = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        parsed.goal.goal()
    }

    #[test]
    fn every_flag_finds_its_place() {
        let line = "--downtime 50ms --deadline 2m --on-miss abort --method hybrid \
                    --bandwidth 800Mbit --max-rounds 7 --throttle 40%";
        let goal = goal(line).unwrap();
        assert_eq!(goal.downtime, Some(Duration::from_millis(50)));
        assert_eq!(goal.deadline, Some(Duration::from_secs(120)));
        assert_eq!((goal.on_miss, goal.method), (OnMiss::Abort, Method::Hybrid));
        assert_eq!(goal.bandwidth, Some(Bandwidth(1e8)));
        assert_eq!((goal.max_rounds, goal.throttle), (7, ThrottleLimit::Percent(40)));
    }

    #[test]
    fn classic_pre_copy_can_be_had() {
        let goal = goal("--method pre-copy --rounds 12 --no-hold-back").unwrap();
        assert_eq!((goal.rounds, goal.hold_back), (Some(12), false));
    }

    #[test]
    fn what_a_miss_means_follows_from_the_method() {
        assert_eq!(goal("--downtime 50ms").unwrap().on_miss, OnMiss::PostCopy);
        assert_eq!(goal("--downtime 50ms --method pre-copy").unwrap().on_miss, OnMiss::Abort);
        assert_eq!(goal("").unwrap().on_miss, OnMiss::Proceed);
    }

    #[test]
    fn contradictions_name_both_sides_and_the_way_out() {
        for (line, words) in [
            ("--method pre-copy --downtime 1s --on-miss post-copy", ["pre-copy", "--method auto"]),
            ("--on-miss abort", ["--on-miss", "--deadline"]),
            ("--method post-copy --max-rounds 3", ["--max-rounds", "post-copy"]),
            ("--method stop-and-copy --throttle auto", ["--throttle", "pre-copy"]),
            ("--rounds 9", ["--rounds", "--method pre-copy"]),
            ("--method pre-copy --rounds 9 --downtime 9ms", ["--rounds", "--downtime"]),
            ("--downtime 3s --deadline 2s", ["--downtime 3s", "--deadline 2s"]),
        ] {
            let error = goal(line).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{line}: {error}");
        }
    }

    #[test]
    fn bad_values_get_errors_that_teach() {
        for (line, words) in [
            ("--downtime 0", ["0", "50ms"]),
            ("--downtime -5ms", ["-5ms", "50ms"]),
            ("--downtime 50", ["unit", "50ms"]),
            ("--bandwidth 3bananas", ["bananas", "800Mbit"]),
            ("--bandwidth 0Mbit", ["0", "800Mbit"]),
            ("--throttle 120%", ["120", "99"]),
            ("--deadline soon", ["soon", "2m"]),
            ("--max-rounds 0", ["0", "1.."]),
            ("--method teleport", ["teleport", "post-copy"]),
        ] {
            let error = goal(line).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{line}: {error}");
        }
    }
}
