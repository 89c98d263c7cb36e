//! The proof after the run: the server is asked what it holds now.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::dialect::counters;
use super::ledger::Settlement;
use super::place::{Place, within};
use super::report::ProbeReport;
use crate::workload::dataset::Digest;
use crate::workload::redis::{Identity, Redis, RedisError};
use crate::workload::writer::Checked;
use crate::workload::writer::client::Writer;

/// Everything a run must still have when it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// The dataset's digest before the run.
    pub digest: Digest,
    /// The server's own digest of it, where it gives one.
    pub server_digest: Option<String>,
    /// The process that served before the run.
    pub identity: Identity,
}

impl Expected {
    /// Asks the server now, before the run. To be called at the client's
    /// place (see [`within`]).
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn ask(redis: &Redis) -> Result<Expected, RedisError> {
        Ok(Expected { server_digest: redis.server_digest()?, ..Expected::ask_once(redis)? })
    }

    /// The same without a second opinion, the server's own digest, which takes it
    /// as long as all else: for runs by the hundred. Every key and value is read
    /// and hashed all the same.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn ask_once(redis: &Redis) -> Result<Expected, RedisError> {
        Ok(Expected { digest: redis.digest()?, server_digest: None, identity: redis.identity()? })
    }

    /// What is not as it was, one line each.
    pub fn changed(&self, now: &Expected) -> Vec<String> {
        let both = self.server_digest.as_ref().zip(now.server_digest.as_ref());
        let verdict = Verdict {
            writes: Settlement { acked: 1, found: 1, ..Settlement::default() },
            faults: 0,
            before: self.digest.clone(),
            after: now.digest.clone(),
            server_agrees: both.map(|(before, after)| before == after),
            same_process: self.identity == now.identity,
        };
        verdict.objections()
    }
}

/// What the server held after the run, and whether that is all it owes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Acknowledged writes against the counters.
    pub writes: Settlement,
    /// Wrong answers during the run (lost or repeated writes).
    pub faults: u64,
    /// The dataset before the run.
    pub before: Digest,
    /// The dataset after the run.
    pub after: Digest,
    /// Whether the server's own digest agrees, where it gives one.
    pub server_agrees: Option<bool>,
    /// Whether the same process answers: it moved and was not restarted.
    pub same_process: bool,
}

impl Verdict {
    /// No acknowledged write is missing or doubled, and the data are the same.
    pub fn verified(&self) -> bool {
        self.objections().is_empty()
    }

    /// Why not, one line each.
    pub fn objections(&self) -> Vec<String> {
        let mut all = account(&self.writes, self.faults, self.same_process);
        if self.before != self.after {
            all.push(format!(
                "the dataset changed: {} keys before, {} after, digest differs",
                self.before.keys, self.after.keys
            ));
        }
        if self.server_agrees == Some(false) {
            all.push("the server's own digest of the dataset differs".to_owned());
        }
        all
    }
}

/// What a memory writer held after the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterVerdict {
    /// Acknowledged writes against the counters.
    pub writes: Settlement,
    /// Wrong answers during the run (lost or repeated writes).
    pub faults: u64,
    /// What the writer found in all its memory.
    pub checked: Checked,
    /// Whether the same process answers: it moved and was not restarted.
    pub same_process: bool,
}

impl WriterVerdict {
    /// Why it is not verified, one line each; none if it is.
    pub fn objections(&self) -> Vec<String> {
        let mut all = account(&self.writes, self.faults, self.same_process);
        all.extend(self.checked.objections());
        all
    }
}

/// What every workload must answer for: the writes it acknowledged.
fn account(writes: &Settlement, faults: u64, same_process: bool) -> Vec<String> {
    let mut all = Vec::new();
    if writes.acked == 0 {
        all.push("no write was acknowledged, so nothing is proved".to_owned());
    }
    if writes.missing > 0 {
        let of = writes.acked;
        all.push(format!("{} of {of} acknowledged writes are missing", writes.missing));
    }
    if writes.surplus > 0 {
        all.push(format!("counters are {} ahead of all writes sent", writes.surplus));
    }
    if faults > 0 {
        all.push(format!("{faults} answers during the run showed lost or repeated writes"));
    }
    if !same_process {
        all.push("another server process answers: it was restarted, not moved".to_owned());
    }
    all
}

/// Why the proof could not be made; not to be taken for a failed proof.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The server did not answer.
    #[error("could not verify: {0}")]
    Redis(#[from] RedisError),
    /// The client's place could not be entered.
    #[error("could not verify from the client's place: {0}")]
    Place(#[from] std::io::Error),
}

impl ProbeReport {
    /// Asks the server at `addr` for every counter, whatever it is, and says
    /// what is not as it was acknowledged, one line each.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn account(&self, addr: SocketAddr, patience: Duration) -> Result<Vec<String>, String> {
        let dialect = self.spec.dialect.as_ref();
        let mut all = Vec::new();
        // A client that only read has no counters to ask for.
        if self.acked > 0 || self.reads == 0 {
            let values = counters(dialect, addr, &self.spec.keys(), patience)?;
            all.extend(account(&self.ledger.settle(&values), self.fault_count, true));
        } else if self.fault_count > 0 {
            let (faults, reads) = (self.fault_count, self.reads);
            all.push(format!("{faults} of {reads} reads answered something else than is kept"));
        }
        let Some(fresh) = &self.fresh else { return Ok(all) };
        if fresh.changed > 0 {
            let changed = fresh.changed;
            all.push(format!("{changed} reads over new connections answered something else"));
        }
        if fresh.account.settle(&[]).acked > 0 {
            let values = counters(dialect, addr, &self.spec.fresh_keys(), patience)?;
            let settled = fresh.account.settle(&values);
            let said = account(&settled, 0, true);
            all.extend(said.into_iter().map(|line| format!("over new connections: {line}")));
        }
        Ok(all)
    }

    /// Asks the server at `addr` for every counter and the whole dataset.
    ///
    /// # Errors
    /// [`VerifyError`] when it cannot be asked.
    pub fn verify(
        &self,
        place: &dyn Place,
        addr: SocketAddr,
        expected: &Expected,
    ) -> Result<Verdict, VerifyError> {
        let keys = self.spec.keys();
        let (values, now) = within(place, "verify", move || {
            let redis = Redis::at(addr);
            Ok::<_, RedisError>((redis.counters(&keys)?, Expected::ask(&redis)?))
        })??;
        let both = expected.server_digest.as_ref().zip(now.server_digest);
        Ok(Verdict {
            writes: self.ledger.settle(&values),
            faults: self.fault_count,
            before: expected.digest.clone(),
            after: now.digest,
            server_agrees: both.map(|(before, after)| *before == after),
            same_process: expected.identity == now.identity,
        })
    }

    /// As [`ProbeReport::verify`], of a memory writer, which looks at all its
    /// memory for this.
    ///
    /// # Errors
    /// [`VerifyError`] when it cannot be asked.
    pub fn verify_writer(
        &self,
        place: &dyn Place,
        addr: SocketAddr,
        before: &Identity,
    ) -> Result<WriterVerdict, VerifyError> {
        let keys = self.spec.keys();
        let (values, checked, identity) = within(place, "verify", move || {
            let writer = Writer::at(addr);
            Ok::<_, RedisError>((writer.counters(&keys)?, writer.check()?, writer.identity()?))
        })??;
        Ok(WriterVerdict {
            writes: self.ledger.settle(&values),
            faults: self.fault_count,
            checked,
            same_process: *before == identity,
        })
    }
}
