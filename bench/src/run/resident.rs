//! The workload that is moved about: in place, filled, and known well enough
//! to be recognised afterwards.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::scenario::{Load, Scenario};
use crate::lab::Host;
use crate::probe::{Place, ProbeReport, Spec, within};
use crate::workload::service::{Container, Crowd, Holdings, PATIENCE, Service};
use crate::workload::writer::Stats;

/// How many counters the client goes round.
const COUNTERS: u32 = 100;

/// A workload that runs and was asked what it holds.
pub(super) struct Resident {
    pub(super) scenario: Scenario,
    pub(super) addr: SocketAddr,
    service: Arc<dyn Service>,
    held: Arc<dyn Holdings>,
}

/// The image, the command and the port that make a container of the workload.
pub fn container(load: &Load) -> (&'static str, Vec<String>, u16) {
    let Container { image, command, port, .. } = load.service().container();
    (image, command, port)
}

/// Starts the workload in a container of Docker's.
pub(super) fn start(
    host: &Host,
    name: &str,
    ip: std::net::Ipv4Addr,
    load: &Load,
) -> Result<SocketAddr> {
    let Container { image, options, command, port, .. } = load.service().container();
    let ip_text = ip.to_string();
    let mut words = vec!["docker", "run", "--detach", "--name", name];
    words.extend(["--network", crate::rig::NETWORK, "--ip", &ip_text]);
    words.extend(options.iter().map(String::as_str));
    words.push(image);
    words.extend(command.iter().map(String::as_str));
    host.run(&words)?;
    Ok(SocketAddr::from((ip, port)))
}

impl Resident {
    /// Waits for a workload that was just started, fills it and asks what it
    /// holds.
    pub(super) fn settle(place: &dyn Place, scenario: &Scenario, addr: SocketAddr) -> Result<Self> {
        let service = scenario.load.service();
        let (filling, spec) = (Arc::clone(&service), spec(scenario, service.as_ref(), addr));
        let counters: Vec<_> = spec.keys().into_iter().chain(spec.fresh_keys()).collect();
        let held = within(place, "fill", move || filling.settle(addr, &counters))?
            .with_context(|| format!("preparing {}", scenario.describe()))?;
        Ok(Self { scenario: scenario.clone(), addr, service, held })
    }

    /// How a client asks it, at most so many times a second.
    pub(super) fn spec(&self, rate: u32) -> Spec {
        let rate = self.service.most_requests().map_or(rate, |most| rate.min(most));
        let content = Some(self.held.content()).filter(|c| !c.keys.is_empty());
        Spec { rate, content, ..spec(&self.scenario, self.service.as_ref(), self.addr) }
    }

    /// The program that loads it beside the probe, if there is one.
    pub(super) fn crowd(&self) -> Option<Crowd> {
        self.service.crowd(self.addr)
    }

    /// What a writer has done so far; `None` of others.
    pub(super) fn stats(&self, place: &dyn Place) -> Option<Stats> {
        let (held, addr) = (Arc::clone(&self.held), self.addr);
        within(place, "stats", move || held.stats(addr)).ok()?
    }

    /// Everything that does not hold any more, in words.
    pub(super) fn objections(&self, place: &dyn Place, probe: ProbeReport) -> Vec<String> {
        let (held, addr) = (Arc::clone(&self.held), self.addr);
        let asked = within(place, "verify", move || {
            let mut all = match probe.account(addr, PATIENCE) {
                Ok(all) => all,
                Err(why) => vec![why],
            };
            match held.changed(addr) {
                Ok(changed) => all.extend(changed),
                Err(why) => all.push(format!("could not verify: {why:#}")),
            }
            all
        });
        asked.unwrap_or_else(|why| vec![why.to_string()])
    }
}

/// How clients speak to a service, whatever it holds.
fn spec(scenario: &Scenario, service: &dyn Service, addr: SocketAddr) -> Spec {
    Spec {
        dialect: service.dialect(),
        counters: COUNTERS,
        reads: if service.only_reads() { 100 } else { scenario.reads },
        ..Spec::new(addr)
    }
}
