//! A place for a peer's workload on both hosts: a network namespace with the
//! same address and the same hardware address on the shared segment, of which
//! only one is up at a time, and a folder for images.
//!
//! This is what an operator would have to set up by hand, and it is given to
//! peers for nothing: it is ready on the target before the clock runs.

use std::net::Ipv4Addr;

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

/// The port over which images are copied.
const COPY: &str = "9028";

/// Runs a line of shell on a host, and gives what it printed.
pub(super) fn shell(host: &Host, line: &str) -> Result<String> {
    Ok(host.run(&["sh", "-ec", line])?)
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

/// Removes it, as far as it is there.
pub(super) fn remove(rig: &Rig) {
    for host in rig.lab().hosts() {
        let line = format!(
            "for p in $(ip netns pids {NET} 2>/dev/null); do kill -9 $p; done; \
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

/// Copies a folder from one host into a folder of another, over their link.
pub(super) fn copy(from: (&Host, &str), to: (&Host, &str)) -> Result<()> {
    let ((from, source), (to, target)) = (from, to);
    let address = to.address();
    std::thread::scope(|scope| {
        let receive = format!(
            "mkdir -p {target}; busybox nc -l -p {COPY} </dev/null | tar -x -C {target} -f -"
        );
        let receiver = scope.spawn(move || shell(to, &receive));
        // Until the other end listens there is nobody to send to.
        let listens = format!(
            "for n in $(seq 500); do ss -Hltn 'sport = :{COPY}' | grep -q . && exit 0; sleep 0.004; done; \
             exit 1"
        );
        shell(to, &listens).context("the copy's other end does not listen")?;
        let send = format!("tar -c -C {source} -f - . | busybox nc -w 30 {address} {COPY}");
        shell(from, &send).context("sending images")?;
        let received = receiver.join().map_err(|_| anyhow::anyhow!("the copy's thread died"))?;
        received.context("receiving images").map(|_| ())
    })
}
