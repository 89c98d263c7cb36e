//! What is to be run, and in which order. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::link::Link;
use super::scenario::Scenario;
use crate::baseline;
use crate::lab::{CgroupMode, Suite};
use crate::quantity;

/// The whole of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// What is moved.
    pub scenarios: Vec<Scenario>,
    /// Over what.
    pub links: Vec<Link>,
    /// How.
    pub arms: Vec<Arm>,
    /// How often each.
    pub repeats: u32,
    /// Requests a second of the client.
    pub probe_rate: u32,
    /// Requests a second that each have a connection of their own; 0: none.
    pub fresh_rate: u32,
    /// How long the client asks before and after a migration, in milliseconds.
    pub margin_ms: u64,
    /// After how long a migration is killed, in milliseconds.
    pub limit_ms: u64,
    /// Whether a workload that moved is moved on from where it is (back and
    /// forth); otherwise each migration is one of a new workload.
    pub onward: bool,
    /// Debian suite of the hosts.
    pub suite: Suite,
    /// Cgroup version of the hosts.
    pub cgroup: CgroupMode,
}

/// One of the ways that are compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Arm {
    /// Its name, part of file names.
    pub name: String,
    /// What it does.
    pub way: Way,
    /// The scenarios in which it takes part; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
}

/// What an arm does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Nothing: what the client sees then is the bench's own noise.
    Nothing,
    /// `blip migrate` with these further words.
    Blip(Vec<String>),
    /// Another program that can move what runs.
    Peer(String),
}

/// The arm in which nothing is moved.
pub const NOTHING: &str = "none";

/// Methods `blip migrate --method` knows; `default` leaves the choice to blip
/// by not naming one.
pub(super) const METHODS: [&str; 5] = ["stop-and-copy", "pre-copy", "post-copy", "hybrid", "auto"];

impl Arm {
    /// The arm that a word on the command line means: `none`, `default`, a
    /// method, or a peer.
    ///
    /// # Errors
    /// The words there are.
    pub fn named(name: &str) -> Result<Arm, String> {
        let flags = |words: &[&str]| Way::Blip(words.iter().map(|&w| w.to_owned()).collect());
        let way = match name {
            NOTHING => Way::Nothing,
            "default" => flags(&[]),
            method if METHODS.contains(&method) => flags(&["--method", method]),
            peer if baseline::named(peer).is_some() => Way::Peer(peer.to_owned()),
            other => {
                let peers = baseline::all();
                let known = [NOTHING, "default"].into_iter().chain(METHODS);
                let known: Vec<_> = known.chain(peers.iter().map(|p| p.name())).collect();
                return Err(format!("there is no way `{other}`: there are {}", known.join(", ")));
            }
        };
        Ok(Arm { name: name.to_owned(), way, only: Vec::new() })
    }
}

/// One run to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Cell {
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the link.
    pub link: String,
    /// Name of the arm.
    pub arm: String,
    /// From 1.
    pub repeat: u32,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over {} by {}, {}", self.scenario, self.link, self.arm, self.repeat)
    }
}

impl Cell {
    /// Its name among files.
    pub fn file_name(&self) -> String {
        format!("{}_{}_{}_{}", self.scenario, self.link, self.arm, self.repeat)
    }
}

impl Plan {
    /// All runs in their order: scenario by scenario, link by link, and there
    /// the arms in turns.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for scenario in &self.scenarios {
            for link in &self.links {
                for repeat in 1..=self.repeats {
                    let part =
                        |arm: &&Arm| arm.only.is_empty() || arm.only.contains(&scenario.name);
                    cells.extend(self.arms.iter().filter(part).map(|arm| Cell {
                        scenario: scenario.name.clone(),
                        link: link.to_string(),
                        arm: arm.name.clone(),
                        repeat,
                    }));
                }
            }
        }
        cells
    }

    /// How long the client asks before and after.
    pub fn margin(&self) -> Duration {
        Duration::from_millis(self.margin_ms)
    }

    /// After how long a migration is killed.
    pub fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms)
    }

    /// Reads a plan as it is written in a file.
    ///
    /// # Errors
    /// Which part of it makes no sense.
    pub fn parse(text: &str) -> Result<Plan> {
        let written: Written = toml::from_str(text).context("the plan is not as it should be")?;
        written.meant()
    }
}

/// A plan as it is written: every part may be left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Written {
    /// Built-in scenarios.
    pub scenarios: Vec<String>,
    /// Further scenarios.
    pub scenario: Vec<Scenario>,
    /// Links: `unshaped`, `1gbit`, `1gbit+20ms+1%`.
    pub links: Vec<String>,
    /// Methods: arms without further words.
    pub methods: Vec<String>,
    /// Further arms.
    pub arm: Vec<WrittenArm>,
    /// How often each.
    pub repeats: Option<u32>,
    /// Requests a second.
    pub probe_rate: Option<u32>,
    /// Requests a second over new connections; none unless it says so.
    pub fresh_rate: Option<u32>,
    /// Before and after, as `2s`.
    pub margin: Option<String>,
    /// Of one migration, as `5min`.
    pub limit: Option<String>,
    /// Whether workloads are moved back and forth.
    pub onward: bool,
    /// Debian suite.
    pub suite: Option<Suite>,
    /// Cgroup version.
    pub cgroup: Option<CgroupMode>,
}

/// An arm as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenArm {
    /// Its name.
    pub name: String,
    /// Words for `blip migrate`.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Scenarios of the plan in which it takes part; if not said, all.
    #[serde(default)]
    pub only: Vec<String>,
}

impl Written {
    /// What is meant: gaps filled, names looked up.
    ///
    /// # Errors
    /// Which part of it makes no sense.
    pub fn meant(self) -> Result<Plan> {
        let mut scenarios = Vec::new();
        for name in &self.scenarios {
            scenarios.push(Scenario::named(name).map_err(anyhow::Error::msg)?);
        }
        scenarios.extend(self.scenario);
        ensure!(!scenarios.is_empty(), "name at least one scenario, for example redis-64m");
        let mut links = Vec::new();
        for link in self.links {
            links.push(Link::try_from(link).map_err(anyhow::Error::msg)?);
        }
        if links.is_empty() {
            links.push(Link::default());
        }
        // What the bench itself costs is always measured.
        let mut arms = vec![Arm { name: NOTHING.to_owned(), way: Way::Nothing, only: Vec::new() }];
        for name in self.methods.iter().filter(|name| *name != NOTHING) {
            arms.push(Arm::named(name).map_err(anyhow::Error::msg)?);
        }
        for WrittenArm { name, flags, only } in self.arm {
            for scenario in &only {
                let known = scenarios.iter().any(|known: &Scenario| known.name == *scenario);
                ensure!(known, "the arm {name} is only for `{scenario}`, which the plan has not");
            }
            arms.push(Arm { name, way: Way::Blip(flags), only });
        }
        if arms.len() == 1 {
            arms.push(Arm::named("default").map_err(anyhow::Error::msg)?);
        }
        let span = |text: Option<String>, otherwise: u64| match text {
            None => Ok(otherwise),
            Some(text) => quantity::time(&text).map(|t| t.as_millis() as u64),
        };
        let plan = Plan {
            scenarios,
            links,
            arms,
            repeats: self.repeats.unwrap_or(5),
            probe_rate: self.probe_rate.unwrap_or(1_000),
            fresh_rate: self.fresh_rate.unwrap_or(0),
            margin_ms: span(self.margin, 2_000).map_err(anyhow::Error::msg)?,
            limit_ms: span(self.limit, 180_000).map_err(anyhow::Error::msg)?,
            onward: self.onward,
            suite: self.suite.unwrap_or(Suite::Forky),
            cgroup: self.cgroup.unwrap_or(CgroupMode::V2),
        };
        plan.sound()?;
        Ok(plan)
    }
}

impl Plan {
    /// Whether hosts need programs beyond what blip is tested with.
    pub(super) fn needs_peers(&self) -> bool {
        let extra = |name: &str| baseline::named(name).is_some_and(|peer| peer.is_extra());
        self.arms.iter().any(|arm| matches!(&arm.way, Way::Peer(name) if extra(name)))
    }

    /// Refuses what cannot be run or told apart afterwards.
    pub(super) fn sound(&self) -> Result<()> {
        ensure!(self.repeats > 0, "a plan of no repeats measures nothing");
        ensure!(self.probe_rate > 0, "a client that asks nothing sees nothing");
        let names = |names: Vec<&String>, what: &str| {
            for name in &names {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-+.".contains(c);
                let fits = !name.is_empty() && name.chars().all(plain);
                ensure!(fits, "`{name}` cannot name a {what}: use letters, digits, -, + and .");
            }
            let different: BTreeSet<_> = names.iter().collect();
            ensure!(different.len() == names.len(), "two {what}s have the same name: {names:?}");
            Ok(())
        };
        names(self.scenarios.iter().map(|s| &s.name).collect(), "scenario")?;
        names(self.arms.iter().map(|a| &a.name).collect(), "arm")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        scenarios = ["redis-64m", "tiny"]
        links = ["unshaped", "1gbit"]
        methods = ["pre-copy", "hybrid"]
        repeats = 2
        margin = "500ms"

        [[scenario]]
        name = "mine"
        writer = "--size 64MiB --rate max"

        [[arm]]
        name = "auto-100ms"
        flags = ["--method", "auto", "--downtime", "100ms"]

        [[arm]]
        name = "tiny-only"
        only = ["tiny"]
    "#;

    #[test]
    fn arms_take_turns_within_a_scenario_and_a_link() {
        let plan = Plan::parse(TEXT).expect("a plan");
        let cells = plan.cells();
        assert_eq!(cells.len(), 3 * 2 * 4 * 2 + 2 * 2);
        let first: Vec<_> = cells[..8].iter().map(|c| (c.arm.as_str(), c.repeat)).collect();
        let turns = ["none", "pre-copy", "hybrid", "auto-100ms"];
        let expected: Vec<_> = [1, 2].iter().flat_map(|r| turns.iter().map(|t| (*t, *r))).collect();
        assert_eq!(first, expected);
        assert!(cells[..16].iter().all(|c| c.scenario == "redis-64m"));
        let files: BTreeSet<_> = cells.iter().map(Cell::file_name).collect();
        assert_eq!(files.len(), cells.len());
        assert_eq!((plan.margin_ms, plan.probe_rate), (500, 1_000));
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        let why = |text: &str| format!("{:#}", Plan::parse(text).expect_err(text));
        assert!(why("").contains("redis-64m"));
        assert!(why("scenarios = ['tiny', 'tiny']").contains("same name"));
        assert!(why("scenarios = ['tiny']\nmethods = ['magic']").contains("post-copy"));
        assert!(why("scenarios = ['tiny']\nlinks = ['fast']").contains("whole number"));
        assert!(why("scenarios = ['tiny']\nlink = ['1gbit']").contains("link"));
        assert!(why("scenarios = ['tiny']\n[[arm]]\nname='a'\nonly=['big']").contains("`big`"));
        assert!(why("[[scenario]]\nname='a b'\nredis='1MiB'").contains("a b"));
        assert!(why("[[scenario]]\nname='a'\nwriter='--sise 1'").contains("--sise"));
    }

    #[test]
    fn the_plans_that_are_published_make_sense() {
        let plans = [
            (include_str!("../../plans/goals.toml"), 60),
            (include_str!("../../plans/fast.toml"), 35),
            (include_str!("../../plans/methods.toml"), 60),
            (include_str!("../../plans/sizes.toml"), 36),
            (include_str!("../../plans/rates.toml"), 36),
            (include_str!("../../plans/workloads.toml"), 42),
            (include_str!("../../plans/links.toml"), 54),
            (include_str!("../../plans/pre-dumps.toml"), 18),
        ];
        for (text, least) in plans {
            assert!(Plan::parse(text).expect(text).cells().len() >= least, "{text}");
        }
    }
}
