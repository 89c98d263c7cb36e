//! The record of a lab that is up, and what is told of it.

use super::error::Context as _;
use super::paths::Paths;
use super::{CgroupMode, Host, LabError, LabSpec, Result, Suite, network};
use serde::{Deserialize, Serialize};
use std::fs;

/// What a ready lab is. Written once, when everything stands.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) name: String,
    pub(super) slot: u8,
    pub(super) cgroup: CgroupMode,
    pub(super) suite: Suite,
    #[serde(default)]
    pub(super) peers: bool,
    pub(super) hosts: Vec<Host>,
}

impl State {
    pub(super) fn new(spec: &LabSpec, slot: u8, hosts: Vec<Host>) -> Self {
        let (name, cgroup, suite) = (spec.name.clone(), spec.cgroup, spec.suite);
        Self { name, slot, cgroup, suite, peers: spec.peers, hosts }
    }

    /// The record of a lab, if it ever became ready. A record that cannot be
    /// read is as good as none: it may be another version's.
    pub(super) fn read(paths: &Paths) -> Result<Option<Self>> {
        match fs::read(paths.state()) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).on("reading", paths.state()),
        }
    }

    /// Writes the record in one atomic step.
    pub(super) fn write(&self, paths: &Paths) -> Result<()> {
        let new = paths.run.join("state.json.new");
        let bytes = serde_json::to_vec_pretty(self).map_err(std::io::Error::from);
        fs::write(&new, bytes.on("encoding", &new)?).on("writing", &new)?;
        fs::rename(&new, paths.state()).on("writing", paths.state())
    }

    /// Whether all hosts still run.
    pub(super) fn alive(&self) -> bool {
        self.hosts.iter().all(Host::is_alive)
    }

    /// Refuses a lab that is not what was asked for.
    pub(super) fn same_shape(&self, spec: &LabSpec) -> Result<()> {
        let shape = |hosts: usize, suite: Suite, cgroup: CgroupMode, peers: bool| {
            let peers = if peers { " with peers" } else { "" };
            format!("{hosts} hosts of {suite}{peers} on cgroup {cgroup}")
        };
        let is = shape(self.hosts.len(), self.suite, self.cgroup, self.peers);
        let wanted = shape(spec.hosts, spec.suite, spec.cgroup, spec.peers);
        // A host that has more than it needs will do.
        if is == wanted || is == shape(spec.hosts, spec.suite, spec.cgroup, true) {
            return Ok(());
        }
        Err(LabError::Different { name: self.name.clone(), is, wanted })
    }
}

/// What `lab status` tells of a lab.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The lab's name.
    pub name: String,
    /// Whether everything runs. A lab that is not ready died or is on its way.
    pub ready: bool,
    /// Its subnet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// The cgroup version its hosts see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupMode>,
    /// The Debian its hosts run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suite: Option<Suite>,
    /// Its hosts.
    pub hosts: Vec<HostStatus>,
}

/// What `lab status` tells of a host.
#[derive(Debug, Serialize)]
pub struct HostStatus {
    /// `a`, `b`, …
    pub name: String,
    /// Its address on the lab's subnet.
    pub address: String,
    /// Its init, as the machine numbers it.
    pub pid: u32,
    /// Whether its init still runs.
    pub alive: bool,
    /// Docker's API socket, as the machine's own programs reach it.
    pub docker_socket: String,
}

impl Status {
    /// What is known of the lab at these paths.
    pub(super) fn of(paths: &Paths) -> Result<Self> {
        Ok(match State::read(paths)? {
            Some(state) => Self::from_state(&state),
            None => Self {
                name: paths.name.clone(),
                ready: false,
                subnet: None,
                cgroup: None,
                suite: None,
                hosts: Vec::new(),
            },
        })
    }

    pub(super) fn from_state(state: &State) -> Self {
        Self {
            name: state.name.clone(),
            ready: state.alive(),
            subnet: Some(network::subnet(state.slot)),
            cgroup: Some(state.cgroup),
            suite: Some(state.suite),
            hosts: state
                .hosts
                .iter()
                .map(|h| HostStatus {
                    name: h.name().into(),
                    address: h.address().to_string(),
                    pid: h.pid(),
                    alive: h.is_alive(),
                    docker_socket: h.docker_socket().display().to_string(),
                })
                .collect(),
        }
    }
}
