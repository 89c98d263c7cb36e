//! The forwarder: new connections to the ports that a container published here
//! go on to the host it has moved to, for a while.
//!
//! It is a relay in user space, a process of its own (`blip forward run`) that
//! outlives the migration, and no rules in the kernel: clients on this very
//! host and IPv6 clients of an IPv4 target are served like all others, Docker
//! says *port is already allocated* instead of losing a port in silence, and
//! whatever becomes of the process, nothing of it stays in force. The price is
//! one copy more, and that the container sees this host as its client.
//!
//! * [`Forward`] is what is on record of one, in `/run`: gone with a reboot, as
//!   the process is.
//! * `gate` holds new connections back from before the container's end until
//!   the relay has its ports, so that they are late, not refused.
//! * [`relay`] is the work itself.
//!
//! **Invariant**: a gate never stands for longer than [`OPEN_LIMIT`] and the
//! next command of blip after a crash.

mod gate;
pub mod relay;
mod spawn;

pub use spawn::{Spawned, run};

use crate::docker::Inspection;
use crate::handover::Ticket;
use crate::ledger::Ledger;
use crate::protocol::Finding;
use bollard::models::PortBinding;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// How long Docker may take to let go of the ports.
pub const OPEN_LIMIT: Duration = Duration::from_secs(15);

const RECORDS: &str = "/run/blip/forwards";

/// The protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// One published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its protocol.
    pub protocol: Protocol,
    /// Where this host listens; the target listens on the same port.
    pub listen: SocketAddr,
}

/// A forwarder, as it is on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// The migration it belongs to.
    pub ticket: Ticket,
    /// The container that moved.
    pub container: String,
    /// The host it moved to.
    pub target: IpAddr,
    /// What is forwarded.
    pub ports: Vec<Port>,
    /// For how many seconds.
    pub seconds: u64,
    /// When it ends, in seconds since 1970; 0 before it has begun.
    pub until: u64,
    /// Its process, and when that was started in ticks since boot; 0 before it
    /// has been.
    pub pid: i32,
    /// See `pid`.
    pub started: u64,
}

impl Forward {
    /// A forwarder that has not begun, for all ports that `container` has
    /// published here.
    pub fn of(container: &Inspection, ticket: Ticket, target: IpAddr, time: Duration) -> Self {
        Self {
            ticket,
            container: container.name.clone(),
            target,
            ports: published(container),
            seconds: time.as_secs().max(1),
            until: 0,
            pid: 0,
            started: 0,
        }
    }

    /// Whether its process is there still.
    pub fn lives(&self) -> bool {
        self.pid != 0 && crate::runtime::started(self.pid) == Some(self.started)
    }

    /// Ends it, and waits until its ports are free.
    ///
    /// # Errors
    /// If its process does not end.
    pub fn stop(&self) -> io::Result<()> {
        use nix::sys::signal::{Signal, kill};
        let pid = nix::unistd::Pid::from_raw(self.pid);
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            for _ in 0..100 {
                if !self.lives() {
                    return forget(self.ticket);
                }
                kill(pid, signal)?;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Err(io::Error::other(format!("process {} does not end", self.pid)))
    }
}

/// All forwarders of this host. What an earlier one left behind is removed.
///
/// # Errors
/// If the records cannot be read.
pub fn all() -> io::Result<Vec<Forward>> {
    if !Path::new(RECORDS).exists() {
        return Ok(Vec::new());
    }
    let (living, dead): (Vec<_>, Vec<_>) =
        ledger()?.all::<Forward>()?.into_iter().partition(Forward::lives);
    for forward in dead {
        gate::remove(forward.ticket);
        forget(forward.ticket)?;
    }
    Ok(living)
}

/// Ends the forwarders that stand on the ports of a container that comes (back)
/// to this host: Docker needs them.
pub fn make_way(container: &Inspection) {
    let wanted = bound_ports(container);
    let in_the_way = |forward: &Forward| {
        let mut ports = forward.ports.iter().map(|p| (p.protocol, p.listen.port()));
        ports.any(|port| wanted.contains(&port))
    };
    for forward in all().unwrap_or_default().iter().filter(|forward| in_the_way(forward)) {
        match forward.stop() {
            Ok(()) => tracing::info!(
                "forwarder {} ends: '{}' needs its ports here",
                forward.ticket,
                container.name
            ),
            Err(error) => tracing::warn!("forwarder {} is in the way: {error}", forward.ticket),
        }
    }
}

/// The ports a container has published on this host, as they are in force.
pub fn published(container: &Inspection) -> Vec<Port> {
    let settings = container.all.network_settings.clone().unwrap_or_default();
    let mut ports = Vec::new();
    for (name, bindings) in settings.ports.unwrap_or_default() {
        let Some(protocol) = protocol(&name) else { continue };
        for binding in bindings.unwrap_or_default() {
            let number = binding.host_port.as_deref().and_then(|port| port.parse().ok());
            let Some(number) = number.filter(|&number: &u16| number != 0) else { continue };
            ports.push(Port { protocol, listen: SocketAddr::new(address(&binding), number) });
        }
    }
    ports.sort_by_key(|port| (port.listen.port(), port.listen));
    ports.dedup();
    ports
}

/// The ports that a container is to be given, as far as they are known.
fn bound_ports(container: &Inspection) -> Vec<(Protocol, u16)> {
    let host = container.all.host_config.clone().unwrap_or_default();
    let bindings = host.port_bindings.unwrap_or_default();
    let numbers = bindings.iter().flat_map(|(name, bindings)| {
        let protocol = protocol(name);
        bindings.iter().flatten().filter_map(move |binding| {
            Some((protocol?, binding.host_port.as_deref()?.parse().ok()?))
        })
    });
    numbers.collect()
}

/// What stands in the way of forwarding.
pub fn findings(container: &Inspection, address_moves: bool) -> Vec<Finding> {
    let name = &container.name;
    let ports = published(container);
    if address_moves || ports.is_empty() {
        let why = if address_moves { "it keeps its address" } else { "it publishes no port" };
        let what = format!("there is nothing to forward for container '{name}': {why}");
        return vec![Finding::blocker(what, "leave --forward out")];
    }
    let local = ports.iter().filter(|port| port.listen.ip().is_loopback());
    let finding = |port: &Port| {
        Finding::blocker(
            format!(
                "container '{name}' publishes {} for its own host only: the target's cannot be \
                 reached from here",
                port.listen
            ),
            "publish it on an address that this host can reach, or leave --forward out",
        )
    };
    local.map(finding).collect()
}

/// Gives ports that Docker chose their numbers of today: the forwarder knows no
/// others.
pub fn pin_ports(container: &mut Inspection) {
    let settings = container.all.network_settings.clone().unwrap_or_default();
    let in_force: HashMap<_, _> = settings.ports.unwrap_or_default().into_iter().collect();
    let Some(host) = &mut container.all.host_config else { return };
    let bindings = host.port_bindings.get_or_insert_default();
    for (name, actual) in in_force {
        let Some(actual) = actual.filter(|actual| !actual.is_empty()) else { continue };
        let wanted = bindings.entry(name).or_default().get_or_insert_default();
        let chosen = |binding: &PortBinding| {
            binding.host_port.as_deref().is_none_or(|port| port.parse::<u16>().unwrap_or(0) == 0)
        };
        if wanted.is_empty() || wanted.iter().any(chosen) {
            *wanted = actual;
        }
    }
    host.publish_all_ports = Some(false);
}

fn protocol(name: &str) -> Option<Protocol> {
    match name.split_once('/').map_or("tcp", |(_, protocol)| protocol) {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}

fn address(binding: &PortBinding) -> IpAddr {
    let given = binding.host_ip.as_deref().and_then(|address| address.parse().ok());
    given.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

fn ledger() -> io::Result<Ledger> {
    Ledger::open(Path::new(RECORDS))
}

fn record(forward: &Forward) -> io::Result<()> {
    ledger()?.save(forward.ticket, forward)
}

fn forget(ticket: Ticket) -> io::Result<()> {
    ledger()?.remove(ticket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(host: serde_json::Value, ports: serde_json::Value) -> Inspection {
        let all = json!({
            "Id": "1", "Image": "2", "Name": "/web", "State": {},
            "HostConfig": {"PortBindings": host}, "NetworkSettings": {"Ports": ports},
        });
        Inspection::from_json(&all.to_string()).unwrap()
    }

    #[test]
    fn ports_in_force_are_found_and_pinned() {
        let in_force = json!({
            "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}, {"HostIp": "::", "HostPort": "32768"}],
            "53/udp": [{"HostIp": "0.0.0.0", "HostPort": "5353"}],
            "9/tcp": null,
        });
        let given = json!({
            "80/tcp": [{"HostIp": "", "HostPort": ""}],
            "53/udp": [{"HostIp": "", "HostPort": "5353"}],
        });
        let mut web = container(given, in_force);
        let ports = published(&web);
        assert_eq!(ports.len(), 3, "{ports:?}");
        assert_eq!(ports[0].protocol, Protocol::Udp);
        assert!(findings(&web, false).is_empty());
        pin_ports(&mut web);
        let bound = bound_ports(&web);
        assert!(bound.contains(&(Protocol::Tcp, 32768)) && bound.contains(&(Protocol::Udp, 5353)));
        assert_eq!(bound.len(), 3, "what had a number keeps its binding: {bound:?}");
    }

    #[test]
    fn what_cannot_be_forwarded_is_said() {
        let nothing = container(json!({}), json!({}));
        assert!(findings(&nothing, false)[0].what.contains("publishes no port"));
        let ports = json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "80"}]});
        let local = container(json!({}), ports.clone());
        assert!(findings(&local, false)[0].what.contains("127.0.0.1:80"));
        assert!(findings(&local, true)[0].what.contains("keeps its address"));
    }
}
