//! What becomes of datagrams on the way. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a road does to datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// How long each is on its way, in each direction: a round trip takes twice
    /// as long.
    pub delay: Duration,
    /// How many of a million are lost, in each direction.
    pub loss_ppm: u32,
    /// Which ones.
    pub seed: u64,
}

/// What became of datagrams, in both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Passed on.
    pub carried: u64,
    /// Lost on purpose.
    pub lost: u64,
    /// Lost because the road was cut.
    pub cut: u64,
    /// Lost because too much was waiting, or a socket did not take it.
    pub overflowed: u64,
}

impl Counts {
    pub(super) fn sent(&mut self, is_sent: bool) {
        *(if is_sent { &mut self.carried } else { &mut self.overflowed }) += 1;
    }
}

/// A datagram and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) client: usize,
    pub(super) bytes: Vec<u8>,
}

/// What may wait on one road: what 10 Gbit/s carry in 100 ms.
const ROOM: usize = 128 << 20;

/// One direction.
pub(super) struct Road {
    weather: Weather,
    dice: u64,
    waiting: VecDeque<(Instant, Datagram)>,
    bytes: usize,
}

impl Road {
    /// A road whose losses are its own: `which` tells it from others with the
    /// same seed.
    pub(super) fn new(weather: Weather, which: u64) -> Road {
        // Never zero, which would stay zero.
        let dice = (weather.seed ^ (which << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Road { weather, dice, waiting: VecDeque::new(), bytes: 0 }
    }

    /// A datagram sets out.
    pub(super) fn put(
        &mut self,
        datagram: Datagram,
        now: Instant,
        is_cut: bool,
        counts: &mut Counts,
    ) {
        // Drawn also while it is cut: what is lost later does not depend on it.
        let is_lost = self.draw() < self.weather.loss_ppm;
        if is_cut {
            counts.cut += 1;
        } else if is_lost {
            counts.lost += 1;
        } else if self.bytes + datagram.bytes.len() > ROOM {
            counts.overflowed += 1;
        } else {
            self.bytes += datagram.bytes.len();
            self.waiting.push_back((now + self.weather.delay, datagram));
        }
    }

    /// When the next one arrives.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.front().map(|(due, _)| *due)
    }

    /// The next one, if it has arrived.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Datagram> {
        self.next_due().filter(|due| *due <= now)?;
        let (_, datagram) = self.waiting.pop_front()?;
        self.bytes -= datagram.bytes.len();
        Some(datagram)
    }

    /// A number below a million (xorshift64*, Vigna 2016).
    fn draw(&mut self) -> u32 {
        self.dice ^= self.dice >> 12;
        self.dice ^= self.dice << 25;
        self.dice ^= self.dice >> 27;
        let number = self.dice.wrapping_mul(0x2545_f491_4f6c_dd1d);
        ((u128::from(number) * 1_000_000) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn travel(weather: Weather, many: usize) -> (Vec<usize>, Counts) {
        let (mut road, mut counts) = (Road::new(weather, 0), Counts::default());
        let begin = Instant::now();
        for client in 0..many {
            let datagram = Datagram { client, bytes: vec![0; 10] };
            road.put(datagram, begin, false, &mut counts);
        }
        assert!(weather.delay.is_zero() || road.take_due(begin).is_none(), "it is on its way");
        let mut arrived = Vec::new();
        while let Some(datagram) = road.take_due(begin + weather.delay) {
            arrived.push(datagram.client);
        }
        assert_eq!(road.next_due(), None);
        (arrived, counts)
    }

    #[test]
    fn what_is_lost_follows_from_the_seed_and_is_as_much_as_was_asked() {
        let weather = |seed| Weather { loss_ppm: 10_000, seed, delay: Duration::from_millis(20) };
        let (arrived, counts) = travel(weather(7), 100_000);
        assert!((800..1_200).contains(&counts.lost), "{counts:?}");
        assert!(arrived.is_sorted(), "none overtakes another");
        assert_eq!(travel(weather(7), 100_000).0, arrived);
        assert_ne!(travel(weather(8), 100_000).0, arrived);
    }

    #[test]
    fn nothing_is_lost_in_good_weather_and_all_when_it_is_cut() {
        assert_eq!(travel(Weather::default(), 1_000).0.len(), 1_000);
        let (mut road, mut counts) = (Road::new(Weather::default(), 0), Counts::default());
        let datagram = Datagram { client: 0, bytes: vec![1] };
        road.put(datagram, Instant::now(), true, &mut counts);
        assert_eq!((road.next_due(), counts.cut), (None, 1));
    }
}
