//! The same container again: what of an inspection goes into its copy.

use super::{DockerError, Inspection, never_restart};
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, EndpointSettings, HostConfig, MountPoint,
    NetworkingConfig,
};

/// The runtime under which blip is known to Docker.
pub(super) const RUNTIME: &str = "blip";

/// A container to be created.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Its name.
    pub name: String,
    /// All the rest.
    pub body: ContainerCreateBody,
}

impl Copy {
    /// The copy of `original` as it is staged: with blip as its runtime, and
    /// not started again by Docker before the handover has succeeded.
    /// `keep_addresses`: it gets the original's IP and MAC addresses.
    pub fn staged(original: &Inspection, keep_addresses: bool) -> Result<Self, DockerError> {
        let name = original.name.clone();
        let lacks = |what| DockerError::Incomplete { name: name.clone(), what };
        let config = original.all.config.as_ref().ok_or_else(|| lacks("a configuration"))?;
        // What `docker inspect` shows as Config is what `create` takes.
        let mut body: ContainerCreateBody = serde_json::to_value(config)
            .and_then(serde_json::from_value)
            .map_err(|_| lacks("a configuration that can be created"))?;
        let mut host: HostConfig = original.all.host_config.clone().unwrap_or_default();
        host.runtime = Some(RUNTIME.to_owned());
        host.restart_policy = Some(never_restart());
        // The others' container is not there, their volumes are.
        let foreign = host.volumes_from.take().unwrap_or_default();
        if !foreign.is_empty() {
            let mounts = original.all.mounts.iter().flatten();
            let borrowed = mounts.filter(|mount| is_borrowed(&original.all, mount)).map(bind);
            host.binds.get_or_insert_default().extend(borrowed);
        }
        // Daemon-made defaults that another daemon may refuse to be told.
        host.container_id_file = None;
        body.host_config = Some(host);
        let endpoints = original.networks().into_iter();
        let endpoints = endpoints.map(|(name, at)| (name, endpoint(original, &at, keep_addresses)));
        body.networking_config =
            Some(NetworkingConfig { endpoints_config: Some(endpoints.collect()) });
        Ok(Self { name: original.name.clone(), body })
    }
}

/// Whether a container was given something of a name of its own to mount at
/// `destination`, rather than only the place.
pub fn is_bound(all: &ContainerInspectResponse, destination: &str) -> bool {
    let Some(host) = &all.host_config else { return false };
    let binds = host.binds.as_deref().unwrap_or_default();
    let mounts = host.mounts.as_deref().unwrap_or_default();
    // NAME:DESTINATION[:OPTIONS]; a bare DESTINATION names nothing.
    binds.iter().any(|bind| bind.split(':').nth(1) == Some(destination))
        || mounts.iter().any(|mount| mount.target.as_deref() == Some(destination))
}

/// Whether a mount is another container's (`--volumes-from`).
fn is_borrowed(all: &ContainerInspectResponse, mount: &MountPoint) -> bool {
    let destination = mount.destination.as_deref().unwrap_or_default();
    let places = all.config.as_ref().and_then(|config| config.volumes.as_deref());
    let declared = places.unwrap_or_default().iter().any(|place| place == destination);
    !declared && !is_bound(all, destination)
}

fn bind(mount: &MountPoint) -> String {
    let from = mount.name.as_deref().filter(|name| !name.is_empty()).or(mount.source.as_deref());
    let mode = if mount.rw == Some(false) { ":ro" } else { "" };
    let destination = mount.destination.as_deref().unwrap_or_default();
    format!("{}:{destination}{mode}", from.unwrap_or_default())
}

fn endpoint(original: &Inspection, at: &EndpointSettings, keep: bool) -> EndpointSettings {
    // Docker adds the short ID as an alias by itself: the old one is not wanted.
    let short = original.id.get(..12).unwrap_or_default();
    let aliases = at.aliases.clone().map(|all| all.into_iter().filter(|a| a != short).collect());
    let mut new = EndpointSettings {
        links: at.links.clone(),
        aliases,
        driver_opts: at.driver_opts.clone(),
        gw_priority: at.gw_priority,
        ..Default::default()
    };
    if keep {
        new.mac_address = at.mac_address.clone();
        let mut ipam = at.ipam_config.clone().unwrap_or_default();
        ipam.ipv4_address = at.ip_address.clone().filter(|a| !a.is_empty()).or(ipam.ipv4_address);
        ipam.ipv6_address =
            at.global_ipv6_address.clone().filter(|a| !a.is_empty()).or(ipam.ipv6_address);
        new.ipam_config = Some(ipam);
    }
    new
}
