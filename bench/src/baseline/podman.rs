//! Podman: `container checkpoint --export`, a copy of the archive, `container
//! restore --import`; with `--pre-checkpoint` also an archive of most memory
//! sent while the container still runs.
//!
//! runc is its runtime: Debian's crun is built without CRIU. Its storage is in
//! memory, where an overlay can stand on any host, and processes are not counted:
//! not every machine of a lab has a cgroup controller for that. Archives are not compressed,
//! which its pages name as the quicker way.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::Baseline;
use super::berth::{self, Copy, DIR, shell};
use super::criu::tracks_memory;
use crate::lab::Host;
use crate::rig::Rig;
use crate::run::{Load, container};

/// The container's name.
const NAME: &str = "peer";

/// Podman's network of the lab's segment.
const NETWORK: &str = "peernet";

/// The container's hardware address, the same on both hosts.
const MAC: &str = "02:42:0a:5a:00:82";

/// Where the archive with the memory copied ahead is put.
const AHEAD: &str = "ahead";

/// Podman's checkpoints.
pub(super) struct Podman {
    /// Whether memory is copied ahead once.
    ahead: bool,
}

impl Podman {
    pub(super) fn plain() -> Podman {
        Podman { ahead: false }
    }

    pub(super) fn pre_checkpoint() -> Podman {
        Podman { ahead: true }
    }

    /// Sends an archive of memory while the container runs.
    fn copy_ahead(&self, a: &Host, b: &Host) -> Result<()> {
        let folder = format!("{DIR}/img/{AHEAD}");
        let copy = Copy::to(b, &folder)?;
        let line = format!(
            "mkdir -p {folder}; {} --pre-checkpoint --export {folder}/pre.tar {NAME}",
            podman("container checkpoint --compress none --tcp-established")
        );
        shell(a, &line).context("podman container checkpoint --pre-checkpoint")?;
        copy.send(a, &folder)
    }
}

impl Baseline for Podman {
    fn name(&self) -> &'static str {
        if self.ahead { "podman-pre-checkpoint" } else { "podman" }
    }

    fn describe(&self) -> &'static str {
        if self.ahead {
            "podman container checkpoint --pre-checkpoint, copied while the container runs; then \
             --with-previous --export, copied; podman container restore --import-previous --import; \
             a Podman container on macvlan"
        } else {
            "podman container checkpoint --export --compress none --tcp-established, archive copied, \
             podman container restore --import; a Podman container on macvlan"
        }
    }

    fn version(&self, rig: &Rig) -> String {
        super::versions(
            rig,
            "podman --version; runc --version | head -n 1; criu --version | head -n 1",
        )
    }

    fn is_extra(&self) -> bool {
        true
    }

    fn can(&self, rig: &Rig, _: &Load) -> Result<(), String> {
        if self.ahead { tracks_memory(rig) } else { Ok(()) }
    }

    fn start(&mut self, rig: &Rig, load: &Load) -> Result<SocketAddr> {
        let ip = rig.lab().container_address(0);
        let (image, command, port) = container(load);
        for host in [rig.host("a")?, rig.host("b")?] {
            prepare(host, rig, image).context("preparing Podman")?;
            berth::configure_criu(host)?;
        }
        let command: Vec<String> = command.iter().map(|w| format!("'{w}'")).collect();
        let run = format!(
            "{} --name {NAME} --pids-limit 0 --pull never --network {NETWORK} --ip {ip} --mac-address {MAC} \
             docker.io/{image} {} </dev/null >/dev/null",
            podman("run --detach"),
            command.join(" ")
        );
        shell(rig.host("a")?, &run).context("podman run")?;
        Ok(SocketAddr::from((ip, port)))
    }

    fn migrate(&mut self, rig: &Rig, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let (a, b) = (rig.host("a")?, rig.host("b")?);
        let folder = format!("{DIR}/img/last");
        if self.ahead {
            self.copy_ahead(a, b)?;
        }
        let (with, import) = match self.ahead {
            true => ("--with-previous", format!("--import-previous {DIR}/img/{AHEAD}/pre.tar ")),
            false => ("", String::new()),
        };
        shell(a, &format!("mkdir -p {folder}"))?;
        let copy = Copy::to(b, &folder)?;
        tell("freeze");
        let checkpoint = podman("container checkpoint --compress none --tcp-established");
        shell(a, &format!("{checkpoint} {with} --export {folder}/moved.tar {NAME}"))
            .context("podman container checkpoint")?;
        copy.send(a, &folder)?;
        let restore = podman("container restore --tcp-established");
        shell(b, &format!("{restore} {import}--import {folder}/moved.tar </dev/null >/dev/null"))
            .context("podman container restore")?;
        tell("drain");
        Ok(())
    }

    fn clean(&mut self, rig: &Rig) {
        for host in rig.lab().hosts() {
            berth::hang_up(host);
            berth::forget_criu(host);
            let line = format!(
                "[ -d {DIR}/podman ] || exit 0; set +e; \
                 {} {NAME}; {} {NETWORK}; {}; \
                 umount {DIR}/podman/overlay; umount {DIR}/podman; umount {DIR}/img; \
                 rm -rf {DIR} /run/peer-podman; true",
                podman("rm --force --time 0 --volumes"),
                podman("network rm --force"),
                podman("rmi --all --force")
            );
            // What cannot be removed will be in the way of the next start,
            // which then says so.
            let _ = shell(host, &format!("({line}) >/dev/null 2>&1"));
        }
    }
}

/// A call of Podman's with what a host without systemd and on an overlay needs.
fn podman(words: &str) -> String {
    format!(
        "podman --root {DIR}/podman --runroot /run/peer-podman --storage-driver overlay \
         --cgroup-manager cgroupfs --events-backend file --runtime runc {words}"
    )
}

/// Gives Podman its storage, the image that Docker has, and the network.
fn prepare(host: &Host, rig: &Rig, image: &str) -> Result<()> {
    let subnet = rig.lab().subnet();
    let line = format!(
        "mkdir -m 700 -p {DIR}/img {DIR}/podman; \
         mount -t tmpfs -o mode=700 peer {DIR}/img; mount -t tmpfs -o mode=700 peer {DIR}/podman; \
         docker save {image} | {} -q >/dev/null; \
         {} --driver macvlan --opt parent=eth0 --subnet {subnet} {NETWORK} >/dev/null",
        podman("load"),
        podman("network create")
    );
    shell(host, &line).map(|_| ())
}
