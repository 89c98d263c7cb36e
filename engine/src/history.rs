//! What this host's migrations are doing, and how the last ones ended: for
//! `blip status`.
//!
//! * A [`Journal`] is one migration on one side. While it lives a small file in
//!   [`RUNNING`] says how far it is; the file is in memory and goes with it.
//! * When it ends, one JSON line is added to `history.jsonl` in the state
//!   directory, which keeps the last [`KEPT`].
//!
//! None of this decides anything: what must survive a crash is in the
//! [`ledger`](crate::ledger). So nothing here fails; what cannot be written is
//! logged and missed.

use crate::event::{Phase, Report};
use crate::handover::{Outcome, Ticket};
use blip_transport::units::{ByteSize, Round};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the files of running migrations are.
pub const RUNNING: &str = "/run/blip/migrations";
/// How many ended migrations are remembered.
pub const KEPT: usize = 200;

/// Which end of a migration this host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The container leaves.
    Source,
    /// The container arrives.
    Target,
}

/// A migration under way, as its file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The handover, in hexadecimal digits.
    pub ticket: String,
    /// Which end this is.
    pub side: Side,
    /// The container's name.
    pub container: String,
    /// The other host.
    pub peer: String,
    /// The phase it is in; `null`: it has only begun.
    pub phase: Option<Phase>,
    /// The round that ended last.
    pub round: Option<Round>,
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// The process that carries it out.
    pub pid: i32,
    /// When that process started, in clock ticks since boot: another one may
    /// have its number by now.
    pub started: u64,
}

impl Running {
    fn is_alive(&self) -> bool {
        crate::runtime::started(self.pid) == Some(self.started)
    }
}

/// How an ended migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The container runs on the target.
    Moved,
    /// It runs on the source as before.
    Kept,
    /// Frozen on the source until `blip resolve`.
    InDoubt,
    /// blip's process ended in the middle; `blip status` was the first to see.
    Died,
}

/// An ended migration, as its line has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// The handover, in hexadecimal digits.
    pub ticket: String,
    /// Which end this was.
    pub side: Side,
    /// The container's name.
    pub container: String,
    /// The other host.
    pub peer: String,
    /// How it ended.
    pub outcome: End,
    /// Why so, if it did not move.
    pub why: Option<String>,
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// When it ended, in seconds since 1970.
    pub ended: u64,
    /// The method, where it is known.
    pub method: Option<crate::plan::Method>,
    /// Downtime in milliseconds; `null`: never frozen, or not known here.
    pub downtime_ms: Option<f64>,
    /// Downtime wanted, in milliseconds.
    pub target_ms: Option<f64>,
    /// Downtime expected, in milliseconds.
    pub predicted_ms: Option<f64>,
    /// Bytes that left the source.
    pub bytes_sent: Option<ByteSize>,
}

/// Where both kinds of files are.
#[derive(Clone, Debug)]
pub struct History {
    running: PathBuf,
    ended: PathBuf,
}

impl History {
    /// The history in a state directory.
    pub fn of(state: &Path) -> Self {
        Self { running: RUNNING.into(), ended: state.join("history.jsonl") }
    }

    /// One with its running migrations elsewhere.
    pub fn at(state: &Path, running: &Path) -> Self {
        Self { running: running.into(), ..Self::of(state) }
    }

    /// A migration begins on this host. Dropped without a word how it ended, it
    /// counts as kept.
    pub fn began(&self, ticket: Ticket, side: Side, container: &str, peer: &str) -> Journal {
        let pid = std::process::id().cast_signed();
        let state = Running {
            ticket: ticket.to_string(),
            side,
            container: container.to_owned(),
            peer: peer.to_owned(),
            phase: None,
            round: None,
            began: now(),
            pid,
            started: crate::runtime::started(pid).unwrap_or_default(),
        };
        let name = match side {
            Side::Source => format!("{ticket}.source.json"),
            Side::Target => format!("{ticket}.target.json"),
        };
        let journal = Journal {
            file: self.running.join(name),
            history: self.clone(),
            state: Mutex::new(Some(state)),
        };
        missed("list a migration", directory(&self.running));
        journal.write();
        journal
    }

    /// What is running, the oldest first. What a dead process left behind is
    /// moved to the ended ones.
    pub fn running(&self) -> Vec<Running> {
        let mut alive = Vec::new();
        for entry in fs::read_dir(&self.running).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let Some(state) = fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok())
            else {
                continue;
            };
            let state: Running = state;
            if state.is_alive() {
                alive.push(state);
            } else if fs::remove_file(&path).is_ok() {
                // Whoever removes the file writes the line: nobody else does.
                let phase = state.phase.map_or("the beginning", Phase::name);
                let why = format!("process {} ended in {phase}", state.pid);
                self.append(&Ended::of(&state, End::Died, Some(why)));
            }
        }
        alive.sort_by_key(|state| state.began);
        alive
    }

    /// What ended, the latest first; at most `most`.
    pub fn ended(&self, most: usize) -> Vec<Ended> {
        let text = fs::read_to_string(&self.ended).unwrap_or_default();
        let lines = text.lines().rev();
        lines.filter_map(|line| serde_json::from_str(line).ok()).take(most).collect()
    }

    fn append(&self, ended: &Ended) {
        missed("remember how a migration ended", self.try_append(ended));
    }

    /// Adds a line, and cuts the file to the last [`KEPT`] when it has half as
    /// many more.
    fn try_append(&self, ended: &Ended) -> io::Result<()> {
        if let Some(state) = self.ended.parent() {
            directory(state)?;
        }
        let _alone = lock(&self.ended.with_extension("lock"))?;
        let mut line = serde_json::to_string(ended).map_err(io::Error::from)?;
        line.push('\n');
        let text = fs::read_to_string(&self.ended).unwrap_or_default();
        // One that was cut off by a crash gets no second half.
        let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        let lines = text.lines().count();
        if lines < KEPT + KEPT / 2 {
            let mut file = private().append(true).open(&self.ended)?;
            return file.write_all(format!("{gap}{line}").as_bytes());
        }
        let kept: String = text.lines().skip(lines + 1 - KEPT).map(|l| format!("{l}\n")).collect();
        replace(&self.ended, format!("{kept}{line}").as_bytes())
    }
}

/// One migration on this host, from its beginning to its end. All methods may
/// be called from anywhere; they write a small file in memory.
#[derive(Debug)]
pub struct Journal {
    history: History,
    file: PathBuf,
    /// Absent once it has ended.
    state: Mutex<Option<Running>>,
}

impl Journal {
    /// A phase began.
    pub fn phase(&self, phase: Phase) {
        self.change(|state| state.phase = Some(phase));
    }

    /// A round ended.
    pub fn round(&self, round: Round) {
        self.change(|state| state.round = Some(round));
    }

    /// It ended with a report.
    pub fn ended(&self, report: &Report) {
        let (outcome, why) = match &report.outcome {
            Outcome::Moved => (End::Moved, None),
            Outcome::Kept { why } => (End::Kept, Some(why.clone())),
            Outcome::InDoubt { why } => (End::InDoubt, Some(why.clone())),
        };
        self.close(outcome, why, |ended| {
            ended.method = Some(report.method);
            ended.downtime_ms = (!report.downtime.is_empty()).then_some(report.downtime_ms);
            ended.target_ms = report.goal.downtime_ms;
            ended.predicted_ms = report.predicted.as_ref().map(|forecast| forecast.downtime_ms);
            ended.bytes_sent = Some(report.bytes_sent);
        });
    }

    /// It ended without one: on a target, or before the freeze.
    pub fn ended_as(&self, outcome: End, why: Option<String>) {
        self.close(outcome, why, |_| {});
    }

    fn change(&self, change: impl FnOnce(&mut Running)) {
        if let Some(state) = self.lock().as_mut() {
            change(state);
        }
        self.write();
    }

    fn write(&self) {
        let state = self.lock();
        let Some(state) = state.as_ref() else { return };
        let bytes = serde_json::to_vec(state).map_err(io::Error::from);
        missed("list a migration", bytes.and_then(|bytes| replace(&self.file, &bytes)));
    }

    /// The first word counts.
    fn close(&self, outcome: End, why: Option<String>, more: impl FnOnce(&mut Ended)) {
        let Some(state) = self.lock().take() else { return };
        let mut ended = Ended::of(&state, outcome, why);
        more(&mut ended);
        self.history.append(&ended);
        let _ = fs::remove_file(&self.file);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.ended_as(End::Kept, Some("it was given up".into()));
    }
}

impl Ended {
    fn of(state: &Running, outcome: End, why: Option<String>) -> Self {
        Self {
            ticket: state.ticket.clone(),
            side: state.side,
            container: state.container.clone(),
            peer: state.peer.clone(),
            outcome,
            why,
            began: state.began,
            ended: now(),
            method: None,
            downtime_ms: None,
            target_ms: None,
            predicted_ms: None,
            bytes_sent: None,
        }
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn missed(what: &str, done: io::Result<()>) {
    if let Err(error) = done {
        tracing::warn!("cannot {what} for `blip status`: {error}");
    }
}

fn directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

/// Complete or not at all; not for ever: it is not synced.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    private().write(true).truncate(true).open(&temporary)?.write_all(bytes)?;
    fs::rename(temporary, path)
}

/// Held until it is dropped; other processes wait.
fn lock(path: &Path) -> io::Result<nix::fcntl::Flock<File>> {
    let file = private().write(true).open(path)?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, error)| error.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn history() -> (tempfile::TempDir, History) {
        let directory = tempfile::tempdir().unwrap();
        let history = History::at(&directory.path().join("state"), &directory.path().join("run"));
        (directory, history)
    }

    #[test]
    fn one_under_way_is_listed_until_it_ends_and_then_remembered() {
        let (directory, history) = history();
        let journal = history.began(Ticket(7), Side::Source, "web", "hostb");
        journal.phase(Phase::PreCopy);
        journal.round(Round(3));
        let running = history.running();
        assert_eq!(running.len(), 1);
        assert_eq!((running[0].phase, running[0].round), (Some(Phase::PreCopy), Some(Round(3))));
        journal.ended_as(End::Moved, None);
        drop(journal);
        assert_eq!(history.running(), []);
        let ended = history.ended(9);
        assert_eq!(ended.len(), 1);
        assert_eq!((ended[0].outcome, ended[0].ticket.len()), (End::Moved, 32));
        let file = directory.path().join("state/history.jsonl");
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn one_that_is_dropped_was_given_up() {
        let (_directory, history) = history();
        drop(history.began(Ticket(7), Side::Target, "web", "hosta"));
        assert_eq!(history.ended(9)[0].outcome, End::Kept);
    }

    #[test]
    fn one_whose_process_is_gone_has_died_and_is_told_of_once() {
        let (directory, history) = history();
        let journal = history.began(Ticket(7), Side::Source, "web", "hostb");
        journal.phase(Phase::Dump);
        // The process of this number started at another time.
        let mut left = history.running().remove(0);
        left.started += 1;
        let file = directory.path().join("run/left.source.json");
        fs::write(&file, serde_json::to_vec(&left).unwrap()).unwrap();
        assert_eq!(history.running().len(), 1);
        assert!(!file.exists());
        assert_eq!(history.running().len(), 1);
        let ended = history.ended(9);
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].outcome, End::Died);
        assert!(ended[0].why.as_ref().unwrap().ends_with("ended in dump"));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let (directory, history) = history();
        for ticket in 0..2 * KEPT as u128 {
            history
                .began(Ticket(ticket), Side::Source, "web", "hostb")
                .ended_as(End::Kept, Some("because".into()));
        }
        let lines = fs::read_to_string(directory.path().join("state/history.jsonl")).unwrap();
        assert!((KEPT..KEPT + KEPT / 2 + 1).contains(&lines.lines().count()));
        let ended = history.ended(3);
        let latest = Ticket(2 * KEPT as u128 - 1).to_string();
        assert_eq!((ended.len(), &ended[0].ticket), (3, &latest));
    }

    #[test]
    fn half_a_line_is_skipped_and_harms_no_other() {
        let (directory, history) = history();
        history.began(Ticket(1), Side::Source, "web", "hostb").ended_as(End::Moved, None);
        let file = directory.path().join("state/history.jsonl");
        let mut text = fs::read_to_string(&file).unwrap();
        text += "{\"ticket\":\"half";
        fs::write(&file, text).unwrap();
        history.began(Ticket(2), Side::Source, "web", "hostb").ended_as(End::Moved, None);
        assert_eq!(history.ended(9).len(), 2);
    }
}
