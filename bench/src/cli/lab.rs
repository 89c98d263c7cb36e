//! `blip-bench lab`.

use anyhow::Context as _;
use blip_bench::lab::{self, CgroupMode, Lab, LabSpec, Status, Suite};
use clap::{Args, Subcommand};
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

/// Name of the lab.
#[derive(Debug, Args)]
pub(super) struct Name {
    /// Name of the lab; several can be up at once
    #[arg(long, default_value = "blip", value_name = "NAME")]
    name: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum LabCommand {
    /// Bring a lab up; does nothing if it is up already
    Up {
        #[command(flatten)]
        name: Name,
        /// How many hosts: a, b, …
        #[arg(long, default_value_t = 2, value_name = "N")]
        hosts: usize,
        /// Cgroup version the hosts see
        #[arg(long, default_value = "v2")]
        cgroup: CgroupMode,
        /// Debian suite of the hosts: forky has Docker 28.5, trixie 26.1
        #[arg(long, default_value = "forky")]
        suite: Suite,
        /// Also install what blip is compared with: Podman, Incus
        #[arg(long)]
        peers: bool,
        /// Package mirror; by default that of this machine's apt
        #[arg(long, value_name = "URI")]
        mirror: Option<String>,
    },
    /// Show all labs, or one
    Status {
        /// Only this lab
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command in a host (a, b, …) or in the client's network (client)
    Exec {
        #[command(flatten)]
        name: Name,
        /// a, b, … or client
        host: String,
        /// The command and its arguments
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Take a lab down and leave nothing behind but the cache
    Down {
        #[command(flatten)]
        name: Name,
        /// Take all labs down
        #[arg(long, conflicts_with = "name")]
        all: bool,
        /// Remove the cached root file systems and images, too
        #[arg(long)]
        purge: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum InitCommand {
    Enter { spec: PathBuf },
    Serve { spec: PathBuf },
}

impl InitCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Enter { spec } => lab::enter_host(&spec)?,
            Self::Serve { spec } => lab::serve_host(&spec)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl LabCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Up { name, hosts, cgroup, suite, peers, mirror } => {
                let name = name.name;
                up(&LabSpec { name, hosts, cgroup, suite, peers, mirror, ..LabSpec::default() })
            }
            Self::Status { name, json } => status(name.as_deref(), json),
            Self::Exec { name, host, command } => exec(&name.name, &host, &command),
            Self::Down { name, all, purge } => down((!all).then_some(name.name), purge),
        }
    }
}

fn up(spec: &LabSpec) -> anyhow::Result<ExitCode> {
    let lab = Lab::up(spec)?;
    let verb = if lab.is_fresh() { "is up" } else { "was up already" };
    let mut text = format!("lab `{}` {verb}\n", lab.name());
    describe(&lab.status(), &mut text);
    print(&text)
}

fn status(name: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    let mut labs = Lab::all()?;
    labs.retain(|lab| name.is_none_or(|name| name == lab.name));
    if json {
        return print(&(serde_json::to_string_pretty(&labs)? + "\n"));
    }
    if labs.is_empty() {
        return print("no lab is up\n");
    }
    let mut text = String::new();
    for lab in &labs {
        let state = if lab.ready { "is up" } else { "is not ready (starting, or died)" };
        let _ = writeln!(text, "lab `{}` {state}", lab.name);
        describe(lab, &mut text);
    }
    print(&text)
}

fn describe(lab: &Status, text: &mut String) {
    if let (Some(suite), Some(cgroup), Some(subnet)) = (lab.suite, lab.cgroup, &lab.subnet) {
        let _ = writeln!(text, "  {suite}, cgroup {cgroup}, {subnet}");
    }
    for host in &lab.hosts {
        let dead = if host.alive { "" } else { "  dead" };
        let _ = writeln!(text, "  {}  {}  pid {}{dead}", host.name, host.address, host.pid);
    }
}

fn exec(lab: &str, host: &str, argv: &[String]) -> anyhow::Result<ExitCode> {
    let lab = Lab::open(lab)?;
    let mut command = match host {
        "client" => lab.client().command(argv),
        host => lab.host(host)?.command(argv),
    };
    let status = command.stdin(Stdio::inherit()).status().context("starting the command")?;
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn down(name: Option<String>, purge: bool) -> anyhow::Result<ExitCode> {
    let names = match name {
        Some(name) => vec![name],
        None => Lab::all()?.into_iter().map(|lab| lab.name).collect(),
    };
    for name in names {
        Lab::remove(&name)?;
    }
    if purge {
        Lab::purge()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes()).context("printing")?;
    Ok(ExitCode::SUCCESS)
}
