//! Where a file lies on disk, before and after.

use crate::sys::fiemap::Extent;
use std::ops::Range;

/// Where two maps of one file differ.
pub(super) fn differences(before: &[Extent], now: &[Extent]) -> Vec<Range<u64>> {
    let (mut old, mut new) = (before.iter().copied().peekable(), now.iter().copied().peekable());
    let mut ranges = Vec::new();
    let mut differs = |extent: Extent| ranges.push(extent.start..extent.start + extent.len);
    loop {
        match (old.peek().copied(), new.peek().copied()) {
            (None, None) => return ranges,
            (Some(a), Some(b)) if a == b => {
                old.next();
                new.next();
            }
            // One goes on where the other ends: compare what both have.
            (Some(a), Some(b)) if a.same_place(&b) => {
                let len = a.len.min(b.len);
                for (extents, extent) in [(&mut old, a), (&mut new, b)] {
                    extents.next();
                    if extent.len > len {
                        // What is left is looked at as an extent of its own.
                        differs(Extent {
                            start: extent.start + len,
                            len: extent.len - len,
                            ..extent
                        });
                    }
                }
            }
            (Some(a), b) if b.is_none_or(|b| a.start <= b.start) => {
                old.next();
                differs(a);
            }
            (_, Some(b)) => {
                new.next();
                differs(b);
            }
            (Some(_), None) => return ranges,
        }
    }
}

impl Extent {
    fn same_place(&self, other: &Self) -> bool {
        (self.start, self.physical, self.flags) == (other.start, other.physical, other.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_lies_elsewhere_differs() {
        let at = |start, len, physical| Extent { start, len, physical, flags: 0 };
        let before = [at(0, 100, 1000), at(200, 50, 5000)];
        let differ = |old: &[Extent], new: &[Extent]| -> Vec<(u64, u64)> {
            differences(old, new).into_iter().map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(differ(&before, &before), []);
        // Grown, moved, gone, come.
        assert_eq!(differ(&before[..1], &[at(0, 150, 1000)]), [(100, 150)]);
        assert_eq!(differ(&before[..1], &[at(0, 100, 2000)]), [(0, 100), (0, 100)]);
        assert_eq!(differ(&before, &before[..1]), [(200, 250)]);
        assert_eq!(differ(&before[1..], &before), [(0, 100)]);
    }
}
