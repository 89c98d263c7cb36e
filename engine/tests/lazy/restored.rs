//! What a restored process may do with its memory.

use crate::harness::{HOLES, PACES, PAGES, Pace, Scene, Source, WRONG, end_of, outcome, stage};
use blip_engine::lazy::LazyEvent;

fn plain(scenario: &str, pace: Pace) -> Scene {
    stage(scenario, pace, |_| Source::default())
}

/// Every page of the plan is settled once, whatever became of it.
fn all_settled_once(source: &Source) {
    let settled = source.settled.lock().unwrap();
    for page in 0..PAGES {
        let wanted = u32::from(!HOLES.contains(&page));
        assert_eq!(settled.get(&page).copied().unwrap_or(0), wanted, "page {page}");
    }
}

macro_rules! scenarios {
    ($($(#[$doc:meta])* $name:ident: $scenario:literal;)*) => {$(
        $(#[$doc])*
        #[test]
        #[cfg_attr(not(blip_root), ignore = "needs root")]
        fn $name() {
            for pace in PACES {
                let (stats, source) = plain($scenario, pace).ends_well();
                all_settled_once(&source);
                assert!(stats.drain().is_some());
            }
        }
    )*};
}

scenarios! {
    every_byte_arrives: "read";
    reading_downwards_works: "backwards";
    writing_to_missing_pages_keeps_the_rest_of_them: "write";
    threads_may_want_the_same_pages: "threads";
    children_get_what_their_parents_miss: "fork";
    memory_kept_from_children_is_no_loss: "fork-flags";
    moved_memory_is_followed: "move";
    dropped_memory_is_blank: "drop";
    a_process_may_leave_early: "leave";
    threads_may_do_all_of_this_at_once: "storm";
    a_slow_restorer_is_waited_for: "slow-restore";
    starting_programs_changes_nothing: "exec";
}

/// The verifier is worth something: one wrong bit is found.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_wrong_bit_is_noticed() {
    for pace in PACES {
        let mut scene =
            stage("read", pace, |_| Source { spoiled: Some(8001), ..Source::default() });
        let status = outcome(&mut scene.child).unwrap();
        assert_eq!(status.code(), Some(WRONG));
        end_of(scene.handle).unwrap();
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn faults_and_prefill_are_told_apart() {
    // From the other end: a reader that follows the background is never kept
    // waiting where it is the slower of the two.
    let scene = plain("backwards", Pace::Faults);
    let events = scene.events.clone();
    let (stats, _) = scene.ends_well();
    assert!(stats.from_store > 0, "{stats:?}");
    let answered = stats.from_store + stats.zero + stats.prefilled + stats.dropped;
    // Faults in holes are answered with zeros and are not in the plan.
    assert!(answered >= PAGES - (HOLES.end - HOLES.start), "{stats:?}");
    assert_eq!(stats.from_source, 0);
    assert!(stats.local_latency.len() >= stats.from_store, "each answer has been timed");
    let events = events.lock().unwrap();
    assert!(matches!(events[0], LazyEvent::TaskArrived { .. }));
    assert!(matches!(events[1], LazyEvent::RestoreFinished));
}
