//! TCP connections of other processes, reset from outside.

use super::pidfd;
use crate::descriptors;
use std::collections::BTreeSet;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

/// Breaks every TCP connection that process `pid` has open, and closes its
/// listening sockets together with the connections that wait in them: each peer
/// is sent a reset. The process itself need not run. Returns how many sockets
/// that were; a socket shared with another process counts once for each.
///
/// # Errors
/// If the process is gone, or its descriptors may not be looked at.
pub fn reset_all(pid: i32) -> io::Result<usize> {
    let sockets = tcp_sockets(pid)?;
    Ok(sockets.iter().filter(|socket| disconnect(socket).is_ok()).count())
}

/// Gives every TCP socket of process `pid` that was shut down without ever being
/// connected an error to report, once: `ECONNABORTED`. Such a socket reads as an
/// orderly end otherwise. Sends nothing. Returns how many sockets that were.
///
/// # Errors
/// If the process is gone, or its descriptors may not be looked at.
pub fn abort_closed(pid: i32) -> io::Result<usize> {
    let sockets = tcp_sockets(pid)?;
    let aborted = |socket: &&OwnedFd| is_shut_unconnected(socket) && abort(socket).is_ok();
    Ok(sockets.iter().filter(aborted).count())
}

/// Copies of all TCP sockets of a process, each socket once.
fn tcp_sockets(pid: i32) -> io::Result<Vec<OwnedFd>> {
    let pidfd = pidfd::open(pid)?;
    let mut seen = BTreeSet::new();
    let mut sockets = Vec::new();
    for descriptor in descriptors::of(pid)? {
        let link = descriptor.link;
        if !link.starts_with("socket:") || !seen.insert(link) {
            continue;
        }
        let socket = pidfd::fetch(&pidfd, descriptor.number)?;
        if is_tcp(&socket) {
            sockets.push(socket);
        }
    }
    Ok(sockets)
}

/// Whether there is no connection, and nothing to be read for ever.
fn is_shut_unconnected(socket: &OwnedFd) -> bool {
    let both = libc::POLLRDHUP | libc::POLLHUP;
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: both, revents: 0 };
    // SAFETY: the kernel reads and writes the one structure, which lives until
    // the call returns at once.
    let answer = unsafe { libc::poll(&mut polled, 1, 0) };
    let shut = answer > 0 && polled.revents & both == both;
    let peer =
        nix::sys::socket::getpeername::<nix::sys::socket::SockaddrStorage>(socket.as_raw_fd());
    shut && peer.is_err()
}

/// To disconnect a socket in repair mode leaves it with an error and tells its
/// peer nothing (tcp_disconnect in the kernel).
fn abort(socket: &OwnedFd) -> io::Result<()> {
    const ON: libc::c_int = 1;
    /// Off, without a probe to the peer.
    const OFF: libc::c_int = -1;
    repair(socket, ON)?;
    let disconnected = disconnect(socket);
    repair(socket, OFF)?;
    disconnected
}

fn repair(socket: &OwnedFd, mode: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes at the address of a whole integer
    // that lives until the call returns.
    let answer = unsafe {
        let value = std::ptr::from_ref(&mode).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, value, size)
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A copy of a descriptor of process `pid`.
pub(super) fn copy_of(pid: i32, number: i32) -> io::Result<OwnedFd> {
    pidfd::fetch(&pidfd::open(pid)?, number)
}

fn is_tcp(socket: &OwnedFd) -> bool {
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    let family =
        nix::sys::socket::getsockname::<nix::sys::socket::SockaddrStorage>(socket.as_raw_fd());
    let internet =
        family.is_ok_and(|at| at.as_sockaddr_in().is_some() || at.as_sockaddr_in6().is_some());
    internet && getsockopt(socket, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream)
}

/// `connect` to no address at all: the one way to end a connection with a reset
/// whatever is in its queues (tcp(7), "AF_UNSPEC").
fn disconnect(socket: &OwnedFd) -> io::Result<()> {
    let nowhere =
        libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let size = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes at the address of a whole sockaddr
    // that lives until the call returns.
    let answer = unsafe { libc::connect(socket.as_raw_fd(), &nowhere, size) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_peer_with_unread_data_sees_a_reset_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        disconnect(&OwnedFd::from(server)).unwrap();
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn who_waits_to_be_accepted_is_reset_with_the_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        disconnect(&OwnedFd::from(listener)).unwrap();
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn only_what_was_shut_unconnected_has_lost_its_connection() {
        use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socket};
        let fresh = || socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None);
        let (shut, open) = (fresh().unwrap(), fresh().unwrap());
        // As CRIU does: it is said not to be connected, and shut all the same.
        let _ = shutdown(shut.as_raw_fd(), Shutdown::Both);
        assert!(is_shut_unconnected(&shut) && !is_shut_unconnected(&open));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ended = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(listener.accept().unwrap());
        assert_eq!(ended.read(&mut [0]).unwrap(), 0, "an orderly end stays one");
        assert!(!is_shut_unconnected(&OwnedFd::from(ended)));
        if nix::unistd::geteuid().is_root() {
            abort(&shut).unwrap();
            let error = TcpStream::from(shut).read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        }
    }

    #[test]
    fn only_tcp_is_touched() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_tcp(&OwnedFd::from(one)));
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!is_tcp(&OwnedFd::from(udp)));
        assert!(is_tcp(&OwnedFd::from(TcpListener::bind("[::1]:0").unwrap())));
    }
}
