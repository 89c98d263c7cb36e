//! Relaying: streams both ways until both ends are done, datagrams there and
//! their answers back.

use super::{Port, Protocol};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// How long the target may take to answer a new connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// After so much silence a UDP client is forgotten.
const UDP_SILENCE: Duration = Duration::from_secs(60);
/// Most UDP clients of one port at a time.
const UDP_CLIENTS: usize = 4096;
const BACKLOG: u32 = 1024;

/// A port that is listened on.
pub enum Bound {
    /// Streams.
    Tcp(TcpListener),
    /// Datagrams.
    Udp(UdpSocket),
}

/// Listens on `port`.
///
/// # Errors
/// Those of the socket; `AddrInUse` while somebody else has it.
pub async fn bind(port: Port) -> io::Result<Bound> {
    match port.protocol {
        Protocol::Tcp => {
            let socket = match port.listen {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => v6_only()?,
            };
            socket.set_reuseaddr(true)?;
            socket.bind(port.listen)?;
            Ok(Bound::Tcp(socket.listen(BACKLOG)?))
        }
        Protocol::Udp if port.listen.is_ipv6() => {
            let socket = std::net::UdpSocket::from(bound_v6_datagrams(port.listen)?);
            socket.set_nonblocking(true)?;
            Ok(Bound::Udp(UdpSocket::from_std(socket)?))
        }
        Protocol::Udp => Ok(Bound::Udp(UdpSocket::bind(port.listen).await?)),
    }
}

/// The IPv4 side has a socket of its own.
fn v6_only() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v6()?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true)?;
    Ok(socket)
}

fn bound_v6_datagrams(listen: SocketAddr) -> io::Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = nix::sys::socket::socket(AddressFamily::Inet6, SockType::Datagram, flags, None)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(listen))?;
    Ok(socket)
}

/// Relays everything that comes to `target`, for ever.
pub async fn serve(bound: Bound, target: SocketAddr) {
    match bound {
        Bound::Tcp(listener) => streams(listener, target).await,
        Bound::Udp(socket) => datagrams(Arc::new(socket), target).await,
    }
}

async fn streams(listener: TcpListener, target: SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => drop(tokio::spawn(stream(client, target))),
            // Out of descriptors, most likely: others will be closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn stream(mut client: TcpStream, target: SocketAddr) {
    let connecting = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(target));
    let Ok(Ok(mut server)) = connecting.await else {
        return reset(&client);
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    // An end that breaks must not look like an orderly end to the other.
    if tokio::io::copy_bidirectional(&mut client, &mut server).await.is_err() {
        reset(&client);
        reset(&server);
    }
}

/// Makes the close to come a reset.
fn reset(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger);
}

type Clients = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

async fn datagrams(socket: Arc<UdpSocket>, target: SocketAddr) {
    let clients = Clients::default();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            // The error of an answer that somebody did not want.
            continue;
        };
        let known = lock(&clients).get(&from).cloned();
        let upstream = match known {
            Some(upstream) => upstream,
            None => match new_client(&clients, &socket, from, target).await {
                Ok(upstream) => upstream,
                Err(_) => continue,
            },
        };
        let _ = upstream.send(&buffer[..length]).await;
    }
}

async fn new_client(
    clients: &Clients,
    socket: &Arc<UdpSocket>,
    from: SocketAddr,
    target: SocketAddr,
) -> io::Result<Arc<UdpSocket>> {
    if lock(clients).len() >= UDP_CLIENTS {
        return Err(io::Error::other("too many clients"));
    }
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let upstream = Arc::new(UdpSocket::bind((any, 0)).await?);
    upstream.connect(target).await?;
    lock(clients).insert(from, upstream.clone());
    let (clients, socket, back) = (clients.clone(), socket.clone(), upstream.clone());
    tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(received) = tokio::time::timeout(UDP_SILENCE, back.recv(&mut buffer)).await {
            // An error says that nobody listens there (yet).
            if let Ok(length) = received {
                let _ = socket.send_to(&buffer[..length], from).await;
            }
        }
        lock(&clients).remove(&from);
    });
    Ok(upstream)
}

fn lock(clients: &Clients) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Arc<UdpSocket>>> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn here(protocol: Protocol) -> Port {
        Port { protocol, listen: "127.0.0.1:0".parse().unwrap() }
    }

    #[tokio::test]
    async fn a_stream_is_relayed_both_ways_and_a_half_close_too() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = server.local_addr().unwrap();
        let Bound::Tcp(listener) = bind(here(Protocol::Tcp)).await.unwrap() else { panic!() };
        let at = listener.local_addr().unwrap();
        tokio::spawn(serve(Bound::Tcp(listener), target));
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        let mut text = String::new();
        served.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        served.write_all(b"answer").await.unwrap();
        drop(served);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
    }

    #[tokio::test]
    async fn a_target_that_is_not_there_is_a_reset_and_no_empty_answer() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let Bound::Tcp(listener) = bind(here(Protocol::Tcp)).await.unwrap() else { panic!() };
        let at = listener.local_addr().unwrap();
        tokio::spawn(serve(Bound::Tcp(listener), gone));
        let mut client = TcpStream::connect(at).await.unwrap();
        let error = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn datagrams_find_their_way_back_to_each_client() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let target = server.local_addr().unwrap();
        let Bound::Udp(socket) = bind(here(Protocol::Udp)).await.unwrap() else { panic!() };
        let at = socket.local_addr().unwrap();
        tokio::spawn(serve(Bound::Udp(socket), target));
        let clients = [
            UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        ];
        let mut buffer = [0; 16];
        for (number, client) in clients.iter().enumerate() {
            client.send_to(&[number as u8], at).await.unwrap();
        }
        for _ in &clients {
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            let answer = [buffer[0], 7];
            assert_eq!(length, 1);
            server.send_to(&answer, from).await.unwrap();
        }
        for (number, client) in clients.iter().enumerate() {
            let length = client.recv(&mut buffer).await.unwrap();
            assert_eq!(buffer[..length], [number as u8, 7]);
        }
    }
}
