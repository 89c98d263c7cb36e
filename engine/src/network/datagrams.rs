//! UDP datagrams that have come and that nobody has read yet.
//!
//! CRIU leaves them out. blip looks them up in the frozen container's sockets
//! and sends them on as frames, ahead of what came later: they are late, not
//! lost. What the container sent to itself, and what is larger than one frame,
//! does not go that way.

use super::backlog::Backlog;
use crate::descriptors;
use crate::sys::datagrams::{Datagram, waiting};
use crate::sys::net::{Frame, udp_frame};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// The largest datagram that fits a frame of Ethernet, over IPv4 or IPv6.
const MOST: usize = 1500 - 40 - 8;

/// Frames of everything that waits in UDP sockets of `processes`, which stand
/// still and share a network namespace. `mac` is the container's.
pub fn frames(backlog: &Backlog, processes: &[i32], mac: [u8; 6]) -> io::Result<Vec<Frame>> {
    let inodes = backlog.unread_datagrams()?;
    if inodes.is_empty() {
        return Ok(Vec::new());
    }
    let own = own_addresses(processes)?;
    let mut frames = Vec::new();
    for (pid, descriptor) in holders(processes, &inodes) {
        let (bound, datagrams) = waiting(pid, descriptor)?;
        for datagram in datagrams {
            match frame(&datagram, bound, &own, mac) {
                Some(frame) => frames.push(frame),
                None => tracing::warn!(
                    "a datagram of {} bytes from {} to port {} is lost: it cannot be sent on",
                    datagram.bytes.len(),
                    datagram.from,
                    bound.port()
                ),
            }
        }
    }
    Ok(frames)
}

/// One process and descriptor for each socket.
fn holders(processes: &[i32], inodes: &[u32]) -> Vec<(i32, i32)> {
    let mut found = BTreeMap::new();
    for &pid in processes {
        for descriptor in descriptors::of(pid).unwrap_or_default() {
            if let Some(inode) = descriptor.socket().filter(|inode| inodes.contains(inode)) {
                found.entry(inode).or_insert((pid, descriptor.number));
            }
        }
    }
    found.into_values().collect()
}

/// `None`: it would not arrive.
fn frame(datagram: &Datagram, bound: SocketAddr, own: &[IpAddr], mac: [u8; 6]) -> Option<Frame> {
    let from = canonical(datagram.from);
    let bound = canonical(bound);
    let kin = |at: &&IpAddr| at.is_ipv4() == from.is_ipv4();
    let to = if bound.ip().is_unspecified() { *own.iter().find(kin)? } else { bound.ip() };
    let inside = from.ip().is_loopback() || own.contains(&from.ip()) || to.is_loopback();
    if inside || datagram.bytes.len() > MOST {
        return None;
    }
    udp_frame(mac, from, SocketAddr::new(to, bound.port()), &datagram.bytes)
}

/// IPv4 on a socket of IPv6 is IPv4.
fn canonical(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip().to_canonical(), at.port())
}

/// The container's own addresses, but those of its loopback and of its links.
fn own_addresses(processes: &[i32]) -> io::Result<Vec<IpAddr>> {
    let Some(&pid) = processes.first() else { return Ok(Vec::new()) };
    let mut own = crate::sys::net::addresses(pid)?;
    own.retain(|at| match at {
        IpAddr::V4(at) => !at.is_loopback(),
        IpAddr::V6(at) => !at.is_loopback() && !at.is_unicast_link_local(),
    });
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_from_outside_and_fits_is_sent_on() {
        let own: Vec<IpAddr> = ["10.0.0.9", "fd00::9"].map(|at| at.parse().unwrap()).into();
        let goes = |from: &str, bound: &str, length: usize| {
            let datagram = Datagram { from: from.parse().unwrap(), bytes: vec![1; length] };
            frame(&datagram, bound.parse().unwrap(), &own, [2; 6]).is_some()
        };
        assert!(goes("10.0.0.1:5", "0.0.0.0:7", 100));
        assert!(goes("[fd00::1]:5", "[::]:7", 100));
        assert!(goes("[::ffff:10.0.0.1]:5", "[::]:7", 100), "IPv4 on a socket of IPv6");
        assert!(!goes("127.0.0.1:5", "0.0.0.0:7", 100));
        assert!(!goes("10.0.0.9:5", "10.0.0.9:7", 100));
        assert!(!goes("10.0.0.1:5", "0.0.0.0:7", 3000));
    }
}
