//! A gratuitous ARP request (RFC 5227 §3) or unsolicited neighbour
//! advertisement (RFC 4861 §7.2.6), sent from another network namespace.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const BROADCAST: [u8; 6] = [0xff; 6];
/// The Ethernet group of ff02::1, all nodes.
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Sends the announcement, on a thread of its own that enters the namespace.
pub fn announce(pid: i32, interface: &str, mac: [u8; 6], address: IpAddr) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let interface = interface.to_owned();
    let (protocol, to, packet) = match address {
        IpAddr::V4(address) => (ETHERTYPE_ARP, BROADCAST, arp(mac, address)),
        IpAddr::V6(address) => (ETHERTYPE_IPV6, ALL_NODES, advertisement(mac, address)),
    };
    std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        send(&interface, protocol, to, &packet)
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the announcing thread panicked")))
}

/// Names and MAC addresses of the interfaces in a process' network namespace.
pub fn hardware_addresses(pid: i32) -> io::Result<Vec<(String, [u8; 6])>> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let found = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
            let mac = interface.address?.as_link_addr()?.addr()?;
            Some((interface.interface_name, mac))
        });
        Ok(found.collect())
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the listing thread panicked")))
}

fn send(interface: &str, protocol: u16, to: [u8; 6], packet: &[u8]) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: a plain system call without pointers.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and is owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: sockaddr_ll is plain data for which all zeroes is a valid value.
    let mut peer: libc::sockaddr_ll = unsafe { zeroed() };
    peer.sll_family = libc::AF_PACKET as u16;
    peer.sll_protocol = protocol.to_be();
    peer.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    peer.sll_halen = 6;
    peer.sll_addr[..6].copy_from_slice(&to);
    // SAFETY: both pointers come from live values and both lengths are theirs.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const peer).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(mac);
    packet.extend(address.octets());
    packet.extend([0; 6]);
    packet.extend(address.octets());
    packet
}

fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type 136, override flag; the target and its link-layer address follow.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let checksum = icmpv6_checksum(address, group, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([58, 255]);
    packet.extend(address.octets());
    packet.extend(group.octets());
    packet.extend(message);
    packet
}

fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let pseudo = from.octets().into_iter().chain(to.octets()).chain(length).chain([0, 0, 0, 58]);
    let bytes: Vec<u8> = pseudo.chain(message.iter().copied()).collect();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arp_announcement_names_its_address_twice() {
        let packet = arp([2, 0, 0, 0, 0, 1], Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(packet.len(), 28);
        assert_eq!(packet[14..18], packet[24..28]);
    }

    #[test]
    fn a_neighbour_advertisement_sums_to_zero() {
        let address: Ipv6Addr = "fd00::9".parse().unwrap();
        let packet = advertisement([2, 0, 0, 0, 0, 1], address);
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        assert_eq!(icmpv6_checksum(address, group, &packet[40..]), 0);
    }
}
