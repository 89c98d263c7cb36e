//! Ways to decide. One file each; all see the same [`Model`].

mod classic;
mod reasons;
mod target_driven;

use super::model::Model;
use super::{Decision, RoundSoFar};
use blip_transport::units::PageCount;
pub use classic::{DirtyThreshold, FixedRounds, OnlyPostCopy};
pub(super) use reasons::more_than_expected;
use std::fmt;
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

    /// The most that is shipped inside a freeze: a rest that turns out to be more
    /// is left behind after all. `None`: whatever it is.
    fn most_shipped(&self, model: &Model) -> Option<PageCount> {
        let _ = model;
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
