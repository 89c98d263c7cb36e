//! What is done inside the virtual machine: migrations by CRIU's pre-dumps
//! between two hosts of a lab in it.

use crate::hosts::{AtClient, Hosts};
use blip_bench::lab::{CgroupMode, Suite};
use blip_bench::probe::verify::Expected;
use blip_bench::probe::{Probe, Spec};
use blip_engine::criu::image::{Kind, PageMapHead, encode};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Data of the Redis that moves.
const DATA: u64 = 24 * MIB;

/// Asked for by name; nothing that went ahead goes again.
#[test]
#[ignore = "run inside the virtual machine"]
fn redis_moves_by_pre_dumps() {
    let hosts = Hosts::up("vm", CgroupMode::V2, Suite::Forky);
    says_what_the_kernel_can_do(&hosts);
    let busy = Busy::start(&hosts, "redis", 1);
    nothing_is_copied_twice(&busy.moves("--tracker soft-dirty", "soft-dirty: asked for", None));
}

/// One of CRIU's pre-dumps fails.
#[test]
#[ignore = "run inside the virtual machine"]
fn redis_moves_although_a_pre_dump_fails() {
    let hosts = Hosts::up("vm", CgroupMode::V2, Suite::Forky);
    let busy = Busy::start(&hosts, "spoiled", 1);
    let spoiler = Spoiler { root: hosts.a().root() };
    let flags = "--tracker soft-dirty";
    falls_back_to_a_full_round(&busy.moves(flags, "soft-dirty: asked for", Some(&spoiler)));
}

/// Where there is nothing better, pre-dumps are taken unasked.
#[test]
#[ignore = "run inside the virtual machine"]
fn redis_moves_by_the_best_there_is() {
    let hosts = Hosts::up("vm", CgroupMode::V2, Suite::Forky);
    says_what_the_kernel_can_do(&hosts);
    let busy = Busy::start(&hosts, "redis", 1);
    refuses_what_the_kernel_lacks(&hosts);
    let why = "soft-dirty: the kernel has CONFIG_MEM_SOFT_DIRTY; no write-protect, as";
    nothing_is_copied_twice(&busy.moves("", why, None));
}

/// A Redis with a client that writes over one connection all the while.
struct Busy<'a> {
    hosts: &'a Hosts,
    name: &'a str,
    addr: SocketAddr,
    expected: Expected,
    place: AtClient,
    probe: Probe,
}

impl<'a> Busy<'a> {
    fn start(hosts: &'a Hosts, name: &'a str, number: u8) -> Self {
        let (addr, expected) = hosts.redis(name, number, DATA);
        let place = AtClient(hosts.lab.client());
        let silence = Duration::from_secs(60);
        let spec = Spec { rate: 50, counters: 50, silence, drain: silence, ..Spec::new(addr) };
        let probe = Probe::start(spec, &place).expect("a probe");
        std::thread::sleep(Duration::from_secs(1));
        Self { hosts, name, addr, expected, place, probe }
    }

    /// Moves it, and looks whether all is there. Answers the events; the last
    /// one is the report.
    fn moves(self, flags: &str, tracker: &str, spoiler: Option<&Spoiler>) -> Vec<Value> {
        let Self { hosts, name, addr, expected, place, probe } = self;
        let over = AtomicBool::new(false);
        let (code, lines, err) = std::thread::scope(|scope| {
            if let Some(spoiler) = spoiler {
                scope.spawn(|| spoiler.spoil(&over));
            }
            let flags = format!("{flags} --remove-source");
            let ended = hosts.start_migration_with(name, &flags).end();
            over.store(true, Ordering::Relaxed);
            ended
        });
        assert_eq!(code, Some(0), "{err}\n{}", lines.join("\n"));
        let parse = |line: &String| serde_json::from_str::<Value>(line).expect("JSON");
        let events: Vec<Value> = lines.iter().map(parse).collect();
        let report = events.last().expect("a report");
        eprintln!("{name}: {report}");
        std::thread::sleep(Duration::from_secs(1));
        let seen = probe.stop().expect("the probe's report");
        assert_eq!(seen.reconnects, 0, "the connection moved along: {:?}", seen.connections);
        let verdict = seen.verify(&place, addr, &expected).expect("a verdict");
        assert!(verdict.verified(), "{:?}", verdict.objections());
        assert!(verdict.writes.acked > 0, "{verdict:?}");
        assert_eq!(report["outcome"], "moved", "{report}");
        let why = report["tracker"].as_str().expect("words");
        assert!(why.starts_with(tracker), "{why}");
        hosts.source_is_clean("after the move", None);
        hosts.docker(hosts.b(), &format!("rm --force {name}"));
        events
    }
}

/// In words that say what is missing, and what to do.
fn refuses_what_the_kernel_lacks(hosts: &Hosts) {
    let words = ["migrate", "redis", "--to", "b", "--tracker", "write-protect"];
    let said = hosts.blip(&[], &words);
    eprintln!("{}", said.err);
    assert_eq!(said.code, Some(3), "{said:?}");
    for word in ["UFFD_FEATURE_WP_ASYNC", "6.7", "--tracker soft-dirty", "--tracker hash"] {
        assert!(said.err.contains(word), "'{word}' is missing: {said:?}");
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn dirty(round: &Value) -> u64 {
    number(&round["dirty"])
}

/// `blip check` says of each tracker whether this kernel has it, and which one
/// is taken by itself; the trackers that are asked for by name agree.
fn says_what_the_kernel_can_do(hosts: &Hosts) {
    let said = hosts.a().run(&["blip", "check"]).expect("blip check");
    eprintln!("{said}");
    let line = |tracker: &str| {
        let start = format!("tracker {tracker} ");
        said.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{said}"))
    };
    let write_protect = line("write-protect");
    let automatic = if has_async_write_protection() {
        assert!(line("soft-dirty").contains(" yes: "), "{said}");
        "write-protect"
    } else {
        // What is missing, since when there is it, and what is the next best.
        for word in [" no: ", "UFFD_FEATURE_WP_ASYNC", "6.7"] {
            assert!(write_protect.contains(word), "{said}");
        }
        "soft-dirty"
    };
    assert!(line(automatic).contains(" yes, chosen by auto: "), "{said}");
}

/// Linux 6.7.
fn has_async_write_protection() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(7))
}

/// What was copied ahead and not written again is in no later round, is not
/// fetched by the restored container, and is not in CRIU's images.
fn nothing_is_copied_twice(events: &[Value]) {
    let report = events.last().expect("a report");
    let rounds = report["rounds"].as_array().expect("rounds");
    let memory = number(&report["memory_bytes"]);
    assert!(rounds.len() >= 3 && memory > DATA, "{report}");
    let first = dirty(&rounds[0]);
    assert!(first * 4096 > memory / 10 * 9, "the first round takes all: {report}");
    assert!(rounds[0]["stall_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
    let again: u64 = rounds[1..].iter().map(dirty).sum();
    assert!(again * 2 < first, "{report}");
    let mut held = 0;
    for round in rounds {
        let told: u64 = ["sent", "zero", "unchanged", "deduplicated"]
            .iter()
            .map(|what| number(&round[what]))
            .sum();
        // What was held back before goes as well.
        assert!(told <= dirty(round) + held, "{report}");
        held = number(&round["held_back"]);
    }
    // The frozen source is asked for no more than what it found in the freeze.
    let frozen: u64 = rounds.iter().filter(|round| round["frozen"] == true).map(dirty).sum();
    let lazy = &report["lazy"];
    assert!(number(&lazy["from_source"]) <= frozen, "{report}");
    assert!(number(&lazy["from_store"]) + frozen >= memory / 4096, "{report}");
    // CRIU restores what is in its images: that does not grow with memory.
    let notes = events.iter().filter_map(|event| event["text"].as_str());
    for note in notes.filter(|note| note.starts_with("images hold")) {
        let raw = note.split(' ').find_map(|word| word.parse::<u64>().ok()).expect("a number");
        assert!(raw < memory / 8, "{note}");
    }
    // One pre-dump's images at a time; the first has everything.
    let peak = number(&report["tracking"]["peak_bytes"]);
    assert!(peak > memory / 2 && peak < memory + memory / 4, "{report}");
    assert_eq!(number(&report["tracking"]["fell_back"]), 0, "{report}");
}

/// All pages were taken once more, and the rounds after that were small again.
fn falls_back_to_a_full_round(events: &[Value]) {
    let report = events.last().expect("a report");
    let rounds = report["rounds"].as_array().expect("rounds");
    assert_eq!(number(&report["tracking"]["fell_back"]), 1, "{report}");
    let first = dirty(&rounds[0]);
    let full = rounds.iter().filter(|round| dirty(round) * 10 > first * 9).count();
    assert_eq!(full, 2, "{report}");
    assert!(rounds.last().is_some_and(|round| dirty(round) * 4 < first), "{report}");
}

/// Has a pre-dump fail: what CRIU finds of the one before lacks all pages.
struct Spoiler {
    /// The source's root.
    root: PathBuf,
}

impl Spoiler {
    /// Waits for the first pre-dump, and until its bytes are sent, and empties
    /// its pagemap.
    fn spoil(&self, over: &AtomicBool) {
        let mut came = false;
        while !over.load(Ordering::Relaxed) {
            let first = self.first();
            let pages = first.as_ref().and_then(|image| image.join("pages-1.img").metadata().ok());
            let bytes = pages.map_or(0, |pages| pages.len());
            came |= bytes > 0;
            if let Some(image) = first.filter(|_| came && bytes == 0) {
                let head = encode(Kind::PageMap, &[PageMapHead { pages_id: 1 }]);
                std::fs::write(image.join("pagemap-1.img"), head).expect("an image");
                return eprintln!("spoiled {}", image.display());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn first(&self) -> Option<PathBuf> {
        let departures = folders(&self.root.join("run/blip/departures"));
        let mut images = departures.iter().flat_map(|one| folders(&one.join("pre-dumps")));
        images.find(|image| image.ends_with("pre-0"))
    }
}

fn folders(of: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(of).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
