//! Every number of the link, with its reason.
//!
//! Cubic finds the rate. quinn's BBR was measured beside it on loopback: no
//! faster, twice the losses, and with four streams 20 to 50 ms of queue.

use super::congestion::CappedCubic;
use crate::units::ByteSize;
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;

/// Unread bytes one stream may have in flight or buffered at the receiver.
/// 10 Gbit/s over a 10 ms path needs 12 MiB; more would only let a slow
/// receiver pile up memory and hide its slowness from the sender.
pub const STREAM_WINDOW: u32 = 16 << 20;

/// Bulk streams a peer may have open at once.
pub const MAX_UNI_STREAMS: u32 = 16;

/// Control, urgent, and some to spare.
pub const MAX_BI_STREAMS: u32 = 4;

/// Unread bytes of all streams together. All stream windows at once fit, so
/// this limit never binds and no stream can starve another of credit.
pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW * (MAX_UNI_STREAMS + MAX_BI_STREAMS);

/// Bytes the sender holds until acknowledged. As large as what the receiver
/// grants: were it smaller, a full bulk stream would block control messages
/// before priorities apply.
pub const SEND_WINDOW: u64 = CONNECTION_WINDOW as u64;

/// First congestion window. A LAN takes this much at once; the usual 14 KiB
/// would spend the first round trips of a short final round waiting.
pub const INITIAL_WINDOW: u64 = 256 << 10;

/// Ceiling of the congestion window: 10 Gbit/s over 1.6 ms. What exceeds the
/// path's need only queues where urgent data cannot overtake it: on loopback
/// 8 MiB made page faults under load four times slower and bulk no faster.
pub const MAX_IN_FLIGHT: ByteSize = ByteSize(2 << 20);

/// Round trip assumed before the first is measured; a LAN's is far shorter.
/// It sets when a lost first packet is sent again (three times this).
pub const INITIAL_RTT: Duration = Duration::from_millis(50);

/// The longest an acknowledgement may wait for more packets. Also part of the
/// time after which the last packet of a burst counts as lost; QUIC's usual
/// 25 ms would be felt in a freeze. (Acknowledging less often than every
/// second packet was measured and saves nothing.)
pub const ACK_DELAY: Duration = Duration::from_millis(5);

/// Kernel buffer for received datagrams. The default (208 KiB on most hosts)
/// overflows in a burst while the receiving thread does something else.
pub const SOCKET_RECEIVE_BUFFER: usize = 8 << 20;

/// Kernel buffer for datagrams to send. Small on purpose: what waits here can
/// no longer be overtaken by urgent data.
pub const SOCKET_SEND_BUFFER: usize = 256 << 10;

/// Largest UDP payload we accept and search for. quinn hands the kernel ten
/// datagrams in one call, and the kernel takes 64 KiB in one call: larger ones
/// fail there silently, as if the network had lost them. (On loopback, 6500
/// takes half the processor time of 1452.)
pub const MAX_DATAGRAM: u16 = 6500;

/// UDP payload that always fits: QUIC's minimum, used until discovery finds
/// more.
pub const MIN_DATAGRAM: u16 = 1200;

/// Silence after which a packet is sent to show life.
pub const KEEP_ALIVE: Duration = Duration::from_millis(250);

/// Silence after which the other end counts as gone. Generous: on a busy host a
/// process may not get to its socket for a second or two, which must not cost a
/// long migration. While a container stands still there is a
/// [`Vigil`](super::Vigil), which has less patience.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to dial before giving up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Handshakes served at once; more wait. Bounds what strangers can cost.
pub const MAX_HANDSHAKES: usize = 64;

/// What the ends of a link may choose.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Protocol version announced in the hello; only tests change it.
    pub protocol_version: u16,
    /// Software version announced in the hello, at most 64 bytes of it.
    pub software: String,
    /// How long [`dial`](super::dial) tries, and how long a listener gives a
    /// newcomer to finish its handshake.
    pub connect_timeout: Duration,
    /// Silence after which the other end counts as gone. The shorter of both
    /// ends' counts.
    pub idle_timeout: Duration,
    /// Silence after which to show life; well below the idle timeout.
    pub keep_alive: Duration,
    /// Bytes on their way at once, at most. More than [`MAX_IN_FLIGHT`] only
    /// pays on paths longer than a LAN: bandwidth times round-trip time.
    pub max_in_flight: ByteSize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            protocol_version: super::PROTOCOL_VERSION,
            software: concat!("blip ", env!("CARGO_PKG_VERSION")).into(),
            connect_timeout: CONNECT_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            keep_alive: KEEP_ALIVE,
            max_in_flight: MAX_IN_FLIGHT,
        }
    }
}

impl Settings {
    /// quinn's view of these settings, for a path whose first hop takes UDP
    /// payloads of up to `largest_datagram`.
    pub(super) fn transport(&self, largest_datagram: u16) -> Arc<TransportConfig> {
        let mut acks = AckFrequencyConfig::default();
        acks.max_ack_delay(Some(ACK_DELAY));
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(largest_datagram.clamp(MIN_DATAGRAM, MAX_DATAGRAM));
        let mut transport = TransportConfig::default();
        transport
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
            .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
            .send_window(SEND_WINDOW)
            .max_concurrent_uni_streams(VarInt::from_u32(MAX_UNI_STREAMS))
            .max_concurrent_bidi_streams(VarInt::from_u32(MAX_BI_STREAMS))
            .datagram_receive_buffer_size(None)
            .initial_rtt(INITIAL_RTT)
            .initial_mtu(MIN_DATAGRAM)
            .mtu_discovery_config(Some(mtu))
            .ack_frequency_config(Some(acks))
            .congestion_controller_factory(Arc::new(CappedCubic::new(self.max_in_flight)))
            .keep_alive_interval(Some(self.keep_alive))
            .max_idle_timeout(Some(
                IdleTimeout::try_from(self.idle_timeout)
                    .unwrap_or(IdleTimeout::from(VarInt::from_u32(u32::MAX))),
            ));
        Arc::new(transport)
    }
}

/// Which stream's data goes first; higher goes before lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(pub(super) i32);

impl Priority {
    /// Bulk data of a pre-copy round, or pushed after resume.
    pub const BULK: Self = Self(0);
    /// Bulk data somebody waits for: the last round, the images.
    pub const AHEAD: Self = Self(10);
    /// Page faults.
    pub(super) const URGENT: Self = Self(20);
    /// Commands.
    pub(super) const CONTROL: Self = Self(30);
}

/// Server name in the handshake; QUIC wants one, pins make it meaningless.
pub(super) const SERVER_NAME: &str = "blip";
