//! What is known of writes to large files is never too little: a tree that is
//! changed in every way there is arrives whole, and cheap.

use blip_engine::source::written::{TreeLog, Written};
use blip_transport::files::{
    Apply, ApplyOptions, Exclude, Manifest, Pace, Room, RoundTotals, Scanner, Tree, WriteLog,
};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const SIZE: u64 = 16 << 20;
const PAGE: u64 = 4096;

struct Carrier {
    scanner: Scanner,
    known: Manifest,
    log: TreeLog,
}

impl Carrier {
    /// `None` where the file system's ways of writing are not known.
    fn of(source: &Path) -> Option<Self> {
        let log = Written::listen().expect("the kernel's account of writes").of(source)?;
        let scanner = Scanner::open(source, Tree::Plain, Exclude::default()).expect("open");
        Some(Self { scanner, known: Manifest::empty(), log })
    }

    fn round(&mut self, pace: Pace, target: &Path) -> RoundTotals {
        let keep = Exclude::default();
        let options = ApplyOptions { allow_devices: false, room: Room::UNLIMITED, keep };
        let mut apply = Apply::open(target, options).expect("open");
        let mut sink = |frame: bytes::Bytes| apply.frame(&frame).map_err(std::io::Error::other);
        let log = Some(&mut self.log as &mut dyn WriteLog);
        let sent = self.scanner.round_with(&self.known, pace, log, &mut sink).expect("a round");
        apply.finish().expect("applied");
        self.known = sent.manifest;
        sent.totals
    }
}

/// A generator whose numbers are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

fn open(path: &Path, flags: i32) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).expect("open")
}

/// One change of the file, in one of the ways there are.
fn change(path: &Path, dice: &mut Dice) {
    let offset = dice.below(SIZE / PAGE) * PAGE;
    let byte = dice.below(255) as u8 + 1;
    let file = open(path, 0);
    match dice.below(10) {
        0..4 => {
            file.write_all_at(&vec![byte; dice.below(9000) as usize + 1], offset).expect("write")
        }
        4 => {
            #[repr(align(4096))]
            struct Aligned([u8; PAGE as usize]);
            let page = Aligned([byte; PAGE as usize]);
            open(path, libc::O_DIRECT).write_all_at(&page.0, offset).expect("direct");
        }
        5 => {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&file, flags, offset as i64, (PAGE * 3) as i64).expect("punch");
        }
        6 => {
            let flags = FallocateFlags::FALLOC_FL_COLLAPSE_RANGE;
            if fallocate(&file, flags, (offset / 2) as i64, PAGE as i64).is_ok() {
                file.set_len(SIZE).expect("size");
            }
        }
        7 => {
            file.set_len(SIZE - dice.below(100_000)).expect("shorter");
            file.set_len(SIZE).expect("longer");
        }
        8 => file.sync_all().expect("sync"),
        _ => {
            let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE;
            fallocate(&file, flags, offset as i64, (PAGE * 2) as i64).expect("zero");
        }
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn what_is_written_in_any_way_arrives() {
    let (source, target) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let path = source.path().join("file");
    let noise: Vec<u8> = (0..SIZE).map(|n| (n / 512 * 7 + n) as u8).collect();
    fs::write(&path, &noise).expect("write");
    let Some(mut carrier) = Carrier::of(source.path()) else { return };
    carrier.round(Pace::Live, target.path());
    let mut dice = Dice(42);
    for round in 0..60 {
        for _ in 0..dice.below(6) {
            change(&path, &mut dice);
        }
        if round % 20 == 19 {
            // Another file of this name.
            let mut other = File::create(source.path().join("new")).expect("create");
            other.write_all(&noise[round..]).expect("write");
            other.set_len(SIZE).expect("size");
            fs::rename(source.path().join("new"), &path).expect("rename");
        }
        let pace = if dice.below(4) == 0 { Pace::Frozen } else { Pace::Live };
        carrier.round(pace, target.path());
        let same =
            fs::read(&path).expect("read") == fs::read(target.path().join("file")).expect("read");
        assert!(same, "after round {round}, {pace:?}");
    }
}

/// What may happen to a small file, or around it, and is seen.
const HAPPENINGS: [(&str, &str); 17] = [
    ("written to", "printf x >> $F"),
    ("written in place", "printf y | dd of=$F bs=1 seek=3 conv=notrunc status=none"),
    ("cut short", "truncate -s 2 $F"),
    ("made longer", "truncate -s 70000 $F"),
    ("a hole", "fallocate -p -o 0 -l 4096 $F"),
    ("its mode", "chmod 600 $F"),
    ("its owner", "chown 12:34 $F"),
    ("its times", "touch -d 2001-02-03 $F"),
    ("an attribute", "python3 -c \"import os; os.setxattr('$F', 'user.blip', b'v')\""),
    ("no attribute", "python3 -c \"import os; os.removexattr('$F', 'user.blip')\""),
    (
        "mapped",
        "python3 -c \"import mmap; f = open('$F', 'r+b'); mmap.mmap(f.fileno(), 8)[5] = 65\"",
    ),
    ("a second name", "ln $F $D/second"),
    ("its only name again", "rm $D/second"),
    ("another name", "mv $F $D/other; mv $D/other $F.moved; mv $F.moved $F"),
    ("replaced", "cp -p $F $D/new; printf z >> $D/new; mv $D/new $F"),
    ("a link", "rm $F; ln -s nowhere $F"),
    ("gone", "rm $F"),
];

/// Some hundred files in ten directories.
fn grove(root: &Path) {
    for n in 0..500 {
        let dir = root.join(format!("d{}", n % 10));
        fs::create_dir_all(&dir).expect("dir");
        fs::write(dir.join(format!("f{n}")), vec![n as u8; 5000]).expect("write");
    }
}

/// All there is to know of a tree, but for access times and inode numbers.
fn described(root: &Path) -> String {
    let script = "find . -mindepth 1 -printf '%p %y %m %U %G %s %n %T@ %l\\n' | sort; \
                  find . -type f -print0 | sort -z | xargs -0 sha256sum; \
                  find . -print0 | sort -z | xargs -0 python3 -c \
                  'import os, sys\nfor p in sys.argv[1:]:\n  for k in sorted(os.listxattr(p, \
                  follow_symlinks=False)): print(p, k, os.getxattr(p, k, follow_symlinks=False))'";
    let out = Command::new("sh").args(["-c", script]).current_dir(root).output().expect("sh");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_frozen_round_sees_all_that_happened_and_looks_at_nothing_else() {
    let (source, target) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    grove(source.path());
    // The first look at a file sets its access time, which is a touch as well.
    described(source.path());
    let Some(mut carrier) = Carrier::of(source.path()) else { return };
    // Writing new files out changes them once more, and the round before counts.
    carrier.round(Pace::Live, target.path());
    carrier.round(Pace::Live, target.path());
    for (what, script) in HAPPENINGS {
        // What happened a moment ago is not believed yet.
        std::thread::sleep(Duration::from_millis(60));
        carrier.round(Pace::Live, target.path());
        let quiet = carrier.round(Pace::Frozen, target.path());
        assert!(quiet.scanned <= 20, "{} entries looked at before {what}", quiet.scanned);
        let done = Command::new("sh")
            .args(["-ec", script])
            .env("D", source.path().join("d3"))
            .env("F", source.path().join("d7/f447"))
            .status();
        assert!(done.expect("sh").success(), "{what}");
        let last = carrier.round(Pace::Frozen, target.path());
        assert_eq!(described(source.path()), described(target.path()), "{what}");
        assert!(last.changed + last.removed > 0 && last.scanned < 250, "{what}: {last:?}");
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn one_page_of_a_large_file_costs_no_more_than_its_surroundings() {
    let (source, target) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let path = source.path().join("file");
    fs::write(&path, vec![7; 64 << 20]).expect("write");
    let Some(mut carrier) = Carrier::of(source.path()) else { return };
    carrier.round(Pace::Live, target.path());
    open(&path, 0).write_all_at(b"changed", 33 * (1 << 20) + PAGE).expect("write");
    carrier.round(Pace::Live, target.path());
    open(&path, 0).write_all_at(b"again", 35 * (1 << 20) + PAGE).expect("write");
    let last = carrier.round(Pace::Frozen, target.path());
    let same =
        fs::read(&path).expect("read") == fs::read(target.path().join("file")).expect("read");
    assert!(same);
    assert!(last.read_bytes <= 8 << 20, "{} bytes were read for one page", last.read_bytes);
}
