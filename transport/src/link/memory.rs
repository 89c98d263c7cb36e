//! A link that exists only in arithmetic: for tests of planner and handover.
//!
//! One [`SimLink`] is one direction. It has a bandwidth, a delay, a bounded
//! queue, and it can be cut. Time is an argument, counted from the start of
//! the simulation, and must not run backwards. Equal calls give equal results.
//!
//! **Architecture Invariants**
//! * Messages arrive in the order they were sent.
//! * No interval carries more bytes than the bandwidth allows.
//! * After the cut nothing arrives, and the sender is not told: like a pulled
//!   cable. Both ends learn of it as they do in life, by silence.

use crate::units::{Bandwidth, ByteSize};
use std::collections::VecDeque;
use std::time::Duration;

/// What a direction of a link is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Bytes per second onto the wire.
    pub bandwidth: Bandwidth,
    /// From the last byte on the wire to its arrival.
    pub delay: Duration,
    /// Bytes that may wait for the wire or be on their way onto it.
    pub queue: ByteSize,
}

/// When a link breaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// Never.
    #[default]
    Never,
    /// What would arrive at this time or later is lost.
    At(Duration),
    /// This many messages arrive, and no more.
    AfterMessages(u64),
}

/// There is no room in the queue; the message comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full<M> {
    /// The message that was not taken.
    pub message: M,
    /// When there will be room for it.
    pub room_at: Duration,
}

/// One direction of a simulated link.
#[derive(Clone, Debug)]
pub struct SimLink<M> {
    shape: Shape,
    cut: Cut,
    /// Sent and neither delivered nor lost, oldest first.
    flying: VecDeque<Flight<M>>,
    /// When the wire is free again.
    free_at: Duration,
    delivered: u64,
    last_delivery: Duration,
}

#[derive(Clone, Debug)]
struct Flight<M> {
    bytes: ByteSize,
    /// When its last byte is on the wire.
    sent_at: Duration,
    arrives_at: Duration,
    message: M,
}

impl<M> SimLink<M> {
    /// A link of this shape, whole until `cut`.
    pub fn new(shape: Shape, cut: Cut) -> Self {
        let (free_at, last_delivery) = (Duration::ZERO, Duration::ZERO);
        Self { shape, cut, flying: VecDeque::new(), free_at, delivered: 0, last_delivery }
    }

    /// Hands over a message of `bytes` at `now`. An empty queue takes a message
    /// of any size.
    ///
    /// # Errors
    /// [`Full`]: the sender must wait. A cut link does not show here.
    pub fn send(&mut self, now: Duration, bytes: ByteSize, message: M) -> Result<(), Full<M>> {
        if let Some(room_at) = self.room_for(now, bytes) {
            return Err(Full { message, room_at });
        }
        let sent_at = self.free_at.max(now).saturating_add(self.time_for(bytes));
        let arrives_at = sent_at.saturating_add(self.shape.delay);
        self.free_at = sent_at;
        self.flying.push_back(Flight { bytes, sent_at, arrives_at, message });
        Ok(())
    }

    /// What has arrived by `now` and was not polled before.
    pub fn poll(&mut self, now: Duration) -> Vec<M> {
        let mut arrived = Vec::new();
        while self.next_event().is_some_and(|at| at <= now) {
            let Some(flight) = self.flying.pop_front() else { break };
            self.delivered += 1;
            self.last_delivery = flight.arrives_at;
            arrived.push(flight.message);
        }
        arrived
    }

    /// When the next message arrives; `None` if none will.
    pub fn next_event(&self) -> Option<Duration> {
        let next = self.flying.front()?.arrives_at;
        match self.cut {
            Cut::At(cut) if next >= cut => None,
            Cut::AfterMessages(count) if self.delivered >= count => None,
            _ => Some(next),
        }
    }

    /// Breaks the link at `now`, if it is still whole then.
    pub fn cut(&mut self, now: Duration) {
        if self.cut_at().is_none_or(|earlier| now < earlier) {
            self.cut = Cut::At(now);
        }
    }

    /// Since when the link is broken, or will be; `None` if that is not known.
    pub fn cut_at(&self) -> Option<Duration> {
        match self.cut {
            Cut::Never => None,
            Cut::At(cut) => Some(cut),
            Cut::AfterMessages(count) => (self.delivered >= count).then_some(self.last_delivery),
        }
    }

    /// How many messages have arrived.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// `None` if there is room now, else when there will be.
    fn room_for(&self, now: Duration, bytes: ByteSize) -> Option<Duration> {
        let waiting = self.flying.iter().rev().take_while(|flight| flight.sent_at > now);
        let mut room = self.shape.queue.0.checked_sub(bytes.0);
        let mut room_at = None;
        // From the newest to the oldest: the first that does not fit beside
        // the message must be on the wire before the message can come in.
        for flight in waiting {
            room = room.and_then(|room| room.checked_sub(flight.bytes.0));
            if room.is_none() && room_at.is_none() {
                room_at = Some(flight.sent_at);
            }
        }
        room_at
    }

    /// Time on the wire, rounded up: a link is never faster than it claims.
    fn time_for(&self, bytes: ByteSize) -> Duration {
        let rate = self.shape.bandwidth.0;
        if bytes.0 == 0 {
            return Duration::ZERO;
        }
        // A link without bandwidth takes for ever: the conversion saturates.
        let nanos = bytes.0 as f64 * 1e9 / rate.max(0.0);
        Duration::from_nanos(nanos.ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    /// A megabyte a second: a byte a microsecond.
    fn shape(queue: u64) -> Shape {
        Shape { bandwidth: Bandwidth(1e6), delay: 10 * MS, queue: ByteSize(queue) }
    }

    #[test]
    fn a_message_takes_its_size_and_the_delay() {
        let mut link = SimLink::new(shape(10_000), Cut::Never);
        link.send(5 * MS, ByteSize(1000), 'a').unwrap();
        link.send(5 * MS, ByteSize(2000), 'b').unwrap();
        assert_eq!(link.next_event(), Some(16 * MS));
        assert!(link.poll(16 * MS - Duration::from_nanos(1)).is_empty());
        assert_eq!(link.poll(16 * MS), ['a']);
        assert_eq!(link.poll(18 * MS), ['b']);
        assert_eq!((link.next_event(), link.delivered()), (None, 2));
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let mut link = SimLink::new(shape(3000), Cut::Never);
        link.send(Duration::ZERO, ByteSize(2000), 'a').unwrap();
        link.send(Duration::ZERO, ByteSize(1000), 'b').unwrap();
        let full = link.send(Duration::ZERO, ByteSize(500), 'c').unwrap_err();
        assert_eq!(full, Full { message: 'c', room_at: 2 * MS });
        let full = link.send(MS, ByteSize(9000), 'd').unwrap_err();
        assert_eq!(full.room_at, 3 * MS, "a giant waits for an empty queue");
        link.send(2 * MS, ByteSize(500), 'c').unwrap();
        link.send(4 * MS, ByteSize(9000), 'd').unwrap();
        assert_eq!(link.poll(Duration::from_secs(1)), ['a', 'b', 'c', 'd']);
    }

    #[test]
    fn a_cut_after_a_message_delivers_exactly_so_many() {
        for count in 0..4 {
            let mut link = SimLink::new(shape(10_000), Cut::AfterMessages(count));
            for i in 0..4 {
                link.send(Duration::ZERO, ByteSize(100), i).unwrap();
            }
            let got = link.poll(Duration::from_secs(9));
            assert_eq!(got, (0..count).collect::<Vec<_>>());
            assert_eq!(link.cut_at().is_some(), got.len() as u64 == count);
            assert_eq!(link.next_event(), None);
        }
    }

    #[test]
    fn a_cut_by_hand_holds_and_cannot_be_undone() {
        let mut link = SimLink::new(shape(10_000), Cut::Never);
        link.send(Duration::ZERO, ByteSize(1000), 'a').unwrap();
        link.send(Duration::ZERO, ByteSize(1000), 'b').unwrap();
        link.cut(12 * MS);
        link.cut(20 * MS);
        assert_eq!(link.cut_at(), Some(12 * MS));
        assert_eq!(link.poll(Duration::from_secs(1)), ['a']);
    }

    #[test]
    fn a_link_without_bandwidth_delivers_nothing_and_does_not_panic() {
        let dead = Shape { bandwidth: Bandwidth(0.0), ..shape(10) };
        let mut link = SimLink::new(dead, Cut::Never);
        link.send(Duration::MAX, ByteSize(1), 'a').unwrap();
        assert!(link.poll(Duration::from_secs(1 << 30)).is_empty());
    }

    /// What a run of a link did: (sent at, bytes, number) and arrivals.
    type Run = (Vec<(Duration, u64)>, Vec<(Duration, usize)>);

    /// Sends each message as soon as the link takes it; polls at every event.
    fn run(shape: Shape, cut: Cut, plan: &[(u64, u64)]) -> Run {
        let mut link = SimLink::new(shape, cut);
        let (mut sent, mut arrived) = (Vec::new(), Vec::new());
        let mut now = Duration::ZERO;
        for (number, &(pause, bytes)) in plan.iter().enumerate() {
            now += Duration::from_micros(pause);
            while let Err(full) = link.send(now, ByteSize(bytes), number) {
                assert!(full.room_at > now, "waiting must lead somewhere");
                now = full.room_at;
            }
            sent.push((now, bytes));
            let got = link.poll(now).into_iter().map(|number| (now, number));
            arrived.extend(got);
        }
        while let Some(at) = link.next_event() {
            arrived.extend(link.poll(at).into_iter().map(|number| (at, number)));
        }
        (sent, arrived)
    }

    proptest! {
        #[test]
        fn order_is_kept_and_the_bandwidth_never_exceeded(
            plan in prop::collection::vec((0_u64..5000, 0_u64..9000), 1..60),
            rate in 1e3..1e9_f64,
            delay in 0_u64..50_000,
            queue in 0_u64..20_000,
        ) {
            let delay = Duration::from_micros(delay);
            let shape = Shape { bandwidth: Bandwidth(rate), delay, queue: ByteSize(queue) };
            let (sent, arrived) = run(shape, Cut::Never, &plan);
            let numbers: Vec<_> = arrived.iter().map(|(_, number)| *number).collect();
            prop_assert_eq!(numbers, (0..plan.len()).collect::<Vec<_>>(), "all, in order");
            // From any message's sending to any later one's arrival.
            for (first, &(sent_at, _)) in sent.iter().enumerate() {
                let mut bytes = 0;
                for (&(_, more), &(arrived_at, _)) in sent.iter().zip(&arrived).skip(first) {
                    bytes += more;
                    let time = arrived_at.checked_sub(sent_at + delay);
                    prop_assert!(time.is_some(), "faster than the delay");
                    let possible = rate * time.unwrap().as_secs_f64();
                    prop_assert!(bytes as f64 <= possible * (1.0 + 1e-9) + 1e-3);
                }
            }
        }

        #[test]
        fn nothing_arrives_after_the_cut(
            plan in prop::collection::vec((0_u64..5000, 0_u64..9000), 1..60),
            cut in 0_u64..200_000,
            count in 0_u64..60,
        ) {
            let at = Duration::from_micros(cut);
            let mut link = SimLink::new(shape(u64::MAX), Cut::At(at));
            let mut whole = SimLink::new(shape(u64::MAX), Cut::Never);
            let mut time = Duration::ZERO;
            for &(pause, bytes) in &plan {
                time += Duration::from_micros(pause);
                link.send(time, ByteSize(bytes), ()).unwrap();
                whole.send(time, ByteSize(bytes), ()).unwrap();
            }
            while let Some(event) = link.next_event() {
                prop_assert!(event < at);
                link.poll(event);
            }
            // Everything before the cut did arrive, and polling late adds nothing.
            prop_assert!(link.poll(Duration::MAX).is_empty());
            whole.poll(at.saturating_sub(Duration::from_nanos(1)));
            if cut > 0 {
                prop_assert_eq!(link.delivered(), whole.delivered());
            }
            let (_, counted) = run(shape(9000), Cut::AfterMessages(count), &plan);
            prop_assert_eq!(counted.len() as u64, count.min(plan.len() as u64));
        }

        #[test]
        fn equal_runs_are_equal(
            plan in prop::collection::vec((0_u64..5000, 0_u64..9000), 1..40),
            cut in 0_u64..200_000,
        ) {
            let cut = Cut::At(Duration::from_micros(cut));
            prop_assert_eq!(run(shape(9000), cut, &plan), run(shape(9000), cut, &plan));
        }
    }
}
