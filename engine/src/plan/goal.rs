//! What the user wants of a migration.

use blip_transport::units::Bandwidth;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A way to move memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The planner chooses, and may change its mind.
    #[default]
    Auto,
    /// Freeze, copy all memory, resume with all of it in place.
    StopAndCopy,
    /// Copy in rounds, freeze, copy the rest, resume with all in place.
    PreCopy,
    /// Freeze at once and resume; all memory follows as it is needed.
    PostCopy,
    /// Copy in rounds, freeze, resume; only the pages dirtied last follow.
    Hybrid,
}

impl Method {
    /// Those that can be asked for by name, without [`Method::Auto`].
    pub const REAL: [Self; 4] = [Self::StopAndCopy, Self::PreCopy, Self::PostCopy, Self::Hybrid];

    /// Whether it copies rounds while the container runs.
    pub fn copies_ahead(self) -> bool {
        !matches!(self, Self::StopAndCopy | Self::PostCopy)
    }

    /// Whether pages may still be on the source when the container resumes.
    pub fn may_leave_pages(self) -> bool {
        !matches!(self, Self::StopAndCopy | Self::PreCopy)
    }

    /// The name on the command line, in events and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::StopAndCopy => "stop-and-copy",
            Self::PreCopy => "pre-copy",
            Self::PostCopy => "post-copy",
            Self::Hybrid => "hybrid",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What to do if the downtime target will be missed, or the deadline comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnMiss {
    /// Leave the rest behind and let it follow after the resume.
    PostCopy,
    /// Freeze all the same, with the shortest downtime there is.
    Proceed,
    /// Give up; the container stays.
    Abort,
}

/// How far blip may slow the container down to make the rounds converge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThrottleLimit {
    /// Not at all.
    #[default]
    Off,
    /// As far as the planner finds sensible.
    Auto,
    /// By at most this percentage of its CPU time, 1 to 99.
    Percent(u8),
}

impl ThrottleLimit {
    /// The most that may be taken away, in percent of the CPU time.
    pub fn percent(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Auto => 90,
            Self::Percent(most) => most.min(99),
        }
    }
}

/// The user's wishes. The default has no target: as short as possible.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// Longest downtime wanted. `None`: as short as blip can make it.
    pub downtime: Option<Duration>,
    /// The container is to run on the target this long after the start.
    pub deadline: Option<Duration>,
    /// What to do if that cannot be.
    pub on_miss: OnMiss,
    /// How to move the memory.
    pub method: Method,
    /// Most that may go over the link.
    pub bandwidth: Option<Bandwidth>,
    /// Rounds of copying ahead, at most.
    pub max_rounds: u32,
    /// How far the container may be slowed down.
    pub throttle: ThrottleLimit,
    /// Hold pages back that are written again and again.
    pub hold_back: bool,
    /// Exactly so many rounds, whatever they find: classic pre-copy, to compare
    /// with.
    pub rounds: Option<u32>,
}

impl Default for Goal {
    fn default() -> Self {
        Self {
            downtime: None,
            deadline: None,
            on_miss: OnMiss::PostCopy,
            method: Method::Auto,
            bandwidth: None,
            max_rounds: 30,
            throttle: ThrottleLimit::Off,
            hold_back: true,
            rounds: None,
        }
    }
}
