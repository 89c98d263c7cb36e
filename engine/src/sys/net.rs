//! Frames: taking those that arrive, sending them on, and announcing addresses
//! from another network namespace.
//!
//! An announcement is a gratuitous ARP request (RFC 5227 §3) or unsolicited neighbour
//! advertisement (RFC 4861 §7.2.6).

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Most bytes that wait in a tap; the kernel counts its own overhead too.
const TAP_BUFFER: usize = 8 << 20;
const ETHERNET_HEADER: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
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

/// Frames that arrive at an interface, taken before any rule can drop them.
pub struct Tap {
    socket: OwnedFd,
}

impl Tap {
    /// Taps `interface` in the network namespace of process `pid`.
    pub fn open(pid: i32, interface: &str) -> io::Result<Self> {
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        let interface = interface.to_owned();
        std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            let socket = packet_socket(libc::SOCK_RAW | libc::SOCK_NONBLOCK)?;
            bind(&socket, &interface)?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &TAP_BUFFER)?;
            Ok(Self { socket })
        })
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the tapping thread panicked")))
    }

    /// Every unicast IP frame that came for this host since it was opened, at
    /// most 8 MiB of them.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            // SAFETY: sockaddr_ll is plain data for which all zeroes is valid.
            let mut from: libc::sockaddr_ll = unsafe { zeroed() };
            let mut length = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: every pointer comes from a live value, every length is
            // that value's.
            let got = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut length,
                )
            };
            let Ok(got) = usize::try_from(got) else { return frames };
            let ip = [ETHERTYPE_IPV4, ETHERTYPE_IPV6].contains(&u16::from_be(from.sll_protocol));
            if from.sll_pkttype == libc::PACKET_HOST && ip && got > ETHERNET_HEADER {
                frames.push(buffer[..got].to_vec());
            }
        }
    }
}

/// Sends frames from `interface` of this namespace, as that interface: their
/// sender's address becomes its own, so that no switch learns a wrong one.
pub fn forward(interface: &str, frames: &[Vec<u8>]) -> io::Result<()> {
    let own = hardware_addresses(std::process::id() as i32)?;
    let (_, mac) = own
        .into_iter()
        .find(|(name, _)| name == interface)
        .ok_or_else(|| io::Error::other(format!("no interface {interface}")))?;
    let socket = packet_socket(libc::SOCK_RAW)?;
    bind(&socket, interface)?;
    for frame in frames {
        let mut frame = frame.clone();
        frame[6..12].copy_from_slice(&mac);
        nix::sys::socket::send(socket.as_raw_fd(), &frame, nix::sys::socket::MsgFlags::empty())?;
    }
    Ok(())
}

fn packet_socket(kind: i32) -> io::Result<OwnedFd> {
    let all = i32::from((libc::ETH_P_ALL as u16).to_be());
    // SAFETY: a plain system call without pointers.
    let raw = unsafe { libc::socket(libc::AF_PACKET, kind | libc::SOCK_CLOEXEC, all) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and is owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn bind(socket: &OwnedFd, interface: &str) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: sockaddr_ll is plain data for which all zeroes is a valid value.
    let mut at: libc::sockaddr_ll = unsafe { zeroed() };
    at.sll_family = libc::AF_PACKET as u16;
    at.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    at.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    // SAFETY: the pointer comes from a live value and the length is its.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const at).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
