//! Which tracker to use: what the user asked for, or the best there is.
//!
//! The order is write protection (nothing is stopped to copy), then CRIU's
//! pre-dumps (all is stopped, briefly, each round), then hashes (nothing is
//! stopped, but everything is read, also inside the freeze).

use super::probe::{self, Missing};
use super::{Hash, SoftDirty, TrackError, Tracker, TrackerKind, WriteProtect, huge};
use crate::criu::predump::PreDumpSpec;
use serde::{Deserialize, Serialize};

/// What the user wants.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum TrackerChoice {
    /// The best this kernel can do
    #[default]
    Auto,
    /// Asynchronous write protection: Linux 6.7 (x86-64)
    WriteProtect,
    /// CRIU's pre-dumps: a kernel with CONFIG_MEM_SOFT_DIRTY
    SoftDirty,
    /// Comparing hashes of all pages: any kernel
    Hash,
}

impl TrackerChoice {
    fn kind(self) -> Option<TrackerKind> {
        match self {
            Self::Auto => None,
            Self::WriteProtect => Some(TrackerKind::WriteProtect),
            Self::SoftDirty => Some(TrackerKind::SoftDirty),
            Self::Hash => Some(TrackerKind::Hash),
        }
    }
}

/// All trackers, the best first.
const BEST_FIRST: [TrackerKind; 3] =
    [TrackerKind::WriteProtect, TrackerKind::SoftDirty, TrackerKind::Hash];

/// Which tracker a choice comes to on this machine, and why.
///
/// # Errors
/// [`TrackError::Lacks`] if the kernel lacks what the one asked for needs.
pub fn kind_for(choice: TrackerChoice) -> Result<(TrackerKind, String), TrackError> {
    if let Some(asked) = choice.kind() {
        return match missing(asked) {
            None => Ok((asked, with_caution(asked, format!("{asked}: asked for")))),
            Some(missing) => Err(TrackError::Lacks { asked, missing, instead: best().0 }),
        };
    }
    Ok(best())
}

/// Makes the tracker for a choice, and says why this one. `container`: for
/// CRIU's pre-dumps.
///
/// # Errors
/// As [`kind_for`].
pub fn choose(
    choice: TrackerChoice,
    container: PreDumpSpec,
) -> Result<(Box<dyn Tracker>, String), TrackError> {
    let (kind, why) = kind_for(choice)?;
    let tracker: Box<dyn Tracker> = match kind {
        TrackerKind::WriteProtect => {
            let lacks = |missing| TrackError::Lacks { asked: kind, missing, instead: best().0 };
            Box::new(WriteProtect::new().map_err(lacks)?)
        }
        TrackerKind::SoftDirty => Box::new(SoftDirty::new(container)),
        TrackerKind::Hash => Box::new(Hash::new()),
    };
    Ok((tracker, why))
}

/// A tracker to watch a container with that is not about to move, and its name:
/// no pre-dumps, which write images.
pub fn for_watching() -> (Box<dyn Tracker>, String) {
    match WriteProtect::new() {
        Ok(tracker) => (Box::new(tracker), reason(TrackerKind::WriteProtect, &[])),
        Err(missing) => {
            let passed = format!("no {}, as {missing}", TrackerKind::WriteProtect);
            (Box::new(Hash::new()), reason(TrackerKind::Hash, &[passed]))
        }
    }
}

/// The best this machine can do, and why nothing better.
fn best() -> (TrackerKind, String) {
    let mut passed_over = Vec::new();
    for kind in BEST_FIRST {
        match missing(kind) {
            None => return (kind, reason(kind, &passed_over)),
            Some(missing) => passed_over.push(format!("no {kind}, as {missing}")),
        }
    }
    (TrackerKind::Hash, reason(TrackerKind::Hash, &passed_over))
}

fn reason(kind: TrackerKind, passed_over: &[String]) -> String {
    let mut parts = vec![strength(kind).to_owned()];
    parts.extend_from_slice(passed_over);
    with_caution(kind, format!("{kind}: {}", parts.join("; ")))
}

fn with_caution(kind: TrackerKind, why: String) -> String {
    match caution(kind) {
        Some(caution) => format!("{why}; {caution}"),
        None => why,
    }
}

/// What this machine's settings do to a tracker.
fn caution(kind: TrackerKind) -> Option<&'static str> {
    if kind != TrackerKind::SoftDirty || !huge::are_automatic() {
        return None;
    }
    Some(if huge::can_be_split() {
        "transparent huge pages are `always`, and 2 MiB would count as one page: they are split \
         before each pre-dump"
    } else {
        "transparent huge pages are `always`, so 2 MiB count as one page: `echo madvise \
         >/sys/kernel/mm/transparent_hugepage/enabled` before the container starts, or mount \
         debugfs for blip to split them"
    })
}

/// What the kernel has for a tracker.
fn strength(kind: TrackerKind) -> &'static str {
    match kind {
        TrackerKind::WriteProtect => "the kernel has WP_ASYNC and PAGEMAP_SCAN",
        TrackerKind::SoftDirty => "the kernel has CONFIG_MEM_SOFT_DIRTY",
        TrackerKind::Hash => "it works everywhere",
    }
}

/// What it means to use a tracker.
fn meaning(kind: TrackerKind) -> String {
    let meaning = match kind {
        TrackerKind::WriteProtect => {
            "rounds stop each process once, for microseconds; the freeze reads only what changed"
        }
        TrackerKind::SoftDirty => {
            "rounds stop all processes for each of CRIU's pre-dumps; the freeze reads only what \
             changed"
        }
        TrackerKind::Hash => {
            "rounds stop nothing and read all memory; so does the freeze, about half a second \
             of one core for each GiB"
        }
    };
    with_caution(kind, meaning.to_owned())
}

/// What a tracker needs and this machine lacks.
fn missing(kind: TrackerKind) -> Option<Missing> {
    match kind {
        TrackerKind::WriteProtect => probe::probe().err(),
        TrackerKind::SoftDirty => probe::soft_dirty().err(),
        TrackerKind::Hash => None,
    }
}

/// What this machine can do with one tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ability {
    /// Which tracker.
    pub tracker: TrackerKind,
    /// What it needs and is missing here; `None`: it works.
    pub missing: Option<String>,
    /// What it means to use it.
    pub meaning: String,
    /// It is what `--tracker auto` chooses.
    pub automatic: bool,
}

impl std::fmt::Display for Ability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tracker, missing, meaning, automatic } = self;
        match missing {
            Some(missing) => write!(f, "{tracker:<13} no: {missing}"),
            None if *automatic => write!(f, "{tracker:<13} yes, chosen by auto: {meaning}"),
            None => write!(f, "{tracker:<13} yes: {meaning}"),
        }
    }
}

/// What this machine can do with each tracker, the best first.
pub fn capabilities() -> Vec<Ability> {
    let (automatic, _) = best();
    let ability = |tracker| Ability {
        tracker,
        missing: missing(tracker).map(|missing| missing.to_string()),
        meaning: meaning(tracker),
        automatic: tracker == automatic,
    };
    BEST_FIRST.into_iter().map(ability).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_given_or_refused_with_an_alternative() {
        let choices = [TrackerChoice::WriteProtect, TrackerChoice::SoftDirty, TrackerChoice::Hash];
        for (choice, ability) in choices.into_iter().zip(capabilities()) {
            match (kind_for(choice), ability.missing) {
                (Ok((kind, _)), None) => assert_eq!(Some(kind), choice.kind()),
                (Err(error), Some(missing)) => {
                    let text = error.to_string();
                    assert!(text.contains(&missing), "{text}");
                    assert!(text.contains("--tracker hash"), "{text}");
                }
                (found, missing) => panic!("{found:?}, {missing:?}"),
            }
        }
    }

    #[test]
    fn auto_takes_the_first_that_works_and_says_so() {
        let abilities = capabilities();
        let first = abilities.iter().find(|ability| ability.missing.is_none()).unwrap();
        assert!(first.automatic);
        let (kind, why) = kind_for(TrackerChoice::Auto).unwrap();
        assert_eq!(kind, first.tracker);
        assert!(why.starts_with(&kind.to_string()), "{why}");
        assert_eq!(abilities.iter().filter(|ability| ability.automatic).count(), 1);
    }
}
