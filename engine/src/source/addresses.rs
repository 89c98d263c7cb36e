//! Whether a container's addresses can move with it.

use crate::docker::{Docker, DockerError, Inspection, Segment};
use crate::network::Place;
use crate::protocol::{Finding, Wanted};
use crate::target::segment::remedy_for_bridge;
use std::collections::BTreeMap;

/// The network driver whose containers keep their addresses when they move:
/// both hosts sit on the same segment. (With ipvlan a container has the MAC
/// address of its host, and a copy of it could not be kept silent.)
const SEGMENT_DRIVER: &str = "macvlan";

/// The networks of a container, as far as addresses go.
#[derive(Debug)]
pub struct Addresses {
    networks: BTreeMap<String, Segment>,
    /// They are to move on bridge networks too.
    on_bridges: bool,
}

impl Addresses {
    /// Looks at the networks that a container is on. `on_bridges`: those that are
    /// bridges may have the other host beyond one of their ports.
    pub async fn of(
        docker: &Docker,
        inspection: &Inspection,
        on_bridges: bool,
    ) -> Result<Self, DockerError> {
        let mut networks = BTreeMap::new();
        for name in inspection.networks().into_keys() {
            let segment = docker.segment(&name).await?.unwrap_or_default();
            networks.insert(name, segment);
        }
        Ok(Self { networks, on_bridges })
    }

    /// Whether all of them can be the same on another host.
    pub fn can_move(&self) -> bool {
        !self.networks.is_empty() && self.networks.values().all(|segment| self.fits(segment))
    }

    fn fits(&self, segment: &Segment) -> bool {
        let bridge = self.on_bridges && segment.bridge.is_some();
        (segment.driver == SEGMENT_DRIVER || bridge) && segment.uplink.is_some()
    }

    /// Where the container's interface is, if it has one only and its address
    /// moves.
    pub fn place(&self) -> Option<Place> {
        let mut segments = self.networks.values();
        let first = segments.next()?;
        let only = segments.next().is_none() && self.can_move();
        if only { first.place() } else { None }
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

    /// Why they cannot move, if they cannot, of the container `name`: it is in
    /// the way only if the user has asked for it.
    pub fn findings(&self, name: &str) -> Vec<Finding> {
        if self.can_move() {
            return Vec::new();
        }
        match (self.on_bridges, self.networks.is_empty()) {
            (true, true) => vec![Finding::blocker(
                format!("container '{name}' has no address that it could keep"),
                "leave out --keep-address",
            )],
            (true, false) => {
                let stuck = self.networks.iter().filter(|(_, segment)| !self.fits(segment));
                stuck.map(|(network, segment)| in_the_way(network, segment)).collect()
            }
            (false, _) => Vec::new(),
        }
    }
}

fn in_the_way(network: &str, segment: &Segment) -> Finding {
    if segment.bridge.is_some() {
        return Finding::blocker(
            format!("the bridge of network '{network}' leads nowhere on the source"),
            remedy_for_bridge(segment),
        );
    }
    Finding::blocker(
        format!("addresses on network '{network}' (driver {}) are this host's own", segment.driver),
        "use a macvlan network, or a bridge that both hosts are on",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(segment: Segment, on_bridges: bool) -> Addresses {
        Addresses { networks: [("net".to_owned(), segment)].into(), on_bridges }
    }

    fn bridge(uplink: Option<&str>) -> Segment {
        let (driver, bridge) = ("bridge".to_owned(), Some("br0".to_owned()));
        Segment { driver, bridge, uplink: uplink.map(str::to_owned), ..Segment::default() }
    }

    fn parented(driver: &str, parent: Option<&str>) -> Segment {
        let (driver, uplink) = (driver.to_owned(), parent.map(str::to_owned));
        Segment { driver, uplink, ..Segment::default() }
    }

    #[test]
    fn addresses_move_on_a_macvlan_with_a_parent() {
        let macvlan = on(parented("macvlan", Some("eth0")), false);
        assert!(macvlan.can_move());
        assert_eq!(macvlan.place(), Some(Place::Macvlan { parent: "eth0".into() }));
        assert!(!on(parented("macvlan", None), false).can_move(), "a segment within this host");
        assert!(!on(parented("ipvlan", Some("eth0")), false).can_move());
        assert_eq!(on(bridge(Some("eth0")), false).place(), None);
    }

    #[test]
    fn a_bridge_keeps_addresses_only_if_asked_and_attached() {
        assert!(on(bridge(Some("eth1")), true).can_move());
        assert!(!on(bridge(Some("eth1")), false).can_move());
        assert!(on(bridge(Some("eth1")), false).findings("c").iter().all(|f| !f.blocks));
        let unattached = on(bridge(None), true).findings("c");
        assert!(unattached.iter().any(|f| f.blocks && f.remedy.contains("master br0")));
        let overlay = Segment { driver: "overlay".into(), ..Segment::default() };
        assert!(on(overlay, true).findings("c").iter().any(|f| f.what.contains("overlay")));
    }
}
