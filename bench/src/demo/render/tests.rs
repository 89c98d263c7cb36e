use super::*;
use crate::demo::machine::Machine;
use crate::demo::report::{LazyReport, MigrateReport, Setting, Version, Versions};
use crate::probe::ProbeReport;
use crate::probe::ledger::Settlement;
use crate::probe::record::{Gap, Latency};
use crate::probe::stall::Stall;
use crate::probe::verify::Verdict;
use crate::workload::dataset::Digest;

fn example() -> DemoReport {
    let round = |round, frozen, dirty, sent, bytes_wire, ms| RoundReport {
        round,
        frozen,
        scanned: 73_064,
        dirty,
        sent,
        zero: dirty / 9,
        unchanged: dirty / 90,
        deduplicated: dirty / 30,
        bytes_raw: dirty * 4096,
        bytes_wire,
        ms,
        ..RoundReport::default()
    };
    let phase = |phase: &str, ms| PhaseTime { phase: phase.into(), ms };
    let digest = Digest { keys: 85_213, bytes: 268_467_311, blake3: "3f9ac07e55d1b2a4c6".into() };
    DemoReport {
        client_gap_ms: 41.02,
        client_gap: Gap { ms: 41.02, from_ms: 3100.0, to_ms: 3141.02 },
        usual_gap_ms: 1.31,
        migration: MigrateReport {
            outcome: Outcome::Moved,
            downtime_ms: 38.2,
            downtime: vec![
                phase("freeze", 1.9),
                phase("dump", 14.1),
                phase("ship", 6.0),
                phase("restore", 15.2),
                phase("grant", 0.04),
            ],
            total_ms: 2412.3,
            rounds: vec![
                round(0, false, 73_064, 61_200, 107_400_000, 912.4),
                round(1, false, 2_101, 1_900, 2_410_000, 41.0),
                round(2, true, 190, 170, 98_304, 3.1),
            ],
            bytes_sent: 110_100_000,
            memory_bytes: 299_270_144,
            lazy: LazyReport {
                faults: 812,
                from_store: 72_900,
                from_source: 164,
                p50_us: 38,
                p99_us: 210,
                drain_ms: 412.0,
            },
            versions: Versions {
                blip: Version::One("0.1.0".into()),
                docker: Version::Two(["28.5.2".into(), "28.5.2".into()]),
                criu: Version::Two(["4.2.1".into(), "4.2.1".into()]),
                runc: Version::Two(["1.3.6".into(), "1.3.6".into()]),
                kernel: Version::Two(["6.18.0".into(), "6.18.0".into()]),
            },
            ..MigrateReport::default()
        },
        verified: true,
        objections: Vec::new(),
        proof: Some(Verdict {
            writes: Settlement { acked: 32_412, found: 32_412, missing: 0, surplus: 0 },
            faults: 0,
            before: digest.clone(),
            after: digest,
            server_agrees: Some(true),
            same_process: true,
        }),
        setting: Setting {
            data_bytes: 268_467_311,
            redis: "8.0.2".into(),
            hosts: "two hosts of Debian forky, cgroup v2, on one machine".into(),
            machine: Machine {
                cores: 2,
                processor: "A processor with a rather long name of its own @ 2.90GHz".into(),
                memory_bytes: 24 << 30,
                kernel: "6.18.0".into(),
                load: "0.31".into(),
            },
            up_ms: 4_900,
            fill_ms: 2_100,
        },
        probe: ProbeReport {
            rate: 5_000,
            latency: Latency {
                count: 32_412,
                p50_us: 94,
                p99_us: 3_204,
                p999_us: 38_000,
                max_us: 41_310,
            },
            stall: Stall { longest_ms: 2.24, at_ms: 3_110.0, over_5_ms: 0, ticks: 6_000 },
            ..ProbeReport::default()
        },
    }
}

#[test]
fn a_migration_reads_like_this() {
    let text = render(&example());
    assert_eq!(text, include_str!("moved.txt"), "it reads now:\n{text}");
}

#[test]
fn nothing_is_wider_than_a_terminal_and_colour_adds_only_colour() {
    let plain = render(&example());
    for line in plain.lines() {
        assert!(width(line) <= WIDTH, "{line}");
        assert!(!line.contains('\x1b'));
    }
    let mut coloured = render_in(&example(), &Palette::COLOUR);
    let Palette { head, aside, bar, good, bad, end } = Palette::COLOUR;
    for code in [head, aside, bar, good, bad, end] {
        coloured = coloured.replace(code, "");
    }
    let trimmed: Vec<_> = coloured.lines().map(str::trim_end).collect();
    assert_eq!(trimmed, plain.lines().collect::<Vec<_>>());
}

#[test]
fn a_failed_proof_cannot_be_overlooked() {
    let mut report = example();
    let proof = report.proof.as_mut().expect("the example has one");
    proof.writes.missing = 3;
    proof.writes.found -= 3;
    proof.after.blake3 = "000000000000000011".into();
    report.objections = proof.objections();
    report.verified = false;
    let text = render(&report);
    assert!(text.contains("NOT VERIFIED"));
    assert!(text.contains("✗ 32 409 of 32 412 acknowledged writes are there"));
    assert!(text.contains("✗ 3 of 32412 acknowledged writes are missing"));
    assert!(text.contains("✗ the dataset was 3f9ac07e55d1b2a4… and is 0000000000000000…"));
    assert!(!text.contains("✓ 85 213 keys"));
}

#[test]
fn a_container_that_stayed_says_why() {
    let mut report = example();
    report.migration = MigrateReport {
        outcome: Outcome::Kept,
        why: Some("the target has no room".into()),
        ..MigrateReport::default()
    };
    let text = render(&report);
    assert!(text.starts_with("blip left Redis where it was"));
    assert!(text.contains("the target has no room"));
    assert!(!text.contains("Copied ahead"), "no rounds, no table");
}

#[test]
fn a_series_ends_with_its_medians() {
    let text = render_series(&Series::of(vec![example(), example(), example()]), &Palette::PLAIN);
    assert!(text.lines().all(|l| width(l) <= WIDTH), "{text}");
    let last = text.lines().last().expect("a line");
    assert!(last.contains("median") && last.contains("41.0 ms") && last.ends_with("all"), "{last}");
}

#[test]
fn numbers_are_said_as_people_say_them() {
    assert_eq!(grouped(0), "0");
    assert_eq!(grouped(999), "999");
    assert_eq!(grouped(1_000), "1 000");
    assert_eq!(grouped(1_234_567), "1 234 567");
    assert_eq!(time(0.04), "0.0 ms");
    assert_eq!(time(412.4), "412 ms");
    assert_eq!(time(2412.3), "2 412 ms");
    assert_eq!(time(45_210.0), "45.2 s");
    assert_eq!(percent(1, 0), "–");
}
