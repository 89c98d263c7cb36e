//! runc by hand: checkpoint, copy, restore. No Docker is involved; the bundle
//! is made of the same image that Docker runs.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::Baseline;
use super::berth::{self, Copy, DIR, NET, shell};
use crate::lab::Host;
use crate::rig::Rig;
use crate::run::Load;
use crate::run::container;

/// The container's name.
const NAME: &str = "peer";

/// `runc checkpoint`, a copy, `runc restore`.
pub(super) struct CheckpointRestore;

impl Baseline for CheckpointRestore {
    fn name(&self) -> &'static str {
        "runc"
    }

    fn describe(&self) -> &'static str {
        "runc checkpoint --tcp-established into tmpfs, all of it copied, runc restore; an OCI container \
         without Docker"
    }

    fn version(&self, rig: &Rig) -> String {
        super::versions(rig, "runc --version | head -n 1; criu --version | head -n 1")
    }

    fn can(&self, _: &Rig, _: &Load) -> Result<(), String> {
        Ok(())
    }

    fn start(&mut self, rig: &Rig, load: &Load) -> Result<SocketAddr> {
        let ip = berth::make(rig)?;
        let (image, command, port) = container(load);
        for host in [rig.host("a")?, rig.host("b")?] {
            bundle(host, image, &command)?;
            berth::configure_criu(host)?;
        }
        let run = format!("runc run --bundle {DIR}/bundle -d {NAME} </dev/null >/dev/null 2>&1");
        shell(rig.host("a")?, &run).context("runc run")?;
        Ok(SocketAddr::from((ip, port)))
    }

    fn migrate(&mut self, rig: &Rig, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let (a, b) = (rig.host("a")?, rig.host("b")?);
        let image = format!("{DIR}/img");
        let copy = Copy::to(b, &image)?;
        tell("freeze");
        let dump = format!(
            "runc checkpoint --image-path {image} --work-path {DIR} --tcp-established {NAME}"
        );
        shell(a, &dump).with_context(|| log_of(a, "dump.log"))?;
        berth::down(a)?;
        copy.send(a, &image)?;
        berth::up(b)?;
        let restore = format!(
            "runc restore --image-path {image} --work-path {DIR} --bundle {DIR}/bundle \
             --tcp-established -d {NAME} </dev/null >/dev/null 2>&1"
        );
        shell(b, &restore).with_context(|| log_of(b, "restore.log"))?;
        tell("drain");
        Ok(())
    }

    fn clean(&mut self, rig: &Rig) {
        for host in rig.lab().hosts() {
            // That there is none is the usual case.
            let _ = shell(host, &format!("runc delete --force {NAME} 2>/dev/null; true"));
        }
        berth::remove(rig);
    }
}

/// An OCI bundle of the image, in the prepared network, that runs `command`.
fn bundle(host: &Host, image: &str, command: &[String]) -> Result<()> {
    let unpack = format!(
        "mkdir -p {DIR}/bundle/rootfs; cd {DIR}/bundle; \
         id=$(docker create {image} true); docker export $id | tar -x -C rootfs; \
         docker rm $id >/dev/null; runc spec"
    );
    shell(host, &unpack).context("unpacking the image")?;
    let path = host.root().join(DIR.trim_start_matches('/')).join("bundle/config.json");
    let text = std::fs::read(&path).context("reading the bundle's config")?;
    let mut config: serde_json::Value =
        serde_json::from_slice(&text).context("runc's own config")?;
    config["process"]["args"] = serde_json::json!(command);
    config["process"]["terminal"] = false.into();
    config["process"]["cwd"] = "/data".into();
    config["root"]["readonly"] = false.into();
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        for namespace in namespaces.iter_mut().filter(|n| n["type"] == "network") {
            namespace["path"] = format!("/run/netns/{NET}").into();
        }
    }
    std::fs::write(&path, config.to_string()).context("writing the bundle's config")
}

fn log_of(host: &Host, name: &str) -> String {
    let said = shell(host, &format!("grep Error {DIR}/{name} | tail -n 3")).unwrap_or_default();
    format!("CRIU said: {}", said.trim())
}
