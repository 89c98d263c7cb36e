//! The ledger: what the server owes, decided from its answers alone. Pure.
//!
//! Each counter is written by nobody else. Then the answers to its increments
//! are known in advance, except for writes whose connection broke before the
//! answer came. Such a write may take effect at any later time (its bytes may
//! wait in a frozen server's socket), so it widens what is allowed for that
//! counter until it has shown itself: from there on a counter may be ahead by
//! as many as are ambiguous, but never behind.
//!
//! **Invariant**: `last` is the highest value the server itself confirmed; a
//! counter below it has lost an acknowledged write.

use serde::{Deserialize, Serialize};

/// An answer that no correct server gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// The counter fell behind what had been acknowledged.
    Lost {
        /// Which counter.
        counter: u32,
        /// The value the answer had to reach.
        expected: u64,
        /// The value it had.
        got: u64,
    },
    /// The counter ran ahead by more than the ambiguous writes allow.
    Repeated {
        /// Which counter.
        counter: u32,
        /// The highest value allowed.
        expected: u64,
        /// The value the answer had.
        got: u64,
    },
    /// What was read is not what is kept there.
    Changed {
        /// The number of the key.
        key: u32,
    },
}

/// How many [`Fault`]s are kept whole; all are counted.
const KEPT_FAULTS: usize = 20;

/// What was sent, what was acknowledged, and what may still turn up.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    last: Vec<u64>,
    ambiguous: Vec<u32>,
    acked: u64,
    reads: u64,
    unanswered: u64,
    refused: u64,
    faults: Vec<Fault>,
    fault_count: u64,
}

impl Ledger {
    /// Opens the ledger with each counter's value before the first write.
    pub fn open(values: Vec<u64>) -> Ledger {
        Ledger { ambiguous: vec![0; values.len()], last: values, ..Ledger::default() }
    }

    /// The server answered a write with the counter's new value.
    pub fn acknowledged(&mut self, counter: u32, got: u64) {
        let at = counter as usize;
        let expected = self.last[at] + 1;
        let most = expected + u64::from(self.ambiguous[at]);
        if got < expected {
            self.fault(Fault::Lost { counter, expected, got });
        } else if got > most {
            self.fault(Fault::Repeated { counter, expected: most, got });
        } else {
            self.ambiguous[at] -= (got - expected) as u32;
        }
        // Go on from what the server says: one loss is one fault, not thousands.
        self.last[at] = got;
        self.acked += 1;
    }

    /// The server answered a write with an error: it did not take place.
    pub fn refused(&mut self) {
        self.refused += 1;
    }

    /// The connection broke while this write had no answer.
    pub fn unanswered(&mut self, counter: u32) {
        self.ambiguous[counter as usize] += 1;
        self.unanswered += 1;
    }

    /// The server answered a read.
    pub fn read(&mut self, key: u32, is_right: bool) {
        if !is_right {
            self.fault(Fault::Changed { key });
        }
        self.reads += 1;
    }

    /// The connection broke while this read had no answer.
    pub fn unread(&mut self) {
        self.unanswered += 1;
    }

    /// Reads the server answered.
    pub fn reads(&self) -> u64 {
        self.reads
    }

    /// Writes the server acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Requests that were sent and never answered.
    pub fn unanswered_writes(&self) -> u64 {
        self.unanswered
    }

    /// Requests the server answered with an error.
    pub fn refused_writes(&self) -> u64 {
        self.refused
    }

    /// The first wrong answers, and how many there were in all.
    pub fn faults(&self) -> (&[Fault], u64) {
        (&self.faults, self.fault_count)
    }

    /// Compares the counters as the server holds them now with what it
    /// confirmed.
    pub fn settle(&self, values: &[u64]) -> Settlement {
        let mut settled =
            Settlement { acked: self.acked, found: self.acked, missing: 0, surplus: 0 };
        for (at, last) in self.last.iter().enumerate() {
            let value = values.get(at).copied().unwrap_or_default();
            let most = last + u64::from(self.ambiguous[at]);
            settled.missing += last.saturating_sub(value);
            settled.surplus += value.saturating_sub(most);
        }
        settled.found = self.acked.saturating_sub(settled.missing);
        settled
    }

    fn fault(&mut self, fault: Fault) {
        self.fault_count += 1;
        if self.faults.len() < KEPT_FAULTS {
            self.faults.push(fault);
        }
    }
}

/// The end of the account: acknowledged writes against what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// Writes the server acknowledged.
    pub acked: u64,
    /// Of these, how many are still there.
    pub found: u64,
    /// By how much counters are behind what was acknowledged.
    pub missing: u64,
    /// By how much counters are ahead of everything that was ever sent.
    pub surplus: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(ledger: &Ledger) -> u64 {
        ledger.faults().1
    }

    #[test]
    fn answers_in_sequence_are_fine_and_counters_may_begin_anywhere() {
        let mut ledger = Ledger::open(vec![0, 41]);
        ledger.acknowledged(0, 1);
        ledger.acknowledged(1, 42);
        ledger.acknowledged(0, 2);
        assert_eq!(faults(&ledger), 0);
        let settled = ledger.settle(&[2, 42]);
        assert_eq!((settled.found, settled.missing, settled.surplus), (3, 0, 0));
    }

    #[test]
    fn a_lost_and_a_repeated_write_are_told_apart() {
        let mut ledger = Ledger::open(vec![0]);
        ledger.acknowledged(0, 1);
        ledger.acknowledged(0, 1);
        ledger.acknowledged(0, 3);
        let (kept, all) = ledger.faults();
        assert_eq!(all, 2);
        assert!(matches!(kept[0], Fault::Lost { expected: 2, got: 1, .. }));
        assert!(matches!(kept[1], Fault::Repeated { expected: 2, got: 3, .. }));
    }

    #[test]
    fn ambiguous_writes_may_turn_up_late_or_never_but_only_once() {
        let mut ledger = Ledger::open(vec![0]);
        ledger.acknowledged(0, 1);
        ledger.unanswered(0);
        ledger.unanswered(0);
        ledger.acknowledged(0, 2); // neither has shown itself yet
        ledger.acknowledged(0, 4); // one has
        assert_eq!(faults(&ledger), 0);
        assert_eq!(ledger.settle(&[4]).surplus, 0);
        assert_eq!(ledger.settle(&[5]).surplus, 0, "the other may still come");
        assert_eq!(ledger.settle(&[6]).surplus, 1, "there was no third");
        ledger.acknowledged(0, 7); // two more than sent
        assert_eq!(faults(&ledger), 1);
    }

    #[test]
    fn what_was_acknowledged_must_be_there_at_the_end() {
        let mut ledger = Ledger::open(vec![0, 0]);
        (1..=5).for_each(|v| ledger.acknowledged(0, v));
        ledger.acknowledged(1, 1);
        ledger.unanswered(1);
        assert_eq!(ledger.settle(&[5, 2]).missing, 0);
        let settled = ledger.settle(&[3, 1]);
        assert_eq!((settled.missing, settled.found), (2, 4));
        assert_eq!(ledger.settle(&[]).missing, 6);
    }
}
