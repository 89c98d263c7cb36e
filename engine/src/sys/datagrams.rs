//! Datagrams in the receive queue of another process' socket, looked at without
//! taking them out.

use super::sockets::copy_of;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, getsockname, recvmsg};
use std::io::{self, IoSliceMut};
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

/// The largest datagram of UDP.
const LARGEST: usize = 1 << 16;

/// A datagram that waits to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// The address a socket of another process is bound to, and the datagrams that
/// wait in it, the oldest first. The queue stays as it is. Empty datagrams are not
/// among them: the kernel passes over those when it is looked at.
///
/// # Errors
/// If the process has no such socket, or may not be looked at.
pub fn waiting(pid: i32, descriptor: i32) -> io::Result<(SocketAddr, Vec<Datagram>)> {
    let socket = copy_of(pid, descriptor)?;
    let bound = getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
    let bound = socket_address(&bound).ok_or_else(|| io::Error::other("no IP socket"))?;
    // With an offset every look goes on where the last one ended.
    let before = peek_offset(&socket)?;
    set_peek_offset(&socket, 0)?;
    let found = look(&socket);
    set_peek_offset(&socket, before)?;
    Ok((bound, found?))
}

fn look(socket: &OwnedFd) -> io::Result<Vec<Datagram>> {
    let mut found = Vec::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let got = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, None, flags);
        let (length, from) = match got {
            Ok(message) => (message.bytes, message.address),
            Err(Errno::EAGAIN) => return Ok(found),
            Err(error) => return Err(error.into()),
        };
        if let Some(from) = from.as_ref().and_then(socket_address) {
            found.push(Datagram { from, bytes: buffer[..length].to_vec() });
        }
    }
}

fn socket_address(at: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = at.as_sockaddr_in().map(|at| SocketAddr::from((at.ip(), at.port())));
    v4.or_else(|| at.as_sockaddr_in6().map(|at| SocketAddr::from((at.ip(), at.port()))))
}

fn peek_offset(socket: &OwnedFd) -> io::Result<i32> {
    let (mut value, mut size) = (0i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: both pointers are to live values, and the size is that of the first.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw mut value).cast(),
            &raw mut size,
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn set_peek_offset(socket: &OwnedFd, value: i32) -> io::Result<()> {
    // SAFETY: the pointer is to a live value whose size is given.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn what_waits_is_seen_in_order_and_stays() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (to, from) = (socket.local_addr().unwrap(), sender.local_addr().unwrap());
        let texts: [&[u8]; 3] = [b"one", b"two", b"three"];
        for text in texts {
            sender.send_to(text, to).unwrap();
        }
        let expected = texts.map(|text| Datagram { from, bytes: text.to_vec() }).to_vec();
        for _ in 0..2 {
            let seen = waiting(std::process::id() as i32, socket.as_raw_fd()).unwrap();
            assert_eq!(seen, (to, expected.clone()));
        }
        socket.set_nonblocking(true).unwrap();
        for text in texts {
            let mut read = [0; 16];
            let (length, _) = socket.recv_from(&mut read).unwrap();
            assert_eq!(&read[..length], text);
        }
    }
}
