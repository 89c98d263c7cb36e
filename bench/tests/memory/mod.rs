//! Looking into the writer's memory from outside, and changing it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The seed in every page's header.
const SEED: u64 = 0xb11b;

/// Opens the memory of the process whose folder below `/proc` this is.
pub(crate) fn of(process: &Path) -> File {
    let open = OpenOptions::new().read(true).write(true).open(process.join("mem"));
    open.expect("its memory")
}

/// Where page `number` of the writer is in its memory, found by its header.
pub(crate) fn find(process: &Path, number: u64) -> u64 {
    let maps = std::fs::read_to_string(process.join("maps")).expect("maps");
    let memory = of(process);
    let mut head = [0; 32];
    for line in maps.lines().filter(|l| l.contains("rw-p")) {
        let range = line.split(' ').next().expect("a range");
        let (from, to) = range.split_once('-').expect("a range");
        let parse = |hex| u64::from_str_radix(hex, 16).expect("hexadecimal");
        for at in (parse(from)..parse(to)).step_by(4096) {
            let read = memory.read_exact_at(&mut head, at);
            let word = |n: usize| u64::from_le_bytes(head[n * 8..][..8].try_into().expect("8"));
            if read.is_ok() && word(0) == number && word(2) != 0 && word(3) == SEED {
                return at;
            }
        }
    }
    panic!("page {number} is nowhere in\n{maps}");
}
