//! The workload that is moved about: in place, filled, and known well enough
//! to be recognised afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::scenario::{Load, Scenario};
use crate::lab::Host;
use crate::probe::verify::Expected;
use crate::probe::{Place, ProbeReport, within};
use crate::workload::dataset::Dataset;
use crate::workload::redis::{self, Identity, Redis};
use crate::workload::writer::Stats;
use crate::workload::writer::client::{self, Writer};

/// The image that holds the writer.
pub(super) const WRITER_IMAGE: &str = "blip/writer:latest";

/// How long a workload may take to answer: a large writer fills its memory
/// first.
const PATIENCE: Duration = Duration::from_secs(120);

/// A workload that runs and was asked what it holds.
pub(super) struct Resident {
    pub(super) scenario: Scenario,
    pub(super) addr: SocketAddr,
    known: Known,
}

enum Known {
    Redis(Expected),
    Writer(Identity),
}

/// The image, the command and the port that make a container of the workload.
pub fn container(load: &Load) -> (&'static str, Vec<String>, u16) {
    match load {
        Load::Redis(_) => {
            let command = redis::COMMAND.iter().map(|&w| w.to_owned()).collect();
            (redis::IMAGE, command, redis::PORT)
        }
        Load::Writer(words) => {
            let mut command = vec!["blip-bench".to_owned(), "writer".to_owned()];
            command.extend(words.spec.words());
            (WRITER_IMAGE, command, client::PORT)
        }
    }
}

/// Starts the workload in a container of Docker's.
pub(super) fn start(
    host: &Host,
    name: &str,
    ip: std::net::Ipv4Addr,
    load: &Load,
) -> Result<SocketAddr> {
    let (image, command, port) = container(load);
    let ip_text = ip.to_string();
    let mut words = vec!["docker", "run", "--detach", "--name", name];
    words.extend(["--network", crate::rig::NETWORK, "--ip", &ip_text, image]);
    words.extend(command.iter().map(String::as_str));
    host.run(&words)?;
    Ok(SocketAddr::from((ip, port)))
}

impl Resident {
    /// Waits for a workload that was just started, fills it and asks what it
    /// holds.
    pub(super) fn settle(place: &dyn Place, scenario: &Scenario, addr: SocketAddr) -> Result<Self> {
        let load = scenario.load.clone();
        let known = within(place, "fill", move || -> Result<_> {
            match load {
                Load::Redis(size) => {
                    let redis = Redis::at(addr);
                    redis.wait_ready(PATIENCE)?;
                    let filled = redis.fill(Dataset { bytes: size.bytes, seed: 1 })?;
                    let expected = Expected::ask(&redis)?;
                    let same = filled.digest == expected.digest;
                    ensure!(same, "Redis does not hold what was written to it");
                    Ok(Known::Redis(expected))
                }
                Load::Writer(_) => {
                    let writer = Writer::at(addr);
                    writer.wait_ready(PATIENCE)?;
                    let checked = writer.check()?;
                    ensure!(checked.bad == 0, "the writer is wrong before anything moved");
                    Ok(Known::Writer(writer.identity()?))
                }
            }
        });
        let known = known?.with_context(|| format!("preparing {}", scenario.describe()))?;
        Ok(Self { scenario: scenario.clone(), addr, known })
    }

    /// What a writer has done so far; `None` of a Redis.
    pub(super) fn stats(&self, place: &dyn Place) -> Option<Stats> {
        let Known::Writer(_) = self.known else { return None };
        let addr = self.addr;
        // Whether it answers is found out by others.
        within(place, "stats", move || Writer::at(addr).stats()).ok()?.ok()
    }

    /// Everything that does not hold any more, in words.
    pub(super) fn objections(&self, place: &dyn Place, probe: &ProbeReport) -> Vec<String> {
        let asked = match &self.known {
            Known::Redis(expected) => {
                probe.verify(place, self.addr, expected).map(|v| v.objections())
            }
            Known::Writer(identity) => {
                probe.verify_writer(place, self.addr, identity).map(|v| v.objections())
            }
        };
        asked.unwrap_or_else(|why| vec![why.to_string()])
    }
}
