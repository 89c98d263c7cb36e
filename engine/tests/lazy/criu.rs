//! The server against CRIU itself: a process is dumped without its memory, the
//! memory is read while CRIU holds it, and CRIU restores it from this server.
//!
//! Run by hand, as root, with CRIU 4.2 or later:
//! `BLIP_CRIU=/path/to/criu cargo test -p blip-engine --test lazy criu -- --ignored --nocapture`

use crate::harness::{RIGHT, byte, content, end_of, outcome};
use crate::peer::is_page;
use blip_engine::lazy::{LazyEvent, LazyOptions, LazyPlan, LazyServer, Local, PageSource, Urgency};
use blip_engine::sys::uffd_peer::{Arena, fork_running};
use blip_transport::page::{PageAt, PageBytes};
use blip_transport::units::PAGE_SIZE;
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io::{IoSliceMut, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the memory of the program to be restored lies, and how long it is.
const PLACE: u64 = 0x20_0000_0000;
const LENGTH: u64 = 200 * 256;
/// The program leaves out one page in this many.
const HOLE: u64 = 97;
/// Pages at the end that it writes to all the time.
const BUSY: u64 = 4000;

fn wait_for(path: &Path) {
    while !path.exists() {
        let dir = path.parent().expect("a directory");
        assert!(dir.exists(), "the test has been given up");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the program is to go on (or to give up) after a short wait.
fn stopped(dir: &Path) -> bool {
    std::thread::sleep(Duration::from_millis(1));
    dir.join("go").exists() || !dir.exists()
}

/// The program to be restored: fills memory, and when told to looks at it again
/// while other threads and children use it.
pub(crate) fn program(dir: &Path) -> bool {
    nix::unistd::setsid().expect("a session");
    let memory = Arena::map(PLACE, LENGTH).expect("a free place");
    for page in (0..LENGTH).filter(|page| page % HOLE != 5) {
        for (offset, &value) in content(page).iter().enumerate() {
            memory.write(page as usize * PAGE_SIZE + offset, value);
        }
    }
    // One child shares the memory from before the dump, another one is dead and
    // waits to be reaped.
    let sharer = fork_running(move || {
        memory.write(PAGE_SIZE, 0xC0);
        while !stopped(dir) {}
        let own = memory.read(PAGE_SIZE) == 0xC0 && memory.read(PAGE_SIZE + 1) == byte(1, 1);
        let pages = (2..LENGTH - BUSY).filter(|page| page % HOLE != 5);
        if own && pages.step_by(3).all(|page| is_page(memory, page, page)) {
            RIGHT as u8
        } else {
            1
        }
    });
    let dead = fork_running(|| RIGHT as u8);
    let still = memory.part(0, LENGTH - BUSY);
    let busy = memory.part(LENGTH - BUSY, BUSY);
    let go = dir.join("go");
    let stop = go.clone();
    let writer = std::thread::spawn(move || {
        let mut round = 0u8;
        while !stop.exists() && stop.parent().is_some_and(Path::exists) {
            round = round.wrapping_add(1);
            for page in 0..BUSY as usize {
                busy.write(page * PAGE_SIZE, round);
                busy.write(page * PAGE_SIZE + 4095, round);
            }
        }
        // Every page has seen every round.
        (0..BUSY as usize).all(|page| {
            let at = page * PAGE_SIZE;
            busy.read(at) == round && busy.read(at + 4095) == round
        })
    });
    std::fs::write(dir.join("ready"), "").expect("a file");
    wait_for(&go);
    let right = move |first: u64, step: usize| {
        (first..still.pages()).step_by(step).all(|page| match page % HOLE {
            5 => (0..PAGE_SIZE).all(|at| still.read(page as usize * PAGE_SIZE + at) == 0),
            _ => is_page(still, page, page),
        })
    };
    let child = fork_running(move || if right(3, 31) { RIGHT as u8 } else { 1 }).expect("forked");
    let others = [0, 1].map(|first| std::thread::spawn(move || right(first, 2)));
    let all = others.map(|t| t.join().unwrap_or(false)).iter().all(|&r| r);
    let child = crate::peer::reap(child);
    let busy = writer.join().unwrap_or(false);
    let old = sharer.is_ok_and(crate::peer::reap) && dead.is_ok_and(crate::peer::reap);
    let verdict = format!("{all} {child} {busy} {old}");
    std::fs::write(dir.join("verdict.new"), &verdict).expect("a file");
    std::fs::rename(dir.join("verdict.new"), dir.join("verdict")).expect("a file");
    verdict == "true true true true"
}

struct Memory(HashMap<PageAt, Box<PageBytes>>);

impl PageSource for Memory {
    fn local(&self, at: PageAt, into: &mut PageBytes) -> Local {
        match self.0.get(&at) {
            Some(bytes) if bytes.iter().all(|&b| b == 0) => Local::Zero,
            Some(bytes) => {
                into.copy_from_slice(&bytes[..]);
                Local::Data
            }
            None => Local::Absent,
        }
    }

    fn request_remote(&self, at: PageAt, _: Urgency) {
        panic!("{at:?} has not been read");
    }
}

/// Reads everything that the plan wants from a stopped process.
fn read_memory(plan: &LazyPlan) -> Memory {
    let mut all = HashMap::new();
    for (space, task) in plan.tasks() {
        // No pid namespace lies between.
        let pid = Pid::from_raw(space.0 as i32);
        for index in task.missing.iter().flat_map(|run| run.pages()) {
            let mut bytes = Box::new([0; PAGE_SIZE]);
            let remote = [RemoteIoVec { base: index.address() as usize, len: PAGE_SIZE }];
            let got = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes[..])], &remote);
            assert_eq!(got, Ok(PAGE_SIZE), "page {index:?}");
            all.insert(PageAt { space, index }, bytes);
        }
    }
    Memory(all)
}

fn criu(criu: &Path, verb: &str, dir: &Path) -> Command {
    let mut command = Command::new(criu);
    command.arg(verb).arg("--images-dir").arg(dir).arg("--work-dir").arg(dir);
    command.args(["--lazy-pages", "-v2", "--log-file"]).arg(format!("{verb}.log"));
    command
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn log(dir: &Path, verb: &str) -> String {
    std::fs::read_to_string(dir.join(format!("{verb}.log"))).unwrap_or_default()
}

fn start_program(dir: &Path) -> Child {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["peer::peer", "--exact", "--nocapture", "--test-threads=1"])
        .env("BLIP_LAZY_SCENARIO", "program")
        .env("BLIP_LAZY_DIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&dir.join("ready"));
    child
}

/// Dumps the program without its memory; answers that.
fn dump(binary: &Path, child: &mut Child, dir: &Path) -> (LazyPlan, Memory) {
    let mut dumper = criu(binary, "dump", dir)
        .args(["--tree", &child.id().to_string(), "--address", "127.0.0.1"])
        .args(["--port", &free_port().to_string(), "--status-fd", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // CRIU says one byte when it holds the tree and serves pages.
    let said = dumper.stdout.take().unwrap().read(&mut [0; 1]).unwrap();
    assert_eq!(said, 1, "{}", log(dir, "dump"));
    let plan = LazyPlan::from_images(dir).unwrap();
    let memory = read_memory(&plan);
    for (space, _) in plan.tasks() {
        kill(Pid::from_raw(space.0 as i32), Signal::SIGKILL).unwrap();
    }
    // The dead belong to their tracer first: CRIU has to go before they can.
    dumper.kill().unwrap();
    dumper.wait().unwrap();
    child.wait().unwrap();
    // Their pids must be free again: the rest of the tree has become ours.
    for (space, _) in plan.tasks().filter(|(space, _)| space.0 != child.id()) {
        waitpid(Pid::from_raw(space.0 as i32), None).unwrap();
    }
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|s| s != WaitStatus::StillAlive) {}
    (plan, memory)
}

fn move_it(early: bool) {
    let binary = PathBuf::from(std::env::var_os("BLIP_CRIU").expect("BLIP_CRIU names criu"));
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut child = start_program(dir);
    let (plan, memory) = dump(&binary, &mut child, dir);
    let pages = plan.pages();
    assert!(pages.0 > LENGTH - LENGTH / HOLE - BUSY, "only {pages:?} are lazy");
    let server = LazyServer::listen(dir).unwrap();
    let start = Instant::now();
    let options = LazyOptions { early, ..LazyOptions::default() };
    let observer = move |event: LazyEvent| println!("{:?} {event:?}", start.elapsed());
    let handle = server.serve(plan, Arc::new(memory), options, observer).unwrap();
    let mut restorer = criu(&binary, "restore", dir)
        .args(["--restore-detached", "--pidfile", "pid"])
        .spawn()
        .unwrap();
    let status = outcome(&mut restorer).expect("CRIU hangs");
    assert!(status.success(), "{}", log(dir, "restore"));
    println!("{:?} CRIU has restored {}", start.elapsed(), pages.bytes());
    if early {
        // Else all of it is to be faulted in.
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(dir.join("go"), "").unwrap();
    let stats = end_of(handle).unwrap();
    println!("{:?} {stats:?}", start.elapsed());
    let end = Instant::now() + Duration::from_secs(60);
    while !dir.join("verdict").exists() {
        if Instant::now() > end {
            let pid = std::fs::read_to_string(dir.join("pid")).unwrap();
            kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
            panic!("the restored program hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let verdict = std::fs::read_to_string(dir.join("verdict")).unwrap();
    let pid = std::fs::read_to_string(dir.join("pid")).unwrap();
    waitpid(Pid::from_raw(pid.trim().parse().unwrap()), None).unwrap();
    assert_eq!(verdict, "true true true true", "threads, child, writer, children of before");
}

#[test]
#[ignore = "needs root and CRIU 4.2 in BLIP_CRIU"]
fn criu_restores_from_this_server_filling_early() {
    move_it(true);
}

#[test]
#[ignore = "needs root and CRIU 4.2 in BLIP_CRIU"]
fn criu_restores_from_this_server_filling_late() {
    move_it(false);
}
