//! Prints how long rounds take. Asserts nothing.

use blip_transport::files::{
    Apply, ApplyOptions, Exclude, Manifest, Pace, Room, Scanner, Sent, Tree,
};
use bytes::Bytes;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

fn round(what: &str, scanner: &Scanner, known: &Manifest, pace: Pace, target: &Path) -> Sent {
    let mut frames = Vec::new();
    let begin = Instant::now();
    let mut sink = |frame: Bytes| {
        frames.push(frame);
        Ok(())
    };
    let sent = scanner.round(known, pace, &mut sink).unwrap();
    let scanned = begin.elapsed();
    let options =
        ApplyOptions { allow_devices: false, room: Room::UNLIMITED, keep: Exclude::default() };
    let begin = Instant::now();
    let mut apply = Apply::open(target, options).unwrap();
    for frame in &frames {
        apply.frame(frame).unwrap();
    }
    apply.finish().unwrap();
    println!("{what}: scan and send {scanned:?}, apply {:?}, {:?}", begin.elapsed(), sent.totals);
    sent
}

/// 100 000 files of 100 to 1 000 bytes in 1 000 directories.
pub(crate) fn small_files() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in 0..1000 {
        let path = source.path().join(format!("dir{dir}"));
        fs::create_dir(&path).unwrap();
        for file in 0..100 {
            let len = 100 + (dir * 100 + file) % 900;
            fs::write(path.join(format!("file{file}")), vec![file as u8; len]).unwrap();
        }
    }
    let scanner = Scanner::open(source.path(), Tree::Plain, Exclude::default()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    let first = round("100000 files", &scanner, &Manifest::empty(), Pace::Live, target.path());
    let second = round("again, live", &scanner, &first.manifest, Pace::Live, target.path());
    for file in 0..10 {
        fs::write(source.path().join(format!("dir{file}/file5")), b"changed").unwrap();
    }
    round("10 changed, frozen", &scanner, &second.manifest, Pace::Frozen, target.path());
    round("names only", &scanner, &second.manifest, Pace::Names, target.path());
    round("same, frozen", &scanner, &second.manifest, Pace::Frozen, target.path());
}

/// 1 GiB, either full or with one page in sixteen.
pub(crate) fn one_large_file(sparse: bool) {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = source.path().join("large");
    let mut file = fs::File::create(&path).unwrap();
    let mut state = 1u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let words = (0..len / 8).flat_map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Half of it compresses.
            (state & 0xffff_ffff_0000_0000).to_le_bytes()
        });
        words.collect()
    };
    for block in 0..1024u64 {
        if sparse {
            for page in 0..16 {
                file.write_all_at(&noise(4096), (block << 20) + page * 65536).unwrap();
            }
        } else {
            file.write_all(&noise(1 << 20)).unwrap();
        }
    }
    file.set_len(1 << 30).unwrap();
    let what = if sparse { "1 GiB sparse" } else { "1 GiB dense" };
    let scanner = Scanner::open(source.path(), Tree::Plain, Exclude::default()).unwrap();
    let first = round(what, &scanner, &Manifest::empty(), Pace::Live, target.path());
    file.write_all_at(b"changed", 1 << 29).unwrap();
    round("one block changed, frozen", &scanner, &first.manifest, Pace::Frozen, target.path());
}
