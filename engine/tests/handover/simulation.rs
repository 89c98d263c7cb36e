//! Both ends joined by simulated links under virtual time, the link cut after
//! every message and at every moment.

use super::ends::{
    Mistake, SourceEnd, SourceJob, TargetEnd, TargetJob, ToSource, ToTarget, is_settled, violation,
};
use blip_engine::handover::{Outcome, Source, SourceEvent, Target, TargetEvent, Verdict};
use blip_transport::link::memory::{Cut, Shape, SimLink};
use blip_transport::units::{Bandwidth, ByteSize};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const MESSAGE: ByteSize = ByteSize(100);
/// How long the source waits for an answer before it asks on a new link.
const PATIENCE: Duration = Duration::from_millis(700);
/// A simulated handover that is not over by then never will be.
const LIMIT: Duration = Duration::from_secs(60);

/// One case.
#[derive(Clone, Copy, Debug)]
struct Case {
    to_target: Cut,
    to_source: Cut,
    /// When one direction is cut, so is the other.
    whole_cable: bool,
    delay: Duration,
    /// How long after the cut each end notices.
    source_notices: Duration,
    target_notices: Duration,
    /// How long it takes to write to the disk; and to let the container run.
    disk: Duration,
    resume: Duration,
    /// From the resume until every page is there.
    pages: Duration,
    /// When the target's agent dies, and whether a write under way lands.
    crash: Option<(Duration, bool)>,
    /// Questions that are lost before one gets through, and answers.
    lost_questions: u32,
    mistake: Mistake,
}

impl Case {
    fn new() -> Self {
        Self {
            to_target: Cut::Never,
            to_source: Cut::Never,
            whole_cable: true,
            delay: 5 * MS,
            source_notices: 100 * MS,
            target_notices: 100 * MS,
            disk: 4 * MS,
            resume: 6 * MS,
            pages: 50 * MS,
            crash: None,
            lost_questions: 0,
            mistake: Mistake::None,
        }
    }

    fn link<M>(&self, cut: Cut) -> SimLink<M> {
        let queue = ByteSize(1 << 20);
        SimLink::new(Shape { bandwidth: Bandwidth(1e6), delay: self.delay, queue }, cut)
    }
}

/// A question on a link of its own.
struct Question {
    there: SimLink<()>,
    back: SimLink<Option<Verdict>>,
    since: Duration,
}

struct Simulation {
    case: Case,
    now: Duration,
    source: SourceEnd,
    target: TargetEnd,
    to_target: SimLink<ToTarget>,
    to_source: SimLink<ToSource>,
    source_job_at: Option<Duration>,
    target_job_at: Option<Duration>,
    pages_at: Option<Duration>,
    source_noticed: bool,
    target_noticed: bool,
    /// A grant has been sent and has not arrived.
    grant_away: bool,
    question: Option<Question>,
    asked: u32,
}

impl Simulation {
    fn new(case: Case) -> Self {
        Self {
            case,
            now: Duration::ZERO,
            source: SourceEnd::new(case.mistake),
            target: TargetEnd::new(case.mistake),
            to_target: case.link(case.to_target),
            to_source: case.link(case.to_source),
            source_job_at: Some(MS),
            target_job_at: None,
            pages_at: None,
            source_noticed: false,
            target_noticed: false,
            grant_away: false,
            question: None,
            asked: 0,
        }
    }

    /// Runs it to its end.
    fn run(mut self) -> Result<Outcome, String> {
        while let Some(at) = self.next_time() {
            if at > LIMIT {
                break;
            }
            self.now = self.now.max(at);
            self.step()?;
        }
        let settled = is_settled(&self.source, &self.target, false);
        match self.source.machine.outcome() {
            Some(outcome) if settled => Ok(outcome),
            _ => Err(format!("no end\n  {:?}\n  {:?}", self.source, self.target)),
        }
    }

    fn step(&mut self) -> Result<(), String> {
        self.cut_both();
        if self.due(self.source_job_at) {
            self.source_job_at = None;
            let said = self.source.finish_job();
            self.source_says(said)?;
        }
        if self.due(self.target_job_at) {
            self.target_job_at = None;
            let said = self.target.finish_job();
            self.target_says(said)?;
        }
        if self.due(self.pages_at) {
            self.pages_at = None;
            let said = self.target.on(TargetEvent::PagesComplete).0;
            self.target_says(said)?;
        }
        for message in self.to_target.poll(self.now) {
            self.grant_away &= message != ToTarget::Grant;
            if !self.target_noticed {
                let said = self.target.hear(message);
                self.target_says(said)?;
            }
        }
        for message in self.to_source.poll(self.now) {
            if !self.source_noticed {
                let said = self.source.hear(message);
                self.source_says(said)?;
            }
        }
        self.cut_both();
        self.crash()?;
        self.notice()?;
        self.ask()
    }

    fn crash(&mut self) -> Result<(), String> {
        let Some((_, landed)) = self.case.crash.filter(|&(at, _)| at <= self.now) else {
            return Ok(());
        };
        self.case.crash = None;
        self.target.crash(landed);
        (self.target_noticed, self.target_job_at, self.pages_at) = (true, None, None);
        self.to_target.cut(self.now);
        self.to_source.cut(self.now);
        self.check()
    }

    fn notice(&mut self) -> Result<(), String> {
        if !self.source_noticed && self.due(self.source_notices_at()) {
            self.source_noticed = true;
            let said = self.source.on(SourceEvent::LinkLost("silence".into()));
            self.source_says(said)?;
        }
        if !self.target_noticed && self.due(self.target_notices_at()) {
            self.target_noticed = true;
            let said = self.target.on(TargetEvent::LinkLost).0;
            self.target_says(said)?;
        }
        Ok(())
    }

    fn ask(&mut self) -> Result<(), String> {
        if let Some(question) = &mut self.question {
            let busy = matches!(self.target.job, Some(TargetJob::Complete | TargetJob::Completed));
            for () in question.there.poll(self.now) {
                let answer = if busy { None } else { self.target.asked() };
                let _ = question.back.send(self.now, MESSAGE, answer);
            }
            for verdict in question.back.poll(self.now).into_iter().flatten() {
                self.source.on(SourceEvent::Verdict(verdict));
            }
            self.check()?;
        }
        if self.due(self.asks_at()) {
            let number = self.asked;
            self.asked += 1;
            let lost = number < self.case.lost_questions;
            let cut = |this| if lost && this { Cut::AfterMessages(0) } else { Cut::Never };
            let mut there = self.case.link(cut(number.is_multiple_of(2)));
            let back = self.case.link(cut(number % 2 == 1));
            let _ = there.send(self.now, MESSAGE, ());
            self.question = Some(Question { there, back, since: self.now });
        }
        Ok(())
    }

    fn source_says(&mut self, said: Vec<ToTarget>) -> Result<(), String> {
        for message in said {
            self.grant_away |= message == ToTarget::Grant;
            let _ = self.to_target.send(self.now, MESSAGE, message);
        }
        let takes = match self.source.job {
            Some(SourceJob::Freeze) => MS,
            Some(SourceJob::SaveTicket) => self.case.disk,
            None => return self.check(),
        };
        self.source_job_at.get_or_insert(self.now + takes);
        self.check()
    }

    fn target_says(&mut self, said: Vec<ToSource>) -> Result<(), String> {
        for message in said {
            let _ = self.to_source.send(self.now, MESSAGE, message);
        }
        if self.target.machine == Some(Target::Running) {
            self.pages_at.get_or_insert(self.now + self.case.pages);
        }
        self.target_job_at = match self.target.job {
            None => None,
            Some(job) => self.target_job_at.or(Some(
                self.now
                    + match job {
                        TargetJob::Restore => 20 * MS,
                        TargetJob::Resume | TargetJob::Resumed => self.case.resume / 2,
                        _ => self.case.disk,
                    },
            )),
        };
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        // Until it has arrived, is lost in the cut, or nobody listens.
        let arrives = self.to_target.next_event().is_some() && !self.target_noticed;
        violation(&self.source, &self.target, self.grant_away && arrives)
            .map_or(Ok(()), |what| Err(format!("at {:?}: {what}", self.now)))
    }

    fn cut_both(&mut self) {
        if self.case.whole_cable
            && let Some(at) = self.cut_at()
        {
            self.to_target.cut(at);
            self.to_source.cut(at);
        }
    }

    fn cut_at(&self) -> Option<Duration> {
        let cuts = [self.to_target.cut_at(), self.to_source.cut_at()];
        cuts.into_iter().flatten().min()
    }

    /// An end that is done needs no link.
    fn source_notices_at(&self) -> Option<Duration> {
        let done = matches!(self.source.machine, Source::Kept { .. } | Source::Retired);
        let at = self.cut_at().map(|at| at + self.case.source_notices);
        at.filter(|_| !self.source_noticed && !done)
    }

    fn target_notices_at(&self) -> Option<Duration> {
        let at = self.cut_at().map(|at| at + self.case.target_notices);
        at.filter(|_| !self.target_noticed)
    }

    fn asks_at(&self) -> Option<Duration> {
        let doubt = matches!(self.source.machine, Source::InDoubt { .. });
        let since = self.question.as_ref().map(|question| question.since + PATIENCE);
        doubt.then(|| since.unwrap_or(self.now))
    }

    fn due(&self, at: Option<Duration>) -> bool {
        at.is_some_and(|at| at <= self.now)
    }

    fn next_time(&self) -> Option<Duration> {
        let question = self.question.as_ref();
        [
            self.to_target.next_event(),
            self.to_source.next_event(),
            self.source_job_at,
            self.target_job_at,
            self.pages_at,
            self.source_notices_at(),
            self.target_notices_at(),
            self.case.crash.map(|(at, _)| at),
            question.and_then(|question| question.there.next_event()),
            question.and_then(|question| question.back.next_event()),
            self.asks_at(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// Cases for every cut, with different paces.
fn cases(mistake: Mistake) -> Vec<Case> {
    let paces = [1, 5, 60].map(|delay| delay * MS);
    let notices = [0, 30, 1500].map(|notice| notice * MS);
    let mut cuts = Vec::new();
    for count in 0..=3 {
        cuts.push((Cut::AfterMessages(count), Cut::Never));
        cuts.push((Cut::Never, Cut::AfterMessages(count)));
    }
    // Before, at and after each delivery and each piece of work.
    cuts.extend((0..300).step_by(3).map(|at| (Cut::At(at * MS), Cut::Never)));
    let mut cases = Vec::new();
    for (to_target, to_source) in cuts {
        for delay in paces {
            for source_notices in notices {
                for target_notices in notices {
                    for (disk, resume, pages) in [(1, 2, 0), (4, 60, 40), (50, 6, 900)] {
                        let (disk, resume, pages) = (disk * MS, resume * MS, pages * MS);
                        for (whole_cable, lost_questions) in [(true, 0), (true, 3), (false, 1)] {
                            let case = Case { to_target, to_source, delay, ..Case::new() };
                            let case = Case { source_notices, target_notices, ..case };
                            let case = Case { disk, resume, pages, mistake, ..case };
                            cases.push(Case { whole_cable, lost_questions, ..case });
                        }
                    }
                }
            }
        }
    }
    cases
}

#[derive(Debug, Default)]
struct Ends {
    moved: u32,
    kept: u32,
    in_doubt: u32,
}

fn run_all(cases: impl IntoIterator<Item = Case>) -> Ends {
    let mut ends = Ends::default();
    for case in cases {
        match Simulation::new(case).run() {
            Ok(Outcome::Moved) => ends.moved += 1,
            Ok(Outcome::Kept { .. }) => ends.kept += 1,
            Ok(Outcome::InDoubt { .. }) => ends.in_doubt += 1,
            Err(what) => panic!("{what}\n{case:?}"),
        }
    }
    println!("{ends:?}");
    ends
}

#[test]
fn a_whole_link_moves_it() {
    assert_eq!(Simulation::new(Case::new()).run(), Ok(Outcome::Moved));
}

#[test]
fn a_cut_anywhere_ends_with_exactly_one() {
    let ends = run_all(cases(Mistake::None));
    assert!(ends.moved > 0 && ends.kept > 0, "{ends:?}");
    assert_eq!(ends.in_doubt, 0, "the target was never lost");
}

#[test]
fn an_agent_that_dies_anywhere_leaves_one_or_a_doubt() {
    let dies = |case: Case| {
        (0..400).step_by(2).flat_map(move |at| {
            [false, true].map(|landed| Case { crash: Some((at * MS, landed)), ..case })
        })
    };
    let paces = [(1, 1, 2, 3), (5, 4, 60, 40), (40, 20, 6, 90)];
    let ends = run_all(paces.into_iter().flat_map(|(delay, disk, resume, pages)| {
        let (delay, disk, resume, pages) = (delay * MS, disk * MS, resume * MS, pages * MS);
        let case = Case { delay, disk, resume, pages, ..Case::new() };
        let cut = Case { to_source: Cut::AfterMessages(1), lost_questions: 1, ..case };
        dies(case).chain(dies(cut))
    }));
    assert!(ends.moved > 0 && ends.kept > 0 && ends.in_doubt > 0, "{ends:?}");
}

#[test]
fn a_source_that_thaws_when_the_link_is_lost_is_caught() {
    let cases = cases(Mistake::ThawOnLoss).into_iter();
    let found: Vec<_> = cases.filter_map(|case| Simulation::new(case).run().err()).collect();
    for why in ["runs what has run on the target", "runs while a grant is under way"] {
        assert!(found.iter().any(|what| what.contains(why)), "not caught: it {why}");
    }
}

#[test]
fn a_target_that_runs_it_before_the_grant_is_saved_and_dies_is_caught() {
    let dies = |at| Case {
        crash: Some((at * MS, false)),
        mistake: Mistake::ResumeBeforeSave,
        ..Case::new()
    };
    let found = (0..200).filter_map(|at| Simulation::new(dies(at)).run().err());
    let found: Vec<_> = found.filter(|what| what.contains("has run on the target")).collect();
    assert!(!found.is_empty());
}

#[test]
fn a_target_that_answers_without_burning_is_caught() {
    let mut case = Case { mistake: Mistake::NoBurn, ..Case::new() };
    (case.to_source, case.whole_cable) = (Cut::AfterMessages(1), false);
    (case.source_notices, case.target_notices) = (5 * MS, 1500 * MS);
    let burns = Case { mistake: Mistake::None, ..case };
    // The question overtakes the grant, on a link of its own.
    let run = |case: Case| {
        let mut simulation = Simulation::new(case);
        let slow = Shape { bandwidth: Bandwidth(1e6), delay: 300 * MS, queue: ByteSize(1 << 20) };
        simulation.to_target = SimLink::new(slow, Cut::Never);
        simulation.run()
    };
    assert!(matches!(run(burns), Ok(Outcome::Kept { .. })));
    assert!(run(case).unwrap_err().contains("a grant is under way"));
}
