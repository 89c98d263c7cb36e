//! A program that changes its memory in every way a program can.

use std::hint::black_box;
use std::ptr;
use std::time::Duration;

const PAGE: usize = 4096;

/// Pages of the region in which one page after the other is written, slowly,
/// and none again.
const CALM_PAGES: usize = 8_000;

/// A small generator of pseudo-random numbers: repeatable, and fit for the
/// child of a `fork`.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }
}

/// Memory got from the kernel.
#[derive(Clone, Copy)]
struct Area {
    start: *mut u8,
    pages: usize,
}

// SAFETY: an area is plain memory; its users write without reading a meaning
// into it.
unsafe impl Send for Area {}

impl Area {
    fn map(pages: usize) -> Self {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping disturbs nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), pages * PAGE, prot, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Self { start: start.cast(), pages }
    }

    fn write(self, page: usize, dice: &mut Dice) {
        let at = page * PAGE + dice.roll(PAGE / 8) * 8;
        let value = dice.roll(usize::MAX) as u64;
        // SAFETY: inside the area, aligned; the area is mapped and writable.
        unsafe { self.start.add(at).cast::<u64>().write_volatile(value) };
    }

    /// Writes to `times` random pages.
    fn scribble(self, times: usize, dice: &mut Dice) {
        for _ in 0..times {
            self.write(dice.roll(self.pages), dice);
        }
    }

    fn at(self, page: usize) -> *mut libc::c_void {
        self.start.wrapping_add(page * PAGE).cast()
    }
}

/// The whole program: many threads, each with its own kind of trouble.
pub(crate) fn run(seed: &str) {
    let seed: u64 = seed.parse().unwrap_or(1);
    let calm = Area::map(CALM_PAGES);
    let shared = Area::map(2048);
    let mut dice = Dice::new(seed);
    for page in 0..CALM_PAGES {
        calm.write(page, &mut dice);
    }
    let mut troubles: Vec<Box<dyn FnOnce(Dice) + Send>> = vec![
        Box::new(move |dice| calm_writer(calm, dice)),
        Box::new(move |dice| writer(shared, dice)),
        Box::new(move |dice| writer(shared, dice)),
        Box::new(churn),
        Box::new(churn),
        Box::new(huge_pages),
        Box::new(move |dice| forks(shared, dice)),
        Box::new(spawns),
        Box::new(short_threads),
        Box::new(memory_files),
    ];
    for trouble in troubles.drain(..) {
        let dice = Dice::new(seed * 31 + dice.roll(1 << 30) as u64);
        std::thread::spawn(move || trouble(dice));
    }
    println!("ready");
    println!("{:x} {:x}", calm.at(0) as usize / PAGE, CALM_PAGES);
    main_thread(dice);
}

/// A small program with one thread, which others execute.
pub(crate) fn scribble() {
    let area = Area::map(512);
    let mut dice = Dice::new(u64::from(std::process::id()));
    for _ in 0..200 {
        area.scribble(100, &mut dice);
        rest(1000);
    }
}

/// A program whose threads read a file past the page cache, into memory that
/// nobody else writes to.
pub(crate) fn direct(path: &str) {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    let open = || {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
    };
    let area = Area::map(2048);
    area.scribble(20_000, &mut Dice::new(1));
    for seed in 2..4 {
        let (file, mut dice) = (open(), Dice::new(seed));
        std::thread::spawn(move || {
            let area = area;
            loop {
                let length = (1 + dice.roll(64)) * PAGE;
                let (into, from) = (dice.roll(2048 - 64), dice.roll(1024 - 64) * PAGE);
                // SAFETY: the bytes fit into the area from that page on.
                unsafe { libc::pread(file.as_raw_fd(), area.at(into), length, from as i64) };
            }
        });
    }
    println!("ready");
    rest(u64::MAX);
}

/// A program that executes itself when told by `SIGUSR1`.
pub(crate) fn turncoat() {
    // SAFETY: the set is initialised before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGUSR1);
        libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut());
        println!("ready");
        libc::sigwaitinfo(&set, ptr::null_mut());
    }
    use std::os::unix::process::CommandExt;
    let _ = std::process::Command::new("/proc/self/exe").exec();
}

fn rest(micros: u64) {
    std::thread::sleep(Duration::from_micros(micros));
}

fn calm_writer(area: Area, mut dice: Dice) {
    for page in 0..area.pages {
        area.write(page, &mut dice);
        rest(500);
    }
}

fn writer(area: Area, mut dice: Dice) {
    loop {
        area.scribble(50, &mut dice);
        rest(300);
    }
}

/// Maps, unmaps, moves, grows, drops, frees, protects.
fn churn(mut dice: Dice) {
    let mut areas: Vec<Area> = (0..24).map(|_| Area::map(1 + dice.roll(64))).collect();
    loop {
        let slot = dice.roll(areas.len());
        let area = areas[slot];
        let page = dice.roll(area.pages);
        let length = (1 + dice.roll(area.pages - page)) * PAGE;
        let whole = area.pages * PAGE;
        // SAFETY: each call is given a part of an area this thread alone owns;
        // afterwards `areas` says again what is mapped and writable.
        unsafe {
            match dice.roll(10) {
                0 => {
                    libc::munmap(area.at(0), whole);
                    areas[slot] = Area::map(1 + dice.roll(64));
                }
                1 => {
                    // At the same place: old pages gone, new mapping there.
                    let prot = libc::PROT_READ | libc::PROT_WRITE;
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                    libc::mmap(area.at(page), length, prot, flags, -1, 0);
                }
                2 => {
                    let pages = 1 + dice.roll(96);
                    let moved = libc::mremap(area.at(0), whole, pages * PAGE, libc::MREMAP_MAYMOVE);
                    if moved != libc::MAP_FAILED {
                        areas[slot] = Area { start: moved.cast(), pages };
                    }
                }
                3 => move_over(&mut areas, slot, &mut dice),
                4 => {
                    libc::madvise(area.at(page), length, libc::MADV_DONTNEED);
                }
                5 => {
                    libc::madvise(area.at(page), length, libc::MADV_FREE);
                }
                6 => {
                    area.scribble(8, &mut dice);
                    libc::mprotect(area.at(page), length, libc::PROT_NONE);
                    rest(dice.roll(3000) as u64);
                    libc::mprotect(area.at(page), length, libc::PROT_READ | libc::PROT_WRITE);
                }
                7 => {
                    // Reads only: the shared page of zeros.
                    black_box(area.start.add(page * PAGE).read_volatile());
                }
                8 => {
                    libc::madvise(area.at(page), length, MADV_GUARD_INSTALL);
                    rest(dice.roll(500) as u64);
                    libc::madvise(area.at(page), length, MADV_GUARD_REMOVE);
                }
                _ => area.scribble(16, &mut dice),
            }
        }
        areas[slot].scribble(4, &mut dice);
        rest(100);
    }
}

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// Moves one area exactly over another, and maps that one anew.
///
/// # Safety
/// The caller owns all areas.
unsafe fn move_over(areas: &mut [Area], slot: usize, dice: &mut Dice) {
    let other = dice.roll(areas.len());
    let (from, onto) = (areas[slot], areas[other]);
    // Only if it fits where the other was: else something else is hit.
    if other == slot || from.pages > onto.pages {
        return;
    }
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let length = from.pages * PAGE;
    // SAFETY: both are the caller's; what stood at `onto` is given up, and
    // nothing else may be mapped there in between.
    let moved = unsafe {
        // First, while it is ours for certain.
        if from.pages < onto.pages {
            libc::munmap(onto.at(from.pages), (onto.pages - from.pages) * PAGE);
        }
        libc::mremap(from.at(0), length, length, flags, onto.at(0)) != libc::MAP_FAILED
    };
    if !moved {
        // What has become several mappings is not moved before Linux 6.17, and
        // later not if it is tracked, or only in part. What stood there is gone
        // all the same, and others may have taken the place: both are given up.
        areas[other] = Area::map(1 + dice.roll(64));
        areas[slot] = Area::map(1 + dice.roll(64));
        return;
    }
    areas[other] = Area { start: onto.start, pages: from.pages };
    areas[slot] = Area::map(1 + dice.roll(64));
}

/// Writes to huge pages, drops parts of them, asks for them again.
fn huge_pages(mut dice: Dice) {
    let area = Area::map(6 * 512);
    // SAFETY: advice on an area that this thread owns.
    unsafe { libc::madvise(area.at(0), area.pages * PAGE, libc::MADV_HUGEPAGE) };
    loop {
        area.scribble(10, &mut dice);
        if dice.roll(20) == 0 {
            let advice = [libc::MADV_DONTNEED, libc::MADV_COLLAPSE][dice.roll(2)];
            let first = dice.roll(5) * 512;
            // SAFETY: as above.
            unsafe { libc::madvise(area.at(first), (1 + dice.roll(500)) * PAGE, advice) };
        }
        rest(500);
    }
}

/// Forks children that go on writing for a while, and grandchildren.
fn forks(area: Area, mut dice: Dice) {
    loop {
        // SAFETY: the child makes only system calls and writes to memory.
        if unsafe { libc::fork() } == 0 {
            // SAFETY: as above.
            let grandchild = dice.roll(3) == 0 && unsafe { libc::fork() } == 0;
            let mut dice = Dice::new(dice.0 + u64::from(grandchild));
            let own = Area::map(64);
            for _ in 0..dice.roll(150) {
                area.scribble(20, &mut dice);
                own.scribble(5, &mut dice);
                let time = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                // SAFETY: a valid time; no remainder asked for.
                unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) };
            }
            // SAFETY: ends this process without running what is not its own.
            unsafe { libc::_exit(0) };
        }
        dice.roll(2);
        rest(20_000 + dice.roll(30_000) as u64);
        // SAFETY: no status asked for.
        unsafe {
            while libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG | libc::__WNOTHREAD) > 0 {}
        }
    }
}

/// Executes another program again and again, by `vfork` and by `fork`.
fn spawns(mut dice: Dice) {
    let exe = std::env::current_exe().unwrap();
    loop {
        let mut command = std::process::Command::new(&exe);
        command.env("BLIP_CHILD", "scribbler");
        if dice.roll(2) == 0 {
            use std::os::unix::process::CommandExt;
            // SAFETY: does nothing; it makes the library fork, not vfork.
            unsafe { command.pre_exec(|| Ok(())) };
        }
        if let Ok(mut child) = command.spawn() {
            rest(30_000 + dice.roll(60_000) as u64);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Files in memory, mapped in both ways, written through each, and gone again:
/// none of it is the tracker's, and none of it may pass for what is.
fn memory_files(mut dice: Dice) {
    loop {
        let pages = 1 + dice.roll(48);
        let (length, prot) = (pages * PAGE, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: all is this function's own, and unmapped again by its length.
        unsafe {
            let file = libc::memfd_create(c"hostile".as_ptr(), libc::MFD_CLOEXEC);
            libc::ftruncate(file, length as i64);
            let [shared, private] = [libc::MAP_SHARED, libc::MAP_PRIVATE].map(|flags| {
                let start = libc::mmap(ptr::null_mut(), length, prot, flags, file, 0);
                assert_ne!(start, libc::MAP_FAILED);
                Area { start: start.cast(), pages }
            });
            let heap = Area::map(pages);
            for _ in 0..dice.roll(40) {
                shared.scribble(3, &mut dice);
                private.scribble(3, &mut dice);
                heap.scribble(3, &mut dice);
                // The kernel writes, both ways.
                let page = dice.roll(pages);
                libc::pwrite(file, heap.at(page), PAGE, (dice.roll(pages) * PAGE) as i64);
                libc::pread(file, heap.at(page), PAGE, (dice.roll(pages) * PAGE) as i64);
                rest(700);
            }
            for area in [shared, private, heap] {
                libc::munmap(area.at(0), length);
            }
            libc::close(file);
        }
    }
}

/// Threads that come and go: their stacks are mapped, used, and unmapped.
fn short_threads(mut dice: Dice) {
    loop {
        let depth = dice.roll(40);
        let _ = std::thread::spawn(move || deep(depth)).join();
        rest(1000);
    }
}

/// Uses `depth` pages of stack.
fn deep(depth: usize) -> u8 {
    let mut frame = [depth as u8; PAGE];
    black_box(&mut frame);
    if depth == 0 { frame[7] } else { deep(depth - 1).wrapping_add(frame[9]) }
}

/// The main thread: grows and shrinks the heap (`brk`) and its stack.
fn main_thread(mut dice: Dice) {
    let mut heap = Vec::new();
    loop {
        match dice.roll(4) {
            // Below the size at which the allocator maps.
            0 => heap.push(vec![dice.roll(256) as u8; 1 + dice.roll(100_000)]),
            1 if !heap.is_empty() => {
                let at = dice.roll(heap.len());
                heap.swap_remove(at);
            }
            2 => {
                black_box(deep(dice.roll(700)));
            }
            _ if !heap.is_empty() => {
                let at = dice.roll(heap.len());
                let inside = dice.roll(heap[at].len());
                heap[at][inside] = heap[at][inside].wrapping_add(1);
            }
            _ => {}
        }
        if heap.len() > 300 {
            heap.truncate(100);
        }
        rest(200);
    }
}
