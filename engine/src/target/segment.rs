//! Whether addresses that are to arrive here could live here.

use crate::docker::{Docker, DockerError, Segment};
use crate::network::parse_mac;
use crate::protocol::{Finding, Wanted};
use crate::sys;
use std::net::{IpAddr, Ipv4Addr};

/// What is in the way of each network's addresses. Asks the segment, too: the
/// container must answer there, or this host is on another one.
pub(super) async fn check(docker: &Docker, wanted: &[Wanted]) -> Result<Vec<Finding>, DockerError> {
    let mut findings = Vec::new();
    for wanted in wanted {
        // That it is missing has been said.
        let Some(here) = docker.segment(&wanted.network).await? else { continue };
        let before = findings.len();
        findings.extend(difference(wanted, &here));
        if findings.len() == before {
            findings.extend(answer(wanted, here).await);
        }
    }
    Ok(findings)
}

/// What differs from the network of this name on the source.
fn difference(wanted: &Wanted, here: &Segment) -> Option<Finding> {
    let name = &wanted.network;
    let recreate = "create it there with the same driver and subnet";
    if wanted.driver != here.driver {
        let what = format!(
            "network '{name}' has driver {} on the source and {} on the target",
            wanted.driver, here.driver
        );
        return Some(Finding::blocker(what, recreate));
    }
    if parsed(&wanted.subnets) != parsed(&here.subnets) {
        let what = format!(
            "network '{name}' has subnet {} on the source and {} on the target",
            wanted.subnets.join(", "),
            here.subnets.join(", ")
        );
        return Some(Finding::blocker(what, recreate));
    }
    if here.bridge.is_some() && here.uplink.is_none() {
        return Some(Finding::blocker(
            format!("the bridge of network '{name}' leads nowhere on the target"),
            remedy_for_bridge(here),
        ));
    }
    wanted.addresses.iter().find_map(|address| {
        let owner = here.taken.get(address)?;
        Some(Finding::blocker(
            format!("container '{owner}' on the target has the address {address} already"),
            "give that one another address",
        ))
    })
}

/// How a bridge gets to a segment that both hosts are on.
pub(crate) fn remedy_for_bridge(segment: &Segment) -> String {
    let bridge = segment.bridge.as_deref().unwrap_or("BRIDGE");
    format!(
        "attach the one interface that leads to the other host (ip link set eth1 master \
         {bridge}), or let the address change"
    )
}

/// Asks the segment who has the container's address.
async fn answer(wanted: &Wanted, here: Segment) -> Option<Finding> {
    let address = wanted.addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })?;
    let (mac, uplink) = (parse_mac(wanted.mac.as_deref()?)?, here.uplink?);
    let asked = uplink.clone();
    let asking = tokio::task::spawn_blocking(move || sys::net::who_has(&asked, address));
    let heard = asking.await.map_err(std::io::Error::other).and_then(|heard| heard);
    judge(wanted, &uplink, address, mac, heard)
}

fn judge(
    wanted: &Wanted,
    uplink: &str,
    address: Ipv4Addr,
    mac: [u8; 6],
    heard: std::io::Result<Option<[u8; 6]>>,
) -> Option<Finding> {
    let name = &wanted.network;
    match heard {
        Ok(Some(heard)) if heard == mac => None,
        Ok(Some(_)) => Some(Finding::blocker(
            format!("on the target's segment of network '{name}', {address} is somebody else"),
            "find out who else has that address, or put both hosts on one segment",
        )),
        Ok(None) => {
            let what = format!(
                "the container does not answer on {uplink} of the target: network '{name}' is on \
                 another segment there, or its hosts do not hear each other's ARP"
            );
            let remedy =
                "join the two segments, or let the address change: clients would not find it";
            Some(if wanted.driver == "bridge" {
                Finding::blocker(what, remedy)
            } else {
                Finding::note(what, remedy)
            })
        }
        Err(error) => Some(Finding::note(
            format!(
                "whether {uplink} of the target is on the container's segment is unknown: {error}"
            ),
            "make sure that it is",
        )),
    }
}

/// Subnets as values, in an order of their own.
fn parsed(subnets: &[String]) -> Vec<(IpAddr, u8)> {
    let parse = |text: &String| {
        let (address, bits) = text.split_once('/')?;
        Some((address.parse().ok()?, bits.parse().ok()?))
    };
    let mut all: Vec<(IpAddr, u8)> = subnets.iter().filter_map(parse).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn wanted(driver: &str) -> Wanted {
        Wanted {
            network: "seg".into(),
            driver: driver.into(),
            subnets: vec!["10.0.0.0/24".into(), "fd00::/64".into()],
            addresses: vec!["10.0.0.9".parse().unwrap()],
            mac: Some("02:00:00:00:00:09".into()),
        }
    }

    fn here() -> Segment {
        Segment { driver: "bridge".into(), bridge: Some("br0".into()), ..macvlan() }
    }

    fn macvlan() -> Segment {
        Segment {
            driver: "macvlan".into(),
            uplink: Some("eth1".into()),
            subnets: vec!["fd00:0::/64".into(), "10.0.0.0/24".into()],
            ..Segment::default()
        }
    }

    #[test]
    fn the_same_network_is_fine_however_it_is_written() {
        assert_eq!(difference(&wanted("bridge"), &here()), None);
        assert_eq!(difference(&wanted("macvlan"), &macvlan()), None);
        assert_eq!(difference(&wanted("macvlan"), &Segment { uplink: None, ..macvlan() }), None);
    }

    #[test]
    fn what_differs_is_named() {
        let taken: BTreeMap<_, _> = [("10.0.0.9".parse().unwrap(), "other".to_owned())].into();
        for (wanted, here, word) in [
            (wanted("macvlan"), here(), "driver macvlan"),
            (wanted("bridge"), Segment { subnets: vec![], ..here() }, "subnet"),
            (wanted("bridge"), Segment { uplink: None, ..here() }, "leads nowhere"),
            (wanted("bridge"), Segment { taken: taken.clone(), ..here() }, "container 'other'"),
            (wanted("ipvlan"), macvlan(), "driver ipvlan"),
            (wanted("macvlan"), Segment { subnets: vec![], ..macvlan() }, "subnet"),
            (wanted("macvlan"), Segment { taken, ..macvlan() }, "container 'other'"),
        ] {
            let finding = difference(&wanted, &here).expect(word);
            assert!(finding.blocks && finding.what.contains(word), "{finding:?}");
        }
    }

    #[test]
    fn another_segment_blocks_a_bridge_and_is_noted_of_a_macvlan() {
        let at = "10.0.0.9".parse().unwrap();
        let mac = [2, 0, 0, 0, 0, 9];
        let judge = |driver, heard| judge(&wanted(driver), "eth1", at, mac, Ok(heard));
        assert_eq!(judge("bridge", Some(mac)), None);
        assert!(judge("bridge", None).is_some_and(|finding| finding.blocks));
        assert_eq!(judge("macvlan", Some(mac)), None);
        assert!(judge("macvlan", None).is_some_and(|finding| !finding.blocks));
        assert!(judge("macvlan", Some([9; 6])).is_some_and(|finding| finding.blocks));
    }
}
