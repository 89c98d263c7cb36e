//! The lab's wires: a bridge in a namespace of its own, a cable per host.
//!
//! A network namespace is kept alive by a mount of it, so that it exists
//! before the host that lives in it: when a host's first process starts, its
//! `eth0` is already up. Removing the mounts (once the processes are gone)
//! removes bridge and cables with them.

use super::error::Context as _;
use super::paths::Paths;
use super::{LabError, Result, run};
use blip_transport::units::Bandwidth;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

/// Name of the client's namespace; no host can be called so.
pub(super) const CLIENT_NAME: &str = "client";
/// Name of the bridge's namespace.
pub(super) const SWITCH: &str = "switch";
/// Last byte of the bridge's address, the subnet's gateway.
pub(super) const GATEWAY: u8 = 1;
/// Last byte of the first host's address.
pub(super) const FIRST_HOST: u8 = 11;
/// Last byte of the client's address.
pub(super) const CLIENT: u8 = 100;
/// Last byte of the first container's address.
pub(super) const CONTAINERS: u8 = 128;

/// An address of the lab in this slot.
pub(super) fn address(slot: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 90, slot, last)
}

/// The subnet of the lab in this slot.
pub(super) fn subnet(slot: u8) -> String {
    format!("{}/24", address(slot, 0))
}

/// The part of the subnet that containers get their addresses from.
pub(super) fn container_range(slot: u8) -> String {
    format!("{}/25", address(slot, CONTAINERS))
}

/// Makes the namespaces of switch, client and hosts, and cables them.
pub(super) fn create(paths: &Paths, slot: u8, hosts: &[String]) -> Result<()> {
    let mut ends: Vec<(&str, u8)> = vec![(CLIENT_NAME, CLIENT)];
    ends.extend(hosts.iter().map(String::as_str).zip(FIRST_HOST..));

    make_namespace(&paths.net(SWITCH))?;
    let gateway = address(slot, GATEWAY);
    let mut script = format!(
        "link set dev lo up\n\
         link add name br0 type bridge forward_delay 0 mcast_snooping 0\n\
         addr add {gateway}/24 dev br0\n\
         link set dev br0 up\n"
    );
    for (end, _) in &ends {
        let net = paths.net(end);
        make_namespace(&net)?;
        let _ = writeln!(
            script,
            "link add name to-{end} type veth peer name eth0 netns {}\n\
             link set dev to-{end} master br0 up",
            net.display()
        );
    }
    ip("laying the lab's cables", &paths.net(SWITCH), &script)?;
    for (end, last) in ends {
        let address = address(slot, last);
        let script = format!(
            "link set dev lo up\n\
             addr add {address}/24 dev eth0\n\
             link set dev eth0 up\n\
             route add default via {gateway}\n"
        );
        ip("giving the lab's ends their addresses", &paths.net(end), &script)?;
    }
    Ok(())
}

/// Lets go of all namespaces of the lab.
pub(super) fn remove(paths: &Paths) -> Result<()> {
    // The newest mount first; more than one may lie on a path.
    let table = fs::read_to_string("/proc/self/mountinfo").on("reading", "/proc/self/mountinfo")?;
    for at in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(at).starts_with(&paths.run) {
            umount2(at, MntFlags::MNT_DETACH).on("unmounting", at)?;
        }
    }
    Ok(())
}

/// Limits both ends of a host's cable.
pub(super) fn rate_limit(paths: &Paths, host: &str, rate: Option<Bandwidth>) -> Result<()> {
    let port = format!("to-{host}");
    for (net, device) in [(SWITCH, port.as_str()), (host, "eth0")] {
        let doing = format!("limiting the rate of {host}");
        within(&paths.net(net), || match rate {
            Some(Bandwidth(bytes)) => {
                let bits = format!("{}bit", (bytes * 8.0).max(8_000.0) as u64);
                // A bucket of 10 ms, and never below a few full frames.
                let burst = format!("{}b", ((bytes / 100.0) as u64).max(16_000));
                run::run(
                    &doing,
                    run::program("tc")
                        .args(["qdisc", "replace", "dev", device, "root", "tbf", "rate"])
                        .args([&bits, "burst", &burst, "latency", "100ms"]),
                )
                .map(|_| ())
            }
            None => {
                // Fails if there was no limit, which is what we want.
                let _ = run::run(
                    &doing,
                    run::program("tc").args(["qdisc", "del", "dev", device, "root"]),
                );
                Ok(())
            }
        })?;
    }
    Ok(())
}

/// Moves the calling thread into the network namespace mounted at `net`.
pub(super) fn enter(net: &Path) -> Result<()> {
    let file = fs::File::open(net).on("opening the network", net)?;
    setns(file, CloneFlags::CLONE_NEWNET).on("entering the network", net)
}

/// Does `work` on a thread inside a network namespace; programs it starts
/// are inside, too.
fn within<T: Send>(net: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    aside(|| {
        enter(net)?;
        work()
    })
}

/// Does `work` in a new network namespace that ends with it.
pub(super) fn within_new<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    aside(|| {
        unshare(CloneFlags::CLONE_NEWNET).on("making a network namespace", "")?;
        work()
    })
}

/// A namespace belongs to a thread: `work` gets one to spoil.
fn aside<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or(Err(LabError::Panicked)))
}

/// Makes a network namespace and mounts it at `path`.
fn make_namespace(path: &Path) -> Result<()> {
    fs::write(path, "").on("making", path)?;
    within_new(|| {
        mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .on("mounting a network namespace at", path)
    })
}

/// Runs a batch of `ip` lines in the namespace mounted at `net`.
fn ip(doing: &str, net: &Path, script: &str) -> Result<()> {
    within(net, || {
        run::run_with(doing, run::program("ip").args(["-batch", "-"]), script.as_bytes())
            .map(|_| ())
    })
}
