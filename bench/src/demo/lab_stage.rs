//! The demo's stage in the lab: host `a` is the source, host `b` the target,
//! clients are in the lab's client namespace.
//!
//! This file alone knows blip's command line and Docker's.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::report::MigrateReport;
use super::script::Stage;
use crate::lab::{Client, Host, Lab, LabSpec};
use crate::probe::{Here, Job, Place};

/// Where blip is put on each host.
const BLIP: &str = "/usr/local/bin/blip";

/// The container's name.
const CONTAINER: &str = "redis";

const IMAGE: &str = "blip/redis:latest";
const NETWORK: &str = "blipnet";
const REDIS_PORT: u16 = 6379;

/// Where the agent listens unless it is told otherwise.
const AGENT_PORT: u16 = 4433;

/// Two hosts of a lab with blip on them and an agent on the second.
pub struct LabStage {
    lab: Lab,
    place: ClientPlace,
    agent: Option<Child>,
    description: String,
}

impl LabStage {
    /// Brings the lab up, or takes it as it is, puts `blip` on the hosts and
    /// starts the agent.
    ///
    /// # Errors
    /// When the lab does not come up or the agent does not listen.
    pub fn start(spec: &LabSpec, blip: &Path) -> Result<LabStage> {
        let lab = Lab::up(spec)?;
        let mut stage = LabStage {
            place: ClientPlace(lab.client()),
            description: format!(
                "two hosts of Debian {}, cgroup {}, on one machine",
                spec.suite, spec.cgroup
            ),
            agent: None,
            lab,
        };
        for host in stage.lab.hosts() {
            host.install(blip, BLIP)?;
        }
        pair(stage.source()?, stage.target()?)?;
        stage.agent = Some(start_agent(stage.target()?)?);
        Ok(stage)
    }

    /// Ends the agent and, unless it was up before or is to be kept, the lab.
    ///
    /// # Errors
    /// When the lab cannot be removed.
    pub fn end(mut self, keep: bool) -> Result<()> {
        self.end_agent();
        if keep || !self.lab.is_fresh() {
            for host in self.lab.hosts() {
                remove_container(host);
            }
            return Ok(());
        }
        let name = self.lab.name().to_owned();
        drop(self);
        Ok(Lab::remove(&name)?)
    }

    fn source(&self) -> Result<&Host> {
        Ok(self.lab.host("a")?)
    }

    fn target(&self) -> Result<&Host> {
        Ok(self.lab.host("b")?)
    }

    fn end_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            // It may have ended already; then there is nothing to end.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

impl Drop for LabStage {
    fn drop(&mut self) {
        self.end_agent();
    }
}

impl Stage for LabStage {
    fn place(&self) -> &dyn Place {
        &self.place
    }

    fn start_redis(&mut self) -> Result<SocketAddr> {
        for host in self.lab.hosts() {
            remove_container(host);
        }
        let address = self.lab.container_address(0);
        let ip = address.to_string();
        self.source()?.run(
            &[
                [
                    "docker",
                    "run",
                    "--detach",
                    "--name",
                    CONTAINER,
                    "--network",
                    NETWORK,
                    "--ip",
                    &ip,
                ]
                .as_slice(),
                &[IMAGE, "redis-server", "--save", "", "--appendonly", "no"],
                &["--protected-mode", "no", "--enable-debug-command", "yes"],
            ]
            .concat(),
        )?;
        Ok(SocketAddr::from((address, REDIS_PORT)))
    }

    fn migrate(&mut self, line: &mut dyn FnMut(&str)) -> Result<()> {
        let to = format!("{}:{AGENT_PORT}", self.target()?.address());
        let mut blip = self
            .source()?
            .command(&[BLIP, "migrate", CONTAINER, "--to", &to, "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting `blip migrate` on the source")?;
        let said = blip.stderr.take().map(collect);
        let mut reported = false;
        for text in BufReader::new(blip.stdout.take().context("its output")?).lines() {
            let text = text.context("reading what `blip migrate` prints")?;
            // A report that cannot be read is the script's to complain about.
            reported |= !matches!(MigrateReport::from_line(&text), Ok(None));
            line(&text);
        }
        let status = blip.wait().context("waiting for `blip migrate`")?;
        let said = said.and_then(|s| s.join().ok()).unwrap_or_default();
        if !reported {
            bail!("`blip migrate` ended ({status}) without a report: {}", said.trim());
        }
        Ok(())
    }

    fn redis_now(&mut self) -> Result<SocketAddr> {
        for host in [self.target()?, self.source()?] {
            if let Some(ip) = address_on(host) {
                return Ok(SocketAddr::from((ip, REDIS_PORT)));
            }
        }
        bail!("neither host runs the container `{CONTAINER}`")
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}

/// The lab's client namespace as a place for the probe's threads.
struct ClientPlace(Client);

impl Place for ClientPlace {
    fn start(&self, name: &str, job: Job) -> io::Result<JoinHandle<()>> {
        let client = self.0.clone();
        let (entered, has_entered) = std::sync::mpsc::channel();
        let thread = Here.start(
            name,
            Box::new(move || {
                let result = client.enter_net().map_err(io::Error::other);
                let there = result.is_ok();
                // The starter waits for this one message.
                let _ = entered.send(result);
                if there {
                    job();
                }
            }),
        )?;
        has_entered.recv().map_err(io::Error::other)??;
        Ok(thread)
    }
}

/// Pins each host's key on the other.
fn pair(a: &Host, b: &Host) -> Result<()> {
    for (host, other) in [(a, b), (b, a)] {
        let key = other.run(&[BLIP, "pair", "show"])?;
        host.run(&[BLIP, "pair", "add", key.trim(), other.name()])?;
    }
    Ok(())
}

/// Starts the agent and waits until it listens.
fn start_agent(host: &Host) -> Result<Child> {
    let mut agent = host
        .command(&[BLIP, "agent"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `blip agent` on the target")?;
    let said = agent.stderr.take().map(collect);
    std::thread::sleep(Duration::from_millis(300));
    if let Some(status) = agent.try_wait()? {
        let said = said.and_then(|s| s.join().ok()).unwrap_or_default();
        bail!("`blip agent` ended at once ({status}): {}", said.trim());
    }
    Ok(agent)
}

/// Removes the container, if there is one.
fn remove_container(host: &Host) {
    // That there is none is the usual case.
    let _ = host.run(&["docker", "rm", "--force", "--volumes", CONTAINER]);
}

/// The container's address on a host that runs it.
fn address_on(host: &Host) -> Option<Ipv4Addr> {
    let mut format = String::from("{{if .State.Running}}");
    // Writing to a string cannot fail.
    let _ = write!(format, "{{{{.NetworkSettings.Networks.{NETWORK}.IPAddress}}}}{{{{end}}}}");
    let said = host.run(&["docker", "inspect", "--format", &format, CONTAINER]).ok()?;
    said.trim().parse().ok()
}

/// Reads a stream to its end on a thread of its own.
fn collect(mut stream: impl io::Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut said = String::new();
        // What was read until an error is what there is to show.
        let _ = stream.read_to_string(&mut said);
        said
    })
}
