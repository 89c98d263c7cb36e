//! A ceiling on what a connection sends, as the user's `--bandwidth` wants it.
//!
//! All bulk and urgent streams of a connection draw on one [`Pacer`]; control
//! messages, a few bytes each, do not. What is counted is what the wire sees:
//! payload and the headers around it. QUIC's congestion control works beneath,
//! unchanged.

use crate::units::Bandwidth;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes a sender may take at once, so that streams take turns.
pub(super) const PIECE: usize = 32 << 10;
/// QUIC's own part of a datagram: short header, stream frame, seal.
const QUIC_HEADERS: f64 = 40.0;
/// Ethernet, IPv4 and UDP around a datagram.
const OUTER_HEADERS: f64 = 42.0;
/// A sender that was late may catch up this much: timers are coarse, and the
/// rate has to hold in the mean.
const CATCH_UP: Duration = Duration::from_millis(10);

/// See the module's header. Without a ceiling nobody waits.
#[derive(Debug, Default)]
pub(super) struct Pacer(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    ceiling: Option<Bandwidth>,
    /// When the next piece may leave.
    next: Option<Instant>,
}

impl Pacer {
    /// Sets the ceiling, or lifts it.
    pub(super) fn limit(&self, ceiling: Option<Bandwidth>) {
        let ceiling = ceiling.filter(|ceiling| ceiling.0 > 0.0);
        *self.lock() = State { ceiling, next: None };
    }

    /// Whether there is a ceiling.
    pub(super) fn is_on(&self) -> bool {
        self.lock().ceiling.is_some()
    }

    /// Waits until `payload` more bytes may leave in datagrams of `datagram`
    /// bytes.
    pub(super) async fn take(&self, payload: usize, datagram: u16) {
        let at = self.book(payload, datagram, Instant::now());
        if let Some(at) = at {
            tokio::time::sleep_until(at).await;
        }
    }

    /// When `payload` bytes may leave; what comes after them waits longer.
    fn book(&self, payload: usize, datagram: u16, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        let ceiling = state.ceiling?;
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        let at = state.next.map_or(now, |next| next.max(earliest));
        let datagram = f64::from(datagram.max(1200));
        let on_wire = payload as f64 * (datagram + OUTER_HEADERS) / (datagram - QUIC_HEADERS);
        state.next = Some(at + Duration::from_secs_f64(on_wire / ceiling.0));
        Some(at)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ceiling, as a stream of a connection meets it.
#[derive(Clone)]
pub(super) struct Paced {
    pub(super) pacer: Arc<Pacer>,
    pub(super) quic: quinn::Connection,
}

impl Paced {
    /// Whether there is anything to wait for.
    pub(super) fn is_on(&self) -> bool {
        self.pacer.is_on()
    }

    /// Waits until `payload` more bytes may leave.
    pub(super) async fn take(&self, payload: usize) {
        let datagram = self.quic.stats().path.current_mtu;
        self.pacer.take(payload, datagram).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `pieces` of 10 kB, each as soon as it may, from `now` on; answers
    /// when the last one left.
    fn send(pacer: &Pacer, pieces: u32, mut now: Instant) -> Instant {
        for _ in 0..pieces {
            now = now.max(pacer.book(10_000, 1452, now).unwrap());
        }
        now
    }

    #[test]
    fn the_rate_on_the_wire_is_kept_in_the_mean() {
        let (pacer, begun) = (Pacer::default(), Instant::now());
        pacer.limit(Some(Bandwidth(1e6)));
        let took = (send(&pacer, 100, begun) - begun).as_secs_f64();
        // 1 MB of payload is 1.058 MB on the wire; the last piece is on its way.
        assert!((1.03..1.06).contains(&took), "{took}");
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let (pacer, begun) = (Pacer::default(), Instant::now());
        pacer.limit(Some(Bandwidth(1e6)));
        let paused = send(&pacer, 1, begun) + Duration::from_secs(10);
        let took = send(&pacer, 100, paused) - paused;
        assert!(took > Duration::from_millis(1020), "{took:?}");
    }

    #[test]
    fn without_a_ceiling_nobody_waits() {
        let pacer = Pacer::default();
        assert_eq!(pacer.book(1 << 30, 1452, Instant::now()), None);
    }
}
