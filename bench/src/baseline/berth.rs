//! A place for a peer's workload on both hosts: a network namespace with the
//! same address and the same hardware address on the shared segment, of which
//! only one is up at a time, and a folder for images.
//!
//! This is what an operator would have to set up by hand, and it is given to
//! peers for nothing: it is ready on the target before the clock runs.

use std::net::Ipv4Addr;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result};

use crate::lab::Host;
use crate::rig::Rig;

/// The namespace.
pub(super) const NET: &str = "peer";

/// The folder for images and whatever else; in memory, so that no peer waits
/// for a disk that blip does not wait for.
pub(super) const DIR: &str = "/run/peer";

/// The workload's hardware address on either host.
const MAC: &str = "02:42:0a:5a:00:80";

/// The port over which CRIU serves pages.
pub(super) const PAGES: &str = "9027";

/// The port over which images are copied.
const COPY: &str = "9028";

/// Runs a line of shell on a host, and gives what it printed.
pub(super) fn shell(host: &Host, line: &str) -> Result<String> {
    Ok(host.run(&["sh", "-ec", line])?)
}

/// Told to CRIU through the file that runc hands to it: keep connections, and
/// leave out those that nobody has accepted. Somebody always connects between
/// CRIU's freeze, which takes a tenth of a second, and its lock on the network;
/// CRIU gives up then unless it is told.
const CONFIGURATION: &str = "# blip-bench\\ntcp-established\\nskip-in-flight\\n";

/// Configures the CRIU of a host's runc.
pub(crate) fn configure_criu(host: &Host) -> Result<()> {
    shell(host, &format!("mkdir -p /etc/criu; printf '{CONFIGURATION}' >/etc/criu/runc.conf"))
        .context("configuring CRIU")
        .map(|_| ())
}

/// Removes that configuration, if it is there.
pub(crate) fn forget_criu(host: &Host) {
    // That there is none is the usual case.
    let _ = shell(host, "! grep -qs blip-bench /etc/criu/runc.conf || rm /etc/criu/runc.conf");
}

/// Makes the place on both hosts; it is up on `a`.
pub(super) fn make(rig: &Rig) -> Result<Ipv4Addr> {
    let ip = rig.lab().container_address(0);
    for name in ["a", "b"] {
        let line = format!(
            "mkdir -m 700 -p {DIR}/img; mount -t tmpfs -o mode=700 peer {DIR}/img; \
             ip netns add {NET}; \
             ip link add peer0 link eth0 address {MAC} type macvlan mode bridge; \
             ip link set peer0 netns {NET}; \
             ip netns exec {NET} sh -ec 'ip link set lo up; \
               echo 1 >/proc/sys/net/ipv4/conf/peer0/arp_notify; ip addr add {ip}/24 dev peer0'"
        );
        shell(rig.host(name)?, &line).context("preparing a place for the peer")?;
    }
    up(rig.host("a")?)?;
    Ok(ip)
}

/// Ends whoever still listens for pages or images: a peer that failed leaves
/// its other end waiting.
pub(super) fn hang_up(host: &Host) {
    let line = format!(
        "for p in $(ss -Hltnp \"sport = :{COPY} or sport = :{PAGES}\" | \
         grep -o 'pid=[0-9]*' | cut -d = -f 2); do kill -9 $p; done; true"
    );
    // That nobody does is the usual case.
    let _ = shell(host, &line);
}

/// Removes it, as far as it is there. A process takes a while to let go of its
/// memory and of the folder. The address goes with its device: whoever else holds
/// the namespace, and for however long, it does not answer any more.
pub(super) fn remove(rig: &Rig) {
    for host in rig.lab().hosts() {
        hang_up(host);
        forget_criu(host);
        let line = format!(
            "set +e; for p in $(ip netns pids {NET} 2>/dev/null); do kill -9 $p; done; \
             for n in $(seq 500); do \
               [ -z \"$(ip netns pids {NET} 2>/dev/null)\" ] && break; sleep 0.02; done; \
             ip netns exec {NET} ip link del peer0 2>/dev/null; \
             ip netns del {NET} 2>/dev/null; umount {DIR}/img 2>/dev/null; rm -rf {DIR}; true"
        );
        // What cannot be removed will be in the way of the next start, which
        // then says so.
        let _ = shell(host, &line);
    }
}

/// The address answers here from now on, and the segment is told.
pub(super) fn up(host: &Host) -> Result<()> {
    shell(host, &format!("ip netns exec {NET} ip link set peer0 up")).map(|_| ())
}

/// The address is silent here from now on.
pub(super) fn down(host: &Host) -> Result<()> {
    shell(host, &format!("ip netns exec {NET} ip link set peer0 down")).map(|_| ())
}

/// Takes one connection and writes what comes over it to standard output.
const RECEIVER: &str = "import socket,sys,shutil; s=socket.create_server(('',int(sys.argv[1]))); \
                        c,_=s.accept(); shutil.copyfileobj(c.makefile('rb'),sys.stdout.buffer,1<<20)";

/// The receiving end of a copy, which listens before the clock runs.
pub(super) struct Copy<'a> {
    to: &'a Host,
    receiver: Child,
}

impl<'a> Copy<'a> {
    /// Waits for a folder's content on `to`, for `target`.
    pub(super) fn to(to: &'a Host, target: &str) -> Result<Copy<'a>> {
        let line = format!("mkdir -p {target}; python3 -c \"$1\" {COPY} | tar -x -C {target} -f -");
        let mut command = to.command(&["sh", "-ec", &line, "sh", RECEIVER]);
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let receiver = command.spawn().context("starting the copy's other end")?;
        listens(to, COPY).context("the copy's other end does not listen")?;
        Ok(Copy { to, receiver })
    }

    /// Sends a folder's content, over the link between the two hosts.
    pub(super) fn send(self, from: &Host, source: &str) -> Result<()> {
        let address = self.to.address();
        let line = format!("tar -c -C {source} -f - . >/dev/tcp/{address}/{COPY}");
        from.run(&["bash", "-ec", &line]).context("sending images")?;
        let received = self.receiver.wait_with_output().context("receiving images")?;
        let said = String::from_utf8_lossy(&received.stderr);
        anyhow::ensure!(received.status.success(), "receiving images: {}", said.trim());
        Ok(())
    }
}

/// Waits, six seconds at most, until somebody listens on this port.
pub(super) fn listens(host: &Host, port: &str) -> Result<()> {
    until(host, &format!("ss -Hltn 'sport = :{port}' | grep -q ."))
}

/// Waits, six seconds at most, until a line of shell succeeds.
pub(super) fn until(host: &Host, line: &str) -> Result<()> {
    let wait = format!("for n in $(seq 1500); do {line} && exit 0; sleep 0.004; done; exit 1");
    shell(host, &wait).map(|_| ())
}
