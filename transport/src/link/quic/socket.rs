//! UDP sockets as the link wants them.

use super::settings::{MAX_DATAGRAM, SOCKET_RECEIVE_BUFFER, SOCKET_SEND_BUFFER};
use crate::link::{LinkError, UnreachableWhy};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

/// UDP payload of an Ethernet frame over IPv6: fits nearly every first hop.
const ETHERNET_DATAGRAM: u16 = 1452;
/// IPv4 and UDP headers in front of a payload.
const IPV4_HEADERS: u16 = 28;

/// An endpoint on `addr`, serving connections by `server` if given.
pub(super) fn endpoint(
    addr: SocketAddr,
    server: Option<quinn::ServerConfig>,
) -> Result<quinn::Endpoint, LinkError> {
    let failed = |what, why: String| LinkError::Socket { what, addr, why };
    let socket = UdpSocket::bind(addr).map_err(|e| failed("listen on", e.to_string()))?;
    enlarge_buffers(&socket);
    let mut config = quinn::EndpointConfig::default();
    config.max_udp_payload_size(MAX_DATAGRAM).map_err(|e| failed("configure", e.to_string()))?;
    quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime))
        .map_err(|e| failed("listen on", e.to_string()))
}

/// Any local address of the family of `remote`.
pub(super) fn unspecified_for(remote: SocketAddr) -> SocketAddr {
    let ip = match remote {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, 0)
}

/// The largest UDP payload the first hop towards `remote` takes, as the kernel
/// knows it from the route. MTU discovery need not look above it.
pub(super) fn largest_datagram(remote: SocketAddr) -> u16 {
    let SocketAddr::V4(_) = remote else { return ETHERNET_DATAGRAM };
    UdpSocket::bind(unspecified_for(remote))
        .and_then(|socket| socket.connect(remote).map(|()| socket))
        .ok()
        .and_then(|socket| getsockopt(&socket, sockopt::IpMtu).ok())
        .and_then(|mtu| u16::try_from(mtu.min(u16::MAX.into())).ok())
        .map_or(ETHERNET_DATAGRAM, |mtu| mtu.saturating_sub(IPV4_HEADERS))
}

/// Resolves only if the system says that nobody can be reached at `remote`.
///
/// QUIC's own socket is not connected, so the kernel does not tell it of a
/// closed port. This one is: it sends one byte, which a QUIC endpoint ignores
/// and a closed port answers with an ICMP error.
pub(super) async fn refusal(remote: SocketAddr) -> UnreachableWhy {
    match knock(remote).await {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => UnreachableWhy::Refused,
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::NetworkDown
                    | ErrorKind::AddrNotAvailable
                    | ErrorKind::InvalidInput
                    | ErrorKind::PermissionDenied
            ) =>
        {
            UnreachableWhy::NoRoute(e.to_string())
        }
        _ => std::future::pending().await,
    }
}

async fn knock(remote: SocketAddr) -> std::io::Result<()> {
    let socket = tokio::net::UdpSocket::bind(unspecified_for(remote)).await?;
    socket.connect(remote).await?;
    socket.send(&[0]).await?;
    socket.recv(&mut [0; 1]).await.map(|_| ())
}

/// As root beyond the system's limit, otherwise up to it. Smaller buffers cost
/// speed, not correctness.
fn enlarge_buffers(socket: &UdpSocket) {
    if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_RECEIVE_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &SOCKET_RECEIVE_BUFFER);
    }
    if setsockopt(socket, sockopt::SndBufForce, &SOCKET_SEND_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &SOCKET_SEND_BUFFER);
    }
}
