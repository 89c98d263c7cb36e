//! Ways to decide. One file each; all see the same [`Model`].

mod classic;
mod reasons;
mod target_driven;

use super::model::Model;
use super::{Decision, RoundSoFar};
use blip_transport::units::PageCount;
pub use classic::{DirtyThreshold, FixedRounds, OnlyPostCopy};
use std::fmt;
use std::time::Duration;
pub use target_driven::TargetDriven;

/// Turns expectations into decisions.
pub trait Policy: fmt::Debug + Send {
    /// Its name in results.
    fn name(&self) -> &'static str;

    /// Before any round.
    fn begin(&mut self, model: &Model) -> Decision;

    /// After a round.
    fn after_round(&mut self, model: &Model) -> Decision;

    /// In the middle of a round; `Some` cuts it short.
    fn during_round(&mut self, model: &Model, round: &RoundSoFar) -> Option<Decision> {
        let _ = (model, round);
        None
    }

    /// The container stands still and its last scan found so much; `Some`:
    /// leave it behind after all.
    fn when_frozen(&self, model: &Model, found: PageCount, elapsed: Duration) -> Option<Decision> {
        let _ = (model, found, elapsed);
        None
    }

    /// CPU time taken from the container at present, in percent.
    fn throttle(&self) -> u8 {
        0
    }

    /// Whether the round under way holds hot pages back.
    fn holds_back(&self) -> bool {
        false
    }
}
