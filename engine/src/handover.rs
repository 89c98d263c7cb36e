//! Who may run the container: the handover as two pure state machines.
//!
//! The source and the target each hold one machine. It is fed with what
//! happened ([`SourceEvent`], [`TargetEvent`]) and answers with what to do
//! ([`SourceAction`], [`TargetAction`]). It reads no clock and does no I/O, so
//! that every order of events, loss and delay can be tried in a test.
//!
//! ```text
//! source  Running ─frozen▶ Shipping ─held▶ Saving ─saved▶ Granted ─resumed▶ Yielded ─drained▶ Retired
//!            ▲                │               │               └─link lost▶ InDoubt ─verdict▶ Retired | Kept
//!            └── rollback ────┴───────────────┘
//! target  Staged ─order▶ Restoring ─held▶ Held ─grant▶ Committing ─resumed▶ Running ─drained▶ Drained
//!            └──────────────┴───────────────┴─abort, failure, link lost▶ Gone
//! ```
//!
//! **Architecture Invariants**
//! * The source thaws only while it has not sent the grant, or when the target
//!   has sworn that it will never run this ticket.
//! * The target lets the container run only in [`TargetAction::Resume`], which
//!   follows a grant that is on its disk.
//! * A target that was asked about a ticket it does not run burns it: a grant
//!   that is still under way is refused from then on.
//! * The target swears that it ran only when its memory is complete: until then
//!   the source is needed, and an agent that dies takes the container with it.

use serde::{Deserialize, Serialize};

/// Names one handover; made by the source, unique for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticket(pub u128);

impl std::fmt::Display for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for Ticket {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// How a migration ended, from the point of view of who runs the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// The target runs it, the source is retired.
    Moved,
    /// The source runs it as if nothing had happened.
    Kept {
        /// Why it did not move.
        why: String,
    },
    /// The grant was sent and its fate is unknown: the source stays frozen
    /// until `blip resolve` has asked the target.
    InDoubt {
        /// What was lost, and when.
        why: String,
    },
}

/// What a target swears about a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The container was let run here and is complete; the source must never
    /// run it again, and is not needed.
    Ran,
    /// It never ran here and never will.
    NeverRan,
    /// It may have run here, and is dead before it was complete. Nobody but the
    /// operator can weigh what that run did against the older state on the
    /// source.
    Lost,
}

/// Where the source stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The container runs here; pages are being copied ahead.
    Running,
    /// Frozen; the final dump is on its way, the target is restoring.
    Shipping,
    /// The target holds a complete restore; the ticket is being written.
    Saving,
    /// The grant has been sent. Only the target may run the container.
    Granted,
    /// The target runs it and still draws pages from here.
    Yielded,
    /// The grant's fate is unknown.
    InDoubt {
        /// What was lost.
        why: String,
    },
    /// It runs on the target and is gone here.
    Retired,
    /// It runs here.
    Kept {
        /// Why.
        why: String,
    },
}

/// What the source learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// The container is frozen.
    Frozen,
    /// The target reports a complete restore in which nothing has run.
    Held,
    /// The ticket is on this host's disk.
    TicketSaved,
    /// The target reports that the container runs.
    Resumed,
    /// The target needs nothing more from here.
    Drained,
    /// The target, or something here, failed; or the user asked to stop.
    Failed(String),
    /// The connection is gone.
    LinkLost(String),
    /// The target's answer to a question about the ticket.
    Verdict(Verdict),
}

/// What the source must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceAction {
    /// Let the container run on, and put back what was changed for the move.
    Thaw,
    /// Write the ticket to disk; report [`SourceEvent::TicketSaved`].
    SaveTicket,
    /// Send the grant.
    SendGrant,
    /// Tell the target to forget the container.
    SendAbort,
    /// End the frozen container for good, silently on the network.
    Retire,
}

impl Source {
    /// Takes in one event and says what to do, in order.
    pub fn on(&mut self, event: SourceEvent) -> Vec<SourceAction> {
        use SourceAction as A;
        use SourceEvent as E;
        let (next, actions) = match (self.clone(), event) {
            (Self::Running, E::Frozen) => (Self::Shipping, vec![]),
            (Self::Shipping, E::Held) => (Self::Saving, vec![A::SaveTicket]),
            (Self::Saving, E::TicketSaved) => (Self::Granted, vec![A::SendGrant]),

            // Before the grant every failure is a rollback. A lost link needs
            // no word to the target: it forgets by itself.
            (Self::Running | Self::Shipping | Self::Saving, E::Failed(why)) => {
                (Self::Kept { why }, vec![A::SendAbort, A::Thaw])
            }
            (Self::Running | Self::Shipping | Self::Saving, E::LinkLost(why)) => {
                (Self::Kept { why }, vec![A::Thaw])
            }

            // From here on only the target's word counts.
            (Self::Granted, E::Resumed) => (Self::Yielded, vec![]),
            (Self::Granted, E::LinkLost(why)) => (Self::InDoubt { why }, vec![]),
            (Self::Yielded, E::Drained) => (Self::Retired, vec![A::Retire]),
            // The pages it still wanted are here and nowhere else: keep them
            // until the target has said what became of it.
            (Self::Yielded, E::LinkLost(why)) => (Self::InDoubt { why }, vec![]),
            (Self::Granted | Self::InDoubt { .. }, E::Verdict(Verdict::Ran)) => {
                (Self::Retired, vec![A::Retire])
            }
            (Self::Granted | Self::InDoubt { .. }, E::Verdict(Verdict::NeverRan)) => {
                let why = "the target never ran it".to_owned();
                (Self::Kept { why }, vec![A::Thaw])
            }

            (Self::Granted | Self::InDoubt { .. }, E::Verdict(Verdict::Lost)) => {
                let why = "it ran on the target and died there before it was complete".to_owned();
                (Self::InDoubt { why }, vec![])
            }

            // A late or repeated event changes nothing.
            (state, _) => (state, vec![]),
        };
        *self = next;
        actions
    }

    /// The end, once there is one. [`Source::InDoubt`] is one only until a
    /// verdict arrives.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Retired => Some(Outcome::Moved),
            Self::Kept { why } => Some(Outcome::Kept { why: why.clone() }),
            Self::InDoubt { why } => Some(Outcome::InDoubt { why: why.clone() }),
            Self::Running | Self::Shipping | Self::Saving | Self::Granted | Self::Yielded => None,
        }
    }

    /// Whether the grant may have left this host: nothing here may thaw the
    /// container any more without a [`Verdict`].
    pub fn past_the_grant(&self) -> bool {
        matches!(self, Self::Granted | Self::Yielded | Self::InDoubt { .. } | Self::Retired)
    }
}

/// Where the target stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Everything but the processes is there.
    Staged,
    /// The final dump has come; the processes are being restored.
    Restoring,
    /// All processes are restored and none has run.
    Held,
    /// The grant has come; it is being written to disk and then carried out.
    Committing,
    /// The container runs here.
    Running,
    /// It runs here and needs nothing more from the source.
    Drained,
    /// It does not run here and never will.
    Gone,
}

/// What the target learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetEvent {
    /// The source ordered the restore.
    RestoreOrdered,
    /// The restore is complete and held.
    RestoreHeld,
    /// The source's grant.
    Grant,
    /// The grant is on this host's disk.
    GrantSaved,
    /// The container has been let run.
    Resumed,
    /// Every page is in the container.
    PagesComplete,
    /// The source gave up.
    Abort,
    /// Something failed here, and nothing of the container has run.
    Failed,
    /// The connection is gone.
    LinkLost,
    /// Somebody with the source's identity asks about the ticket.
    Asked,
}

/// What the target must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetAction {
    /// Restore the processes up to the hold.
    Restore,
    /// Tell the source that the restore is held.
    SendHeld,
    /// Write down that the grant came; report [`TargetEvent::GrantSaved`].
    SaveGrant,
    /// Let the container run; report [`TargetEvent::Resumed`].
    Resume,
    /// Tell the source that it runs.
    SendResumed,
    /// Tell the source that it is no longer needed.
    SendDrained,
    /// Tell the source that it will not run here.
    SendFailed,
    /// Kill what was restored and remove what was staged.
    Discard,
    /// Answer the question about the ticket.
    Answer(Verdict),
}

impl Target {
    /// Takes in one event and says what to do, in order.
    pub fn on(&mut self, event: TargetEvent) -> Vec<TargetAction> {
        use TargetAction as A;
        use TargetEvent as E;
        let (next, actions) = match (*self, event) {
            (Self::Staged, E::RestoreOrdered) => (Self::Restoring, vec![A::Restore]),
            (Self::Restoring, E::RestoreHeld) => (Self::Held, vec![A::SendHeld]),
            (Self::Held, E::Grant) => (Self::Committing, vec![A::SaveGrant]),
            (Self::Committing, E::GrantSaved) => (Self::Committing, vec![A::Resume]),
            (Self::Committing, E::Resumed) => (Self::Running, vec![A::SendResumed]),
            (Self::Running, E::PagesComplete) => (Self::Drained, vec![A::SendDrained]),

            (Self::Staged | Self::Restoring | Self::Held, E::Abort | E::LinkLost) => {
                (Self::Gone, vec![A::Discard])
            }
            (Self::Staged | Self::Restoring | Self::Held | Self::Committing, E::Failed) => {
                (Self::Gone, vec![A::Discard, A::SendFailed])
            }
            // The question burns the ticket: what is not running stays so.
            (Self::Staged | Self::Restoring | Self::Held, E::Asked) => {
                (Self::Gone, vec![A::Discard, A::Answer(Verdict::NeverRan)])
            }
            (Self::Gone, E::Asked) => (Self::Gone, vec![A::Answer(Verdict::NeverRan)]),
            // While it is being carried out nobody knows yet: the asker, who
            // gets no answer, asks again.
            (Self::Committing, E::Asked) => (Self::Committing, vec![]),
            // Neither while pages are missing: `Ran` ends the source, which may
            // hold the only copy, and an agent that dies now takes the
            // incomplete container with it. Then it must be `Lost`.
            (Self::Running, E::Asked) => (Self::Running, vec![]),
            (Self::Drained, E::Asked) => (Self::Drained, vec![A::Answer(Verdict::Ran)]),
            (state, _) => (state, vec![]),
        };
        *self = next;
        actions
    }

    /// Whether the container runs here.
    pub fn runs(self) -> bool {
        matches!(self, Self::Running | Self::Drained)
    }
}
