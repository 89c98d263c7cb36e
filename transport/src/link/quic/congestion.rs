//! Cubic with a ceiling.
//!
//! On a path that loses nothing (a loopback, a receiver slower than its
//! network) Cubic's window grows without end. Then a single stream keeps its
//! whole receive window queued somewhere on the way, where urgent data cannot
//! overtake it, and the first loss cuts a number so large that the cut is not
//! felt. So the window stops at [`MAX_WINDOW`](super::settings::MAX_WINDOW).

use super::settings::{INITIAL_WINDOW, MAX_WINDOW};
use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

/// Makes a capped Cubic for every connection.
pub(super) struct CappedCubic(Arc<CubicConfig>);

impl Default for CappedCubic {
    fn default() -> Self {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL_WINDOW);
        Self(Arc::new(cubic))
    }
}

impl ControllerFactory for CappedCubic {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Capped(self.0.clone().build(now, current_mtu)))
    }
}

struct Capped(Box<dyn Controller>);

impl Controller for Capped {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.0.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        // Beyond the ceiling nothing may grow, or a loss would not be felt.
        if self.0.window() < MAX_WINDOW {
            self.0.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.0.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.0.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.0.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.0.window().min(MAX_WINDOW)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self(self.0.clone_box()))
    }

    fn initial_window(&self) -> u64 {
        self.0.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self.0.into_any()
    }
}
