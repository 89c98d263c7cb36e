//! Making the same container on the target, ready to receive its processes.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, NetworkingConfig,
};
use bollard::query_parameters::CreateContainerOptions;

use super::{
    ContainerFacts, Docker, DockerError, Endpoint, RUNTIME_NAME, RestartPolicy,
    RestartPolicyNameEnum,
};

/// The address of the container on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkIdentity {
    /// The same IP and MAC, on user-defined networks; Docker chooses on its
    /// default bridge, where it takes no wishes.
    #[default]
    Keep,
    /// Docker chooses.
    Fresh,
}

/// In what the target's container differs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StageOverrides {
    /// Another name than the source's.
    pub name: Option<String>,
    /// Its address.
    pub identity: NetworkIdentity,
    /// Networks that are called otherwise on the target: source → target.
    pub networks: HashMap<String, String>,
}

impl Docker {
    /// Creates the container on this host, with blip as its runtime and no
    /// restart policy until it has arrived; returns its id.
    ///
    /// # Errors
    /// When the image is missing, or in Docker's words.
    pub async fn stage_create(
        &self,
        facts: &ContainerFacts,
        overrides: &StageOverrides,
    ) -> Result<String, DockerError> {
        let name = overrides.name.as_deref().unwrap_or(&facts.name);
        let refused = || DockerError::refused(format!("create container '{name}'"));
        let mut body = create_body(facts, overrides).map_err(|why| DockerError::Refused {
            what: format!("create container '{name}'"),
            why,
        })?;
        // By name as on the source if that is the same image here, else by id.
        let named = facts.config.image.clone().unwrap_or_default();
        let same = self.image_id(&named).await?.as_deref() == Some(facts.image_id.as_str());
        body.image = Some(if same { named } else { facts.image_id.clone() });
        let options =
            CreateContainerOptions { name: Some(name.to_owned()), platform: String::new() };
        let made = self.quick.create_container(Some(options), body).await.map_err(refused())?;
        Ok(made.id)
    }
}

fn create_body(
    facts: &ContainerFacts,
    overrides: &StageOverrides,
) -> Result<ContainerCreateBody, String> {
    // The creation body is the container's configuration with two more fields.
    let config = serde_json::to_value(&facts.config).map_err(|e| e.to_string())?;
    let mut body: ContainerCreateBody =
        serde_json::from_value(config).map_err(|e| e.to_string())?;
    let there =
        |network: &str| overrides.networks.get(network).map_or(network, String::as_str).to_owned();
    let mut host = facts.host_config.clone();
    host.runtime = Some(RUNTIME_NAME.to_owned());
    host.restart_policy =
        Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None });
    host.network_mode = host.network_mode.map(|mode| there(&mode));
    host.container_id_file = None;
    body.host_config = Some(host);
    let endpoints = facts
        .endpoints
        .iter()
        .filter(|endpoint| !matches!(endpoint.network.as_str(), "none" | "host"))
        .map(|endpoint| (there(&endpoint.network), settings(endpoint, facts, overrides.identity)))
        .collect();
    body.networking_config = Some(NetworkingConfig { endpoints_config: Some(endpoints) });
    Ok(body)
}

fn settings(
    endpoint: &Endpoint,
    facts: &ContainerFacts,
    identity: NetworkIdentity,
) -> EndpointSettings {
    let user_defined = endpoint.network != "bridge";
    let keep = identity == NetworkIdentity::Keep && user_defined;
    // Docker adds the short id by itself; the source's must not follow.
    let own = facts.id.get(..12).unwrap_or_default();
    let aliases: Vec<String> = endpoint.aliases.iter().filter(|a| *a != own).cloned().collect();
    EndpointSettings {
        ipam_config: keep.then(|| EndpointIpamConfig {
            ipv4_address: endpoint.ip.clone(),
            ipv6_address: endpoint.ipv6.clone(),
            link_local_ips: None,
        }),
        mac_address: endpoint.mac.clone().filter(|_| keep),
        aliases: Some(aliases).filter(|a| !a.is_empty() && user_defined),
        driver_opts: Some(endpoint.driver_opts.clone()).filter(|o| !o.is_empty()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ContainerInspectResponse;
    use serde_json::json;

    fn facts() -> ContainerFacts {
        let answer: ContainerInspectResponse = serde_json::from_value(json!({
            "Id": "0123456789ab0123456789ab0123456789ab0123456789ab0123456789abcdef",
            "Name": "/shop", "Image": "sha256:aa", "Driver": "overlay2",
            "State": {"Status": "running", "Running": true, "Pid": 0},
            "Config": {
                "Hostname": "0123456789ab", "Env": ["A=1"], "Cmd": ["redis-server"], "Image": "redis:8",
                "Labels": {"x": "y"}, "User": "redis", "StopSignal": "SIGTERM", "Tty": false,
            },
            "HostConfig": {
                "NetworkMode": "net0", "Memory": 1024, "CapDrop": ["ALL"], "Runtime": "runc",
                "RestartPolicy": {"Name": "always", "MaximumRetryCount": 0},
                "LogConfig": {"Type": "json-file", "Config": {}},
            },
            "GraphDriver": {"Name": "overlay2", "Data": {"MergedDir": "/m"}},
            "NetworkSettings": {"Networks": {"net0": {
                "IPAddress": "10.0.0.9", "MacAddress": "02:42:0a:00:00:09",
                "Aliases": ["web", "0123456789ab"],
            }}},
            "Mounts": [{"Type": "volume", "Name": "v", "Source": "/s", "Destination": "/d", "RW": true}],
        }))
        .unwrap();
        ContainerFacts::read("shop", answer).unwrap()
    }

    #[test]
    fn facts_survive_the_journey() {
        let facts = facts();
        assert!(facts.running && facts.restarts());
        assert_eq!(facts.name, "shop");
        let there: ContainerFacts =
            serde_json::from_slice(&serde_json::to_vec(&facts).unwrap()).unwrap();
        assert_eq!(there, facts);
    }

    #[test]
    fn the_copy_is_the_same_but_never_restarts_by_itself() {
        let body = create_body(&facts(), &StageOverrides::default()).unwrap();
        assert_eq!(body.env, Some(vec!["A=1".into()]));
        assert_eq!(body.hostname.as_deref(), Some("0123456789ab"));
        assert_eq!(body.user.as_deref(), Some("redis"));
        let host = body.host_config.unwrap();
        assert_eq!(host.runtime.as_deref(), Some("blip"));
        assert_eq!(host.restart_policy.unwrap().name, Some(RestartPolicyNameEnum::NO));
        assert_eq!(host.memory, Some(1024));
        assert_eq!(host.cap_drop, Some(vec!["ALL".into()]));
    }

    #[test]
    fn the_address_moves_with_it_unless_it_may_not() {
        let endpoint = |overrides: &StageOverrides, network: &str| {
            let body = create_body(&facts(), overrides).unwrap();
            body.networking_config.unwrap().endpoints_config.unwrap()[network].clone()
        };
        let kept = endpoint(&StageOverrides::default(), "net0");
        assert_eq!(kept.mac_address.as_deref(), Some("02:42:0a:00:00:09"));
        assert_eq!(kept.ipam_config.unwrap().ipv4_address.as_deref(), Some("10.0.0.9"));
        assert_eq!(kept.aliases, Some(vec!["web".into()]), "not the source's id");
        let fresh = StageOverrides {
            identity: NetworkIdentity::Fresh,
            networks: [("net0".to_owned(), "other".to_owned())].into(),
            ..StageOverrides::default()
        };
        let fresh_endpoint = endpoint(&fresh, "other");
        assert_eq!(fresh_endpoint.mac_address, None);
        assert_eq!(fresh_endpoint.ipam_config, None);
    }
}
