//! Which network segment a Docker network is on, as this host reaches it.

use super::{Docker, DockerError, is_missing, request};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A Docker network, seen from below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Its driver.
    pub driver: String,
    /// The interface of this host that a macvlan network is on.
    pub parent: Option<String>,
    /// Its subnets, as `10.0.0.0/24`.
    pub subnets: Vec<String>,
    /// Containers on it, by their addresses.
    pub taken: BTreeMap<IpAddr, String>,
}

impl Docker {
    /// Looks at a network and at what it stands on.
    pub async fn segment(&self, name: &str) -> Result<Option<Segment>, DockerError> {
        let found = match self.api.inspect_network(name, None).await {
            Ok(found) => found,
            Err(e) if is_missing(&e) => return Ok(None),
            Err(e) => return Err(request(format!("look for the network {name}"))(e)),
        };
        let driver = found.driver.unwrap_or_default();
        let options = found.options.unwrap_or_default();
        let parent = options.get("parent").cloned();
        let configs = found.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
        let subnets = configs.into_iter().filter_map(|config| config.subnet).collect();
        let taken = found.containers.unwrap_or_default().into_values().flat_map(|container| {
            let name = container.name.unwrap_or_default();
            let texts = [container.ipv4_address, container.ipv6_address];
            texts
                .into_iter()
                .flatten()
                .filter_map(move |text| Some((text.split('/').next()?.parse().ok()?, name.clone())))
        });
        Ok(Some(Segment { driver, parent, subnets, taken: taken.collect() }))
    }
}
