//! A container that keeps its addresses: what it and its clients see of a move,
//! which should be nothing, and what the segment saw.

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "../hosts/mod.rs"]
mod hosts;

mod bridge;
mod everything;
mod nginx;

use blip_bench::lab::{CgroupMode, Suite};
use hosts::Hosts;

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_container_that_keeps_its_addresses_does_not_notice() {
    let hosts = Hosts::up("same", CgroupMode::V2, Suite::Forky);
    let net = hosts.dual_stack();
    everything::finds_all_of_it_again(&hosts, &net);
    nginx::serves_all_its_clients(&hosts);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn addresses_on_bridges_are_kept_if_asked_for() {
    let mut hosts = Hosts::up("bridges", CgroupMode::V2, Suite::Forky);
    bridge::keeps_addresses_if_asked_to(&mut hosts);
}
