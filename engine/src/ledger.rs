//! What must survive a crash: one small file per handover and host.
//!
//! The source writes its [`SourceRecord`] before it sends the grant; the target
//! writes its [`TargetRecord`] before it stages, before it lets the container
//! run, and when it is done. Every write is complete or absent: a temporary
//! file, synced, renamed, and the directory synced.

use crate::forward::Forward;
use crate::handover::{Ticket, Verdict};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the source must remember of a handover in doubt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The handover.
    pub ticket: Ticket,
    /// Docker's ID of the container here.
    pub container: String,
    /// Its name when it was started to be moved.
    pub name: String,
    /// Its init.
    pub init: i32,
    /// Directory of its freezer.
    pub freezer: PathBuf,
    /// Whether that is of cgroup v2.
    pub unified: bool,
    /// Where the target's agent is.
    pub target: String,
    /// Whether the source's container is removed once it has moved.
    pub remove_source: bool,
    /// Whether its connections end here, with a reset.
    #[serde(default)]
    pub close_connections: bool,
    /// What takes its place on its published ports.
    #[serde(default)]
    pub forward: Option<Forward>,
    /// It is stopped with a checkpoint of Docker's; its restart policy, as JSON.
    #[serde(default)]
    pub by_docker: Option<String>,
    /// Where its files stay.
    #[serde(default)]
    pub remains: Remains,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// How far a target has come with a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetStep {
    /// Something is prepared; nothing has run.
    Staged,
    /// The grant has come: it may have run.
    Granted,
    /// It runs and is complete.
    Complete,
    /// It never ran and never will.
    Burned,
}

/// What a target must remember of a handover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// The handover.
    pub ticket: Ticket,
    /// Docker's ID of the staged container, once there is one.
    pub container: Option<String>,
    /// How far it came.
    pub step: TargetStep,
    /// Fingerprint of the source that may ask about it.
    pub source: String,
    /// What was made for it besides the container.
    #[serde(default)]
    pub made: Made,
}

/// What a target made for a container before it came: gone again if it does
/// not come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Volumes, by name.
    pub volumes: Vec<String>,
    /// Directories and files, in the order they were made.
    pub paths: Vec<PathBuf>,
}

/// A container that left this host and whose remains are still here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departed {
    /// The handover by which it left.
    pub ticket: Ticket,
    /// Docker's ID of what is left of it.
    pub container: String,
    /// Where its files are.
    #[serde(default)]
    pub remains: Remains,
}

/// Where the files of a container are on the host that it left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    /// Its writable layer.
    pub upper: Option<PathBuf>,
    /// What was mounted and travelled, by its place in the container.
    pub places: BTreeMap<String, PathBuf>,
}

impl TargetRecord {
    /// What to tell a source that asks, from the record alone: for an agent
    /// that was started after the handover. `alive`: the container runs.
    pub fn verdict(&self, alive: bool) -> Verdict {
        match self.step {
            TargetStep::Staged | TargetStep::Burned => Verdict::NeverRan,
            TargetStep::Complete => Verdict::Ran,
            TargetStep::Granted if alive => Verdict::Ran,
            TargetStep::Granted => Verdict::Lost,
        }
    }
}

/// A directory of records, one file each, readable by root only.
#[derive(Clone, Debug)]
pub struct Ledger {
    directory: PathBuf,
}

impl Ledger {
    /// Opens, or makes, the ledger in `directory`.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Writes a record through to the disk.
    pub fn save<T: Serialize>(&self, ticket: Ticket, record: &T) -> io::Result<()> {
        let path = self.path(ticket);
        let temporary = path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(record).map_err(io::Error::from)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(&self.directory)?.sync_all()
    }

    /// The record of a ticket, if there is one.
    pub fn load<T: DeserializeOwned>(&self, ticket: Ticket) -> io::Result<Option<T>> {
        match fs::read(self.path(ticket)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Every record that can be read.
    pub fn all<T: DeserializeOwned>(&self) -> io::Result<Vec<T>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory)?.flatten() {
            if entry.path().extension().is_some_and(|e| e == "json") {
                records.extend(
                    fs::read(entry.path()).ok().and_then(|b| serde_json::from_slice(&b).ok()),
                );
            }
        }
        Ok(records)
    }

    /// Forgets a ticket.
    pub fn remove(&self, ticket: Ticket) -> io::Result<()> {
        match fs::remove_file(self.path(ticket)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn path(&self, ticket: Ticket) -> PathBuf {
        self.directory.join(format!("{ticket}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_record_is_found_again_and_can_be_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&directory.path().join("target")).unwrap();
        let record = TargetRecord {
            ticket: Ticket(7),
            container: None,
            step: TargetStep::Granted,
            source: "x".into(),
            made: Made::default(),
        };
        ledger.save(record.ticket, &record).unwrap();
        assert_eq!(ledger.load(Ticket(7)).unwrap(), Some(record.clone()));
        assert_eq!(ledger.all::<TargetRecord>().unwrap(), [record]);
        ledger.remove(Ticket(7)).unwrap();
        assert_eq!(ledger.load::<TargetRecord>(Ticket(7)).unwrap(), None);
    }

    #[test]
    fn a_grant_without_a_living_container_is_lost_not_unrun() {
        let mut record = TargetRecord {
            ticket: Ticket(7),
            container: None,
            step: TargetStep::Granted,
            source: "x".into(),
            made: Made::default(),
        };
        assert_eq!(record.verdict(true), Verdict::Ran);
        assert_eq!(record.verdict(false), Verdict::Lost);
        record.step = TargetStep::Staged;
        assert_eq!(record.verdict(false), Verdict::NeverRan);
    }
}
