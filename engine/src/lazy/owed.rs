//! The pages an address space still misses, by where they are now and by where
//! they were at the dump.
//!
//! A restored process may move its memory (`mremap`) before all of it has
//! arrived; the store knows pages by their address at the dump. [`Owed`] keeps
//! both names of every missing page together. It is pure: no descriptor, no
//! clock.
//!
//! **Invariants:** runs never overlap, neither by place nor by origin; the two
//! maps describe the same runs; no run is empty.

use blip_transport::page::PageRun;
use std::collections::BTreeMap;

/// Consecutive missing pages: now at page `place`, at page `origin` when dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Piece {
    pub(super) place: u64,
    pub(super) origin: u64,
    pub(super) count: u64,
}

impl Piece {
    fn end(self) -> u64 {
        self.place + self.count
    }

    /// Its page `i`.
    pub(super) fn page(self, i: u64) -> Self {
        Self { place: self.place + i, origin: self.origin + i, count: 1 }
    }

    /// The first `count` pages of it.
    pub(super) fn first(self, count: u64) -> Self {
        Self { count: count.min(self.count), ..self }
    }

    /// The pages of it that lie in `from .. end` by place.
    fn clip(self, from: u64, end: u64) -> Option<Self> {
        let place = self.place.max(from);
        let count = self.end().min(end).checked_sub(place).filter(|&n| n > 0)?;
        Some(Self { place, origin: self.origin + (place - self.place), count })
    }

    /// Where those pages of it are now that were dumped in `run`.
    pub(super) fn places_of(self, run: PageRun) -> impl Iterator<Item = u64> {
        let (place, origin) = (self.place, self.origin);
        let inside = run.start.0.max(origin)..run.end().min(origin + self.count);
        inside.map(move |page| place + (page - origin))
    }

    /// The run at the dump.
    pub(super) fn dumped(self) -> PageRun {
        PageRun::new(self.origin, self.count)
    }
}

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub(super) struct Owed {
    /// place → (origin, count)
    by_place: BTreeMap<u64, (u64, u64)>,
    /// origin → (place, count)
    by_origin: BTreeMap<u64, (u64, u64)>,
    pages: u64,
}

impl Owed {
    /// Everything in `runs` is missing, and lies where it was dumped.
    pub(super) fn new(runs: &[PageRun]) -> Self {
        let mut owed = Self::default();
        for run in runs {
            owed.insert(Piece { place: run.start.0, origin: run.start.0, count: run.count.0 });
        }
        owed
    }

    /// How many pages are missing.
    #[cfg(test)]
    fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether nothing is missing.
    pub(super) fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// The origin of the missing page at `place`, if it is one.
    pub(super) fn at(&self, place: u64) -> Option<u64> {
        let (&start, &(origin, count)) = self.by_place.range(..=place).next_back()?;
        (place < start + count).then(|| origin + (place - start))
    }

    /// Where the missing page dumped at `origin` is now.
    pub(super) fn place_of(&self, origin: u64) -> Option<u64> {
        let (&start, &(place, count)) = self.by_origin.range(..=origin).next_back()?;
        (origin < start + count).then(|| place + (origin - start))
    }

    /// Whether any page dumped in `run` is missing.
    pub(super) fn owes_any(&self, run: PageRun) -> bool {
        let last = self.by_origin.range(..run.end()).next_back();
        last.is_some_and(|(&origin, &(_, count))| origin + count > run.start.0)
    }

    /// The first missing pages at or after `from`, as far as they are
    /// consecutive.
    pub(super) fn next(&self, from: u64) -> Option<Piece> {
        self.within(from, u64::MAX).next()
    }

    /// The missing pages in `from .. end`, ascending by place.
    pub(super) fn within(&self, from: u64, end: u64) -> impl Iterator<Item = Piece> + '_ {
        let first = self
            .by_place
            .range(..=from)
            .next_back()
            .filter(|&(&start, &(_, count))| start + count > from)
            .map_or(from, |(&start, _)| start);
        self.by_place
            .range(first..end.max(first))
            .map(|(&place, &(origin, count))| Piece { place, origin, count })
            .filter_map(move |piece| piece.clip(from, end))
    }

    /// Every missing page.
    pub(super) fn all(&self) -> impl Iterator<Item = Piece> + '_ {
        self.within(0, u64::MAX)
    }

    /// Nothing in `from .. end` is missing any more; answers what was.
    pub(super) fn take(&mut self, from: u64, end: u64) -> Vec<Piece> {
        let taken: Vec<Piece> = self.within(from, end).collect();
        for piece in &taken {
            self.cut(*piece);
        }
        taken
    }

    /// `count` pages have moved from page `from` to page `to`.
    pub(super) fn shift(&mut self, from: u64, to: u64, count: u64) {
        // The kernel has told us before of whatever the move replaced; should
        // it not have, what is moved there is the truth.
        let moved = self.take(from, from + count);
        self.take(to, to + count);
        for piece in moved {
            self.insert(Piece { place: to + (piece.place - from), ..piece });
        }
    }

    /// Removes a piece that lies inside one run.
    fn cut(&mut self, piece: Piece) {
        let Some((&start, &(origin, count))) = self.by_place.range(..=piece.place).next_back()
        else {
            return;
        };
        self.by_place.remove(&start);
        self.by_origin.remove(&origin);
        self.pages -= count;
        let before = piece.place - start;
        let after = start + count - piece.end();
        if before > 0 {
            self.insert(Piece { place: start, origin, count: before });
        }
        if after > 0 {
            let origin = origin + (count - after);
            self.insert(Piece { place: piece.end(), origin, count: after });
        }
    }

    fn insert(&mut self, piece: Piece) {
        self.by_place.insert(piece.place, (piece.origin, piece.count));
        self.by_origin.insert(piece.origin, (piece.place, piece.count));
        self.pages += piece.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The model: one entry a page.
    #[derive(Default)]
    struct Model(BTreeMap<u64, u64>);

    #[derive(Clone, Debug)]
    enum Step {
        Take(u64, u64),
        Shift(u64, u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..120u64, 0..20u64).prop_map(|(at, n)| Step::Take(at, n)),
            (0..120u64, 0..120u64, 0..30u64).prop_map(|(a, b, n)| Step::Shift(a, b, n)),
        ]
    }

    proptest! {
        #[test]
        fn runs_behave_like_single_pages(steps in prop::collection::vec(step(), 0..40)) {
            let runs = [PageRun::new(3, 40), PageRun::new(50, 10), PageRun::new(60, 30)];
            let mut owed = Owed::new(&runs);
            let mut model = Model::default();
            for run in runs {
                model.0.extend(run.pages().map(|p| (p.0, p.0)));
            }
            for step in steps {
                match step {
                    Step::Take(at, n) => {
                        owed.take(at, at + n);
                        model.0.retain(|&place, _| place < at || place >= at + n);
                    }
                    Step::Shift(from, to, n) if from + n <= to || to + n <= from => {
                        owed.shift(from, to, n);
                        let moved: Vec<_> = model.0.iter().map(|(&p, &o)| (p, o))
                            .filter(|&(p, _)| p >= from && p < from + n).collect();
                        model.0.retain(|&p, _| (p < from || p >= from + n) && (p < to || p >= to + n));
                        model.0.extend(moved.into_iter().map(|(p, o)| (p - from + to, o)));
                    }
                    Step::Shift(..) => {}
                }
                prop_assert_eq!(owed.pages(), model.0.len() as u64);
                for page in 0..160 {
                    prop_assert_eq!(owed.at(page), model.0.get(&page).copied());
                    let place = model.0.iter().find(|&(_, &o)| o == page).map(|(&p, _)| p);
                    prop_assert_eq!(owed.place_of(page), place);
                    let run = PageRun::new(page, 7);
                    let any = model.0.values().any(|&o| o >= page && o < run.end());
                    prop_assert_eq!(owed.owes_any(run), any);
                }
                let listed: Vec<u64> = owed.all().flat_map(|p| p.place..p.end()).collect();
                let wanted: Vec<u64> = model.0.keys().copied().collect();
                prop_assert_eq!(listed, wanted);
            }
        }
    }
}
