//! Frames: taking those that arrive, sending them on, and announcing addresses
//! from another network namespace.
//!
//! An announcement is a gratuitous ARP request (RFC 5227 §3) or unsolicited neighbour
//! advertisement (RFC 4861 §7.2.6).

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Most bytes that wait in a tap; the kernel counts its own overhead too.
const TAP_BUFFER: usize = 8 << 20;
const ETHERNET_HEADER: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// `PACKET_VNET_HDR`: what the sender's kernel left to the hardware (checksums,
/// segments) is told in front of each frame, and done where it is sent on.
const VNET_HEADER_OPTION: i32 = 15;
/// Length of `struct virtio_net_hdr`.
const VNET_HEADER: usize = 10;
/// `IPPROTO_UDP`, `IPPROTO_ICMPV6`.
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
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

/// IP addresses of the interfaces in a process' network namespace.
pub fn addresses(pid: i32) -> io::Result<Vec<IpAddr>> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let found = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|at| at.ip().into());
            v4.or_else(|| address.as_sockaddr_in6().map(|at| at.ip().into()))
        });
        Ok(found.collect())
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the listing thread panicked")))
}

/// A datagram as it came, or might have: `None` if the addresses are of
/// different families, or it is too long for one packet.
pub fn udp_frame(mac: [u8; 6], from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Option<Frame> {
    let length = u16::try_from(bytes.len() + 8).ok()?;
    let mut udp = [from.port(), to.port(), length, 0].map(u16::to_be_bytes).concat();
    udp.extend(bytes);
    let (kind, packet) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (ETHERTYPE_IPV4, ipv4(from, to, UDP, udp)?),
        (IpAddr::V6(from), IpAddr::V6(to)) => (ETHERTYPE_IPV6, ipv6(from, to, UDP, udp)?),
        _ => return None,
    };
    let mut frame = vec![0; VNET_HEADER];
    frame.extend(mac);
    frame.extend([0; 6]);
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    Some(Frame(frame))
}

/// Puts a UDP datagram, with its checksum, into a packet.
fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, mut payload: Vec<u8>) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok()?;
    let pseudo = [from.octets(), to.octets(), [0, protocol, 0, 0]].concat();
    let sum = checksum(pseudo.iter().chain(&length.to_be_bytes()).chain(&payload).copied());
    payload[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x45, 0];
    packet.extend(length.checked_add(20)?.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend([from.octets(), to.octets()].concat());
    let sum = checksum(packet.iter().copied());
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    Some(packet)
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, mut payload: Vec<u8>) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok()?;
    let sum = ipv6_checksum(from, to, protocol, &payload);
    payload[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([protocol, 64]);
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend(payload);
    Some(packet)
}

/// How often, and how long each time, [`who_has`] waits for an answer.
const ASK_TIMES: u32 = 3;
const ASK_LIMIT: Duration = Duration::from_millis(150);

/// Asks on the segment of `interface` who has an address, without claiming any
/// (an ARP probe, RFC 5227 §1.1). `None`: nobody answers.
pub fn who_has(interface: &str, address: Ipv4Addr) -> io::Result<Option<[u8; 6]>> {
    let own = own_mac(interface)?;
    let socket = packet_socket(libc::SOCK_RAW | libc::SOCK_NONBLOCK)?;
    bind(&socket, interface)?;
    for _ in 0..ASK_TIMES {
        send(interface, ETHERTYPE_ARP, BROADCAST, &arp_probe(own, address))?;
        let until = Instant::now() + ASK_LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            // A busy segment must not keep us beyond the limit.
            let ready = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], left)?;
            if ready == 0 || left == PollTimeout::ZERO {
                break;
            }
            let mut frame = [0; 64];
            let flags = nix::sys::socket::MsgFlags::empty();
            let got = nix::sys::socket::recv(socket.as_raw_fd(), &mut frame, flags);
            if let Some(mac) = got.ok().and_then(|got| arp_answer(&frame[..got], own, address)) {
                return Ok(Some(mac));
            }
        }
    }
    Ok(None)
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

/// A frame, behind what the kernel says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Vec<u8>);

impl Frame {
    /// From the Ethernet header on.
    pub fn bytes(&self) -> &[u8] {
        &self.0[VNET_HEADER..]
    }

    /// Whether it is the first segment of a TCP connection.
    pub fn asks_to_connect(&self) -> bool {
        const FIN_SYN_RST_ACK: u8 = 0x17;
        const SYN: u8 = 0x02;
        let segment = match self.bytes().split_at_checked(ETHERNET_HEADER) {
            Some((ethernet, packet)) => match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
                ETHERTYPE_IPV4 => tcp_of_ipv4(packet),
                ETHERTYPE_IPV6 => tcp_of_ipv6(packet),
                _ => None,
            },
            None => None,
        };
        segment.and_then(|tcp| tcp.get(13)).is_some_and(|flags| flags & FIN_SYN_RST_ACK == SYN)
    }
}

/// The TCP segment of a packet that is no later fragment.
fn tcp_of_ipv4(packet: &[u8]) -> Option<&[u8]> {
    let length = usize::from(packet.first()? & 0x0f) * 4;
    let offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
    let tcp = i32::from(*packet.get(9)?) == libc::IPPROTO_TCP;
    if tcp && offset == 0 { packet.get(length..) } else { None }
}

fn tcp_of_ipv6(packet: &[u8]) -> Option<&[u8]> {
    let tcp = i32::from(*packet.get(6)?) == libc::IPPROTO_TCP;
    if tcp { packet.get(40..) } else { None }
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
            with_headers(&socket)?;
            bind(&socket, &interface)?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &TAP_BUFFER)?;
            Ok(Self { socket })
        })
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the tapping thread panicked")))
    }

    /// Every unicast IP frame that came for this host since it was opened, at
    /// most 8 MiB of them.
    pub fn frames(&self) -> Vec<Frame> {
        let mut frames = Vec::new();
        // A frame may stand for many: up to 64 KiB.
        let mut buffer = vec![0; VNET_HEADER + ETHERNET_HEADER + (1 << 16)];
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
            if from.sll_pkttype == libc::PACKET_HOST && ip && got > VNET_HEADER + ETHERNET_HEADER {
                frames.push(Frame(buffer[..got].to_vec()));
            }
        }
    }
}

/// Sends frames from `interface` of this namespace, as that interface: their
/// sender's address becomes its own, so that no switch learns a wrong one.
pub fn forward(interface: &str, frames: &[Frame]) -> io::Result<()> {
    let mac = own_mac(interface)?;
    let readdressed = frames.iter().map(|frame| {
        let mut frame = frame.clone();
        frame.0[VNET_HEADER..][6..12].copy_from_slice(&mac);
        frame
    });
    send_all(interface, readdressed)
}

/// The MAC address of an interface of this namespace.
fn own_mac(interface: &str) -> io::Result<[u8; 6]> {
    let own = hardware_addresses(std::process::id() as i32)?;
    own.into_iter()
        .find(|(name, _)| name == interface)
        .map(|(_, mac)| mac)
        .ok_or_else(|| io::Error::other(format!("no interface {interface}")))
}

/// Sends frames from `interface` of this namespace, as they are.
pub fn send_frames(interface: &str, frames: &[Frame]) -> io::Result<()> {
    send_all(interface, frames.iter().cloned())
}

fn send_all(interface: &str, frames: impl Iterator<Item = Frame>) -> io::Result<()> {
    let socket = packet_socket(libc::SOCK_RAW)?;
    with_headers(&socket)?;
    bind(&socket, interface)?;
    // One that does not fit must not keep the others.
    let mut result = Ok(());
    for frame in frames {
        let flags = nix::sys::socket::MsgFlags::empty();
        let sent = nix::sys::socket::send(socket.as_raw_fd(), &frame.0, flags);
        result = result.and(sent.map(drop).map_err(io::Error::from));
    }
    result
}

/// Has the kernel put its header in front of every frame, and expect it there.
fn with_headers(socket: &OwnedFd) -> io::Result<()> {
    let on: i32 = 1;
    // SAFETY: the pointer comes from a live value and the length is its.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            VNET_HEADER_OPTION,
            (&raw const on).cast(),
            size_of::<i32>() as u32,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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

fn arp_probe(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut packet = arp(mac, address);
    packet[14..18].fill(0);
    packet
}

/// Who says, to us, that it has the address.
fn arp_answer(frame: &[u8], own: [u8; 6], address: Ipv4Addr) -> Option<[u8; 6]> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET_HEADER)?;
    let arp = u16::from_be_bytes([ethernet[12], ethernet[13]]) == ETHERTYPE_ARP;
    let answer = arp && packet.get(6..8)? == [0, 2] && ethernet[..6] == own;
    let sender = answer && packet.get(14..18)? == address.octets();
    if sender { packet.get(8..14)?.try_into().ok() } else { None }
}

fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type 136, override flag; the target and its link-layer address follow.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let sum = ipv6_checksum(address, group, ICMPV6, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([ICMPV6, 255]);
    packet.extend(address.octets());
    packet.extend(group.octets());
    packet.extend(message);
    packet
}

fn ipv6_checksum(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> u16 {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let pseudo = from.octets().into_iter().chain(to.octets()).chain(length);
    checksum(pseudo.chain([0, 0, 0, protocol]).chain(payload.iter().copied()))
}

/// The checksum of IP, UDP and ICMPv6 (RFC 1071). Zero means "none" to UDP, and
/// all ones is the same sum.
fn checksum(bytes: impl Iterator<Item = u8>) -> u16 {
    let bytes: Vec<u8> = bytes.collect();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
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
    fn only_first_segments_ask_to_connect() {
        let frame = |kind: u16, packet: Vec<u8>, flags: u8| {
            let mut bytes = vec![0; VNET_HEADER + 12];
            bytes.extend(kind.to_be_bytes());
            bytes.extend(packet);
            bytes.extend([0; 13]);
            bytes.push(flags);
            Frame(bytes).asks_to_connect()
        };
        let v4 = |protocol: u8, offset: u8| {
            vec![0x45, 0, 0, 0, 0, 0, 0, offset, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        };
        let v6 = |next: u8| [vec![0x60, 0, 0, 0, 0, 0, next], vec![0; 33]].concat();
        assert!(frame(ETHERTYPE_IPV4, v4(6, 0), 0x02));
        assert!(frame(ETHERTYPE_IPV6, v6(6), 0xc2), "with ECN flags");
        assert!(!frame(ETHERTYPE_IPV4, v4(6, 0), 0x12), "an answer");
        assert!(!frame(ETHERTYPE_IPV4, v4(6, 1), 0x02), "a later fragment");
        assert!(!frame(ETHERTYPE_IPV4, v4(17, 0), 0x02), "UDP");
        assert!(!frame(ETHERTYPE_ARP, v4(6, 0), 0x02));
        assert!(!Frame(vec![0; VNET_HEADER]).asks_to_connect());
    }

    #[test]
    fn only_an_answer_to_us_tells_who_has_an_address() {
        let (own, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let address = Ipv4Addr::new(10, 0, 0, 9);
        assert_eq!(arp_probe(own, address)[14..18], [0; 4]);
        let packet = arp(other, address);
        let mut answer = [own.as_slice(), &other, &[8, 6], &packet].concat();
        assert_eq!(arp_answer(&answer, own, address), None, "a request");
        answer[ETHERNET_HEADER + 7] = 2;
        assert_eq!(arp_answer(&answer, own, address), Some(other));
        assert_eq!(arp_answer(&answer, other, address), None, "to somebody else");
        assert_eq!(arp_answer(&answer, own, Ipv4Addr::new(10, 0, 0, 8)), None);
        assert_eq!(arp_answer(&answer[..20], own, address), None);
    }

    #[test]
    fn a_neighbour_advertisement_sums_to_zero() {
        let address: Ipv6Addr = "fd00::9".parse().unwrap();
        let packet = advertisement([2, 0, 0, 0, 0, 1], address);
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        assert_eq!(ipv6_checksum(address, group, ICMPV6, &packet[40..]), 0xffff);
    }
}
