//! The memory writer: a workload whose size, working set, write rate and
//! pattern are set, and which checks itself.
//!
//! Threads own disjoint shares of the memory and rewrite their hot pages at a
//! steady rate. Every page says what it must hold ([`page`]), and each thread
//! keeps the generation of each of its pages apart from them: a page that came
//! back old, torn or in the wrong place is found, at its next write or by a
//! check of all memory.
//!
//! Clients speak to it as to a Redis of few words ([`serve`]): `INCR` and
//! `MGET`, so that the same probe measures and settles both, and `STATS` and
//! `CHECK` of its own. A process that was set back as a whole, with pages and
//! generations in agreement, is found by the counters its clients were told.
//!
//! **Invariants**: a page is written and checked by the thread that owns it,
//! and by no other, so a check never meets a half-done write; what is told to
//! a client was done before.

pub mod client;
pub mod pace;
pub mod page;
pub mod pattern;
mod serve;
mod share;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context as _, Result};
use blip_transport::units::PAGE_SIZE;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::quantity;
use page::{Damage, Fill};
use pattern::Pattern;

/// What the writer holds and does.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterSpec {
    /// Memory it holds
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = quantity::size)]
    pub size: u64,
    /// Memory it writes to; by default all of it
    #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
    pub hot: Option<u64>,
    /// Pages written, as bytes a second: each write to a 4 KiB page counts as
    /// 4 KiB. 0 is idle, `max` as fast as it goes
    #[arg(long, value_name = "RATE", default_value = "0", value_parser = rate)]
    pub rate: Rate,
    /// How writes are spread over the hot pages
    #[arg(long, value_enum, default_value_t)]
    pub pattern: Pattern,
    /// How much of a page a write changes, and to what
    #[arg(long, value_enum, default_value_t)]
    pub fill: Fill,
    /// How many threads share memory and rate
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub threads: u16,
}

/// A write rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rate {
    /// Bytes of written pages a second.
    Bytes(u64),
    /// As fast as it goes.
    Max,
}

impl Default for WriterSpec {
    /// 1 GiB, idle.
    fn default() -> Self {
        WriterSpec {
            size: 1 << 30,
            hot: None,
            rate: Rate::Bytes(0),
            pattern: Pattern::default(),
            fill: Fill::default(),
            threads: 1,
        }
    }
}

/// A line of the writer's options and nothing else.
#[derive(Debug, clap::Parser)]
#[command(name = "writer", no_binary_name = true)]
struct Line {
    #[command(flatten)]
    spec: WriterSpec,
}

impl WriterSpec {
    /// Reads options as they are written on the writer's command line.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(line: &str) -> Result<WriterSpec, String> {
        use clap::Parser as _;
        let parsed = Line::try_parse_from(line.split_whitespace());
        parsed.map(|line| line.spec).map_err(|e| e.to_string())
    }

    /// The words after `blip-bench writer` that make a writer like this.
    pub fn words(&self) -> Vec<String> {
        let rate = match self.rate {
            Rate::Bytes(bytes) => bytes.to_string(),
            Rate::Max => "max".to_owned(),
        };
        let pattern = clap::ValueEnum::to_possible_value(&self.pattern);
        let fill = clap::ValueEnum::to_possible_value(&self.fill);
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |v| v.get_name().to_owned())
        };
        let pairs = [
            ("--size", self.size.to_string()),
            ("--hot", self.hot.unwrap_or(self.size).to_string()),
            ("--rate", rate),
            ("--pattern", name(pattern)),
            ("--fill", name(fill)),
            ("--threads", self.threads.to_string()),
        ];
        pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }
}

/// The command `blip-bench writer`.
#[derive(Args, Debug)]
pub struct WriterCommand {
    #[command(flatten)]
    spec: WriterSpec,
    /// Where to listen
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, client::PORT)))]
    listen: SocketAddr,
}

impl WriterCommand {
    /// Writes and serves until it is killed.
    ///
    /// # Errors
    /// When it cannot listen or make its threads.
    pub fn run(self) -> Result<()> {
        let listener = TcpListener::bind(self.listen)
            .with_context(|| format!("listening on {}", self.listen))?;
        serve(&listener, self.spec)
    }
}

/// Fills the memory, begins to write, and serves clients for ever.
///
/// # Errors
/// When threads cannot be made or the listener fails.
pub fn serve(listener: &TcpListener, spec: WriterSpec) -> Result<()> {
    let shares = share::start(&spec).context("starting the writer's threads")?;
    serve::serve(listener, shares, spec).context("waiting for clients")
}

/// What the writer has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Time since writing began, in milliseconds of the writer's own clock,
    /// which goes on while it is frozen.
    pub elapsed_ms: f64,
    /// Pages written.
    pub written: u64,
    /// Bytes of written pages a second it was told to reach; `None`: as fast as
    /// it goes.
    pub wanted: Option<u64>,
    /// Pages that were not what they should have been when their turn came to
    /// be written.
    pub faults: u64,
}

impl Stats {
    /// Bytes of written pages a second between two moments.
    pub fn rate_since(&self, earlier: &Stats) -> f64 {
        let seconds = (self.elapsed_ms - earlier.elapsed_ms) / 1e3;
        let pages = self.written.saturating_sub(earlier.written) as f64;
        if seconds > 0.0 { pages * PAGE_SIZE as f64 / seconds } else { 0.0 }
    }
}

/// What a check of all memory found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Pages looked at.
    pub pages: u64,
    /// Pages that are not what they must be.
    pub bad: u64,
    /// The first of them.
    pub first: Vec<BadPage>,
    /// Wrong pages met while writing; see [`Stats::faults`].
    pub faults: u64,
}

/// A page that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPage {
    /// Its number.
    pub page: u64,
    /// What is wrong.
    pub damage: Damage,
}

/// How many bad pages a check names.
pub const NAMED: usize = 8;

impl Checked {
    /// What is wrong, one line each.
    pub fn objections(&self) -> Vec<String> {
        let Checked { pages, bad, first, faults } = self;
        let mut all = Vec::new();
        if *pages == 0 {
            all.push("the writer checked no page".to_owned());
        }
        if *bad > 0 {
            let named: Vec<_> =
                first.iter().map(|b| format!("page {} is {:?}", b.page, b.damage)).collect();
            all.push(format!("{bad} of {pages} pages are wrong: {}", named.join(", ")));
        }
        if *faults > 0 {
            all.push(format!("the writer met {faults} wrong pages while it wrote"));
        }
        all
    }

    /// Takes in what another thread found.
    fn add(&mut self, other: Checked) {
        self.pages += other.pages;
        self.bad += other.bad;
        self.faults += other.faults;
        self.first.extend(other.first);
        self.first.truncate(NAMED);
    }
}

/// Reads a rate, or `max`.
fn rate(text: &str) -> Result<Rate, String> {
    if text == "max" { Ok(Rate::Max) } else { quantity::byte_rate(text).map(Rate::Bytes) }
}
