//! A container as Docker describes it, in the words blip needs.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::{ContainerInspectResponse, EndpointSettings};
use serde::{Deserialize, Serialize};

use super::{ContainerConfig, DockerError, HostConfig, RestartPolicy};
use crate::runtime::restored_init;

/// Everything blip knows of a container from its daemon; it travels to the
/// target as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerFacts {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    /// Runs, and is not paused or restarting.
    pub running: bool,
    /// Docker's word for its state, such as `running` or `exited`.
    pub status: String,
    /// Host pid of its first process, 0 when it does not run. For a container
    /// that arrived through blip this is the restored init, although Docker
    /// shows its holder.
    pub init_pid: i32,
    /// `sha256:…`.
    pub image_id: String,
    /// Has a terminal.
    pub tty: bool,
    /// `bridge`, `host`, `none`, `container:…` or a network's name.
    pub network_mode: String,
    /// One for each network it is on.
    pub endpoints: Vec<Endpoint>,
    /// Volumes, binds and tmpfs, as mounted.
    pub mounts: Vec<MountFact>,
    /// What Docker does when it ends.
    pub restart_policy: Option<RestartPolicy>,
    /// Such as `json-file`.
    pub log_driver: String,
    /// Its log, if the driver keeps a file.
    pub log_path: Option<PathBuf>,
    /// The OCI runtime it was created with.
    pub runtime: String,
    /// The storage driver's name.
    pub graph_driver: String,
    /// The storage driver's paths: for overlay2 `UpperDir`, `MergedDir`, ….
    pub graph_data: HashMap<String, String>,
    /// The container's part of its creation, whole.
    pub config: ContainerConfig,
    /// The host's part of its creation, whole.
    pub host_config: HostConfig,
}

/// A container's place on one network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The network's name.
    pub network: String,
    /// The network's driver, such as `bridge` or `macvlan`.
    pub driver: String,
    /// IPv4 address, if it has one.
    pub ip: Option<String>,
    /// IPv6 address, if it has one.
    pub ipv6: Option<String>,
    /// MAC address, if it has one.
    pub mac: Option<String>,
    /// Other names of it there.
    pub aliases: Vec<String>,
    /// Options for the driver.
    pub driver_opts: HashMap<String, String>,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFact {
    /// `bind`, `volume`, `tmpfs`, ….
    pub kind: String,
    /// A volume's name.
    pub name: Option<String>,
    /// Where it is on the host.
    pub source: Option<PathBuf>,
    /// Where it is in the container.
    pub destination: PathBuf,
    /// A volume's driver.
    pub driver: Option<String>,
    /// May be written to.
    pub writable: bool,
}

impl ContainerFacts {
    /// From Docker's answer; drivers of networks are not in it.
    pub(super) fn read(asked: &str, answer: ContainerInspectResponse) -> Result<Self, DockerError> {
        let lacks = |lacks| DockerError::Incomplete { container: asked.to_owned(), lacks };
        let config = answer.config.ok_or(lacks("Config"))?;
        let host_config = answer.host_config.ok_or(lacks("HostConfig"))?;
        let state = answer.state.ok_or(lacks("State"))?;
        let yes = |flag: Option<bool>| flag.unwrap_or(false);
        let docker_pid = state.pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        let graph = answer.graph_driver;
        let networks = answer.network_settings.and_then(|n| n.networks).unwrap_or_default();
        let mut endpoints: Vec<_> = networks
            .into_iter()
            .map(|(network, settings)| Endpoint::read(network, settings))
            .collect();
        endpoints.sort_by(|a, b| a.network.cmp(&b.network));
        let log_driver = host_config.log_config.as_ref().and_then(|l| l.typ.clone());
        Ok(Self {
            id: answer.id.ok_or(lacks("Id"))?,
            name: answer.name.ok_or(lacks("Name"))?.trim_start_matches('/').to_owned(),
            running: yes(state.running) && !yes(state.paused) && !yes(state.restarting),
            status: state.status.map(|s| s.to_string()).unwrap_or_default(),
            init_pid: if docker_pid > 0 { restored_init(docker_pid) } else { 0 },
            image_id: answer.image.ok_or(lacks("Image"))?,
            tty: yes(config.tty),
            network_mode: host_config.network_mode.clone().unwrap_or_default(),
            endpoints,
            mounts: answer.mounts.unwrap_or_default().into_iter().map(MountFact::read).collect(),
            restart_policy: host_config.restart_policy.clone(),
            log_driver: log_driver.unwrap_or_default(),
            log_path: answer.log_path.filter(|p| !p.is_empty()).map(PathBuf::from),
            runtime: host_config.runtime.clone().unwrap_or_default(),
            graph_driver: graph
                .as_ref()
                .map(|g| g.name.clone())
                .or(answer.driver)
                .unwrap_or_default(),
            graph_data: graph.map(|g| g.data).unwrap_or_default(),
            config,
            host_config,
        })
    }

    /// Docker starts it again by itself when it ends.
    pub fn restarts(&self) -> bool {
        use super::RestartPolicyNameEnum::{EMPTY, NO};
        self.restart_policy
            .as_ref()
            .and_then(|p| p.name)
            .is_some_and(|name| !matches!(name, NO | EMPTY))
    }
}

impl Endpoint {
    fn read(network: String, settings: EndpointSettings) -> Self {
        let full = |text: Option<String>| text.filter(|t| !t.is_empty());
        Self {
            network,
            driver: String::new(),
            ip: full(settings.ip_address),
            ipv6: full(settings.global_ipv6_address),
            mac: full(settings.mac_address),
            aliases: settings.aliases.unwrap_or_default(),
            driver_opts: settings.driver_opts.unwrap_or_default(),
        }
    }
}

impl MountFact {
    fn read(mount: bollard::models::MountPoint) -> Self {
        let full = |text: Option<String>| text.filter(|t| !t.is_empty());
        Self {
            kind: mount.typ.unwrap_or_default(),
            name: full(mount.name),
            source: full(mount.source).map(PathBuf::from),
            destination: mount.destination.unwrap_or_default().into(),
            driver: full(mount.driver),
            writable: mount.rw.unwrap_or(true),
        }
    }
}
