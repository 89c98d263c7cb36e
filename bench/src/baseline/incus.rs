//! Incus: `incus move` of a running container to another server, which has
//! CRIU do the work through LXC.
//!
//! Two settings are made for CRIU's sake: no console, which LXC could not give
//! back, and no AppArmor profile, not even `unconfined`, where the kernel may
//! have no AppArmor.
//!
//! Its daemons run on the hosts for the time of one run, each in a cgroup of its
//! own (v2), with their storage in a folder. The container is made of the same image that Docker runs; its
//! first program gives it its address and becomes the workload.

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Baseline;
use super::berth::{self, DIR, shell};
use crate::lab::Host;
use crate::rig::Rig;
use crate::run::{Load, container};

/// The container's name, and that of its image.
const NAME: &str = "peer";

/// The container's hardware address, the same on both hosts.
const MAC: &str = "02:42:0a:5a:00:83";

/// How long a move may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What LXC writes into its log when CRIU could not restore.
const GAVE_UP: &str = "criu process exited";

/// `incus move`.
#[derive(Default)]
pub(super) struct Move {
    daemons: Vec<Child>,
}

impl Move {
    /// Starts a server and tells it where it listens and stores.
    fn serve(&mut self, host: &Host) -> Result<()> {
        let address = host.address();
        let start = "mkdir -p /run/peer-incus /sys/fs/cgroup/peer-incus; \
                     echo $$ >/sys/fs/cgroup/peer-incus/cgroup.procs; \
                     exec /usr/libexec/incus/incusd --group root >/run/peer-incus/log 2>&1";
        let mut daemon = host.command(&["sh", "-ec", start]);
        let daemon = daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.daemons.push(daemon.spawn().context("starting incusd")?);
        berth::until(host, "incus info >/dev/null 2>&1").context("incusd does not answer")?;
        let settings = format!(
            "{{\"config\": {{\"core.https_address\": \"{address}:8443\"}}, \
              \"storage_pools\": [{{\"name\": \"default\", \"driver\": \"dir\"}}], \
              \"profiles\": [{{\"name\": \"default\", \"devices\": {{\"root\": \
                {{\"type\": \"disk\", \"path\": \"/\", \"pool\": \"default\"}}}}}}]}}"
        );
        shell(host, &format!("echo '{settings}' | incus admin init --preseed")).map(|_| ())
    }
}

impl Baseline for Move {
    fn name(&self) -> &'static str {
        "incus"
    }

    fn describe(&self) -> &'static str {
        "incus move of a running container with migration.stateful to another server; a privileged \
         Incus container on macvlan"
    }

    fn version(&self, rig: &Rig) -> String {
        let ask = "echo \"Incus $(incus --version)\"; echo \"LXC $(lxc-start --version)\"; \
                   criu --version | head -n 1";
        super::versions(rig, ask)
    }

    fn is_extra(&self) -> bool {
        true
    }

    fn can(&self, _: &Rig, _: &Load) -> Result<(), String> {
        Ok(())
    }

    fn start(&mut self, rig: &Rig, load: &Load) -> Result<SocketAddr> {
        let ip = rig.lab().container_address(0);
        let (image, command, port) = container(load);
        let (a, b) = (rig.host("a")?, rig.host("b")?);
        for host in [a, b] {
            self.serve(host).context("preparing Incus")?;
        }
        let token = shell(b, "incus config trust add a --quiet | tail -n 1")?;
        shell(a, &format!("incus remote add target {}", token.trim()))
            .context("incus remote add")?;
        shell(a, &make(image, &command, &format!("{ip}/24"))).context("making the container")?;
        Ok(SocketAddr::from((ip, port)))
    }

    fn migrate(&mut self, rig: &Rig, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let a = rig.host("a")?;
        // When it freezes the container is Incus' own secret.
        tell("freeze");
        let mut moving = a.command(&["incus", "move", NAME, "target:"]);
        let moving = moving.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let ended = finished(moving.spawn().context("starting incus move")?, rig.host("b")?);
        ended.map_err(|e| told(e, rig)).context("incus move")?;
        tell("drain");
        Ok(())
    }

    fn clean(&mut self, rig: &Rig) {
        for host in rig.lab().hosts() {
            // That there is nothing is the usual case.
            let _ = shell(host, &format!("({CLEAN}) >/dev/null 2>&1"));
        }
        for mut daemon in self.daemons.drain(..) {
            // It may have ended already.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Ends the daemon with all it started, which a move that failed leaves waiting
/// for each other, and removes what they made.
const CLEAN: &str = "[ -d /run/peer-incus ] || exit 0; set +e; cd /sys/fs/cgroup; \
    groups=$(find . -type d \\( -name peer-incus -o -name 'lxc.monitor.peer*' \
      -o -name 'lxc.payload.peer*' \\)); \
    for group in $groups; do echo 1 >$group/cgroup.kill; done; sleep 0.3; \
    for group in $groups; do find $group -depth -type d -exec rmdir {} +; done; \
    for at in $(grep -o ' /var/lib/incus/[^ ]*' /proc/self/mountinfo | sort -r); do \
      umount -l $at; done; \
    for link in $(ip -o link | grep -o 'mac[0-9a-f]\\{8\\}' | sort -u); do ip link del $link; done; \
    rm -rf /var/lib/incus/* /var/log/incus/peer /tmp/incus_* /root/.config/incus /run/incus \
      /run/peer-incus /run/peer";

/// Waits for a move. One that fails on the target is not told to the source,
/// which would wait on: the target's log is looked at, too.
fn finished(mut moving: Child, target: &Host) -> Result<()> {
    let log = target.root().join(format!("var/log/incus/{NAME}/lxc.log"));
    let began = Instant::now();
    let why = loop {
        if moving.try_wait()?.is_some() {
            let ended = moving.wait_with_output()?;
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            ensure!(ended.status.success(), "{}", said.trim());
            return Ok(());
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        if said.contains(GAVE_UP) {
            break "the target could not restore it".to_owned();
        }
        if began.elapsed() > PATIENCE {
            break format!("it did not end within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    moving.kill()?;
    moving.wait()?;
    bail!(why)
}

/// A container of Docker's image that runs `command` at this address.
fn make(image: &str, command: &[String], address: &str) -> String {
    let words: Vec<String> = command.iter().map(|w| format!("\"{w}\"")).collect();
    format!(
        "mkdir -p {DIR}/image/rootfs/sbin; cd {DIR}/image; \
         id=$(docker create {image} true); docker export $id | tar -x -C rootfs; \
         docker rm $id >/dev/null; rm -f rootfs/sbin/init; \
         printf '%s\\n' '#!/bin/sh' 'ip link set lo up' 'ip address add {address} dev eth0' \
           'ip link set eth0 up' 'cd /data' 'exec {} </dev/null >/dev/null 2>&1' >rootfs/sbin/init; \
         chmod 755 rootfs/sbin/init; \
         printf '%s\\n' 'architecture: x86_64' 'creation_date: 1' >metadata.yaml; \
         tar -cf image.tar metadata.yaml rootfs; incus image import image.tar --alias {NAME}; \
         incus init {NAME} {NAME} -c security.privileged=true -c migration.stateful=true \
           -c raw.lxc=\"$(printf 'lxc.console.path = none\\nlxc.apparmor.profile =')\"; \
         incus config device add {NAME} eth0 nic nictype=macvlan parent=eth0 name=eth0 hwaddr={MAC}; \
         incus start {NAME}",
        words.join(" ")
    )
}

/// An error with the first that CRIU objected to on the target.
fn told(error: anyhow::Error, rig: &Rig) -> anyhow::Error {
    let ask = "cat /tmp/incus_restore_*/final/restore.log 2>/dev/null | grep -a Error | \
               grep -v RLIMIT | head -n 1";
    let said = rig.host("b").and_then(|b| shell(b, ask)).unwrap_or_default();
    error.context(format!("CRIU said: {}", said.trim()))
}
