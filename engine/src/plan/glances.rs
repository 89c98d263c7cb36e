//! When a round under way is glanced into, and what follows from what it finds.
//! Pure: time is an argument.

use std::time::Duration;

/// Looks that are kept; more would tell no more.
pub const KEPT: usize = 8;
/// Two looks within this time that find a page written make it hot; a page that
/// was not written for so long has cooled.
pub const COOLS: Duration = Duration::from_secs(3);
/// Looks that count, however long ago they were: rounds may be long.
pub const ALWAYS: usize = 2;

/// The time to the first glance of a round, and from one to the next …
const OFTEN: Duration = Duration::from_millis(100);
/// … which doubles up to this, while hot pages are being told from others.
const SELDOM: Duration = Duration::from_secs(1);

/// Says when the next glance is due.
#[derive(Clone, Copy, Debug)]
pub struct Glances {
    last: Duration,
    every: Duration,
    most: Duration,
}

impl Glances {
    /// Glances into a round that begins at `now`. If hot pages are held back it
    /// is about telling them, ever more seldom. If not, every glance is a later
    /// look at pages that are still to be read, and leaves fewer of them dirty.
    pub fn begin(now: Duration, hold_back: bool) -> Self {
        let most = if hold_back { SELDOM } else { OFTEN };
        Self { last: now, every: OFTEN, most }
    }

    /// The time until the next one is due.
    pub fn wait(&self, now: Duration) -> Duration {
        (self.last + self.every).saturating_sub(now)
    }

    /// Whether one is due.
    pub fn is_due(&self, now: Duration) -> bool {
        self.wait(now) == Duration::ZERO
    }

    /// One was made.
    pub fn made(&mut self, now: Duration) {
        self.last = now;
        self.every = (self.every * 2).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glances_become_rarer_if_it_is_about_heat() {
        let moments = |hold_back| {
            let mut glances = Glances::begin(Duration::ZERO, hold_back);
            let mut now = Duration::ZERO;
            [(); 7].map(|()| {
                now += glances.wait(now);
                assert!(glances.is_due(now));
                glances.made(now);
                now.as_millis()
            })
        };
        assert_eq!(moments(true), [100, 300, 700, 1_500, 2_500, 3_500, 4_500]);
        assert_eq!(moments(false), [100, 200, 300, 400, 500, 600, 700]);
    }
}
