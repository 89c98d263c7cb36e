//! Pages that only the source host has.

use crate::harness::{
    FIRST, PAGES, Pace, RIGHT, Scene, Source, TASK, content, end_of, is_zero, outcome, stage,
};
use blip_engine::lazy::{LazyError, LazyEvent, Loss, RemoteAnswer, RemoteInbox, Urgency};
use blip_transport::page::{PageAt, PageRun};
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

fn is_absent(page: u64) -> bool {
    page % 5 == 1
}

fn truth(at: PageAt) -> RemoteAnswer {
    let page = at.index.0 - FIRST;
    if is_zero(page) { RemoteAnswer::Zero } else { RemoteAnswer::Data(Box::new(content(page))) }
}

/// A source host some way off: it answers each question after `delay`.
fn distant(inbox: RemoteInbox, delay: Duration) -> Source {
    let (ask, asked) = mpsc::channel::<(Instant, PageAt)>();
    std::thread::spawn(move || {
        while let Ok((due, at)) = asked.recv() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            inbox.answer(at, truth(at));
        }
    });
    let ask = std::sync::Mutex::new(ask);
    Source {
        absent: (0..PAGES).filter(|&page| is_absent(page)).collect(),
        on_request: Some(Box::new(move |at, _| {
            ask.lock().unwrap().send((Instant::now() + delay, at)).unwrap();
        })),
        ..Source::default()
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn what_the_store_lacks_comes_from_the_source_host() {
    for scenario in ["read", "backwards", "threads", "fork", "move", "drop", "storm"] {
        for pace in [Pace::Normal, Pace::Faults] {
            let delay = Duration::from_millis(3);
            println!("{scenario} {pace:?}");
            let (stats, source) = stage(scenario, pace, |inbox| distant(inbox, delay)).ends_well();
            assert!(stats.faults > 0);
            let asked = source.asked.lock().unwrap();
            let mut background = HashSet::new();
            for (at, urgency) in asked.iter() {
                assert!(is_absent(at.index.0 - FIRST), "{at:?} is in the store");
                if *urgency == Urgency::Background {
                    assert!(background.insert(*at) || scenario != "read", "{at:?} asked for twice");
                }
            }
        }
    }
}

/// While one thread waits for the source host, others are served.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn local_pages_do_not_wait_for_remote_ones() {
    let delay = Duration::from_millis(30);
    let (stats, _) = stage("read", Pace::Faults, |inbox| distant(inbox, delay)).ends_well();
    assert!(stats.from_source > 0, "{stats:?}");
    assert!(stats.remote_latency.max() >= 20_000_000, "the delay is in the figures");
    let local = stats.local_latency.value_at_quantile(0.9);
    assert!(local < 20_000_000, "90 % of local faults took up to {local} ns");
}

/// A push from the source host ends the waiting as well as an answer does.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn pages_that_reach_the_store_later_are_used() {
    let (stats, _) = stage("read", Pace::Normal, |inbox| {
        let calls = AtomicU64::new(0);
        Source {
            on_request: Some(Box::new(move |at, _| {
                // The answer names the store; only every other one does so
                // through a run.
                if calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                    inbox.answer(at, RemoteAnswer::InStore);
                } else {
                    inbox.stored(at.space, PageRun::new(at.index.0, 1));
                }
            })),
            ..late_store()
        }
    })
    .ends_well();
    assert_eq!(stats.from_source, 0, "{stats:?}");
}

/// A store that lacks each page the first time it is asked.
fn late_store() -> Source {
    Source { late: Some(Default::default()), ..Source::default() }
}

fn lost_with(answer: impl Fn(&RemoteInbox, PageAt) + Send + Sync + 'static) -> (Scene, u64) {
    let scene = stage("read", Pace::Normal, |inbox| Source {
        absent: HashSet::from([4321]),
        on_request: Some(Box::new(move |at, _| answer(&inbox, at))),
        ..Source::default()
    });
    (scene, FIRST + 4321)
}

fn is_lost(mut scene: Scene, lost: u64) -> Loss {
    while !scene.handle.is_over() {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(scene.child.try_wait().unwrap().is_none(), "it has read what it cannot have got");
    let events = scene.events.lock().unwrap().clone();
    let reported: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            LazyEvent::Lost { space: TASK, page, why } => Some((*page, why.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(reported.len(), 1, "{events:?}");
    assert_eq!(reported[0].0, lost);
    scene.child.kill().unwrap();
    assert_eq!(outcome(&mut scene.child).unwrap().code(), None);
    let error = end_of(scene.handle).unwrap_err();
    let LazyError::PagesLost { space: TASK, page, why } = &*error else { panic!("{error}") };
    assert_eq!((*page, why), (lost, &reported[0].1));
    why.clone()
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_page_that_nobody_has_is_an_error_and_never_zeros() {
    let (scene, lost) = lost_with(|inbox, at| inbox.answer(at, RemoteAnswer::Gone));
    assert_eq!(is_lost(scene, lost), Loss::Gone);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn losing_the_source_host_is_an_error_and_never_zeros() {
    let (scene, lost) = lost_with(|inbox, _| inbox.source_lost("cut"));
    assert_eq!(is_lost(scene, lost), Loss::SourceLost("cut".into()));
}

/// Without missing pages nobody needs the source host.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn losing_a_source_host_that_is_not_needed_is_nothing() {
    let mut scene = stage("read", Pace::Normal, |inbox| {
        inbox.source_lost("cut");
        Source::default()
    });
    assert_eq!(outcome(&mut scene.child).unwrap().code(), Some(RIGHT));
    end_of(scene.handle).unwrap();
}

/// A defect in the page source is reported, and nobody reads zeros for it.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_panic_is_an_error_and_never_zeros() {
    let (mut scene, _) = lost_with(|_, at| panic!("asked for {at:?}"));
    while !scene.handle.is_over() {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(scene.child.try_wait().unwrap().is_none(), "it has read what it cannot have got");
    let failed = |event: &LazyEvent| matches!(event, LazyEvent::Failed(why) if matches!(**why, LazyError::Panicked));
    assert!(scene.events.lock().unwrap().iter().any(failed));
    scene.child.kill().unwrap();
    assert_eq!(outcome(&mut scene.child).unwrap().code(), None);
    scene.handle.abort();
}
