//! A small slice of the simulation, and the rules that must hold in it.

use super::run::{Case, LINKS, POLICIES, TRIPS, Wish, compare, rehearsed};
use super::workload::Habit;
use super::{all, summary};

fn slice(wish: Wish) -> Vec<Case> {
    let mut seed = 100;
    let mut cases = Vec::new();
    for habit in Habit::ALL {
        for (link, rtt) in [(LINKS[0], TRIPS[2]), (LINKS[1], TRIPS[1]), (LINKS[2], TRIPS[0])] {
            seed += 1;
            cases.push(Case { habit, link, rtt, wish, seed });
        }
    }
    cases
}

#[test]
fn the_same_seeds_give_the_same_results() {
    let cases = &slice(Wish::Target)[..6];
    assert_eq!(all(cases), all(cases));
}

#[test]
fn nothing_is_frozen_with_a_miss_foreseen() {
    for case in slice(Wish::Target) {
        let (_, outcome) = rehearsed(&case, "blip", POLICIES[0].1());
        let forecast = outcome.forecast.expect("the default never gives up");
        assert_ne!(forecast.met, Some(false), "{case:?} {:?}", outcome.decisions.last());
    }
}

#[test]
fn the_deadline_holds() {
    for case in slice(Wish::Deadline) {
        let (result, outcome) = rehearsed(&case, "blip", POLICIES[0].1());
        assert!(result.met, "{case:?} {outcome:#?}");
    }
}

#[test]
fn the_regret_is_small_and_smaller_than_that_of_simpler_rules() {
    let cases: Vec<Case> = slice(Wish::Shortest);
    let results: Vec<_> = cases.iter().flat_map(compare).collect();
    let mean = |policy: &str| {
        let of: Vec<f64> =
            results.iter().filter(|r| r.policy == policy).map(|r| r.regret_ms).collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    assert!(mean("blip") < 40.0, "{}", mean("blip"));
    for (policy, _) in &POLICIES[1..] {
        assert!(mean("blip") < mean(policy), "{policy}: {} < {}", mean("blip"), mean(policy));
    }
}

#[test]
fn the_tables_name_everybody() {
    let results: Vec<_> = slice(Wish::Target)[..3].iter().flat_map(compare).collect();
    let text = summary::tables(&results);
    for (policy, _) in POLICIES {
        assert!(text.contains(policy), "{text}");
    }
    assert_eq!(summary::csv(&results).lines().count(), results.len() + 1);
}
