//! A share of the memory, and the thread that owns it.
//!
//! The thread writes as its [`Pace`] allows, looking at a page before it
//! changes it, and rests on the channel of its orders: an order is heard
//! within a turn, and idleness costs nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Instant;

use blip_transport::units::PAGE_SIZE;

use super::pace::Pace;
use super::page::{Damage, Fill, Page};
use super::pattern::Chooser;
use super::{BadPage, Checked, NAMED, Rate, WriterSpec};

/// Seed of the contents: runs are alike.
const SEED: u64 = 0xb11b;

/// An order to check all pages, and where to say what was found.
type Order = Sender<Checked>;

/// What others see of a share.
pub(super) struct Share {
    orders: Sender<Order>,
    told: Arc<Told>,
}

/// What a thread tells while it writes.
#[derive(Default)]
struct Told {
    written: AtomicU64,
    faults: AtomicU64,
}

impl Share {
    /// Pages written, and wrong ones met.
    pub(super) fn told(&self) -> (u64, u64) {
        (self.told.written.load(Ordering::Relaxed), self.told.faults.load(Ordering::Relaxed))
    }

    /// Has all pages checked; the answer comes over the channel.
    pub(super) fn check(&self) -> Receiver<Checked> {
        let (answer, answered) = channel();
        // A thread that died gives no answer, which the receiver shows.
        let _ = self.orders.send(answer);
        answered
    }
}

/// Starts the threads, each with its share. Returns when all memory is filled.
pub(super) fn start(spec: &WriterSpec) -> io::Result<Vec<Share>> {
    let threads = u64::from(spec.threads.max(1));
    let part = |bytes: u64| (bytes / PAGE_SIZE as u64).div_ceil(threads).max(1);
    let (pages, hot) = (part(spec.size), part(spec.hot.unwrap_or(spec.size)));
    let rate = match spec.rate {
        Rate::Bytes(bytes) => Some(bytes as f64 / PAGE_SIZE as f64 / threads as f64),
        Rate::Max => None,
    };
    let (ready, is_ready) = channel();
    let mut shares = Vec::new();
    for thread in 0..threads {
        let (orders, ordered) = channel();
        let told = Arc::new(Told::default());
        let (fill, pattern) = (spec.fill, spec.pattern);
        let chooser = Chooser::new(pattern, pages, hot, SEED + thread);
        let (telling, ready) = (Arc::clone(&told), ready.clone());
        std::thread::Builder::new().name(format!("writer-{thread}")).spawn(move || {
            let mut own = Owned::new(thread * pages, pages, fill);
            // Whoever started us waits for this one message.
            let _ = ready.send(());
            own.work(chooser, Pace::new(rate), &ordered, &telling);
        })?;
        shares.push(Share { orders, told });
    }
    drop(ready);
    for _ in 0..threads {
        is_ready.recv().map_err(|_| io::Error::other("a thread died while filling its memory"))?;
    }
    Ok(shares)
}

/// The memory of one thread, and what each page must be.
struct Owned {
    pages: Vec<Page>,
    first: u64,
    fill: Fill,
    /// The generation of each page, kept apart from it.
    shadow: Vec<u64>,
}

impl Owned {
    fn new(first: u64, pages: u64, fill: Fill) -> Owned {
        let mut own = Owned {
            pages: vec![Page::BLANK; pages as usize],
            first,
            fill,
            shadow: vec![0; pages as usize],
        };
        for (number, page) in (first..).zip(&mut own.pages) {
            page.begin(number, SEED, fill);
        }
        own
    }

    /// Writes and obeys until nobody can order any more.
    fn work(
        &mut self,
        mut chooser: Chooser,
        mut pace: Pace,
        orders: &Receiver<Order>,
        told: &Told,
    ) {
        // The kernel may wake us 50 µs late otherwise; it only costs precision.
        let _ = nix::sys::prctl::set_timerslack(1_000);
        let began = Instant::now();
        loop {
            let order = if pace.is_idle() {
                orders.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                let due = pace.take(began.elapsed());
                let seconds = began.elapsed().as_secs();
                let faults =
                    (0..due).filter(|_| self.write(chooser.next(seconds)).is_err()).count();
                told.written.fetch_add(due, Ordering::Relaxed);
                told.faults.fetch_add(faults as u64, Ordering::Relaxed);
                orders.recv_timeout(pace.rest()).map_err(|e| match e {
                    RecvTimeoutError::Timeout => TryRecvError::Empty,
                    RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                })
            };
            match order {
                Ok(answer) => {
                    let faults = told.faults.load(Ordering::Relaxed);
                    // Who asked may have left meanwhile.
                    let _ = answer.send(Checked { faults, ..self.check() });
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Writes a page, which must be what it was left as. One that is not is
    /// taken as it is from there on: one loss is one fault.
    fn write(&mut self, at: usize) -> Result<(), Damage> {
        let found = self.pages[at].glance(self.first + at as u64, self.shadow[at]);
        self.shadow[at] = self.pages[at].write(self.fill);
        found
    }

    fn check(&self) -> Checked {
        let mut checked = Checked { pages: self.pages.len() as u64, ..Checked::default() };
        for ((number, page), generation) in (self.first..).zip(&self.pages).zip(&self.shadow) {
            if let Err(damage) = page.check(number, *generation) {
                checked.bad += 1;
                if checked.first.len() < NAMED {
                    checked.first.push(BadPage { page: number, damage });
                }
            }
        }
        checked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_found_and_what_was_changed_is_named() {
        let mut own = Owned::new(100, 32, Fill::Part);
        (0..1_000).for_each(|n| own.write(n % 7).expect("whole"));
        assert_eq!((own.check().pages, own.check().bad), (32, 0));

        let old = own.pages[3].clone();
        own.write(3).expect("whole");
        own.pages[3] = old;
        own.pages.swap(10, 11);
        let found = own.check();
        let named: Vec<_> = found.first.iter().map(|b| (b.page, b.damage)).collect();
        let expected = [(103, Damage::Old), (110, Damage::Misplaced), (111, Damage::Misplaced)];
        assert_eq!((found.bad, named.as_slice()), (3, expected.as_slice()));
        assert_eq!(own.write(3), Err(Damage::Old), "a write meets it, too");
    }
}
