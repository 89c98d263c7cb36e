//! Trees of files carried from one directory to another, over rounds, with
//! everything a file can be, and by peers that mean harm.

#[path = "files_support/mod.rs"]
mod support;

use blip_transport::files::wire::{Base, FrameWriter, Meta, NodeKind, Record};
use blip_transport::files::{
    Apply, ApplyError, ApplyOptions, Exclude, Manifest, Marks, Pace, RelPath, Room, ScanError,
    Scanner, Sent, Tree,
};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::overlay::Overlay;
use support::step::{Step, steps};
use support::tree::{Snapshot, snapshot};

fn options() -> ApplyOptions {
    ApplyOptions { allow_devices: true, room: Room::UNLIMITED, keep: Exclude::default() }
}

/// One round from `source` into `target`.
fn carry(source: &Scanner, known: &Manifest, pace: Pace, target: &Path) -> Sent {
    let mut apply = Apply::open(target, options()).unwrap();
    let mut sink = |frame: Bytes| apply.frame(&frame).map_err(std::io::Error::other);
    let sent = source.round(known, pace, &mut sink).unwrap();
    apply.finish().unwrap();
    sent
}

fn plain(root: &Path) -> Scanner {
    Scanner::open(root, Tree::Plain, Exclude::default()).unwrap()
}

/// Tells another thread to stop, also when this one panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Longer than any clock tick, so that stamps are believed.
fn settle() {
    std::thread::sleep(Duration::from_millis(60));
}

fn assert_same(left: &Snapshot, right: &Snapshot) {
    for (path, entry) in left {
        assert_eq!(right.get(path), Some(entry), "{}", path.escape_ascii());
    }
    for path in right.keys() {
        assert!(left.contains_key(path), "left over: {}", path.escape_ascii());
    }
}

/// Rounds of changes: each with its steps, and whether it waits afterwards so
/// that the next round believes stamps.
fn rounds(root: bool) -> impl Strategy<Value = Vec<(Vec<Step>, bool)>> {
    prop::collection::vec((steps(root, 1..25), prop::bool::weighted(0.4)), 1..5)
}

fn check_rounds(
    source: &Scanner,
    change: &Path,
    target: &Path,
    rounds: &[(Vec<Step>, bool)],
) -> Manifest {
    let mut known = Manifest::empty();
    for (number, (steps, wait)) in rounds.iter().enumerate() {
        for step in steps {
            step.run(change);
        }
        if *wait {
            settle();
        }
        let last = number + 1 == rounds.len();
        let pace = if last { Pace::Frozen } else { Pace::Live };
        known = carry(source, &known, pace, target).manifest;
        assert_same(&snapshot(change), &snapshot(target));
    }
    known
}

fn plain_case(rounds: &[(Vec<Step>, bool)]) {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    check_rounds(&plain(source.path()), source.path(), target.path(), rounds);
}

/// Few by default, because each case runs several rounds on a real file
/// system; `PROPTEST_CASES` asks for more.
fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").map_or(48, |number| number.parse().unwrap());
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_plain_tree_arrives_whole_after_every_round(rounds in rounds(false)) {
        plain_case(&rounds);
    }

    #[test]
    #[cfg_attr(not(blip_root), ignore = "needs root")]
    fn owners_devices_and_privileged_attributes_arrive_too(rounds in rounds(true)) {
        plain_case(&rounds);
    }

    #[test]
    #[cfg_attr(not(blip_root), ignore = "needs root")]
    fn an_upper_directory_makes_the_other_overlay_the_same(rounds in rounds(true)) {
        let (source, target) = (Overlay::mount(), Overlay::mount());
        let scanner =
            Scanner::open(&source.upper(), Tree::Upper(Marks::Trusted), Exclude::default())
                .unwrap();
        check_rounds(&scanner, &source.merged(), &target.merged(), &rounds);
    }
}

/// A tree that went to another host, lived on there, and comes back to where
/// it was left.
fn there_and_back_case(there: &[Step], after: &[Step]) {
    let (home, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    there.iter().for_each(|step| step.run(home.path()));
    carry(&plain(home.path()), &Manifest::empty(), Pace::Frozen, away.path());
    after.iter().for_each(|step| step.run(away.path()));
    let memo = plain(home.path()).survey().unwrap().to_bytes();
    let known = Manifest::from_bytes(&memo).unwrap();
    let scanner = plain(away.path());
    let sent = carry(&scanner, &known, Pace::Live, home.path());
    assert_same(&snapshot(away.path()), &snapshot(home.path()));
    carry(&scanner, &sent.manifest, Pace::Frozen, home.path());
    assert_same(&snapshot(away.path()), &snapshot(home.path()));
}

/// The same for a writable layer, which comes back to a new one.
fn layer_and_back_case(there: &[Step], after: &[Step]) {
    let (left, away, new) = (Overlay::mount(), Overlay::mount(), Overlay::mount());
    let scanner = |overlay: &Overlay| {
        Scanner::open(&overlay.upper(), Tree::Upper(Marks::Trusted), Exclude::default()).unwrap()
    };
    there.iter().for_each(|step| step.run(&left.merged()));
    carry(&scanner(&left), &Manifest::empty(), Pace::Frozen, &away.merged());
    after.iter().for_each(|step| step.run(&away.merged()));
    let mut apply = Apply::open(&new.merged(), options()).unwrap();
    let mut sink = |frame: Bytes| apply.frame(&frame).map_err(std::io::Error::other);
    let memo = scanner(&left).copy_to(&mut sink).unwrap().to_bytes();
    apply.finish().unwrap();
    assert_same(&snapshot(&left.merged()), &snapshot(&new.merged()));
    let known = Manifest::from_bytes(&memo).unwrap();
    carry(&scanner(&away), &known, Pace::Live, &new.merged());
    assert_same(&snapshot(&away.merged()), &snapshot(&new.merged()));
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    #[cfg_attr(not(blip_root), ignore = "needs root")]
    fn what_is_left_behind_becomes_what_comes_back(
        there in steps(true, 1..25),
        after in steps(true, 0..12),
    ) {
        there_and_back_case(&there, &after);
    }

    #[test]
    #[cfg_attr(not(blip_root), ignore = "needs root")]
    fn and_so_does_a_writable_layer(there in steps(true, 1..25), after in steps(true, 0..12)) {
        layer_and_back_case(&there, &after);
    }

    #[test]
    fn a_damaged_list_of_files_is_refused_or_harmless(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        at in 0usize..400,
        to in any::<u8>(),
    ) {
        let _ = Manifest::from_bytes(&bytes);
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("d")).unwrap();
        fs::write(tree.path().join("d/f"), b"text").unwrap();
        fs::hard_link(tree.path().join("d/f"), tree.path().join("g")).unwrap();
        let mut memo = plain(tree.path()).survey().unwrap().to_bytes();
        let at = at % memo.len();
        memo[at] = to;
        let _ = Manifest::from_bytes(&memo);
    }
}

#[test]
fn of_a_tree_that_comes_back_only_the_difference_travels() {
    let (home, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for file in 0..50 {
        fs::write(home.path().join(format!("{file}")), [file; 5000]).unwrap();
    }
    fs::write(home.path().join("large"), vec![7; 40 * 65_536]).unwrap();
    fs::hard_link(home.path().join("large"), home.path().join("linked")).unwrap();
    carry(&plain(home.path()), &Manifest::empty(), Pace::Frozen, away.path());
    let open = fs::OpenOptions::new().write(true).open(away.path().join("large")).unwrap();
    open.write_all_at(b"other", 3 * 65_536 + 9).unwrap();
    fs::write(away.path().join("7"), b"seven").unwrap();
    fs::remove_file(away.path().join("8")).unwrap();
    let known = Manifest::from_bytes(&plain(home.path()).survey().unwrap().to_bytes()).unwrap();
    let sent = carry(&plain(away.path()), &known, Pace::Live, home.path());
    assert_eq!((sent.totals.content_bytes, sent.totals.removed), (65_536 + 5, 1));
    assert_same(&snapshot(away.path()), &snapshot(home.path()));
}

#[test]
fn what_did_not_change_is_not_sent_again() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(source.path().join("d")).unwrap();
    for file in 0..50 {
        fs::write(source.path().join(format!("d/{file}")), [file; 5000]).unwrap();
    }
    fs::hard_link(source.path().join("d/1"), source.path().join("linked")).unwrap();
    symlink("d/2", source.path().join("pointed")).unwrap();
    let scanner = plain(source.path());
    settle();
    let first = carry(&scanner, &Manifest::empty(), Pace::Live, target.path());
    assert_eq!(first.totals.unsettled, 0);
    assert_eq!(first.totals.content_bytes, 250_000);
    for pace in [Pace::Live, Pace::Frozen] {
        let again = carry(&scanner, &first.manifest, pace, target.path());
        assert_eq!(again.totals.changed + again.totals.removed, 0, "{:?}", again.totals);
        assert_eq!(again.totals.read_bytes, 0);
        assert_eq!(again.totals.scanned, first.totals.scanned);
    }
    fs::write(source.path().join("d/7"), b"other").unwrap();
    fs::remove_file(source.path().join("d/8")).unwrap();
    let third = carry(&scanner, &first.manifest, Pace::Frozen, target.path());
    assert_eq!((third.totals.content_bytes, third.totals.removed), (5, 1));
    assert_eq!(third.totals.changed, 2, "the file and its directory");
    assert_same(&snapshot(source.path()), &snapshot(target.path()));
}

#[test]
fn a_look_at_names_finds_what_came_and_tells_what_it_cannot_know() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| source.path().join(name);
    for dir in ["a", "a/b", "c"] {
        fs::create_dir(at(dir)).unwrap();
        fs::write(at(dir).join("file"), dir).unwrap();
    }
    let open = fs::OpenOptions::new().write(true).open(at("c/file")).unwrap();
    let scanner = plain(source.path());
    settle();
    let known = carry(&scanner, &Manifest::empty(), Pace::Live, target.path()).manifest;
    let known = carry(&scanner, &known, Pace::Frozen, target.path()).manifest;
    let same = carry(&scanner, &known, Pace::Names, target.path());
    assert_eq!((same.totals.scanned, same.totals.changed), (3, 0), "directories only");
    // What nobody does meanwhile is not looked for.
    open.write_all_at(b"!", 0).unwrap();
    fs::write(at("a/b/new"), b"new").unwrap();
    let sent = carry(&scanner, &known, Pace::Names, target.path());
    assert_eq!((sent.totals.scanned, sent.totals.loose), (5, 0));
    assert_eq!(fs::read(target.path().join("a/b/new")).unwrap(), b"new");
    assert_eq!(fs::read(target.path().join("c/file")).unwrap(), b"c");
    // Another name of a file that is elsewhere.
    fs::hard_link(at("c/file"), at("a/again")).unwrap();
    let sent = carry(&scanner, &sent.manifest, Pace::Names, target.path());
    assert_eq!(sent.totals.loose, 1);
    carry(&scanner, &sent.manifest, Pace::Frozen, target.path());
    assert_same(&snapshot(source.path()), &snapshot(target.path()));
}

#[test]
fn only_the_changed_blocks_of_a_large_file_travel() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = source.path().join("large");
    fs::write(&path, vec![7; 8 << 20]).unwrap();
    let scanner = plain(source.path());
    let first = carry(&scanner, &Manifest::empty(), Pace::Live, target.path());
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"changed", 3 << 20).unwrap();
    let second = carry(&scanner, &first.manifest, Pace::Live, target.path());
    assert_eq!(second.totals.content_bytes, 64 * 1024);
    // Replaced by a copy under the same name: still only what differs.
    let copy = source.path().join("copy");
    fs::copy(&path, &copy).unwrap();
    fs::rename(&copy, &path).unwrap();
    let third = carry(&scanner, &second.manifest, Pace::Frozen, target.path());
    assert_eq!(third.totals.content_bytes, 0);
    assert_same(&snapshot(source.path()), &snapshot(target.path()));
}

#[test]
fn an_enormous_empty_file_costs_nothing() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::File::create(source.path().join("void")).unwrap().set_len(1 << 43).unwrap();
    let scanner = plain(source.path());
    let sent = carry(&scanner, &Manifest::empty(), Pace::Frozen, target.path());
    assert_eq!(sent.totals.read_bytes, 0);
    let arrived = fs::metadata(target.path().join("void")).unwrap();
    assert_eq!((arrived.len(), arrived.blocks()), (1 << 43, 0));
}

#[test]
fn excluded_paths_neither_leave_nor_go() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for root in [source.path(), target.path()] {
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/hosts"), root.as_os_str().as_encoded_bytes()).unwrap();
    }
    fs::write(source.path().join("etc/hosts.allow"), b"yes").unwrap();
    let exclude = Exclude::new(["/etc/hosts"]).unwrap();
    let scanner = Scanner::open(source.path(), Tree::Plain, exclude.clone()).unwrap();
    let round = |known: &Manifest| {
        let mut apply =
            Apply::open(target.path(), ApplyOptions { keep: exclude.clone(), ..options() })
                .unwrap();
        let mut sink = |frame: Bytes| apply.frame(&frame).map_err(std::io::Error::other);
        let sent = scanner.round(known, Pace::Frozen, &mut sink).unwrap();
        apply.finish().unwrap();
        sent.manifest
    };
    let known = round(&Manifest::empty());
    let own = target.path().as_os_str().as_encoded_bytes();
    assert_eq!(fs::read(target.path().join("etc/hosts")).unwrap(), own);
    assert_eq!(fs::read(target.path().join("etc/hosts.allow")).unwrap(), b"yes");
    // Even if everything around it goes.
    fs::remove_dir_all(source.path().join("etc")).unwrap();
    round(&known);
    assert_eq!(fs::read(target.path().join("etc/hosts")).unwrap(), own);
    assert!(!target.path().join("etc/hosts.allow").exists());
}

/// Changes `change` without pause while rounds are read, then once more.
fn live_case(scanner: &Scanner, change: &Path, target: &Path, root: bool) {
    let stop = AtomicBool::new(false);
    let mut known = Manifest::empty();
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            let mut runner = proptest::test_runner::TestRunner::default();
            while !stop.load(Ordering::Relaxed) {
                let steps = steps(root, 50..51).new_tree(&mut runner).unwrap().current();
                for step in steps {
                    step.run(change);
                }
            }
        });
        for _ in 0..40 {
            known = carry(scanner, &known, Pace::Live, target).manifest;
        }
    });
    carry(scanner, &known, Pace::Frozen, target);
    assert_same(&snapshot(change), &snapshot(target));
}

#[test]
fn a_tree_that_changes_while_it_is_read_is_right_after_the_frozen_round() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    live_case(&plain(source.path()), source.path(), target.path(), false);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn so_is_an_overlay_that_changes_while_it_is_read() {
    let (source, target) = (Overlay::mount(), Overlay::mount());
    let scanner =
        Scanner::open(&source.upper(), Tree::Upper(Marks::Trusted), Exclude::default()).unwrap();
    live_case(&scanner, &source.merged(), &target.merged(), true);
}

/// A write through a mapping, then one in a round's shadow: the second leaves
/// no trace unless the page was cleaned in between.
fn mapped_writes_case(source: &Path, scanner: &Scanner) {
    let target = tempfile::tempdir().unwrap();
    let path = source.join("mapped");
    fs::write(&path, vec![0; 100_000]).unwrap();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: nothing truncates the file while it is mapped, and the bytes are
    // only written, by this thread.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
    // Without this gap the test would prove nothing. It is not always there:
    // other tests synchronise the same file system.
    let changed = || fs::metadata(&path).map(|meta| (meta.ctime(), meta.ctime_nsec())).unwrap();
    let untraced = |map: &mut memmap2::MmapMut| {
        map[0] = 1;
        let before = changed();
        std::thread::sleep(Duration::from_millis(15));
        map[1] = 2;
        before == changed()
    };
    assert!((0..200).any(|_| untraced(&mut map)), "every mapped write left a trace");
    settle();
    let mut known = Manifest::empty();
    for round in 3..6 {
        known = carry(scanner, &known, Pace::Live, target.path()).manifest;
        map[round] = 9;
        settle();
    }
    carry(scanner, &known, Pace::Frozen, target.path());
    assert_eq!(fs::read(target.path().join("mapped")).unwrap()[..6], [1, 2, 0, 9, 9, 9]);
}

#[test]
fn writes_through_a_mapping_are_never_missed() {
    let source = tempfile::tempdir().unwrap();
    mapped_writes_case(source.path(), &plain(source.path()));
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn nor_are_they_through_an_overlay() {
    let source = Overlay::mount();
    let scanner =
        Scanner::open(&source.upper(), Tree::Upper(Marks::Trusted), Exclude::default()).unwrap();
    mapped_writes_case(&source.merged(), &scanner);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn nor_are_they_where_pages_are_never_written_back() {
    let source = tempfile::tempdir().unwrap();
    support::overlay::private_mounts();
    let flags = nix::mount::MsFlags::empty();
    let none = None::<&str>;
    nix::mount::mount(Some("tmpfs"), source.path(), Some("tmpfs"), flags, none).unwrap();
    mapped_writes_case(source.path(), &plain(source.path()));
    nix::mount::umount(source.path()).unwrap();
}

#[test]
fn holes_stay_holes_and_new_ones_are_punched() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = source.path().join("sparse");
    let file = fs::File::create(&path).unwrap();
    for offset in [0, 1 << 20, (3 << 20) + 4096] {
        file.write_all_at(&[5; 70_000], offset).unwrap();
    }
    file.set_len(4 << 20).unwrap();
    let scanner = plain(source.path());
    let first = carry(&scanner, &Manifest::empty(), Pace::Live, target.path());
    assert_eq!(first.totals.content_bytes, 3 * 73_728);
    assert_same(&snapshot(source.path()), &snapshot(target.path()));
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, (1 << 20) + 8192, 16_384).unwrap();
    rustix::fs::fallocate(&file, flags, 3 << 20, 1 << 20).unwrap();
    let second = carry(&scanner, &first.manifest, Pace::Frozen, target.path());
    assert_same(&snapshot(source.path()), &snapshot(target.path()));
    let stored = fs::metadata(target.path().join("sparse")).unwrap().blocks() * 512;
    assert!(stored < 1 << 18, "{stored}");
    assert_eq!(second.totals.content_bytes, 65_536 - 16_384, "only the block with a new hole");
}

#[test]
fn links_that_come_go_and_move_cost_no_content() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| source.path().join(name);
    fs::write(at("one"), vec![3; 300_000]).unwrap();
    let scanner = plain(source.path());
    let mut known = carry(&scanner, &Manifest::empty(), Pace::Live, target.path()).manifest;
    let changes: [&dyn Fn(); 4] = [
        &|| fs::hard_link(at("one"), at("two")).unwrap(),
        &|| fs::hard_link(at("two"), at("three")).unwrap(),
        &|| fs::remove_file(at("two")).unwrap(),
        &|| fs::remove_file(at("one")).unwrap(),
    ];
    for change in changes {
        change();
        let sent = carry(&scanner, &known, Pace::Frozen, target.path());
        assert_eq!(sent.totals.content_bytes, 0);
        assert_same(&snapshot(source.path()), &snapshot(target.path()));
        known = sent.manifest;
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn whiteouts_and_opaque_directories_become_the_same_on_the_target() {
    let (source, target) = (Overlay::mount(), Overlay::mount());
    let merged = source.merged();
    fs::remove_file(merged.join("a/file")).unwrap();
    fs::remove_dir_all(merged.join("b")).unwrap();
    fs::create_dir(merged.join("b")).unwrap();
    fs::write(merged.join("b/new"), b"new").unwrap();
    fs::remove_dir_all(merged.join("sp ace")).unwrap();
    let scanner =
        Scanner::open(&source.upper(), Tree::Upper(Marks::Trusted), Exclude::default()).unwrap();
    let sent = carry(&scanner, &Manifest::empty(), Pace::Live, &target.merged());
    assert_eq!(sent.totals.removed, 2);
    assert_same(&snapshot(&merged), &snapshot(&target.merged()));
    assert!(!target.merged().join("b/deep").exists());
    // Not only to look at: the target's own upper directory says the same.
    let whiteout = fs::symlink_metadata(target.upper().join("a/file")).unwrap();
    assert_eq!((whiteout.rdev(), whiteout.mode() & 0o170_000), (0, 0o020_000));
    let again = carry(&scanner, &sent.manifest, Pace::Frozen, &target.merged());
    assert_eq!(again.totals.removed, 0);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn marks_that_point_into_lower_layers_are_named() {
    let upper = tempfile::tempdir().unwrap();
    fs::create_dir(upper.path().join("moved")).unwrap();
    let path = upper.path().join("moved");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&path, "trusted.overlay.redirect", b"/old", flags).unwrap();
    let scanner =
        Scanner::open(upper.path(), Tree::Upper(Marks::Trusted), Exclude::default()).unwrap();
    let error = scanner.round(&Manifest::empty(), Pace::Frozen, &mut |_| Ok(())).unwrap_err();
    let ScanError::Unresolvable { path, mark } = error else { panic!("{error}") };
    assert_eq!((path.to_string().as_str(), mark), ("/moved", "redirect"));
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_full_target_is_told_as_such() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(source.path().join("large"), vec![1; 4 << 20]).unwrap();
    support::overlay::private_mounts();
    let small = Some("size=1m");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), target.path(), Some("tmpfs"), flags, small).unwrap();
    let mut apply = Apply::open(target.path(), options()).unwrap();
    let mut failure = None;
    let mut sink = |frame: Bytes| {
        apply.frame(&frame).map_err(|error| {
            failure = Some(error);
            std::io::ErrorKind::Other.into()
        })
    };
    let scanner = plain(source.path());
    scanner.round(&Manifest::empty(), Pace::Frozen, &mut sink).unwrap_err();
    let Some(ApplyError::NoSpace { path }) = failure else { panic!("{failure:?}") };
    assert_eq!(path.to_string(), "/large");
    drop(apply);
    nix::mount::umount(target.path()).unwrap();
}

// ---- peers that mean harm -------------------------------------------------

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

fn meta() -> Meta {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    Meta { mode: 0o755, uid, gid, ..Meta::default() }
}

fn frames(records: &[(Record, &[u8])]) -> Vec<Bytes> {
    let mut frames = Vec::new();
    let mut sink = |frame| {
        frames.push(frame);
        Ok(())
    };
    let mut writer = FrameWriter::new(&mut sink).unwrap();
    for (record, data) in records {
        writer.put(record, data).unwrap();
    }
    writer.end().unwrap();
    frames
}

fn apply_all(root: &Path, options: ApplyOptions, frames: &[Bytes]) -> Result<(), ApplyError> {
    let mut apply = Apply::open(root, options)?;
    for frame in frames {
        apply.frame(frame)?;
    }
    apply.finish().map(drop)
}

/// A directory with a root in it and a neighbour nobody may touch.
struct Prison {
    dir: tempfile::TempDir,
}

impl Prison {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), b"secret").unwrap();
        symlink("../outside", dir.path().join("root/out")).unwrap();
        symlink("../outside/secret", dir.path().join("root/leak")).unwrap();
        symlink(dir.path().join("outside"), dir.path().join("root/far")).unwrap();
        Self { dir }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root")
    }

    /// Applies and checks that nothing outside moved.
    fn try_out(&self, records: &[(Record, &[u8])]) -> Result<(), ApplyError> {
        let outside = self.dir.path().join("outside");
        let before = snapshot(&outside);
        let result = apply_all(&self.root(), options(), &frames(records));
        assert_same(&before, &snapshot(&outside));
        result
    }
}

fn new_file(at: &str) -> Record {
    Record::File { path: path(at), size: 4, base: Base::Nothing }
}

#[test]
fn no_link_leads_out_of_the_root() {
    let evil: &[u8] = b"evil";
    let data = Record::Data { offset: 0, len: 4 };
    let close = Record::Close { meta: meta() };
    for through in ["out", "far"] {
        let inside = format!("{through}/secret");
        let at = || path(&inside);
        let attempts = [
            new_file(&inside),
            Record::File { path: at(), size: 4, base: Base::Present },
            Record::Remove { path: at() },
            Record::Meta { path: at(), meta: meta() },
            Record::Dir { path: at(), clear: true, meta: meta() },
            Record::Symlink { path: at(), target: b"x".into(), meta: meta() },
            Record::Node { path: at(), kind: NodeKind::Fifo, meta: meta() },
            Record::HardLink { path: path("mine"), to: at() },
            Record::HardLink { path: at(), to: path("leak") },
        ];
        for attempt in attempts {
            let error = Prison::new()
                .try_out(&[(attempt.clone(), &[]), (data.clone(), evil), (close.clone(), &[])])
                .unwrap_err();
            let elsewhere = matches!(
                error,
                ApplyError::LeadsElsewhere { .. } | ApplyError::Io { what: "open", .. }
            );
            assert!(elsewhere, "{attempt:?}: {error}");
        }
    }
}

#[test]
fn the_last_name_is_never_followed() {
    let file = |base| Record::File { path: path("leak"), size: 4, base };
    let data = Record::Data { offset: 0, len: 4 };
    let close = Record::Close { meta: meta() };
    // Onto a link: refused, or the link itself is replaced.
    let over = |record| {
        let prison = Prison::new();
        let done = prison.try_out(&[(record, &[]), (data.clone(), b"evil"), (close.clone(), &[])]);
        (prison, done)
    };
    let (_, refused) = over(file(Base::Present));
    assert!(matches!(refused, Err(ApplyError::Grammar { .. })), "{refused:?}");
    // Nor is anything opened that is no file: a device could act on it, a pipe
    // would wait for ever.
    let pipe = Record::Node { path: path("pipe"), kind: NodeKind::Fifo, meta: meta() };
    let into = Record::File { path: path("pipe"), size: 4, base: Base::Present };
    let refused = Prison::new().try_out(&[(pipe, &[]), (into, &[])]);
    assert!(matches!(refused, Err(ApplyError::Grammar { .. })), "{refused:?}");
    let (prison, replaced) = over(file(Base::Nothing));
    replaced.unwrap();
    assert!(fs::symlink_metadata(prison.root().join("leak")).unwrap().is_file());
    let prison = Prison::new();
    let mode = Meta { mode: 0o4777, ..meta() };
    prison.try_out(&[(Record::Meta { path: path("leak"), meta: mode }, &[])]).unwrap();
    prison
        .try_out(&[(Record::Dir { path: path("out"), clear: false, meta: meta() }, &[])])
        .unwrap();
    assert!(fs::symlink_metadata(prison.root().join("out")).unwrap().is_dir());
    prison.try_out(&[(Record::Remove { path: path("far") }, &[])]).unwrap();
    // A link the stream itself made is no better.
    let link = Record::Symlink { path: path("l"), target: b"../outside".into(), meta: meta() };
    let error = prison.try_out(&[(link, &[]), (new_file("l/x"), &[])]).unwrap_err();
    assert!(matches!(error, ApplyError::LeadsElsewhere { .. } | ApplyError::Io { .. }), "{error}");
}

#[test]
fn names_that_climb_do_not_decode() {
    for bad in ["..", "/x", "a/", "x\0", "./"] {
        let good = "y".repeat(bad.len());
        let mut body = postcard::to_stdvec(&Record::Remove { path: path(&good) }).unwrap();
        let at = body.len() - bad.len();
        body[at..].copy_from_slice(bad.as_bytes());
        let frame: Bytes = [&[0][..], &body].concat().into();
        let prison = Prison::new();
        let error = apply_all(&prison.root(), options(), &[frame]).unwrap_err();
        assert!(matches!(error, ApplyError::Wire(_)), "{bad:?}: {error}");
    }
}

#[test]
fn a_directory_swapped_for_a_link_in_mid_stream_gains_nothing() {
    let prison = Prison::new();
    let root = prison.root();
    fs::create_dir(root.join("d")).unwrap();
    fs::create_dir(root.join("e")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            let swap =
                || renameat_with(CWD, root.join("d"), CWD, root.join("out"), RenameFlags::EXCHANGE);
            while !stop.load(Ordering::Relaxed) {
                let _ = swap();
            }
        });
        let close = Record::Close { meta: meta() };
        let (mut refused, mut passed) = (0, 0);
        for number in 0..50_000 {
            // Alternating directories, so that each is opened anew.
            let (d, e) = (format!("d/{number}"), format!("e/{number}"));
            let data = Record::Data { offset: 0, len: 4 };
            let records = [
                (new_file(&e), &[][..]),
                (close.clone(), &[]),
                (new_file(&d), &[]),
                (data, b"evil"),
                (close.clone(), &[]),
            ];
            match apply_all(&root, options(), &frames(&records)) {
                Ok(()) => passed += 1,
                Err(_) => refused += 1,
            }
            if refused > 500 && passed > 500 {
                break;
            }
        }
        assert!(refused > 500 && passed > 500, "hardly a race: {refused} to {passed}");
    });
    let outside: Vec<_> = fs::read_dir(prison.dir.path().join("outside")).unwrap().collect();
    assert_eq!(outside.len(), 1);
}

#[test]
fn limits_hold() {
    let dir = tempfile::tempdir().unwrap();
    let apply = |options, records: &[(Record, &[u8])]| {
        apply_all(dir.path(), options, &frames(records)).unwrap_err()
    };
    let room = Room { bytes: 3, entries: 10 };
    let data = (Record::Data { offset: 0, len: 4 }, &b"evil"[..]);
    let error = apply(ApplyOptions { room, ..options() }, &[(new_file("a"), &[]), data.clone()]);
    assert!(matches!(error, ApplyError::NoRoom { .. }), "{error}");
    let room = Room { bytes: 100, entries: 1 };
    let link =
        |at| (Record::Symlink { path: path(at), target: b"x".into(), meta: meta() }, &[][..]);
    let error = apply(ApplyOptions { room, ..options() }, &[link("b"), link("c")]);
    assert!(matches!(error, ApplyError::NoRoom { .. }), "{error}");
    let device =
        Record::Node { path: path("null"), kind: NodeKind::CharDevice(1, 3), meta: meta() };
    let error = apply(ApplyOptions { allow_devices: false, ..options() }, &[(device, &[])]);
    assert!(matches!(error, ApplyError::Device { .. }), "{error}");
    let keep = Exclude::new(["/etc/hosts"]).unwrap();
    let error = apply(ApplyOptions { keep, ..options() }, &[(new_file("etc/hosts"), &[])]);
    assert!(matches!(error, ApplyError::Kept { .. }), "{error}");
}

#[test]
fn streams_out_of_order_are_refused() {
    let data = (Record::Data { offset: 0, len: 4 }, &b"evil"[..]);
    let close = (Record::Close { meta: meta() }, &[][..]);
    let beyond = (Record::Data { offset: 1, len: 4 }, &b"evil"[..]);
    let hole = (Record::Hole { offset: 4, len: 1 }, &[][..]);
    for records in [
        vec![data.clone()],
        vec![close.clone()],
        vec![hole.clone()],
        vec![(new_file("a"), &[]), (new_file("b"), &[])],
        vec![(new_file("a"), &[]), beyond],
        vec![(new_file("a"), &[]), hole],
        vec![(new_file("a"), &[])],
        vec![(Record::End, &[])],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = apply_all(dir.path(), options(), &frames(&records)).unwrap_err();
        assert!(matches!(error, ApplyError::Grammar { .. }), "{records:?}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(apply_all(dir.path(), options(), &[]), Err(ApplyError::Truncated)));
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn mangled_streams_stay_inside(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let at = |text| path(text);
        let mut body = Vec::new();
        for (record, data) in [
            (Record::Dir { path: at("d"), clear: true, meta: meta() }, &[][..]),
            (new_file("d/f"), &[]),
            (Record::Data { offset: 0, len: 4 }, b"evil"),
            (Record::Close { meta: meta() }, &[]),
            (Record::HardLink { path: at("d/g"), to: at("d/f") }, &[]),
            (Record::Symlink { path: at("out/x"), target: b"..".into(), meta: meta() }, &[]),
            (Record::Remove { path: at("far/secret") }, &[]),
            (Record::End, &[]),
        ] {
            body.extend(postcard::to_stdvec(&record).unwrap());
            body.extend_from_slice(data);
        }
        for (index, byte) in flips {
            let at = index.index(body.len());
            body[at] = byte;
        }
        let prison = Prison::new();
        let outside = prison.dir.path().join("outside");
        let before = snapshot(&outside);
        let frame: Bytes = [&[0][..], &body].concat().into();
        let _ = apply_all(&prison.root(), ApplyOptions { allow_devices: false, ..options() }, &[frame]);
        assert_same(&before, &snapshot(&outside));
        let names = fs::read_dir(prison.dir.path()).unwrap().count();
        prop_assert_eq!(names, 2);
        let _ = fs::set_permissions(prison.root(), fs::Permissions::from_mode(0o755));
    }
}

/// Not a test of speed: prints what it measures.
#[test]
#[ignore = "prints measurements; run it by name"]
fn measure() {
    support::measure::small_files();
    support::measure::one_large_file(false);
    support::measure::one_large_file(true);
}
