//! Every interleaving of everything that can happen, breadth first.
//!
//! Either end may think the link lost at any time, also alone; what is on its
//! way to an end that has not yet noticed may still arrive. Either side may
//! fail, be interrupted or die at any point, and the ticket may be asked about
//! at any point.

use super::ends::{
    Body, Mistake, SourceEnd, SourceJob, TargetEnd, TargetJob, ToSource, ToTarget, is_settled,
    violation,
};
use blip_engine::handover::{Source, SourceEvent, Target, TargetEvent, Verdict};
use std::collections::{HashMap, VecDeque};

/// Most questions, and most answers, that are under way at once.
const QUESTIONS: usize = 2;

#[derive(Clone, Debug)]
struct World {
    source: SourceEnd,
    target: TargetEnd,
    to_target: VecDeque<ToTarget>,
    to_source: VecDeque<ToSource>,
    source_linked: bool,
    target_linked: bool,
    questions: usize,
    answers: Vec<Verdict>,
    /// Some pages are only on the source when the container resumes.
    needs_source: bool,
    /// Agents and blips die this often at most.
    crashes: u8,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    SourceJob,
    SourceFails,
    SourceLosesLink,
    SourceCrashes {
        landed: bool,
    },
    SourceHears,
    SourceAsks,
    SourceLearns(usize),
    AnswerLost(usize),
    TargetJob,
    TargetFails,
    TargetLosesLink,
    TargetCrashes {
        landed: bool,
    },
    TargetHears,
    TargetAnswers,
    QuestionLost,
    /// As an agent does that shuts down.
    AskedByNobody,
    PagesComplete,
    GuardKills,
}

impl World {
    fn new(mistake: Mistake, needs_source: bool) -> Self {
        Self {
            source: SourceEnd::new(mistake),
            target: TargetEnd::new(mistake),
            to_target: VecDeque::new(),
            to_source: VecDeque::new(),
            source_linked: true,
            target_linked: true,
            questions: 0,
            answers: Vec::new(),
            needs_source,
            crashes: 2,
        }
    }

    /// All that tells two worlds apart; reasons in words do not.
    fn key(&self) -> impl Eq + std::hash::Hash + use<> {
        let (s, t) = (&self.source, &self.target);
        let machine = std::mem::discriminant(&s.machine);
        let source = (machine, s.body, s.job, s.ticket_on_disk);
        let step = std::mem::discriminant(&t.disk);
        let state = t.machine.map(|machine| std::mem::discriminant(&machine));
        let target = (state, t.body, t.job, step, t.has_run, t.guard, t.doomed);
        let answers: Vec<_> = self.answers.iter().map(std::mem::discriminant).collect();
        let links = (self.source_linked, self.target_linked, self.needs_source, self.crashes);
        let flying = (self.to_target.clone(), self.to_source.clone(), self.questions, answers);
        (source, target, links, flying)
    }

    fn steps(&self) -> Vec<Step> {
        use Step as S;
        let (s, t) = (&self.source, &self.target);
        let mut steps = vec![S::SourceFails, S::AskedByNobody];
        let mut may = |condition: bool, step| steps.extend(condition.then_some(step));
        may(s.job.is_some(), S::SourceJob);
        may(self.source_linked, S::SourceLosesLink);
        may(self.source_linked && !self.to_source.is_empty(), S::SourceHears);
        let owns_ticket =
            matches!(s.machine, Source::Granted | Source::Yielded | Source::InDoubt { .. });
        may(owns_ticket && self.questions < QUESTIONS, S::SourceAsks);
        for answer in 0..self.answers.len() {
            may(true, S::SourceLearns(answer));
            may(true, S::AnswerLost(answer));
        }
        may(t.job.is_some(), S::TargetJob);
        // "Failed" is for a target on which nothing has run, or which runs.
        let runs = t.machine.is_some_and(Target::runs);
        may(t.machine.is_some() && (t.body != Body::Runs || runs), S::TargetFails);
        may(self.target_linked, S::TargetLosesLink);
        may(self.target_linked && !self.to_target.is_empty(), S::TargetHears);
        // The agent takes one thing at a time: no question in mid-completion.
        let busy = matches!(t.job, Some(TargetJob::Complete | TargetJob::Completed));
        may(self.questions > 0 && !busy, S::TargetAnswers);
        may(self.questions > 0, S::QuestionLost);
        let reach = !self.pages_out_of_reach();
        may(t.machine == Some(Target::Running) && reach, S::PagesComplete);
        may(t.doomed, S::GuardKills);
        for landed in [false, true] {
            let matters = s.job == Some(SourceJob::SaveTicket) || !landed;
            may(self.crashes > 0 && matters, S::SourceCrashes { landed });
            let matters = t.job == Some(TargetJob::SaveGrant) || !landed;
            let alive = t.machine.is_some();
            may(self.crashes > 0 && alive && matters, S::TargetCrashes { landed });
        }
        steps
    }

    fn take(&mut self, step: Step) {
        use Step as S;
        let source = self.source_step(step);
        if self.source_linked && self.target_linked {
            self.to_target.extend(source);
        }
        let target = match step {
            S::TargetJob => self.target.finish_job(),
            S::TargetFails => self.target.on(TargetEvent::Failed).0,
            S::TargetLosesLink => {
                self.unlink_target();
                self.target.on(TargetEvent::LinkLost).0
            }
            S::TargetHears => {
                self.to_target.pop_front().map(|m| self.target.hear(m)).unwrap_or_default()
            }
            S::TargetAnswers => {
                self.questions -= 1;
                let answer = self.target.asked();
                if self.answers.len() < QUESTIONS {
                    self.answers.extend(answer);
                }
                vec![]
            }
            S::AskedByNobody => {
                let busy =
                    matches!(self.target.job, Some(TargetJob::Complete | TargetJob::Completed));
                if !busy {
                    self.target.asked();
                }
                vec![]
            }
            S::PagesComplete => self.target.on(TargetEvent::PagesComplete).0,
            S::TargetCrashes { landed } => {
                self.crashes -= 1;
                self.unlink_target();
                self.target.crash(landed);
                vec![]
            }
            S::GuardKills => {
                self.target.guard_kills();
                vec![]
            }
            S::QuestionLost => {
                self.questions -= 1;
                vec![]
            }
            _ => vec![],
        };
        if self.source_linked && self.target_linked {
            self.to_source.extend(target);
        }
    }

    fn source_step(&mut self, step: Step) -> Vec<ToTarget> {
        use Step as S;
        match step {
            S::SourceJob => self.source.finish_job(),
            S::SourceFails => self.source.on(SourceEvent::Failed("stop".into())),
            S::SourceLosesLink => {
                self.unlink_source();
                self.source.on(SourceEvent::LinkLost("cut".into()))
            }
            S::SourceCrashes { landed } => {
                self.crashes -= 1;
                self.unlink_source();
                self.source.crash(landed);
                vec![]
            }
            S::SourceHears => {
                self.to_source.pop_front().map(|m| self.source.hear(m)).unwrap_or_default()
            }
            S::SourceAsks => {
                self.questions += 1;
                vec![]
            }
            S::SourceLearns(which) => {
                let verdict = self.answers.remove(which);
                self.source.on(SourceEvent::Verdict(verdict))
            }
            S::AnswerLost(which) => {
                self.answers.remove(which);
                vec![]
            }
            _ => vec![],
        }
    }

    fn unlink_source(&mut self) {
        self.source_linked = false;
        self.to_source.clear();
    }

    fn unlink_target(&mut self) {
        self.target_linked = false;
        self.to_target.clear();
    }

    fn violation(&self) -> Option<String> {
        let grant = self.target_linked && self.to_target.contains(&ToTarget::Grant);
        violation(&self.source, &self.target, grant)
    }

    fn is_settled(&self) -> bool {
        is_settled(&self.source, &self.target, self.pages_out_of_reach())
    }

    fn pages_out_of_reach(&self) -> bool {
        self.needs_source && !(self.source_linked && self.target_linked)
    }
}

/// What a walk found.
struct Found {
    states: usize,
    transitions: usize,
    /// The shortest way to a state that must not be.
    violation: Option<String>,
    /// A way to a state from which no end can be reached.
    stuck: Option<String>,
}

fn explore(mistake: Mistake) -> Found {
    let mut worlds: Vec<(World, usize, Option<Step>)> = Vec::new();
    let mut known = HashMap::new();
    let mut back: Vec<Vec<usize>> = Vec::new();
    for needs_source in [false, true] {
        let world = World::new(mistake, needs_source);
        known.insert(world.key(), worlds.len());
        worlds.push((world, worlds.len(), None));
        back.push(Vec::new());
    }
    let (mut at, mut transitions) = (0, 0);
    while at < worlds.len() {
        let world = worlds[at].0.clone();
        if let Some(what) = world.violation() {
            let violation = Some(format!("{what}\n  {:?}", way(&worlds, at)));
            return Found { states: worlds.len(), transitions, violation, stuck: None };
        }
        for step in world.steps() {
            let mut next = world.clone();
            next.take(step);
            transitions += 1;
            let to = *known.entry(next.key()).or_insert_with(|| {
                worlds.push((next, at, Some(step)));
                back.push(Vec::new());
                worlds.len() - 1
            });
            back[to].push(at);
        }
        at += 1;
    }
    // Backwards from the ends: whatever is not met can never end.
    let mut ends: Vec<_> = (0..worlds.len()).filter(|&at| worlds[at].0.is_settled()).collect();
    let mut met = vec![false; worlds.len()];
    ends.iter().for_each(|&at| met[at] = true);
    while let Some(at) = ends.pop() {
        for &before in &back[at] {
            if !std::mem::replace(&mut met[before], true) {
                ends.push(before);
            }
        }
    }
    let stuck = met.iter().position(|met| !met);
    let stuck = stuck.map(|at| format!("{:?}\n  {:?}", worlds[at].0, way(&worlds, at)));
    Found { states: worlds.len(), transitions, violation: None, stuck }
}

fn way(worlds: &[(World, usize, Option<Step>)], mut at: usize) -> Vec<Step> {
    let mut way = Vec::new();
    while let (_, before, Some(step)) = &worlds[at] {
        way.push(*step);
        at = *before;
    }
    way.reverse();
    way
}

#[test]
fn no_interleaving_breaks_the_handover_and_each_can_end() {
    let found = explore(Mistake::None);
    println!("{} states, {} transitions", found.states, found.transitions);
    assert_eq!(found.violation.as_deref().unwrap_or("none"), "none");
    assert_eq!(found.stuck.as_deref().unwrap_or("none"), "none");
    assert!(found.states > 1000, "only {} states", found.states);
}

#[test]
fn a_source_that_thaws_when_the_link_is_lost_is_caught() {
    caught(Mistake::ThawOnLoss, "the source runs while a grant is under way");
}

#[test]
fn a_source_that_thaws_when_interrupted_after_the_grant_is_caught() {
    caught(Mistake::ThawOnInterrupt, "the source runs while a grant is under way");
}

#[test]
fn a_grant_sent_before_the_ticket_is_saved_is_caught() {
    caught(Mistake::GrantBeforeTicket, "the source runs while a grant is under way");
}

#[test]
fn a_target_that_runs_it_before_the_grant_is_saved_is_caught() {
    caught(Mistake::ResumeBeforeSave, "the source runs what has run on the target");
}

#[test]
fn a_target_that_answers_without_burning_is_caught() {
    caught(Mistake::NoBurn, "the source runs while a grant is under way");
}

#[test]
fn a_target_that_swears_before_it_is_complete_is_caught() {
    caught(Mistake::RanWhileIncomplete, "the target's copy may still be killed");
}

#[test]
fn an_agent_that_answers_before_the_guard_is_done_is_caught() {
    caught(Mistake::SlowGuard, "the target's copy may still be killed");
}

#[test]
fn a_record_of_completeness_under_a_live_guard_is_caught() {
    caught(Mistake::CompleteBeforeDismissal, "nobody runs it");
}

/// The walk must find this mistake, and for the reason that it is one.
fn caught(mistake: Mistake, why: &str) {
    let found = explore(mistake).violation;
    let found = found.unwrap_or_else(|| panic!("{mistake:?} was not caught"));
    assert!(found.contains(why), "{mistake:?} was caught for another reason: {found}");
    println!("{found}");
}
