//! What a round reads, in which order, and what it learns meanwhile.
//!
//! A round that is watched is glanced into every now and then ([`Tracker::glance`]).
//! That serves three ends: pages that are being written wait for the end of the
//! round, and for the end of all rounds if they are written again and again; a
//! page's last look comes shortly before its bytes are read, so that less of it
//! is dirty again; and the planner knows the container's habits after one round.
//!
//! **Invariant**: what a glance has found written is still to be read in this
//! round, or is kept, or has been given back to the tracker.
//!
//! [`Tracker::glance`]: crate::track::Tracker::glance

use super::books::{Heat, Pages, Share, Take};
use super::sink::Sink;
use super::{Gauge, Order, Pump, PumpError};
use crate::plan::glances::Glances;
use crate::track::read::ReadError;
use crate::track::runs::Runs;
use crate::track::{SpaceScan, Stop};
use blip_transport::page::{PageRun, SpaceId};

/// Pages read between two looks at the brake and at the clock.
pub(super) const STRETCH: u64 = 256;
/// One address space in one round.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) space: SpaceId,
    /// All that is to be read.
    read: Runs,
    /// What is left out.
    kept: Runs,
    /// Read so far, as of the last glance and since.
    done: Runs,
    since: Vec<PageRun>,
    /// Found written by this round's glances, and, of that, after it had been
    /// read.
    written: Runs,
    again: Runs,
}

impl Part {
    pub(super) fn new(space: &SpaceScan, share: Share) -> Self {
        let Share { read, kept, .. } = share;
        let space = space.space;
        let [done, written, again] = Default::default();
        Self { space, read, kept, done, since: Vec::new(), written, again }
    }

    /// What the target lacks of it, as far as is known here: what was kept, and
    /// what has not been read.
    pub(super) fn lacks(&mut self) -> Runs {
        self.done = self.done.union(&Runs::from(self.since.as_slice()));
        self.since.clear();
        self.kept.union(&self.read.subtract(&self.done))
    }

    /// What of it was left out from the beginning.
    pub(super) fn kept(&self) -> &Runs {
        &self.kept
    }

    /// What this round's glances have found written.
    pub(super) fn written(&self) -> &Runs {
        &self.written
    }

    /// Found written after it had been read.
    pub(super) fn into_again(self) -> Runs {
        self.again
    }
}

impl Pump {
    /// Reads what there is to be read of `parts`; in the end each says what it
    /// [lacks](Part::lacks).
    pub(super) fn read_parts(
        &mut self,
        parts: &mut [Part],
        order: &Order,
        gauge: &Gauge,
        out: &Sink,
    ) -> Result<(), PumpError> {
        let watched = order.watch && order.stop == Stop::Live && self.tracker.glances();
        let stretches = parts.iter().enumerate();
        let stretches = stretches.flat_map(|(i, p)| p.read.stretches(STRETCH).map(move |s| (i, s)));
        if !watched {
            for (i, stretch) in stretches.collect::<Vec<_>>() {
                self.read_of(&mut parts[i], stretch, order.stop, gauge, out)?;
            }
            return Ok(());
        }
        let stretches = scattered(stretches.collect());
        let waits = order.take == Take::Cool;
        let mut glances = Glances::begin(self.begun.elapsed(), waits);
        let mut later = Vec::new();
        for (i, stretch) in stretches {
            if gauge.is_cut() {
                return Ok(());
            }
            self.glance_if_due(parts, &mut glances)?;
            let warm = if waits { part_of(&parts[i].written, &stretch) } else { Runs::default() };
            self.read_of(&mut parts[i], stretch.subtract(&warm), order.stop, gauge, out)?;
            if !warm.is_empty() {
                later.push((i, warm));
            }
        }
        if !later.is_empty() {
            self.glance(parts, &mut glances)?;
        }
        for (i, stretch) in later {
            self.glance_if_due(parts, &mut glances)?;
            let hot =
                self.books.heat(parts[i].space).map(|Heat { hot, .. }| part_of(hot, &stretch));
            let cool = stretch.subtract(&hot.unwrap_or_default());
            self.read_of(&mut parts[i], cool, order.stop, gauge, out)?;
        }
        // Short rounds are soon followed by a scan.
        self.glance_if_due(parts, &mut glances)
    }

    fn glance_if_due(&mut self, parts: &mut [Part], due: &mut Glances) -> Result<(), PumpError> {
        if due.is_due(self.begun.elapsed()) { self.glance(parts, due) } else { Ok(()) }
    }

    /// Asks what has been written, and gives back what will not be read.
    fn glance(&mut self, parts: &mut [Part], glances: &mut Glances) -> Result<(), PumpError> {
        let mut written = Pages::new();
        for part in parts {
            let Some(pages) = self.tracker.glance(part.space)? else { continue };
            let again = pages.subtract(&part.lacks());
            self.tracker.give_back(part.space, again.as_slice());
            part.again = part.again.union(&again);
            part.written = part.written.union(&pages);
            written.insert(part.space, pages);
        }
        let now = self.begun.elapsed();
        self.books.glanced(now, written);
        glances.made(now);
        Ok(())
    }

    /// Reads and encodes a stretch, unless the round is to end.
    fn read_of(
        &mut self,
        part: &mut Part,
        stretch: Runs,
        stop: Stop,
        gauge: &Gauge,
        out: &Sink,
    ) -> Result<(), PumpError> {
        if stretch.is_empty() || gauge.is_cut() {
            return Ok(());
        }
        self.read(part.space, &stretch, stop, out)?;
        gauge.read(stretch.pages());
        part.since.extend_from_slice(stretch.as_slice());
        Ok(())
    }

    /// Reads and encodes.
    pub(super) fn read(
        &mut self,
        space: SpaceId,
        runs: &Runs,
        stop: Stop,
        out: &Sink,
    ) -> Result<(), PumpError> {
        let Some(&pid) = self.books.owners.get(&space) else { return Ok(()) };
        let encoder = &mut self.encoder;
        let mut take = |run, bytes: &[u8]| {
            encoder.pages(space, run, bytes);
            out.take_from(encoder);
        };
        let rest = self.tracker.copy(space, runs.as_slice(), &mut take);
        let rest = rest.map_err(PumpError::Copy)?;
        match self.reader.each(pid, rest.as_slice(), stop, take) {
            // The next scan finds it gone.
            Err(ReadError::Gone { .. }) if stop == Stop::Live => Ok(()),
            read => Ok(read.map(drop)?),
        }
    }
}

/// The pages of a stretch that are in `set`.
fn part_of(set: &Runs, stretch: &Runs) -> Runs {
    match (stretch.as_slice().first(), stretch.as_slice().last()) {
        (Some(first), Some(last)) => set.between(first.start.0, last.end()).intersect(stretch),
        _ => Runs::default(),
    }
}

/// In an order in which neighbours are far apart: whatever is being written,
/// most of it is then met after the first glance, wherever it lies.
fn scattered<T>(items: Vec<T>) -> Vec<T> {
    let count = items.len();
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    // A golden section spreads most evenly.
    let golden = (count as f64 * 0.618) as usize;
    let stride = (golden.max(1)..).find(|&stride| gcd(stride, count.max(1)) == 1).unwrap_or(1);
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    (0..count).filter_map(|n| items[n * stride % count].take()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_is_everything_once() {
        for count in [0, 1, 2, 3, 10, 255, 1024] {
            let mut order = scattered((0..count).collect());
            if count > 100 {
                let early = order[..20].iter().filter(|&&n| n < count / 4).count();
                assert!((3..=7).contains(&early), "{order:?}");
            }
            order.sort_unstable();
            assert_eq!(order, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_was_not_read_is_lacked() {
        let runs = |start, count| Runs::from([PageRun::new(start, count)].as_slice());
        let mut part = Part {
            space: SpaceId(1),
            read: runs(0, 100),
            kept: runs(200, 5),
            done: Runs::default(),
            since: vec![PageRun::new(50, 50), PageRun::new(0, 10)],
            written: Runs::default(),
            again: Runs::default(),
        };
        assert_eq!(part.lacks(), runs(10, 40).union(&runs(200, 5)));
    }
}
