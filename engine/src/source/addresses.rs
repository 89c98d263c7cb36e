//! Whether a container's addresses can move with it.

use crate::docker::{Docker, DockerError, Inspection, Segment};
use crate::protocol::Wanted;
use std::collections::BTreeMap;

/// The network driver whose containers keep their addresses when they move:
/// both hosts sit on the same segment. (With ipvlan a container has the MAC
/// address of its host, and a copy of it could not be kept silent.)
const SEGMENT_DRIVER: &str = "macvlan";

/// The networks of a container, as far as addresses go.
#[derive(Debug)]
pub struct Addresses {
    networks: BTreeMap<String, Segment>,
}

impl Addresses {
    /// Looks at the networks that a container is on.
    pub async fn of(docker: &Docker, inspection: &Inspection) -> Result<Self, DockerError> {
        let mut networks = BTreeMap::new();
        for name in inspection.networks().into_keys() {
            let segment = docker.segment(&name).await?.unwrap_or_default();
            networks.insert(name, segment);
        }
        Ok(Self { networks })
    }

    /// Whether all of them can be the same on another host.
    pub fn can_move(&self) -> bool {
        let fits = |segment: &Segment| segment.driver == SEGMENT_DRIVER && segment.parent.is_some();
        !self.networks.is_empty() && self.networks.values().all(fits)
    }

    /// The interface of this host that the container's is on, if it has one only
    /// and its address moves.
    pub fn parent(&self) -> Option<&str> {
        let mut segments = self.networks.values();
        let first = segments.next()?;
        let only = segments.next().is_none() && self.can_move();
        if only { first.parent.as_deref() } else { None }
    }

    /// What the target's networks must offer; nothing if no address moves.
    pub fn wanted(&self, inspection: &Inspection) -> Vec<Wanted> {
        if !self.can_move() {
            return Vec::new();
        }
        let wanted = inspection.networks().into_iter().filter_map(|(network, at)| {
            let segment = self.networks.get(&network)?;
            let texts = [at.ip_address.as_deref(), at.global_ipv6_address.as_deref()];
            Some(Wanted {
                network,
                driver: segment.driver.clone(),
                subnets: segment.subnets.clone(),
                addresses: texts.into_iter().flatten().filter_map(|t| t.parse().ok()).collect(),
                mac: at.mac_address.clone(),
            })
        });
        wanted.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(driver: &str, parent: Option<&str>) -> Addresses {
        let (driver, parent) = (driver.to_owned(), parent.map(str::to_owned));
        let segment = Segment { driver, parent, ..Segment::default() };
        Addresses { networks: [("net".to_owned(), segment)].into() }
    }

    #[test]
    fn addresses_move_on_a_macvlan_with_a_parent() {
        assert!(on("macvlan", Some("eth0")).can_move());
        assert_eq!(on("macvlan", Some("eth0")).parent(), Some("eth0"));
        assert!(!on("macvlan", None).can_move(), "a segment within this host");
        assert!(!on("ipvlan", Some("eth0")).can_move());
        assert_eq!(on("bridge", Some("eth0")).parent(), None);
    }
}
