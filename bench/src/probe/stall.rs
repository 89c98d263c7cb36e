//! How long the harness itself was kept from running.
//!
//! A probe that is not scheduled sees answers late and calls it a gap. This
//! ticker asks for a wake-up every millisecond and keeps the longest delay, on
//! the same machine and under the same load. It is reported beside the client
//! gap, so that a reader can judge it, and subtracted nowhere.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

const TICK: Duration = Duration::from_millis(1);

/// The longest delay of a wake-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// How late the latest wake-up was, in milliseconds.
    pub longest_ms: f64,
    /// When it was due, in milliseconds since the probe's first write.
    pub at_ms: f64,
    /// How many wake-ups were more than 5 ms late.
    pub over_5_ms: u64,
    /// How many wake-ups there were.
    pub ticks: u64,
}

impl Stall {
    fn woke(&mut self, due: Duration, late: Duration) {
        self.ticks += 1;
        self.over_5_ms += u64::from(late > Duration::from_millis(5));
        let late = late.as_secs_f64() * 1e3;
        if late > self.longest_ms {
            self.longest_ms = late;
            self.at_ms = due.as_secs_f64() * 1e3;
        }
    }
}

/// A running ticker.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Stall>>,
}

impl Watch {
    /// Begins to tick; times are told since `origin`.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(origin: Instant) -> io::Result<Watch> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let tick = move || {
            let mut stall = Stall::default();
            while !told.load(Ordering::Relaxed) {
                let due = Instant::now() + TICK;
                std::thread::sleep(TICK);
                stall.woke(due.duration_since(origin), due.elapsed());
            }
            stall
        };
        let thread = std::thread::Builder::new().name("probe-stall".to_owned()).spawn(tick)?;
        Ok(Watch { stop, thread: Some(thread) })
    }

    /// Ends the ticker and tells what it saw.
    pub fn stop(mut self) -> Stall {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take();
        thread.and_then(|t| t.join().ok()).unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_delay_is_kept_with_its_time() {
        let ms = Duration::from_millis;
        let mut stall = Stall::default();
        stall.woke(ms(1), ms(0));
        stall.woke(ms(2), ms(30));
        stall.woke(ms(33), ms(6));
        assert_eq!((stall.longest_ms, stall.at_ms), (30.0, 2.0));
        assert_eq!((stall.over_5_ms, stall.ticks), (2, 3));
    }
}
