//! Making the runs of a plan, one after the other.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::cable::sent_by;
use super::environment::unix_now;
use super::noise;
use super::plan::{Cell, Link, Plan, Way};
use super::record::Record;
use super::resident::{self, Resident};
use super::sample::{ClientSide, Ended, Noise, Sample, Trace, WorkloadSide};
use super::scenario::{Load, Scenario};
use crate::baseline::{self, Baseline};
use crate::demo::report::{MigrateReport, Outcome};
use crate::probe::{Probe, Spec};
use crate::rig::{Order, Rig};

/// The container's name.
const CONTAINER: &str = "workload";

/// How many counters the client goes round.
const COUNTERS: u32 = 100;

/// How long nothing is done where nothing is to be moved.
const NOTHING: Duration = Duration::from_secs(2);

/// A client gap may be longer than the downtime by this, or by the downtime
/// once more (clients send again at growing intervals), before it is remarked
/// upon.
const MOST_UNTOLD_MS: f64 = 250.0;

/// Where runs are made.
pub struct Runner<'a> {
    rig: &'a Rig,
    plan: &'a Plan,
    /// `blip-bench`, for the writer's image.
    program: PathBuf,
    has_writer: bool,
    link: Option<Link>,
    resident: Option<(Resident, Side)>,
    meddler: Option<Meddler<'a>>,
}

/// Breaks something on the hosts.
type Meddler<'a> = Box<dyn FnMut(&Rig) + 'a>;

/// The host that has the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    A,
    B,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::A => "a",
            Side::B => "b",
        }
    }

    fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// Who moves the workload.
enum Mover<'a> {
    Own(&'a Way),
    Peer(&'a mut dyn Baseline),
}

/// What came of an order to migrate.
#[derive(Default)]
struct Moved {
    ended: Ended,
    why: Option<String>,
    report: Option<MigrateReport>,
    events: Vec<Value>,
}

impl<'a> Runner<'a> {
    /// Runs of this plan on these hosts; `program` is `blip-bench` itself,
    /// which the writer's image is made of.
    pub fn new(rig: &'a Rig, plan: &'a Plan, program: &Path) -> Self {
        let program = program.to_owned();
        Runner { rig, plan, program, has_writer: false, link: None, resident: None, meddler: None }
    }

    /// Makes all runs that the record does not have, and tells each as it is
    /// done.
    ///
    /// # Errors
    /// When the record cannot be written. A run that fails is a sample that
    /// says so.
    pub fn run(
        &mut self,
        record: &mut Record,
        tell: &mut dyn FnMut(&Cell, Option<&Sample>),
    ) -> Result<()> {
        for cell in
            self.plan.cells().into_iter().filter(|cell| !record.has(cell)).collect::<Vec<_>>()
        {
            tell(&cell, None);
            let (sample, trace) = self.one(&cell);
            record.add(&sample, &trace)?;
            tell(&cell, Some(&sample));
        }
        Ok(())
    }

    /// Has `meddler` break something each time a workload has moved, before
    /// anything is proved: for tests of the bench itself.
    #[must_use]
    pub fn broken_by(mut self, meddler: impl FnMut(&Rig) + 'a) -> Self {
        self.meddler = Some(Box::new(meddler));
        self
    }

    /// Puts everything back as it was.
    ///
    /// # Errors
    /// When a host's link cannot be given its full rate.
    pub fn clean(&mut self) -> Result<()> {
        self.rig.remove(CONTAINER);
        self.shape(Link { bits: None })
    }

    fn one(&mut self, cell: &Cell) -> (Sample, Trace) {
        let began_unix_s = unix_now();
        let (mut sample, mut trace) = self.measure(cell).unwrap_or_else(|why| {
            let why = Some(format!("{why:#}"));
            (Sample { ended: Ended::Failed, why, ..Sample::default() }, Trace::default())
        });
        let sound = matches!(sample.ended, Ended::Nothing | Ended::Moved | Ended::Kept);
        let moved_once = sample.ended == Ended::Moved && !self.plan.onward;
        if !sound || !sample.verified || moved_once {
            // Whatever is left is not where the next run is to begin.
            self.resident = None;
        }
        (sample.cell, sample.began_unix_s) = (cell.clone(), began_unix_s);
        trace.cell = cell.clone();
        (sample, trace)
    }

    fn measure(&mut self, cell: &Cell) -> Result<(Sample, Trace)> {
        let find = |name: &str| self.plan.scenarios.iter().find(|s| s.name == name);
        let scenario = find(&cell.scenario).context("a scenario of the plan")?.clone();
        let arm = self.plan.arms.iter().find(|a| a.name == cell.arm);
        let arm = arm.context("an arm of the plan")?.clone();
        let link = self.plan.links.iter().find(|l| l.to_string() == cell.link);
        let link = *link.context("a link of the plan")?;
        if let Way::Peer(name) = &arm.way {
            return self.peer(name, &scenario, link);
        }
        self.bring(&scenario)?;
        self.on_link(link, &mut Mover::Own(&arm.way))
    }

    /// A run over a link. Filling and checking need not wait for a slow one.
    fn on_link(&mut self, link: Link, mover: &mut Mover<'_>) -> Result<(Sample, Trace)> {
        self.shape(link)?;
        let measured = self.under_load(mover);
        self.shape(Link { bits: None })?;
        measured
    }

    /// A run of a peer, with a workload of its own.
    fn peer(&mut self, name: &str, scenario: &Scenario, link: Link) -> Result<(Sample, Trace)> {
        let mut peer = baseline::named(name).context("a peer of the plan")?;
        let version = format!("{}; {}", peer.version(self.rig), peer.describe());
        if let Err(why) = peer.can(self.rig, &scenario.load) {
            let ended = Ended::Impossible;
            let sample = Sample { ended, why: Some(why), peer: Some(version), ..Sample::default() };
            return Ok((sample, Trace::default()));
        }
        self.resident = None;
        self.rig.remove(CONTAINER);
        self.has_image(scenario)?;
        let run = |runner: &mut Self, peer: &mut Box<dyn Baseline>| {
            let addr = peer.start(runner.rig, &scenario.load)?;
            let resident = Resident::settle(runner.rig.place(), scenario, addr)?;
            runner.resident = Some((resident, Side::A));
            runner.on_link(link, &mut Mover::Peer(peer.as_mut()))
        };
        let measured = run(self, &mut peer);
        peer.clean(self.rig);
        self.resident = None;
        let (mut sample, trace) = measured?;
        if let Some(report) = &mut sample.migration {
            report.memory_bytes = scenario.memory();
        }
        sample.peer = Some(version);
        Ok((sample, trace))
    }

    /// Gives the hosts the writer's image, if it is needed and not there yet.
    fn has_image(&mut self, scenario: &Scenario) -> Result<()> {
        if matches!(scenario.load, Load::Writer(_)) && !self.has_writer {
            self.rig.lab().add_image(resident::WRITER_IMAGE, &self.program)?;
            self.has_writer = true;
        }
        Ok(())
    }

    /// The container of this scenario, sound and filled.
    fn bring(&mut self, scenario: &Scenario) -> Result<()> {
        if self.resident.as_ref().is_some_and(|(r, _)| r.scenario == *scenario) {
            return Ok(());
        }
        self.shape(Link { bits: None })?;
        self.resident = None;
        self.rig.remove(CONTAINER);
        self.has_image(scenario)?;
        let ip = self.rig.lab().container_address(0);
        let addr = resident::start(self.rig.host("a")?, CONTAINER, ip, &scenario.load)?;
        let resident = Resident::settle(self.rig.place(), scenario, addr)?;
        self.resident = Some((resident, Side::A));
        Ok(())
    }

    /// Gives each host's cable this rate, as if it were its network card.
    fn shape(&mut self, link: Link) -> Result<()> {
        if self.link == Some(link) {
            return Ok(());
        }
        for side in [Side::A, Side::B] {
            self.rig.lab().rate_limit(side.name(), link.bandwidth())?;
        }
        self.link = Some(link);
        Ok(())
    }

    /// The run itself: a client asks all the while, and everything is proved
    /// at the end.
    fn under_load(&mut self, mover: &mut Mover<'_>) -> Result<(Sample, Trace)> {
        let (resident, from) = self.resident.as_ref().context("a workload in place")?;
        let (place, from) = (self.rig.place(), *from);
        let quiet = noise::Before::now();
        let spec = Spec {
            rate: self.plan.probe_rate,
            counters: COUNTERS,
            // A connection is given up when the migration is: a long downtime
            // is to be measured, not to be fled from.
            silence: self.plan.limit() + Duration::from_secs(60),
            drain: Duration::from_secs(5),
            ..Spec::new(resident.addr)
        };
        let probe = Probe::start(spec, place)?;
        let stats = || resident.stats(place);
        let at_first = stats();
        std::thread::sleep(self.plan.margin() * 3 / 4);
        let at_order = stats();
        // The question, and the thread that answered it, are over by then.
        std::thread::sleep(self.plan.margin() / 4);
        probe.mark("migrate");
        let sent = sent_by(self.rig.host(from.name())?);
        let moved = match mover {
            Mover::Own(way) => self.migrate(way, from, &probe)?,
            Mover::Peer(peer) => by_peer(*peer, self.rig, &probe)?,
        };
        let host_bytes = sent_by(self.rig.host(from.name())?).saturating_sub(sent);
        if let Some(meddler) = self.meddler.as_mut().filter(|_| moved.ended == Ended::Moved) {
            meddler(self.rig);
        }
        probe.mark("migrated");
        std::thread::sleep(self.plan.margin() / 4);
        let at_end = stats();
        std::thread::sleep(self.plan.margin() - self.plan.margin() / 4);
        let probe = probe.stop()?;
        // Only when the client is done: the proof is heavy work.
        let client = ClientSide::of(&probe);
        self.shape_open()?;
        let mut objections = resident.objections(place, &probe);
        let should = if moved.ended == Ended::Moved { from.other() } else { from };
        if matches!(mover, Mover::Own(_)) {
            objections.extend(self.misplaced(should));
        }
        let since = |from: Option<_>, to: Option<_>| {
            let (from, to) = from.zip(to)?;
            Some(crate::workload::writer::Stats::rate_since(&to, &from))
        };
        let sample = Sample {
            direction: format!("{}→{}", from.name(), from.other().name()),
            ended: moved.ended,
            why: moved.why,
            verified: objections.is_empty(),
            objections,
            workload: WorkloadSide {
                rate_before: since(at_first, at_order),
                rate_during: since(at_order, at_end),
            },
            noise: disturbed(quiet, &client, moved.report.as_ref()),
            client,
            host_bytes,
            migration: moved.report,
            ..Sample::default()
        };
        let trace = Trace {
            marks: probe.marks,
            timeline: probe.timeline,
            events: moved.events,
            ..Trace::default()
        };
        if let Some((_, side)) = &mut self.resident {
            *side = should;
        }
        Ok((sample, trace))
    }

    /// What is wrong if the container is not where it should be.
    fn misplaced(&self, should: Side) -> Option<String> {
        let now = self.rig.whereabouts(CONTAINER).map(|(host, _)| host.name());
        let (now, should) = (now.unwrap_or("nowhere"), should.name());
        (now != should).then(|| format!("the container is on {now} and should be on {should}"))
    }

    /// Lifts the limit without remembering it: `measure` does that.
    fn shape_open(&self) -> Result<()> {
        for side in [Side::A, Side::B] {
            self.rig.lab().rate_limit(side.name(), None)?;
        }
        Ok(())
    }

    fn migrate(&self, way: &Way, from: Side, probe: &Probe) -> Result<Moved> {
        match way {
            Way::Nothing => {
                std::thread::sleep(NOTHING);
                Ok(Moved { ended: Ended::Nothing, ..Moved::default() })
            }
            Way::Blip(flags) => self.blip(flags, from, probe),
            Way::Peer(name) => bail!("the peer {name} is not blip"),
        }
    }

    fn blip(&self, flags: &[String], from: Side, probe: &Probe) -> Result<Moved> {
        let mut flags = flags.to_vec();
        flags.push("--remove-source".to_owned());
        let order = Order {
            container: CONTAINER,
            from: from.name(),
            to: from.other().name(),
            flags: &flags,
            limit: Some(self.plan.limit()),
        };
        let mut moved = Moved::default();
        let ended = self.rig.migrate(&order, &mut |line| {
            if let Some(report) = MigrateReport::from_line(line)? {
                moved.report = Some(report);
                return Ok(());
            }
            let Ok(event) = serde_json::from_str::<Value>(line) else { return Ok(()) };
            if event["event"] == "begin" {
                probe.mark(event["phase"].as_str().unwrap_or_default());
            }
            if event["event"] != "progress" {
                moved.events.push(event);
            }
            Ok(())
        })?;
        let said = ended.said.trim();
        if ended.killed {
            let limit = self.plan.limit().as_secs();
            bail!("`blip migrate` was killed after {limit} s; it had said: {said}");
        }
        let Some(report) = &moved.report else {
            bail!("`blip migrate` ended ({}) without a report: {said}", ended.status);
        };
        moved.ended = match report.outcome {
            Outcome::Moved => Ended::Moved,
            Outcome::Kept => Ended::Kept,
            Outcome::InDoubt => Ended::InDoubt,
        };
        moved.why.clone_from(&report.why);
        Ok(moved)
    }
}

/// What else the machine did, and whether mover and client tell the same story.
fn disturbed(quiet: noise::Before, client: &ClientSide, report: Option<&MigrateReport>) -> Noise {
    let mut noise = quiet.until_now(client.stall.longest_ms);
    let told = report.map_or(0.0, |r| r.downtime_ms);
    let more = client.gap_ms - told;
    if told > 0.0 && more > MOST_UNTOLD_MS.max(told) {
        noise.warnings.push(format!(
            "clients had no answer for {more:.0} ms more than the downtime of {told:.0} ms that was told"
        ));
    }
    noise
}

/// Has a peer move its workload; the bench is the one who looks at the clock.
fn by_peer(peer: &mut dyn Baseline, rig: &Rig, probe: &Probe) -> Result<Moved> {
    let began = Instant::now();
    peer.migrate(rig, &mut |label| probe.mark(label))?;
    let report = MigrateReport {
        outcome: Outcome::Moved,
        total_ms: began.elapsed().as_secs_f64() * 1e3,
        ..MigrateReport::default()
    };
    Ok(Moved { ended: Ended::Moved, report: Some(report), ..Moved::default() })
}
