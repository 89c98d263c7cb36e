//! The pictures of all kinds of migrations: well formed, and no label on
//! another. With `BLIP_PICTURES` set they are written there, to be looked at.

use super::canvas::{Label, WIDTH};
use super::{draw, samples, svg};
use crate::event::{Event, Timed};

fn all() -> Vec<(&'static str, Vec<Timed>)> {
    vec![
        ("hybrid", samples::hybrid()),
        ("no_round", samples::no_round()),
        ("thirty_rounds", samples::thirty_rounds()),
        ("post_copy", samples::post_copy()),
        ("aborted", samples::aborted()),
        ("failed", samples::failed()),
        ("throttled", samples::throttled()),
        ("torn", samples::torn()),
        ("called_off", samples::called_off()),
        ("nothing", Vec::new()),
    ]
}

fn overlap(a: &Label, b: &Label) -> bool {
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
}

#[test]
fn no_label_stands_on_another_or_outside() {
    let mut wrong = Vec::new();
    for (name, events) in all() {
        let canvas = draw(&events);
        let labels = &canvas.labels;
        for (i, a) in labels.iter().enumerate() {
            if a.left < 0.0 || a.right > WIDTH || a.top < 0.0 || a.bottom > canvas.y + 14.0 {
                wrong.push(format!("{name}: {:?} is outside", a.text));
            }
            for b in labels[i + 1..].iter().filter(|b| overlap(a, b)) {
                wrong.push(format!("{name}: {:?} on {:?}", a.text, b.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every element that is opened is closed, in the right order.
fn is_well_formed(text: &str) -> bool {
    let mut open = Vec::new();
    for tag in text.split('<').skip(1) {
        let Some((tag, _)) = tag.split_once('>') else { return false };
        if tag.contains('<') || tag.matches('"').count() % 2 != 0 {
            return false;
        }
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return false;
            }
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap_or_default());
        }
    }
    open.is_empty()
}

#[test]
fn every_picture_is_well_formed_and_needs_nothing_from_outside() {
    for (name, events) in all() {
        let text = svg(&events);
        assert!(is_well_formed(&text), "{name}");
        assert!(!text.contains("href") && !text.contains("NaN"), "{name}");
        assert_eq!(text.matches("http").count(), 1, "{name}: only the name of SVG itself");
    }
}

#[test]
fn what_happened_is_in_the_picture() {
    let text = svg(&samples::hybrid());
    for said in [
        "cache-7: moved by hybrid",
        "target 100.0 ms",
        "observed 81.2 ms",
        "predicted 75.6 ms",
        "two rounds",
        "The brownout",
    ] {
        assert!(text.contains(said), "{said}");
    }
    assert!(svg(&samples::throttled()).contains("CPU time taken"));
    assert!(!svg(&samples::hybrid()).contains("CPU time taken"));
    assert!(svg(&samples::failed()).contains("it did not come to run on the target"));
}

#[test]
fn a_hostile_name_or_reason_stays_text() {
    let mut events = samples::hybrid();
    events.push(Timed {
        at_ms: 9000.0,
        event: Event::Decision { what: "</text><script>".into(), why: "\"'&<>\u{0}".repeat(200) },
    });
    let text = svg(&events);
    assert!(is_well_formed(&text));
    assert!(!text.contains("<script"));
}

#[test]
fn pictures_to_look_at() {
    let Some(directory) = std::env::var_os("BLIP_PICTURES") else { return };
    let directory = std::path::PathBuf::from(directory);
    for (name, events) in all() {
        std::fs::write(directory.join(format!("{name}.svg")), svg(&events)).unwrap();
    }
}
