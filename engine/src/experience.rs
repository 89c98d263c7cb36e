//! What earlier migrations taught: what a handover costs and what the link
//! carries, one small file for each paired host.
//!
//! A container that has never moved there is taken for the average one, and a
//! pair of hosts that has never worked together for the published one.
//!
//! **Invariant**: a file that is missing, damaged or of another version is no
//! experience, never an error of a migration.

use crate::event::Report;
use crate::handover::Outcome;
use crate::plan::{Costs, LinkFacts};
use blip_transport::identity::Fingerprint;
use blip_transport::units::Bandwidth;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Format of the file.
const VERSION: u32 = 1;
/// Containers remembered for a pair of hosts; the one seen longest ago goes.
const CONTAINERS: usize = 64;
/// Longest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// The weight of the newest look at the link.
const FORGET: f64 = 0.3;

/// What is known of one paired host.
#[derive(Debug)]
pub struct Experience {
    path: PathBuf,
    known: Known,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    version: u32,
    /// Counts what was learned, to tell what is old.
    lessons: u64,
    link: Option<LinkFacts>,
    pair: Option<Costs>,
    containers: BTreeMap<String, Lesson>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Lesson {
    costs: Costs,
    latest: u64,
}

impl Experience {
    /// What is known of the host with this key. `state` is blip's directory.
    pub fn open(state: &Path, peer: &Fingerprint) -> Self {
        let path = state.join("experience").join(format!("{peer}.json"));
        let known = read(&path).unwrap_or_default();
        Self { path, known }
    }

    /// What a handover of `container` (its name or its image) costs, as far as
    /// anybody knows.
    pub fn costs(&self, container: &str) -> Costs {
        let lesson = self.known.containers.get(container).map(|lesson| lesson.costs);
        lesson.or(self.known.pair.map(Costs::of_another)).unwrap_or_default()
    }

    /// What the link carried.
    pub fn link(&self) -> Option<LinkFacts> {
        self.known.link
    }

    /// Learns from a migration. One that did not come through teaches nothing.
    pub fn learn(&mut self, container: &str, report: &Report) {
        if report.outcome != Outcome::Moved {
            return;
        }
        self.known.lessons += 1;
        // What is observed includes this link's round trips.
        let rtt = self.known.link.map_or(Duration::ZERO, |link| link.rtt);
        let [mut pair, mut own] =
            [self.known.pair.unwrap_or_default(), self.costs(container)].map(|costs| costs.at(rtt));
        pair.learn(report);
        own.learn(report);
        self.known.pair = Some(pair);
        let lesson = Lesson { costs: own, latest: self.known.lessons };
        self.known.containers.insert(container.to_owned(), lesson);
        if self.known.containers.len() > CONTAINERS {
            let oldest = self.known.containers.iter().min_by_key(|(_, lesson)| lesson.latest);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.known.containers.remove(&name);
            }
        }
    }

    /// Learns what the link is like. A bandwidth that a limit held down is none
    /// of the link's: leave it out.
    pub fn learn_link(&mut self, seen: LinkFacts) {
        let before = self.known.link.unwrap_or(seen);
        let mix = |old: f64, new: f64| old + FORGET * (new - old);
        let rtt = mix(before.rtt.as_secs_f64(), seen.rtt.as_secs_f64());
        let bandwidth = match (before.bandwidth, seen.bandwidth) {
            (Some(old), Some(new)) => Some(Bandwidth(mix(old.0, new.0))),
            (old, new) => new.or(old),
        };
        self.known.link = Some(LinkFacts { rtt: Duration::from_secs_f64(rtt.max(0.0)), bandwidth });
    }

    /// Writes it through to the disk: complete, or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&mut self) -> io::Result<()> {
        self.known.version = VERSION;
        let Some(directory) = self.path.parent() else { return Ok(()) };
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let temporary = self.path.with_extension(format!("{}.new", std::process::id()));
        let written = self.write(&temporary).and_then(|()| fs::rename(&temporary, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written?;
        File::open(directory)?.sync_all()
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(&serde_json::to_vec_pretty(&self.known)?)?;
        file.sync_all()
    }
}

fn read(path: &Path) -> Option<Known> {
    if fs::metadata(path).ok()?.len() > MAX_FILE {
        return None;
    }
    let known: Known = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (known.version == VERSION).then_some(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{GoalReport, LazyReport, Phase, PhaseTime, TrackingReport, Versions};
    use crate::plan::{Goal, Method};
    use blip_transport::units::{ByteSize, PageCount};
    use std::os::unix::fs::PermissionsExt;

    fn peer() -> Fingerprint {
        Fingerprint::of_public_key(b"a key")
    }

    fn report(outcome: Outcome, restore_ms: f64) -> Report {
        let part = |phase| PhaseTime {
            phase,
            ms: if phase == Phase::Restore { restore_ms } else { 20.0 },
        };
        Report {
            outcome,
            container: "web".into(),
            target_id: None,
            downtime_ms: 0.0,
            downtime: Phase::DOWNTIME.map(part).to_vec(),
            total_ms: 0.0,
            rounds: Vec::new(),
            files: Default::default(),
            bytes_sent: ByteSize(0),
            bytes_received: ByteSize(0),
            memory_bytes: ByteSize(256 << 20),
            lazy: LazyReport::default(),
            goal: GoalReport::from(&Goal::default()),
            method: Method::Hybrid,
            predicted: None,
            met: None,
            throttled_percent: 0,
            unknowns: Vec::new(),
            tracker: String::new(),
            tracking: TrackingReport::default(),
            versions: Versions::default(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn what_was_learned_is_there_the_next_time() {
        let state = tempfile::tempdir().unwrap();
        let mut experience = Experience::open(state.path(), &peer());
        assert_eq!(experience.costs("web"), Costs::default());
        let link = LinkFacts { rtt: Duration::from_millis(4), bandwidth: Some(Bandwidth(1e8)) };
        experience.learn_link(link);
        for _ in 0..12 {
            experience.learn("web", &report(Outcome::Moved, 200.0));
        }
        experience.save().unwrap();
        let again = Experience::open(state.path(), &peer());
        assert!(again.costs("web").restore.ms > 150.0, "{:?}", again.costs("web"));
        // Another container is taken for the average of the pair.
        assert!(again.costs("db").restore.ms > 150.0);
        assert_eq!(again.costs("db").rtt_ms, 4.0);
        assert_eq!(again.link(), Some(link));
        // Its own first move counts for more than all of others.
        let mut again = again;
        again.learn("db", &report(Outcome::Moved, 500.0));
        assert!(again.costs("db").restore.ms > 450.0, "{:?}", again.costs("db"));
        assert!(again.costs("web").restore.ms < 250.0);
        let other = Fingerprint::of_public_key(b"another key");
        assert_eq!(Experience::open(state.path(), &other).costs("web"), Costs::default());
        let file = fs::metadata(&again.path).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        let left = fs::read_dir(state.path().join("experience")).unwrap().count();
        assert_eq!(left, 1);
    }

    #[test]
    fn a_migration_that_failed_teaches_nothing() {
        let state = tempfile::tempdir().unwrap();
        let mut experience = Experience::open(state.path(), &peer());
        experience.learn("web", &report(Outcome::Kept { why: "x".into() }, 200.0));
        assert_eq!(experience.costs("web"), Costs::default());
    }

    #[test]
    fn last_pages_that_drew_a_phase_out_are_not_taken_for_its_cost() {
        let mut costs = Costs::default();
        let mut report = report(Outcome::Moved, 400.0);
        let last = crate::event::RoundReport {
            frozen: true,
            dirty: PageCount(20_000),
            bytes_wire: ByteSize(80 << 20),
            ms: 700.0,
            ..Default::default()
        };
        report.rounds.push(last);
        let before = costs;
        costs.learn(&report);
        assert_eq!((costs.restore, costs.dump), (before.restore, before.dump));
        assert_ne!(costs.grant, before.grant);
    }

    #[test]
    fn how_fast_memory_went_out_is_learned_unless_a_limit_held_it_down() {
        let mut free = report(Outcome::Moved, 50.0);
        let first = crate::event::RoundReport {
            bytes_raw: ByteSize(100 << 20),
            bytes_wire: ByteSize(50 << 20),
            ms: 500.0,
            ..Default::default()
        };
        free.rounds.push(first);
        let mut costs = Costs::default();
        costs.learn(&free);
        assert_eq!(costs.squeeze, Some(0.5));
        assert!((costs.pace.unwrap().0 / 209_715_200.0 - 1.0).abs() < 1e-9);
        let mut costs = Costs::default();
        free.goal.bandwidth = Some(Bandwidth(1e6));
        costs.learn(&free);
        assert_eq!(costs.pace, None);
    }

    #[test]
    fn damage_is_no_experience_and_no_error() {
        let state = tempfile::tempdir().unwrap();
        let mut experience = Experience::open(state.path(), &peer());
        experience.save().unwrap();
        for bytes in [&b""[..], b"{", b"{\"version\":7}", &[0xff; 64]] {
            fs::write(&experience.path, bytes).unwrap();
            assert_eq!(Experience::open(state.path(), &peer()).costs("web"), Costs::default());
        }
    }

    #[test]
    fn only_so_many_containers_are_remembered() {
        let state = tempfile::tempdir().unwrap();
        let mut experience = Experience::open(state.path(), &peer());
        for i in 0..CONTAINERS + 10 {
            experience.learn(&format!("c{i}"), &report(Outcome::Moved, 50.0));
        }
        assert_eq!(experience.known.containers.len(), CONTAINERS);
        assert!(!experience.known.containers.contains_key("c0"));
    }
}
