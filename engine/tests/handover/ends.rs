//! Drivers of the two machines for a world without I/O, and the invariants.

use blip_engine::handover::{
    Source, SourceAction, SourceEvent, Target, TargetAction, TargetEvent, Ticket, Verdict,
};
use blip_engine::ledger::{Made, TargetRecord, TargetStep};

/// From source to target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ToTarget {
    Restore,
    Grant,
    Abort,
}

/// From target to source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ToSource {
    Held,
    Resumed,
    Drained,
    Failed,
}

/// What a broken driver does. Each must be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    /// The source thaws when the link is lost, whatever it has sent.
    ThawOnLoss,
    /// The source thaws when the user interrupts, whatever it has sent.
    ThawOnInterrupt,
    /// The source sends the grant before its ticket is on disk.
    GrantBeforeTicket,
    /// The target lets it run before the grant is on disk.
    ResumeBeforeSave,
    /// The target answers a question and stays ready for a grant.
    NoBurn,
    /// The target swears that it ran while pages are missing.
    RanWhileIncomplete,
    /// A restarted agent answers before the guard has killed the container.
    SlowGuard,
    /// `Complete` is written while the guard still watches.
    CompleteBeforeDismissal,
}

/// A process tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Body {
    Absent,
    Frozen,
    Runs,
    Ended,
}

/// Work of the source that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SourceJob {
    Freeze,
    SaveTicket,
}

/// Work of the target that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TargetJob {
    Restore,
    SaveGrant,
    /// The word to go is not yet written.
    Resume,
    /// It runs; nobody has been told.
    Resumed,
    /// Pages are complete; first half of making it last.
    Complete,
    /// Second half.
    Completed,
}

/// The source's host.
#[derive(Clone, Debug)]
pub(crate) struct SourceEnd {
    pub(crate) machine: Source,
    pub(crate) body: Body,
    pub(crate) job: Option<SourceJob>,
    pub(crate) ticket_on_disk: bool,
    pub(crate) mistake: Mistake,
}

impl SourceEnd {
    pub(crate) fn new(mistake: Mistake) -> Self {
        let job = Some(SourceJob::Freeze);
        let machine = Source::Running;
        Self { machine, body: Body::Runs, job, ticket_on_disk: false, mistake }
    }

    /// Feeds the machine and carries out what it says.
    pub(crate) fn on(&mut self, event: SourceEvent) -> Vec<ToTarget> {
        use Mistake::{ThawOnInterrupt, ThawOnLoss};
        let thaws = match event {
            SourceEvent::LinkLost(_) => self.mistake == ThawOnLoss,
            SourceEvent::Failed(_) => self.mistake == ThawOnInterrupt,
            _ => false,
        };
        if thaws && self.body == Body::Frozen {
            (self.machine, self.body) = (Source::Kept { why: "mistake".into() }, Body::Runs);
            return vec![];
        }
        let was_running = self.machine == Source::Running;
        let mut said = Vec::new();
        for action in self.machine.on(event) {
            match action {
                SourceAction::Thaw => (self.body, self.job) = (Body::Runs, None),
                SourceAction::SaveTicket => {
                    self.job = Some(SourceJob::SaveTicket);
                    if self.mistake == Mistake::GrantBeforeTicket {
                        said.push(ToTarget::Grant);
                    }
                }
                SourceAction::SendGrant if self.mistake == Mistake::GrantBeforeTicket => {}
                SourceAction::SendGrant => said.push(ToTarget::Grant),
                SourceAction::SendAbort => said.push(ToTarget::Abort),
                SourceAction::Retire => self.body = Body::Ended,
            }
        }
        if was_running && self.machine == Source::Shipping {
            said.push(ToTarget::Restore);
        }
        said
    }

    pub(crate) fn hear(&mut self, message: ToSource) -> Vec<ToTarget> {
        self.on(match message {
            ToSource::Held => SourceEvent::Held,
            ToSource::Resumed => SourceEvent::Resumed,
            ToSource::Drained => SourceEvent::Drained,
            ToSource::Failed if self.machine.past_the_grant() => {
                SourceEvent::Verdict(Verdict::NeverRan)
            }
            ToSource::Failed => SourceEvent::Failed("the target failed".into()),
        })
    }

    /// The job under way is done.
    pub(crate) fn finish_job(&mut self) -> Vec<ToTarget> {
        match self.job.take() {
            Some(SourceJob::Freeze) => {
                self.body = Body::Frozen;
                self.on(SourceEvent::Frozen)
            }
            Some(SourceJob::SaveTicket) => {
                self.ticket_on_disk = true;
                self.on(SourceEvent::TicketSaved)
            }
            None => vec![],
        }
    }

    /// blip dies here. Without a ticket the guard thaws; with one the next blip
    /// finds the ticket and is in doubt. `landed`: a ticket being written got to
    /// the disk.
    pub(crate) fn crash(&mut self, landed: bool) {
        self.ticket_on_disk |= landed && self.job == Some(SourceJob::SaveTicket);
        self.job = None;
        let why = "blip died".to_owned();
        match (self.body, self.ticket_on_disk) {
            (Body::Frozen, true) => self.machine = Source::InDoubt { why },
            (Body::Frozen | Body::Runs, _) => {
                (self.machine, self.body) = (Source::Kept { why }, Body::Runs);
            }
            (Body::Ended | Body::Absent, _) => {}
        }
    }
}

/// The target's host.
#[derive(Clone, Debug)]
pub(crate) struct TargetEnd {
    /// `None`: the agent was started after the handover and has only its ledger.
    pub(crate) machine: Option<Target>,
    pub(crate) body: Body,
    pub(crate) job: Option<TargetJob>,
    pub(crate) disk: TargetStep,
    /// It was let run here, if only for an instant.
    pub(crate) has_run: bool,
    /// Watches over an incomplete container: kills it when the agent dies.
    pub(crate) guard: bool,
    /// The guard is about to kill it.
    pub(crate) doomed: bool,
    pub(crate) mistake: Mistake,
}

impl TargetEnd {
    pub(crate) fn new(mistake: Mistake) -> Self {
        Self {
            machine: Some(Target::Staged),
            body: Body::Absent,
            job: None,
            disk: TargetStep::Staged,
            has_run: false,
            guard: false,
            doomed: false,
            mistake,
        }
    }

    /// Feeds the machine and carries out what it says. The verdict is for
    /// whoever asked.
    pub(crate) fn on(&mut self, event: TargetEvent) -> (Vec<ToSource>, Option<Verdict>) {
        let (mut said, mut verdict) = (Vec::new(), None);
        let Some(machine) = &mut self.machine else { return (said, verdict) };
        for action in machine.on(event) {
            match action {
                TargetAction::Restore => self.job = Some(TargetJob::Restore),
                TargetAction::SendHeld => said.push(ToSource::Held),
                TargetAction::SaveGrant => {
                    self.job = Some(TargetJob::SaveGrant);
                    if self.mistake == Mistake::ResumeBeforeSave {
                        (self.body, self.has_run) = (Body::Runs, true);
                    }
                }
                TargetAction::Resume => self.job = Some(TargetJob::Resume),
                TargetAction::SendResumed => said.push(ToSource::Resumed),
                TargetAction::SendDrained => self.job = Some(TargetJob::Complete),
                TargetAction::SendFailed => said.push(ToSource::Failed),
                TargetAction::Discard => {
                    (self.body, self.job, self.guard) = (Body::Absent, None, false);
                    self.disk = TargetStep::Burned;
                }
                TargetAction::Answer(answer) => verdict = Some(answer),
            }
        }
        (said, verdict)
    }

    pub(crate) fn hear(&mut self, message: ToTarget) -> Vec<ToSource> {
        let event = match message {
            ToTarget::Restore => TargetEvent::RestoreOrdered,
            ToTarget::Grant => TargetEvent::Grant,
            ToTarget::Abort => TargetEvent::Abort,
        };
        self.on(event).0
    }

    /// The job under way is done, or half done.
    pub(crate) fn finish_job(&mut self) -> Vec<ToSource> {
        let late = self.mistake == Mistake::CompleteBeforeDismissal;
        match self.job.take() {
            Some(TargetJob::Restore) => {
                (self.body, self.guard) = (Body::Frozen, true);
                self.on(TargetEvent::RestoreHeld).0
            }
            Some(TargetJob::SaveGrant) => {
                self.disk = TargetStep::Granted;
                self.on(TargetEvent::GrantSaved).0
            }
            Some(TargetJob::Resume) => {
                (self.body, self.has_run) = (Body::Runs, true);
                self.job = Some(TargetJob::Resumed);
                vec![]
            }
            Some(TargetJob::Resumed) => self.on(TargetEvent::Resumed).0,
            Some(job @ (TargetJob::Complete | TargetJob::Completed)) => {
                if (job == TargetJob::Complete) == late {
                    self.disk = TargetStep::Complete;
                } else {
                    self.guard = false;
                }
                if job == TargetJob::Completed {
                    return vec![ToSource::Drained];
                }
                self.job = Some(TargetJob::Completed);
                vec![]
            }
            None => vec![],
        }
    }

    /// Somebody asks. `None`: ask again.
    pub(crate) fn asked(&mut self) -> Option<Verdict> {
        let Some(machine) = self.machine else { return Some(self.verdict_of_the_ledger()) };
        let waiting = matches!(machine, Target::Staged | Target::Restoring | Target::Held);
        match self.mistake {
            Mistake::NoBurn if waiting => Some(Verdict::NeverRan),
            Mistake::RanWhileIncomplete if machine == Target::Running => Some(Verdict::Ran),
            _ => self.on(TargetEvent::Asked).1,
        }
    }

    fn verdict_of_the_ledger(&mut self) -> Verdict {
        let (container, source) = (Some("container".to_owned()), "source".to_owned());
        let (ticket, made) = (Ticket(1), Made::default());
        let record = TargetRecord { ticket, container, step: self.disk, source, made };
        let verdict = record.verdict(self.body == Body::Runs);
        if verdict == Verdict::NeverRan {
            self.disk = TargetStep::Burned;
        }
        verdict
    }

    /// The agent dies and another is started. `landed`: a record that was being
    /// written got to the disk.
    pub(crate) fn crash(&mut self, landed: bool) {
        if landed && self.job == Some(TargetJob::SaveGrant) {
            self.disk = TargetStep::Granted;
        }
        (self.machine, self.job) = (None, None);
        if self.disk == TargetStep::Staged {
            self.disk = TargetStep::Burned;
        }
        let waits = self.guard && self.body == Body::Runs && self.mistake == Mistake::SlowGuard;
        if waits {
            self.doomed = true;
        } else if self.body != Body::Runs {
            self.body = Body::Absent;
        } else if self.guard {
            self.body = Body::Ended;
        }
        self.guard = false;
    }

    /// The guard gets round to it.
    pub(crate) fn guard_kills(&mut self) {
        (self.body, self.doomed) = (Body::Ended, false);
    }
}

/// What must hold after every step; `grant`: one is on its way on a connection
/// that the target has not given up.
pub(crate) fn violation(source: &SourceEnd, target: &TargetEnd, grant: bool) -> Option<String> {
    let thawed = source.body == Body::Runs;
    let working = matches!(target.job, Some(TargetJob::SaveGrant | TargetJob::Resume));
    let waiting = !matches!(target.machine, None | Some(Target::Gone));
    let broken = if thawed && target.has_run {
        "the source runs what has run on the target"
    } else if thawed && working {
        "the source runs while the target carries out a grant"
    } else if thawed && grant && waiting {
        "the source runs while a grant is under way"
    } else if source.body == Body::Ended && target.body != Body::Runs {
        "the source has ended it and nobody runs it"
    } else if source.body == Body::Ended && (target.guard || target.doomed) {
        "the source has ended it and the target's copy may still be killed"
    } else if source.body == Body::Frozen
        && matches!(source.machine, Source::Kept { .. } | Source::Running)
    {
        "it stays with the source, and is frozen"
    } else {
        return None;
    };
    Some(format!("{broken}\n  {source:?}\n  {target:?}"))
}

/// Whether this is an end: exactly one runs it and both agree, or it is in
/// doubt because only an operator can decide.
pub(crate) fn is_settled(source: &SourceEnd, target: &TargetEnd, pages_out_of_reach: bool) -> bool {
    match source.machine {
        Source::Kept { .. } => source.body == Body::Runs && !target.has_run,
        // Without `Complete` on disk the agent died between the guard's
        // dismissal and that record; that it is alive then says as much.
        Source::Retired => target.body == Body::Runs && !target.guard,
        Source::InDoubt { .. } => {
            let lost = target.machine.is_none() && target.disk == TargetStep::Granted;
            (lost && target.body != Body::Runs)
                || (target.machine == Some(Target::Running) && pages_out_of_reach)
        }
        _ => false,
    }
}
