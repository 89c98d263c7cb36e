//! Peers: other programs that can move what runs, driven as their
//! documentation says, so that the bench can say where blip stands.
//!
//! Each is a file with one [`Baseline`]. A peer gets what it needs and cannot
//! do itself: an address that exists on both hosts (`berth`), prepared on the
//! target before the clock runs, and a copy of its images over the same link
//! that blip uses. It is not given what would be blip's own work, such as
//! rounds of pre-copy it does not have.
//!
//! **Invariant**: a peer that cannot do a scenario says why; a peer that failed
//! is a failed run with its own words, never a missing row.

mod absent;
mod berth;
mod criu;
mod docker;
mod incus;
mod podman;
mod runc;

pub(crate) use berth::{configure_criu, forget_criu};

use std::net::SocketAddr;

use anyhow::Result;

use crate::rig::Rig;
use crate::run::Load;

/// A program that can move what runs from host `a` to host `b`.
pub trait Baseline {
    /// Its name on the command line and in pictures.
    fn name(&self) -> &'static str;

    /// What is driven, and how, in a sentence.
    fn describe(&self) -> &'static str;

    /// The programs at work and their versions.
    fn version(&self, rig: &Rig) -> String;

    /// Whether its programs are among those that hosts have only in a lab with
    /// [`peers`](crate::lab::LabSpec::peers).
    fn is_extra(&self) -> bool {
        false
    }

    /// Whether it can move this load on these hosts at all.
    ///
    /// # Errors
    /// Why not, in a sentence.
    fn can(&self, rig: &Rig, load: &Load) -> Result<(), String>;

    /// Starts the load on host `a` and prepares host `b`. What an earlier run
    /// left behind has been [cleaned](Self::clean).
    ///
    /// # Errors
    /// When it does not start.
    fn start(&mut self, rig: &Rig, load: &Load) -> Result<SocketAddr>;

    /// Moves it, and tells `freeze` and `drain` when the workload is about to
    /// stand still, and when it runs again.
    ///
    /// # Errors
    /// What the program said when it failed.
    fn migrate(&mut self, rig: &Rig, tell: &mut dyn FnMut(&str)) -> Result<()>;

    /// Removes everything it made on both hosts.
    fn clean(&mut self, rig: &Rig);
}

/// All peers, in the order in which they are compared.
pub fn all() -> Vec<Box<dyn Baseline>> {
    vec![
        Box::new(docker::Checkpoint),
        Box::new(podman::Podman::plain()),
        Box::new(podman::Podman::pre_checkpoint()),
        Box::new(runc::CheckpointRestore),
        Box::new(criu::Criu::images()),
        Box::new(criu::Criu::page_server()),
        Box::new(criu::Criu::lazy_pages()),
        Box::new(criu::Criu::pre_dump()),
        Box::new(absent::Dmtcp),
        Box::new(incus::Move::default()),
    ]
}

/// The peer of this name.
pub fn named(name: &str) -> Option<Box<dyn Baseline>> {
    all().into_iter().find(|peer| peer.name() == name)
}

/// What programs say of their versions, in a line.
fn versions(rig: &Rig, ask: &str) -> String {
    let said = rig.host("a").and_then(|a| berth::shell(a, ask));
    in_a_line(&said.unwrap_or_default())
}

/// The words of a text in one line, without the label that CRIU sets before
/// its number.
fn in_a_line(said: &str) -> String {
    let lines = said.lines().map(|l| l.trim().replace("Version: ", "CRIU "));
    lines.filter(|l| !l.is_empty()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_in_a_line() {
        let said = "podman version 5.4.2\nrunc version 1.1.15\nVersion: 4.2.1\n\n";
        assert_eq!(in_a_line(said), "podman version 5.4.2, runc version 1.1.15, CRIU 4.2.1");
    }

    #[test]
    fn every_peer_is_found_by_its_name_and_says_what_it_is() {
        let peers = all();
        assert!(peers.len() >= 4, "the comparison promises four");
        for peer in peers {
            let found = named(peer.name()).expect("found by its name");
            assert_eq!(found.describe(), peer.describe());
            assert!(!peer.describe().is_empty());
        }
        assert!(named("wishes").is_none());
    }
}
