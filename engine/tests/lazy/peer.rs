//! The restored process: first CRIU's restorer, then a program.

use crate::harness::{BASE, HOLES, PAGES, RIGHT, TASK, WIPED, WRONG, byte, content};
use blip_engine::sys::uffd_peer::{Advice, Arena, CRIU_FEATURES, fork_running, open};
use blip_transport::page::PageBytes;
use blip_transport::units::PAGE_SIZE;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Does nothing in an ordinary run of the tests.
#[test]
fn peer() {
    let Ok(scenario) = std::env::var("BLIP_LAZY_SCENARIO") else { return };
    let dir = std::env::var("BLIP_LAZY_DIR").expect("a directory");
    let right = play(&scenario, Path::new(&dir));
    std::process::exit(if right { RIGHT } else { WRONG });
}

pub(crate) fn connect(dir: &Path) -> UnixStream {
    UnixStream::connect(dir.join("lazy-pages.socket")).expect("a server")
}

pub(crate) fn send_fd(stream: &UnixStream, fd: &impl AsRawFd) {
    let fds = [fd.as_raw_fd()];
    let carrier = [IoSlice::new(b"*")];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &carrier, &control, MsgFlags::empty(), None).expect("sent");
}

/// Says that the restore is finished.
pub(crate) fn finish(mut stream: UnixStream) {
    stream.write_all(&0x5253_5446_u32.to_ne_bytes()).expect("a server");
}

fn hand_over(dir: &Path) -> (UnixStream, OwnedFd) {
    let uffd = open(CRIU_FEATURES).expect("a userfaultfd");
    let mut stream = connect(dir);
    stream.write_all(&(TASK.0 as i32).to_ne_bytes()).expect("a server");
    send_fd(&stream, &uffd);
    (stream, uffd)
}

/// Memory under the care of a server, as CRIU leaves it.
fn restore(dir: &Path) -> Arena {
    restore_sized(dir, PAGES)
}

fn restore_sized(dir: &Path, pages: u64) -> Arena {
    let (mut stream, uffd) = hand_over(dir);
    // Dead tasks have no memory.
    stream.write_all(&(-9i32).to_ne_bytes()).expect("a server");
    let memory = Arena::map(BASE, pages).expect("a free place");
    memory.register(&uffd).expect("registered");
    drop(uffd);
    finish(stream);
    memory
}

/// Whether page `i` of `memory` is what page `page` was.
pub(crate) fn is_page(memory: Arena, i: u64, page: u64) -> bool {
    compare(page, &memory.page(i), &content(page))
}

fn compare(page: u64, found: &PageBytes, wanted: &PageBytes) -> bool {
    if found == wanted {
        return true;
    }
    let at = (0..PAGE_SIZE).find(|&at| found[at] != wanted[at]).unwrap_or_default();
    let line = format!("page {page} byte {at}: {:#x}, not {:#x}\n", found[at], wanted[at]);
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}

/// Whether `memory` holds the pages from `page` on.
fn is_right(memory: Arena, page: u64) -> bool {
    (0..memory.pages()).all(|i| is_page(memory, i, page + i))
}

fn is_blank(memory: Arena) -> bool {
    (0..memory.pages() as usize * PAGE_SIZE).step_by(7).all(|at| memory.read(at) == 0)
}

/// Whether the child ended well.
pub(crate) fn reap(pid: i32) -> bool {
    use nix::sys::wait::{WaitStatus, waitpid};
    let status = waitpid(nix::unistd::Pid::from_raw(pid), None);
    matches!(status, Ok(WaitStatus::Exited(_, code)) if code == RIGHT)
}

fn code(right: bool) -> u8 {
    if right { RIGHT as u8 } else { WRONG as u8 }
}

fn play(scenario: &str, dir: &Path) -> bool {
    if scenario == "slow-restore" {
        return slow_restore(dir);
    }
    if scenario == "program" {
        return crate::criu::program(dir);
    }
    if scenario == "half-restored" {
        return half_restored(dir);
    }
    if let Some(step) = match scenario {
        "wait" => Some(0),
        "touch-random" => Some(104_729),
        "touch-stream" => Some(1),
        _ => None,
    } {
        return crate::speed::touch(restore_sized(dir, 1 << 18), step);
    }
    let memory = restore(dir);
    match scenario {
        "read" => is_right(memory, 0),
        "backwards" => (0..PAGES).rev().all(|i| is_page(memory, i, i)),
        "write" => write(memory),
        "threads" => threads(memory),
        "fork" => fork(memory),
        "fork-flags" => fork_flags(memory),
        "move" => moved(memory),
        "drop" => dropped(memory),
        "leave" => is_page(memory, 77, 77),
        "storm" => storm(memory),
        "exec" => {
            let started = memory.read(0) == byte(0, 0);
            let mut child = std::process::Command::new("/bin/true").spawn().expect("a program");
            started && child.wait().is_ok() && is_right(memory, 0)
        }
        other => unreachable!("no scenario {other}"),
    }
}

/// The descriptor comes long before the mappings, and these in pieces.
fn slow_restore(dir: &Path) -> bool {
    let (stream, uffd) = hand_over(dir);
    std::thread::sleep(Duration::from_millis(15));
    // Elsewhere first, and moved into place, as CRIU does.
    let away = Arena::map(0, PAGES).expect("memory");
    std::thread::sleep(Duration::from_millis(3));
    let memory = away.move_to(BASE).expect("moved");
    for at in [2u64, 4, 5, 0, 1, 7, 6, 3] {
        let part = memory.part(at * PAGES / 8, PAGES / 8);
        part.register(&uffd).expect("registered");
        // A border inside a run of the plan.
        part.part(13, 5).advise(Advice::DontFork).expect("advised");
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(uffd);
    finish(stream);
    is_right(memory, 0)
}

/// The restorer breaks the protocol, but a thread touches memory all the same.
fn half_restored(dir: &Path) -> bool {
    let (mut stream, uffd) = hand_over(dir);
    let memory = Arena::map(BASE, PAGES).expect("a free place");
    stream.write_all(&0i32.to_ne_bytes()).expect("a server");
    std::thread::sleep(Duration::from_millis(100));
    memory.register(&uffd).expect("registered");
    drop(uffd);
    is_right(memory, 0)
}

fn write(memory: Arena) -> bool {
    for page in 0..PAGES as usize {
        memory.write(page * PAGE_SIZE + 100, 0x55);
    }
    (0..PAGES).all(|page| {
        let mut wanted = content(page);
        wanted[100] = 0x55;
        compare(page, &memory.page(page), &wanted)
    })
}

/// Several threads want the same pages, in orders of their own.
fn threads(memory: Arena) -> bool {
    let reader =
        |step: u64| move || (0..PAGES).all(|i| is_page(memory, i * step % PAGES, i * step % PAGES));
    let threads = [1, 3, 5, 4099, 7, 1].map(|step| std::thread::spawn(reader(step)));
    threads.map(|t| t.join().unwrap_or(false)).iter().all(|&right| right)
}

/// Wiped pages are zero in a child.
fn child_is_right(memory: Arena) -> bool {
    let before = memory.part(0, WIPED.start);
    let wiped = memory.part(WIPED.start, WIPED.end - WIPED.start);
    let after = memory.part(WIPED.end, PAGES - WIPED.end);
    is_right(before, 0) && is_blank(wiped) && is_right(after, WIPED.end)
}

fn fork(memory: Arena) -> bool {
    let wiped = memory.part(WIPED.start, WIPED.end - WIPED.start);
    wiped.advise(Advice::WipeOnFork).expect("advised");
    let child = fork_running(|| {
        // What the child writes and what it forks is its own.
        memory.write(3 * PAGE_SIZE, 0x77);
        let grandchild = fork_running(|| {
            let own = memory.read(3 * PAGE_SIZE) == 0x77;
            memory.write(3 * PAGE_SIZE, byte(3, 0));
            code(own && child_is_right(memory))
        });
        let Ok(grandchild) = grandchild else { return WRONG as u8 };
        memory.write(3 * PAGE_SIZE, byte(3, 0));
        code(child_is_right(memory) && reap(grandchild))
    });
    let child = child.expect("forked");
    memory.write(9 * PAGE_SIZE, 0x99);
    let own = is_page(memory, 3, 3);
    memory.write(9 * PAGE_SIZE, byte(9, 0));
    let right = is_right(memory, 0);
    reap(child) && own && right
}

/// Some memory is not for children.
fn fork_flags(memory: Arena) -> bool {
    let kept = memory.part(5500, 300);
    kept.advise(Advice::DontFork).expect("advised");
    let child = fork_running(|| code(is_right(memory.part(0, 5500), 0)));
    let right = is_right(memory, 0);
    child.is_ok_and(reap) && right
}

fn moved(memory: Arena) -> bool {
    let far = BASE + (4 << 30);
    // Over a free place, over missing memory, and by less than its own length.
    let a = memory.part(1000, 500).move_to(far).expect("moved");
    let b = memory.part(2000, 100).move_to(BASE + 7000 * PAGE_SIZE as u64).expect("moved");
    let c = memory.part(1600, 300).move_to(BASE + 1100 * PAGE_SIZE as u64).expect("moved");
    let child = fork_running(|| code(is_right(a, 1000) && is_right(b, 2000) && is_right(c, 1600)));
    let a2 = a.part(100, 50).move_to(far + (1 << 30)).expect("moved");
    let right = is_right(a.part(0, 100), 1000)
        && is_right(a2, 1100)
        && is_right(a.part(150, 350), 1150)
        && is_right(b, 2000)
        && is_right(c, 1600)
        && is_right(memory.part(0, 1000), 0)
        && is_right(memory.part(7100, PAGES - 7100), 7100);
    child.is_ok_and(reap) && right
}

fn dropped(memory: Arena) -> bool {
    let cleared = memory.part(100, 600);
    let mut right = memory.read(150 * PAGE_SIZE) == byte(150, 0);
    cleared.advise(Advice::DontNeed).expect("advised");
    right &= is_blank(cleared);
    memory.part(3000, 500).unmap().expect("unmapped");
    // New memory in an old place is not the old memory.
    let new = Arena::map(BASE + 3100 * PAGE_SIZE as u64, 50).expect("mapped");
    right &= is_blank(new);
    right &= is_right(memory.part(0, 100), 0) && is_right(memory.part(700, 2300), 700);
    right &= is_right(memory.part(3500, PAGES - 3500), 3500);
    right &= is_blank(memory.part(HOLES.start, HOLES.end - HOLES.start));
    memory.part(200, 100).advise(Advice::DontNeed).expect("advised");
    right && is_blank(cleared)
}

/// Threads that move, drop, unmap and fork, each in a part of its own.
fn storm(memory: Arena) -> bool {
    const SHARE: u64 = 1024;
    let worker = |n: u64| {
        move || {
            let first = n * SHARE;
            let mut right = true;
            let mut step = 0;
            while step < SHARE {
                let page = first + step;
                let part = memory.part(page, 16);
                match step / 16 % 6 {
                    0 => right &= is_right(part, page),
                    1 => {
                        part.advise(Advice::DontNeed).expect("advised");
                        right &= is_blank(part);
                    }
                    2 => {
                        let away = BASE + (8 << 30) + (page << 20);
                        let part = part.move_to(away).expect("moved");
                        right &= is_right(part, page);
                    }
                    3 => {
                        part.unmap().expect("unmapped");
                    }
                    4 => {
                        let child = fork_running(|| code(is_right(part, page)));
                        right &= child.is_ok_and(reap);
                    }
                    _ => {
                        right &= memory.read(page as usize * PAGE_SIZE) == byte(page, 0);
                        let away = BASE + (8 << 30) + (page << 20);
                        let moved = part.part(0, 8).move_to(away).expect("moved");
                        let child = fork_running(|| code(is_right(moved, page)));
                        right &= is_right(part.part(8, 8), page + 8);
                        right &= child.is_ok_and(reap) && is_right(moved, page);
                    }
                }
                step += 16;
            }
            right
        }
    };
    // The shares leave out what forking wipes and holes.
    let threads = [0, 1, 2, 4, 6, 7].map(|n| std::thread::spawn(worker(n)));
    threads.map(|t| t.join().unwrap_or(false)).iter().all(|&right| right)
}
