//! The plan of a batch: which pages, and what became of each, in order.
//!
//! One entry on the wire:
//!
//! ```text
//! tag      1 byte   kind, and which of the next fields are left out
//! space    varint   unless it is the space of the entry before
//! start    varint   distance from the end of the entry before, zigzag; unless 0
//! count    varint   unless 1
//! names    32 bytes per page, for references and deltas
//! ```
//!
//! **Invariant**: the order of entries is meaning, never sorted: a page may
//! appear twice, and a reference may name a content that an earlier entry
//! brings and a later one overwrites.

use super::{END_OF_SPACE, MAX_COVERED_PAGES, WireError};
use crate::page::{ContentHash, PageAt, PageIndex, PageRun, SpaceId};
use crate::units::PageCount;

/// What became of the pages of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// All bytes are zero.
    Zero = 0,
    /// The payload holds the bytes.
    Data = 1,
    /// The content was sent before; the plan holds its name.
    Ref = 2,
    /// The payload holds the difference to a content sent before.
    Delta = 3,
    /// The pages are gone.
    Drop = 4,
    /// The whole address space is gone.
    DropSpace = 5,
}

impl Kind {
    fn from_bits(bits: u8) -> Option<Self> {
        [Self::Zero, Self::Data, Self::Ref, Self::Delta, Self::Drop, Self::DropSpace]
            .into_iter()
            .find(|kind| *kind as u8 == bits)
    }

    fn has_names(self) -> bool {
        matches!(self, Self::Ref | Self::Delta)
    }

    pub(crate) fn has_payload(self) -> bool {
        matches!(self, Self::Data | Self::Delta)
    }

    fn adds_pages(self) -> bool {
        matches!(self, Self::Zero | Self::Data | Self::Ref | Self::Delta)
    }
}

const KIND_BITS: u8 = 0b0000_0111;
const SAME_SPACE: u8 = 1 << 3;
const ADJACENT: u8 = 1 << 4;
const SINGLE: u8 = 1 << 5;
const KNOWN_BITS: u8 = KIND_BITS | SAME_SPACE | ADJACENT | SINGLE;
const NAME_BYTES: usize = 32;

/// One entry. For [`Kind::DropSpace`] the run is the whole space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) kind: Kind,
    pub(crate) space: SpaceId,
    pub(crate) run: PageRun,
}

/// Every page number an address space can have.
pub(crate) fn whole_space() -> PageRun {
    PageRun::new(0, END_OF_SPACE)
}

/// The entries of a batch and the content names they use, both in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) items: Vec<Item>,
    pub(crate) names: Vec<ContentHash>,
    /// Pages that entries other than drops speak of.
    pub(crate) covered: u64,
    /// Pages the payload must hold.
    pub(crate) payload_pages: u64,
}

impl Plan {
    /// Appends one page, lengthening the last entry where it continues it.
    pub(crate) fn push_page(&mut self, kind: Kind, at: PageAt, name: Option<ContentHash>) {
        self.names.extend(name);
        match self.items.last_mut() {
            Some(last)
                if last.kind == kind && last.space == at.space && last.run.end() == at.index.0 =>
            {
                last.run.count += PageCount(1);
                self.covered += 1;
                self.payload_pages += u64::from(kind.has_payload());
            }
            _ => self.push(Item { kind, space: at.space, run: PageRun::new(at.index.0, 1) }),
        }
    }

    pub(crate) fn push(&mut self, item: Item) {
        if item.kind.adds_pages() {
            self.covered += item.run.count.0;
        }
        if item.kind.has_payload() {
            self.payload_pages += item.run.count.0;
        }
        self.items.push(item);
    }

    /// No fewer bytes than [`Plan::write`] will append.
    pub(crate) fn bytes_bound(&self) -> usize {
        const LONGEST_ITEM: usize = 1 + 5 + 10 + 10;
        self.items.len() * LONGEST_ITEM + self.names.len() * NAME_BYTES
    }

    /// Appends the wire form.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut names = self.names.iter();
        let mut space = None;
        let mut end = 0;
        for item in &self.items {
            let mut tag = item.kind as u8;
            let same_space = space == Some(item.space);
            if !same_space {
                end = 0;
            }
            let whole = item.kind == Kind::DropSpace;
            let adjacent = item.run.start.0 == end || whole;
            let single = item.run.count.0 == 1 || whole;
            tag |= if same_space { SAME_SPACE } else { 0 };
            tag |= if adjacent { ADJACENT } else { 0 };
            tag |= if single { SINGLE } else { 0 };
            out.push(tag);
            if !same_space {
                write_varint(out, u64::from(item.space.0));
            }
            if !adjacent {
                write_varint(out, zigzag(item.run.start.0 as i64 - end as i64));
            }
            if !single {
                write_varint(out, item.run.count.0);
            }
            if item.kind.has_names() {
                for name in names.by_ref().take(item.run.count.0 as usize) {
                    out.extend_from_slice(&name.0);
                }
            }
            space = Some(item.space);
            end = if whole { 0 } else { item.run.end() };
        }
    }

    /// Reads a whole plan.
    ///
    /// # Errors
    /// [`WireError::Plan`] where the bytes are no plan, and
    /// [`WireError::TooLarge`] where they speak of too many pages.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader { bytes, at: 0 };
        let mut plan = Self::default();
        let mut space = None;
        let mut end = 0;
        while !reader.is_done() {
            let item = reader.item(space, end)?;
            if item.kind.has_names() {
                reader.names(item.run.count.0, &mut plan.names)?;
            }
            plan.push(item);
            if plan.covered > MAX_COVERED_PAGES {
                return Err(WireError::TooLarge {
                    what: "the number of pages in one batch",
                    found: plan.covered,
                    limit: MAX_COVERED_PAGES,
                });
            }
            space = Some(item.space);
            end = if item.kind == Kind::DropSpace { 0 } else { item.run.end() };
        }
        Ok(plan)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn is_done(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn item(&mut self, space: Option<SpaceId>, end: u64) -> Result<Item, WireError> {
        let tag = self.byte()?;
        let kind = Kind::from_bits(tag & KIND_BITS)
            .filter(|_| tag & !KNOWN_BITS == 0)
            .ok_or_else(|| self.error("unknown kind of entry"))?;
        let (space, end) = if tag & SAME_SPACE != 0 {
            (space.ok_or_else(|| self.error("the first entry names no space"))?, end)
        } else {
            let number = u32::try_from(self.varint()?);
            (SpaceId(number.map_err(|_| self.error("space beyond 32 bits"))?), 0)
        };
        if kind == Kind::DropSpace {
            if tag & ADJACENT == 0 || tag & SINGLE == 0 {
                return Err(self.error("a dropped space has no run"));
            }
            return Ok(Item { kind, space, run: whole_space() });
        }
        let start = if tag & ADJACENT != 0 {
            Some(end)
        } else {
            end.checked_add_signed(unzigzag(self.varint()?))
        };
        let count = if tag & SINGLE != 0 { 1 } else { self.varint()? };
        let start = start.ok_or_else(|| self.error("start before the first page"))?;
        match start.checked_add(count) {
            Some(end) if end <= END_OF_SPACE && count > 0 => {}
            _ => return Err(self.error("run is empty or leaves the address space")),
        }
        Ok(Item { kind, space, run: PageRun { start: PageIndex(start), count: PageCount(count) } })
    }

    fn names(&mut self, count: u64, names: &mut Vec<ContentHash>) -> Result<(), WireError> {
        let left = self.bytes.len() - self.at;
        if count > (left / NAME_BYTES) as u64 {
            return Err(self.error("content names are cut short"));
        }
        let length = count as usize * NAME_BYTES;
        let source = &self.bytes[self.at..self.at + length];
        names.extend(source.chunks_exact(NAME_BYTES).map(|name| {
            let mut hash = [0; NAME_BYTES];
            hash.copy_from_slice(name);
            ContentHash(hash)
        }));
        self.at += length;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, WireError> {
        let byte = *self.bytes.get(self.at).ok_or_else(|| self.error("cut short"))?;
        self.at += 1;
        Ok(byte)
    }

    /// LEB128: seven bits a byte, lowest first, at most ten bytes.
    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("number beyond 64 bits"))
    }

    fn error(&self, what: &'static str) -> WireError {
        WireError::Plan { at: self.at, what }
    }
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn items() -> impl Strategy<Value = Vec<Item>> {
        let item = (0u8..6, any::<u32>(), 0..END_OF_SPACE, 1u64..9).prop_map(
            |(kind, space, start, count)| {
                let kind = Kind::from_bits(kind).expect("kinds are 0 to 5");
                let count = count.min(END_OF_SPACE - start);
                let run = if kind == Kind::DropSpace {
                    whole_space()
                } else {
                    PageRun::new(start, count)
                };
                Item { kind, space: SpaceId(space % 3), run }
            },
        );
        proptest::collection::vec(item, 0..40)
    }

    fn plan_of(items: Vec<Item>) -> Plan {
        let mut plan = Plan::default();
        for item in items {
            if item.kind.has_names() {
                for page in item.run.pages() {
                    let mut name = [0; 32];
                    name[..8].copy_from_slice(&page.0.to_le_bytes());
                    plan.names.push(ContentHash(name));
                }
            }
            plan.push(item);
        }
        plan
    }

    proptest! {
        #[test]
        fn a_plan_reads_back_as_written(items in items()) {
            let plan = plan_of(items);
            let mut bytes = Vec::new();
            plan.write(&mut bytes);
            prop_assert!(bytes.len() <= plan.bytes_bound());
            prop_assert_eq!(Plan::read(&bytes), Ok(plan));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(plan) = Plan::read(&bytes) {
                for item in &plan.items {
                    prop_assert!(item.run.count.0 > 0 && item.run.end() <= END_OF_SPACE);
                }
                let named: u64 =
                    plan.items.iter().filter(|i| i.kind.has_names()).map(|i| i.run.count.0).sum();
                prop_assert_eq!(named, plan.names.len() as u64);
            }
        }

        #[test]
        fn numbers_read_back_as_written(value in any::<u64>(), signed in any::<i64>()) {
            let mut bytes = Vec::new();
            write_varint(&mut bytes, value);
            prop_assert_eq!(Reader { bytes: &bytes, at: 0 }.varint(), Ok(value));
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
        }
    }

    #[test]
    fn neighbouring_pages_of_one_kind_become_one_entry() {
        let mut plan = Plan::default();
        let at = |index| PageAt { space: SpaceId(1), index: PageIndex(index) };
        for index in 5..9 {
            plan.push_page(Kind::Data, at(index), None);
        }
        plan.push_page(Kind::Zero, at(9), None);
        assert_eq!(plan.items.len(), 2);
        assert_eq!(plan.items[0].run, PageRun::new(5, 4));
        assert_eq!((plan.covered, plan.payload_pages), (5, 4));
    }

    #[test]
    fn a_claim_of_too_many_pages_is_refused_before_memory_is_reserved() {
        let mut bytes = vec![Kind::Zero as u8 | ADJACENT, 1];
        write_varint(&mut bytes, MAX_COVERED_PAGES + 1);
        assert!(matches!(Plan::read(&bytes), Err(WireError::TooLarge { .. })));
        let mut bytes = vec![Kind::Ref as u8 | ADJACENT, 1];
        write_varint(&mut bytes, 1 << 40);
        assert!(matches!(Plan::read(&bytes), Err(WireError::Plan { .. })));
    }
}
