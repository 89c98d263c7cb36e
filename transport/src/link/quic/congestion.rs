//! Cubic with a ceiling.
//!
//! On a path that loses nothing (a loopback, a receiver slower than its
//! network) Cubic's window grows without end. Then a single stream keeps its
//! whole receive window queued somewhere on the way, where urgent data cannot
//! overtake it, and the first loss cuts a number so large that the cut is not
//! felt. So the window stops at
//! [`max_in_flight`](super::Settings::max_in_flight), or where a path that is
//! longer than a LAN is full.

use super::settings::{INITIAL_WINDOW, STREAM_WINDOW};
use crate::units::ByteSize;
use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Makes a capped Cubic for every connection.
pub(super) struct CappedCubic {
    cubic: Arc<CubicConfig>,
    ceiling: u64,
}

impl CappedCubic {
    pub(super) fn new(ceiling: ByteSize) -> Self {
        let ceiling = ceiling.0.max(INITIAL_WINDOW);
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL_WINDOW);
        Self { cubic: Arc::new(cubic), ceiling }
    }
}

impl ControllerFactory for CappedCubic {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.cubic.clone().build(now, current_mtu);
        Box::new(Capped { inner, ceiling: self.ceiling })
    }
}

/// Rate that a path is given room for, whatever its length: 10 Gbit/s.
const PATH_RATE: f64 = 1.25e9;
/// Most of it: what one stream's receive window takes.
const LONGEST: u64 = STREAM_WINDOW as u64;

/// Bytes in flight that fill a path of this round trip. The shortest one seen
/// is the path's own; a longer one is a queue that must not be fed.
fn need_of(shortest_rtt: Duration) -> u64 {
    ((PATH_RATE * shortest_rtt.as_secs_f64()) as u64).min(LONGEST)
}

struct Capped {
    inner: Box<dyn Controller>,
    ceiling: u64,
}

impl Controller for Capped {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.ceiling = self.ceiling.max(need_of(rtt.min()));
        // Beyond the ceiling nothing may grow, or a loss would not be felt.
        if self.inner.window() < self.ceiling {
            self.inner.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().min(self.ceiling)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), ceiling: self.ceiling })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self.inner.into_any()
    }
}
