//! Telling the segment where the moved addresses are now.

use super::stage::Moving;
use crate::{network, sys};

/// Announces every moved address from the namespace of process `pid`. A
/// failure only delays clients until the next ordinary packet, so it is logged
/// and no more.
pub(super) fn announce(pid: i32, moving: &[Moving]) {
    let interfaces = match sys::net::hardware_addresses(pid) {
        Ok(interfaces) => interfaces,
        Err(error) => {
            return tracing::warn!("cannot list the interfaces of process {pid}: {error}");
        }
    };
    for (name, mac) in interfaces {
        let Some(moved) = moving.iter().find(|moved| moved.mac == mac) else { continue };
        for &address in &moved.addresses {
            if let Err(error) = network::announce(pid, &name, mac, address) {
                tracing::warn!("cannot announce {address} on {name}: {error}");
            }
        }
    }
}
