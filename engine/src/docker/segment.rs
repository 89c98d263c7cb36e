//! Which network segment a Docker network is on, as this host reaches it.

use super::{Docker, DockerError, is_missing, request};
use crate::network::Place;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

/// Docker's names for its own ends of containers' cables begin so.
const CABLE: &str = "veth";

/// A Docker network, seen from below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Its driver.
    pub driver: String,
    /// The interface of this host that the segment is on: the parent of a
    /// macvlan network; of a bridge's ports the one that is no container's.
    pub uplink: Option<String>,
    /// The bridge, if it is one.
    pub bridge: Option<String>,
    /// Its subnets, as `10.0.0.0/24`.
    pub subnets: Vec<String>,
    /// Containers on it, by their addresses.
    pub taken: BTreeMap<IpAddr, String>,
}

impl Segment {
    /// Where containers' interfaces are on this host, if they are on a segment
    /// that other hosts may reach.
    pub fn place(&self) -> Option<Place> {
        let uplink = self.uplink.clone()?;
        Some(match self.bridge.clone() {
            Some(bridge) => Place::Bridge { bridge, uplink },
            None => Place::Macvlan { parent: uplink },
        })
    }
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
        let id = found.id.unwrap_or_default();
        let bridge = (driver == "bridge").then(|| {
            let named = options.get("com.docker.network.bridge.name").cloned();
            named.unwrap_or_else(|| format!("br-{}", id.get(..12).unwrap_or(&id)))
        });
        let uplink = match &bridge {
            Some(bridge) => uplink(bridge),
            None => options.get("parent").cloned(),
        };
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
        Ok(Some(Segment { driver, uplink, bridge, subnets, taken: taken.collect() }))
    }
}

/// The one port of a bridge that leads out of the host; `None` also if there are
/// several.
fn uplink(bridge: &str) -> Option<String> {
    let ports = fs::read_dir(format!("/sys/class/net/{bridge}/brif")).ok()?;
    let names = ports.flatten().map(|port| port.file_name().to_string_lossy().into_owned());
    let mut outward = names.filter(|name| !name.starts_with(CABLE));
    let first = outward.next()?;
    outward.next().is_none().then_some(first)
}
