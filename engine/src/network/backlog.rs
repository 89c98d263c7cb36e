//! Connections that wait at a listening socket for somebody to accept them.
//!
//! CRIU cannot carry them: they belong to no process yet. So blip looks, through
//! the kernel's socket monitoring (`sock_diag(7)`), whether there are any.

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `NLMSG_DONE`, `NLMSG_ERROR`.
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct inet_diag_req_v2`, of which we fill the first eight bytes.
const REQUEST: usize = 56;
/// Offsets in `struct inet_diag_msg`.
const PORT_AT: usize = 4;
const QUEUED_AT: usize = 56;
const INODE_AT: usize = 68;
const ANSWER: usize = 72;

/// States of a TCP socket (`include/net/tcp_states.h`).
const SYN_RECV: u32 = 3;
const LISTEN: u32 = 10;

/// A listening socket with connections in its queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiting {
    /// Its port.
    pub port: u16,
    /// How many wait to be accepted.
    pub connections: u32,
    /// Its inode, by which processes know it.
    pub inode: u32,
}

/// The listening TCP sockets of a network namespace.
#[derive(Debug)]
pub struct Backlog {
    netlink: OwnedFd,
}

impl Backlog {
    /// Those in the network namespace of process `pid`.
    pub fn of(pid: i32) -> io::Result<Self> {
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            let netlink = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkSockDiag,
            )?;
            Ok(Self { netlink })
        })
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the listing thread panicked")))
    }

    /// The sockets at which somebody waits; none is what a dump needs.
    pub fn waiting(&self) -> io::Result<Vec<Waiting>> {
        let mut found = Vec::new();
        self.each(libc::IPPROTO_TCP, 1 << LISTEN, |message| {
            let connections = u32_at(message, QUEUED_AT);
            let port = u16::from_be_bytes([message[PORT_AT], message[PORT_AT + 1]]);
            if connections > 0 {
                found.push(Waiting { port, connections, inode: u32_at(message, INODE_AT) });
            }
        })?;
        found.sort();
        Ok(found)
    }

    /// How many connections are only half made: the client's next word makes
    /// them whole.
    pub fn half_open(&self) -> io::Result<u32> {
        let mut count = 0;
        self.each(libc::IPPROTO_TCP, 1 << SYN_RECV, |_| count += 1)?;
        Ok(count)
    }

    /// UDP sockets, by inode, in which datagrams wait.
    pub fn unread_datagrams(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        self.each(libc::IPPROTO_UDP, u32::MAX, |message| {
            if u32_at(message, QUEUED_AT) > 0 {
                found.push(u32_at(message, INODE_AT));
            }
        })?;
        Ok(found)
    }

    /// Every socket of a protocol in some states, IPv4 and IPv6.
    fn each(&self, protocol: i32, states: u32, mut see: impl FnMut(&[u8])) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let kernel = NetlinkAddr::new(0, 0);
            let request = request(family as u8, protocol as u8, states);
            sendto(self.netlink.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
            let mut buffer = vec![0; 1 << 16];
            loop {
                let got = recv(self.netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
                if answers(&buffer[..got], &mut see)? {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn request(family: u8, protocol: u8, states: u32) -> Vec<u8> {
    let length = (HEADER + REQUEST) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, protocol, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.resize(length as usize, 0);
    bytes
}

/// Shows every message of one datagram; `true` if it was the last of the list.
fn answers(mut datagram: &[u8], see: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    while datagram.len() >= HEADER {
        let length = u32_at(datagram, 0) as usize;
        if length < HEADER || length > datagram.len() {
            return Err(io::Error::other("the kernel's list of sockets is cut short"));
        }
        let body = &datagram[HEADER..length];
        match u16::from_ne_bytes([datagram[4], datagram[5]]) {
            DONE => return Ok(true),
            ERROR if body.len() >= 4 => {
                return Err(io::Error::from_raw_os_error(-(u32_at(body, 0) as i32)));
            }
            BY_FAMILY if body.len() >= ANSWER => see(body),
            _ => {}
        }
        // Messages begin at multiples of four.
        datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
    }
    Ok(false)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn who_waits_is_seen_until_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let backlog = Backlog::of(std::process::id() as i32).unwrap();
        let waiting = || backlog.waiting().unwrap().into_iter().find(|w| w.port == at.port());
        assert_eq!(waiting(), None);
        let _clients = [TcpStream::connect(at).unwrap(), TcpStream::connect(at).unwrap()];
        assert_eq!(waiting().map(|w| w.connections), Some(2));
        listener.accept().unwrap();
        listener.accept().unwrap();
        assert_eq!(waiting(), None);
    }

    #[test]
    fn a_list_that_is_cut_short_is_an_error() {
        let mut datagram = vec![0; HEADER];
        datagram[0] = 200;
        assert!(answers(&datagram, &mut |_| {}).is_err());
    }
}
