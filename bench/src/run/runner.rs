//! Making the runs of a plan, one after the other.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::cable::sent_by;
use super::crowd::{self, Crowded};
use super::environment::unix_now;
use super::link::Link;
use super::mover::{self, Moved};
use super::noise;
use super::plan::{Cell, Plan, Way};
use super::record::Record;
use super::resident::{self, Resident};
use super::sample::{ClientSide, Ended, Noise, Sample, Trace, WorkloadSide};
use super::scenario::Scenario;
use crate::baseline::{self, Baseline};
use crate::demo::report::MigrateReport;
use crate::interrupt;
use crate::probe::{Probe, Spec, within};
use crate::relay::Relay;
use crate::rig::{Order, Rig};
use crate::workload::service::{Container, writer};

/// The container's name.
const CONTAINER: &str = "workload";

/// How long somebody who should not be there is given to answer.
const KNOCK: Duration = Duration::from_millis(300);

/// So many failures of a peer on one scenario and link say what more would.
const GIVEN_UP: u32 = 2;

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
    /// The images that the hosts were given.
    images: BTreeSet<&'static str>,
    link: Option<Link>,
    resident: Option<(Resident, Side)>,
    meddler: Option<Meddler<'a>>,
}

/// Breaks something on the hosts, when it is time.
type Meddler<'a> = RefCell<Box<dyn FnMut(&Rig, &str) + 'a>>;

/// The moment after a workload has moved.
pub const MOVED: &str = "moved";

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

impl<'a> Runner<'a> {
    /// Runs of this plan on these hosts; `program` is `blip-bench` itself,
    /// which the writer's image is made of.
    pub fn new(rig: &'a Rig, plan: &'a Plan, program: &Path) -> Self {
        let program = program.to_owned();
        Runner {
            rig,
            plan,
            program,
            images: BTreeSet::new(),
            link: None,
            resident: None,
            meddler: None,
        }
    }

    /// Makes all runs that the record does not have, and tells each as it is
    /// done. A peer that fails twice in the same way of going is left out from
    /// then on.
    ///
    /// # Errors
    /// When the record cannot be written. A run that fails is a sample that
    /// says so.
    pub fn run(
        &mut self,
        record: &mut Record,
        tell: &mut dyn FnMut(&Cell, Option<&Sample>),
    ) -> Result<()> {
        let mut failures: BTreeMap<Cell, u32> = BTreeMap::new();
        for cell in self.plan.cells() {
            let failed = failures.entry(Cell { repeat: 0, ..cell.clone() }).or_default();
            if record.has(&cell) || *failed >= GIVEN_UP {
                continue;
            }
            tell(&cell, None);
            let (sample, trace) = self.one(&cell);
            interrupt::stop_if_it_came();
            record.add(&sample, &trace)?;
            // blip has no excuse; of a peer that cannot, twice is enough.
            *failed += u32::from(self.is_peer(&cell.arm) && sample.ended == Ended::Failed);
            tell(&cell, Some(&sample));
        }
        Ok(())
    }

    fn is_peer(&self, arm: &str) -> bool {
        self.plan.arms.iter().any(|a| a.name == arm && matches!(a.way, Way::Peer(_)))
    }

    /// Has `meddler` break something: it is called with the name of each of
    /// blip's phases as it begins, and with [`MOVED`] when a workload has moved
    /// and before anything is proved. For tests of the bench itself.
    #[must_use]
    pub fn broken_by(mut self, meddler: impl FnMut(&Rig, &str) + 'a) -> Self {
        self.meddler = Some(RefCell::new(Box::new(meddler)));
        self
    }

    /// Puts everything back as it was.
    ///
    /// # Errors
    /// When a host's link cannot be given its full rate.
    pub fn clean(&mut self) -> Result<()> {
        self.rig.remove(CONTAINER);
        self.shape(Link::default())
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
        let measured = self.under_load(mover, link);
        self.shape(Link::default())?;
        measured
    }

    /// A run of a peer, with a workload of its own.
    fn peer(&mut self, name: &str, scenario: &Scenario, link: Link) -> Result<(Sample, Trace)> {
        let mut peer = baseline::named(name).context("a peer of the plan")?;
        let version = format!("{}; {}", peer.version(self.rig), peer.describe());
        let can = match link.weather() {
            Some(_) => Err("delay and loss are made by a relay of UDP, and this is TCP".to_owned()),
            None => peer.can(self.rig, &scenario.load),
        };
        if let Err(why) = can {
            let ended = Ended::Impossible;
            let sample = Sample { ended, why: Some(why), peer: Some(version), ..Sample::default() };
            return Ok((sample, Trace::default()));
        }
        self.resident = None;
        self.rig.remove(CONTAINER);
        peer.clean(self.rig);
        self.is_vacant(scenario)?;
        self.has_image(scenario)?;
        let run = |runner: &mut Self, peer: &mut Box<dyn Baseline>| {
            let addr = peer.start(runner.rig, &scenario.load)?;
            let resident = runner.settle(scenario, addr)?;
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

    /// Gives the hosts the scenario's image, if they do not have it yet.
    fn has_image(&mut self, scenario: &Scenario) -> Result<()> {
        let Container { image, application, .. } = scenario.load.service().container();
        if !self.images.insert(image) {
            return Ok(());
        }
        if let Some(application) = application {
            self.rig.lab().add_application(application, None)?;
        } else if image == writer::IMAGE {
            self.rig.lab().add_image(image, &self.program)?;
        } else {
            self.rig.lab().add_further_image(image)?;
        }
        Ok(())
    }

    /// Asks a workload that was just started what it holds, and prepares it for
    /// all its clients.
    fn settle(&self, scenario: &Scenario, addr: SocketAddr) -> Result<Resident> {
        let resident = Resident::settle(self.rig.place(), scenario, addr)?;
        if let Some(crowd) = resident.crowd() {
            crowd::prepare(self.rig.lab(), &crowd)?;
        }
        Ok(resident)
    }

    /// The container of this scenario, sound and filled.
    fn bring(&mut self, scenario: &Scenario) -> Result<()> {
        if self.resident.as_ref().is_some_and(|(r, _)| r.scenario == *scenario) {
            return Ok(());
        }
        self.shape(Link::default())?;
        self.resident = None;
        self.rig.remove(CONTAINER);
        self.is_vacant(scenario)?;
        self.has_image(scenario)?;
        let ip = self.rig.lab().container_address(0);
        let addr = resident::start(self.rig.host("a")?, CONTAINER, ip, &scenario.load)?;
        let resident = self.settle(scenario, addr)?;
        self.resident = Some((resident, Side::A));
        Ok(())
    }

    /// Nobody is where the workload is to be: whatever an earlier run has left
    /// would answer in its place, and well.
    fn is_vacant(&self, scenario: &Scenario) -> Result<()> {
        let ip = self.rig.lab().container_address(0);
        let addr = SocketAddr::from((ip, scenario.load.service().container().port));
        let knock = move || TcpStream::connect_timeout(&addr, KNOCK);
        let answer = within(self.rig.place(), "knock", knock)?;
        let somebody = match answer {
            Ok(_) => true,
            Err(why) => why.kind() == ErrorKind::ConnectionRefused,
        };
        ensure!(!somebody, "somebody is at {addr} already: what an earlier run has left?");
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
    fn under_load(&mut self, mover: &mut Mover<'_>, link: Link) -> Result<(Sample, Trace)> {
        let (resident, from) = self.resident.as_ref().context("a workload in place")?;
        let (place, from) = (self.rig.place(), *from);
        let quiet = noise::Before::now();
        let spec = Spec {
            fresh_rate: self.plan.fresh_rate,
            // A connection is given up when the migration is: a long downtime
            // is to be measured, not to be fled from.
            silence: self.plan.limit() + Duration::from_secs(60),
            drain: Duration::from_secs(5),
            ..resident.spec(self.plan.probe_rate)
        };
        let to = from.other().name();
        let road = link.weather().map(|weather| self.rig.road(to, weather)).transpose()?;
        let crowd = resident.crowd();
        let crowd = crowd.map(|crowd| Crowded::start(self.rig.lab(), &crowd)).transpose()?;
        let probe = Probe::start(spec, place)?;
        let stats = || resident.stats(place);
        let at_first = stats();
        std::thread::sleep(self.plan.margin() * 3 / 4);
        let at_order = stats();
        // The question, and the thread that answered it, are over by then.
        std::thread::sleep(self.plan.margin() / 4);
        probe.mark("migrate");
        if let Some((road, cut)) = road.as_ref().zip(link.cut) {
            road.cut(Duration::from_millis(cut.after_ms), Duration::from_millis(cut.for_ms));
        }
        let sent = sent_by(self.rig.host(from.name())?);
        let moved = match mover {
            Mover::Own(way) => self.migrate(way, from, road.as_ref(), &probe)?,
            Mover::Peer(peer) => mover::by_peer(*peer, self.rig, &probe)?,
        };
        let host_bytes = sent_by(self.rig.host(from.name())?).saturating_sub(sent);
        if moved.ended == Ended::Moved {
            self.meddle(MOVED);
        }
        probe.mark("migrated");
        std::thread::sleep(self.plan.margin() / 4);
        let at_end = stats();
        std::thread::sleep(self.plan.margin() - self.plan.margin() / 4);
        let probe = probe.stop()?;
        // Only when the client is done: the proof is heavy work.
        let client = ClientSide::of(&probe);
        self.shape_open()?;
        let (marks, timeline) = (probe.marks.clone(), probe.timeline.clone());
        let mut objections = crowd.map(Crowded::end).unwrap_or_default();
        objections.extend(resident.objections(place, probe));
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
            road: road.map(|road| road.counts()),
            host_bytes,
            migration: moved.report,
            ..Sample::default()
        };
        let trace = Trace { marks, timeline, events: moved.events, ..Trace::default() };
        if let Some((_, side)) = &mut self.resident {
            *side = should;
        }
        Ok((sample, trace))
    }

    fn meddle(&self, moment: &str) {
        if let Some(meddler) = &self.meddler {
            meddler.borrow_mut()(self.rig, moment);
        }
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

    fn migrate(&self, way: &Way, from: Side, road: Option<&Relay>, probe: &Probe) -> Result<Moved> {
        let flags = match way {
            Way::Nothing => {
                std::thread::sleep(NOTHING);
                return Ok(Moved { ended: Ended::Nothing, ..Moved::default() });
            }
            Way::Blip(flags) => [&flags[..], &["--remove-source".to_owned()]].concat(),
            Way::Peer(name) => bail!("the peer {name} is not blip"),
        };
        let order = Order {
            container: CONTAINER,
            from: from.name(),
            to: from.other().name(),
            via: road.map(Relay::address),
            flags: &flags,
            limit: Some(self.plan.limit()),
        };
        mover::by_blip(self.rig, &order, &mut |phase| {
            probe.mark(phase);
            self.meddle(phase);
        })
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
