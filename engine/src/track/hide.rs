//! Which memory CRIU need not look at, because blip ships it anyway.
//!
//! Large private anonymous mappings of a process that stands still. What CRIU
//! wants to see for itself stays visible: the stacks, and around every thread's
//! stack pointer, as the pages there belong into its images
//! (criu: `generate_iovs`, `is_stack`).
//!
//! **Invariant**: a process of which anything is unclear hides nothing.

use super::maps::Mappings;
use super::runs::Runs;
use blip_transport::units::PAGE_SIZE;
use std::io;

/// Mappings below this many pages (1 MiB) are no work for CRIU.
const WORTH_IT: u64 = (1 << 20) / PAGE_SIZE as u64;
/// Pages (256 KiB) on either side of a stack pointer that stay visible.
const AROUND_STACK: u64 = (256 << 10) / PAGE_SIZE as u64;

/// The pages of a frozen process to be hidden from CRIU.
///
/// # Errors
/// If `/proc` does not tell all that must be known.
pub fn hideable(pid: i32) -> io::Result<Runs> {
    let mappings = Mappings::read(pid)?;
    let large = mappings.large(WORTH_IT);
    if large.is_empty() {
        return Ok(large);
    }
    let mut stacks = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path().join("syscall");
        stacks.push(stack_page(&std::fs::read_to_string(path)?)?);
    }
    Ok(trim(&large, stacks))
}

/// Takes the surroundings of the stack pointers out, and what is then small.
fn trim(large: &Runs, mut stacks: Vec<u64>) -> Runs {
    stacks.sort_unstable();
    let visible = stacks.iter().fold(Runs::default(), |mut visible, page| {
        visible.push(page.saturating_sub(AROUND_STACK), page + AROUND_STACK + 1);
        visible
    });
    let rest = large.subtract(&visible);
    let worth_it = rest.as_slice().iter().filter(|run| run.count.0 >= WORTH_IT);
    worth_it.fold(Runs::default(), |mut kept, run| {
        kept.push(run.start.0, run.end());
        kept
    })
}

/// The page a thread's stack pointer points to, from `/proc/PID/task/TID/syscall`:
/// its last field but one. A thread that runs has none (`running`).
fn stack_page(syscall: &str) -> io::Result<u64> {
    let field = syscall.split_ascii_whitespace().rev().nth(1);
    let pointer = field
        .and_then(|field| field.strip_prefix("0x"))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let unknown = || io::Error::other(format!("no stack pointer in {syscall:?}"));
    pointer.map(|pointer| pointer / PAGE_SIZE as u64).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stack_pointers_are_found_or_refused() {
        let blocked = "7 0x1 0x2 0x3 0x4 0x5 0x6 0x7ffd00001234 0x7f0000000000\n";
        assert_eq!(stack_page(blocked).unwrap(), 0x7ffd00001);
        assert_eq!(stack_page("-1 0xc000123fff 0x401000\n").unwrap(), 0xc000123);
        for unclear in ["running\n", "", "-1 0 0"] {
            assert!(stack_page(unclear).is_err(), "{unclear}");
        }
    }

    #[test]
    fn what_is_near_a_stack_pointer_stays_visible() {
        let mut large = Runs::default();
        large.push(1000, 5000);
        large.push(9000, 9400);
        let kept = trim(&large, vec![9200, 4700, 3000]);
        let expected: Vec<(u64, u64)> = vec![(1000, 2936), (3065, 4636)];
        let found: Vec<_> = kept.as_slice().iter().map(|run| (run.start.0, run.end())).collect();
        assert_eq!(found, expected);
        assert_eq!(trim(&large, Vec::new()), large);
    }
}
