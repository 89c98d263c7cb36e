//! Docker's own checkpoints, an experimental feature: `docker checkpoint
//! create`, a copy into a new container's folder on the target, `docker start
//! --checkpoint`. CRIU is told to keep TCP connections, and to leave out those
//! that nobody has accepted, through runc's file `/etc/criu/runc.conf`, as CRIU's
//! pages about Docker say.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::Baseline;
use super::berth::{self, Copy};
use crate::lab::Host;
use crate::rig::{NETWORK, Rig};
use crate::run::{Load, container};

/// The container's name.
const NAME: &str = "peer";

/// The container's hardware address, the same on both hosts.
const MAC: &str = "02:42:0a:5a:00:81";

/// `docker checkpoint` and `docker start --checkpoint`.
pub(super) struct Checkpoint;

impl Baseline for Checkpoint {
    fn name(&self) -> &'static str {
        "docker-checkpoint"
    }

    fn describe(&self) -> &'static str {
        "docker checkpoint create, checkpoint copied into the target's container folder, docker start \
         --checkpoint; a Docker container on macvlan"
    }

    fn version(&self, rig: &Rig) -> String {
        let ask = "docker version --format 'Docker {{.Server.Version}}'; runc --version | head -n 1; \
                   criu --version | head -n 1";
        super::versions(rig, ask)
    }

    fn can(&self, _: &Rig, _: &Load) -> Result<(), String> {
        Ok(())
    }

    fn start(&mut self, rig: &Rig, load: &Load) -> Result<SocketAddr> {
        let ip = rig.lab().container_address(0);
        let (image, command, port) = container(load);
        for (host, verb) in [("a", "run --detach"), ("b", "create")] {
            let host = rig.host(host)?;
            berth::configure_criu(host)?;
            let address = ip.to_string();
            let mut words: Vec<&str> = std::iter::once("docker").chain(verb.split(' ')).collect();
            words.extend(["--name", NAME, "--network", NETWORK, "--ip", &address]);
            words.extend(["--mac-address", MAC, image]);
            words.extend(command.iter().map(String::as_str));
            host.run(&words)?;
        }
        Ok(SocketAddr::from((ip, port)))
    }

    fn migrate(&mut self, rig: &Rig, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let (a, b) = (rig.host("a")?, rig.host("b")?);
        let folder = |host| Ok::<_, anyhow::Error>(format!("{}/checkpoints/moved", home(host)?));
        let (source, copy) = (folder(a)?, Copy::to(b, &folder(b)?)?);
        tell("freeze");
        a.run(&["docker", "checkpoint", "create", NAME, "moved"]).context("docker checkpoint")?;
        copy.send(a, &source)?;
        b.run(&["docker", "start", "--checkpoint", "moved", NAME]).context("docker start")?;
        tell("drain");
        Ok(())
    }

    fn clean(&mut self, rig: &Rig) {
        for host in rig.lab().hosts() {
            berth::hang_up(host);
            berth::forget_criu(host);
            // That there is none is the usual case.
            let _ = host.run(&["docker", "rm", "--force", "--volumes", NAME]);
        }
    }
}

/// Docker's folder of the container.
fn home(host: &Host) -> Result<String> {
    let id = host.run(&["docker", "inspect", "--format", "{{.Id}}", NAME])?;
    Ok(format!("/var/lib/docker/containers/{}", id.trim()))
}
