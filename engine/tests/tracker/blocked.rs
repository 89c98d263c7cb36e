//! Calls that wait must not notice that their thread was stopped, nor that its
//! process made a system call for us.

use crate::child::{Program, arm};
use blip_engine::track::WriteProtect;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long each call waits.
const WAIT: Duration = Duration::from_millis(500);

/// A call, and how it ends if nothing comes: its result, and `errno`.
type Case = (&'static str, fn() -> i64, i64, i32);

const CASES: &[Case] = &[
    ("epoll_wait", epoll_wait, 0, 0),
    ("epoll_pwait", epoll_pwait, 0, 0),
    ("sigtimedwait", sigtimedwait, -1, libc::EAGAIN),
    ("semtimedop", semtimedop, -1, libc::EAGAIN),
    ("recv", recv, -1, libc::EAGAIN),
    ("read_socket", read_socket, -1, libc::EAGAIN),
    ("accept", accept, -1, libc::EAGAIN),
    ("io_getevents", io_getevents, 0, 0),
    ("nanosleep", nanosleep, 0, 0),
    ("futex", futex, -1, libc::ETIMEDOUT),
    ("poll", poll, 0, 0),
    ("ppoll", ppoll, 0, 0),
    ("select", select, 0, 0),
];

/// Those that answer `EINTR` to a mere stop (signal(7)).
const TOUCHY: &[&str] = &[
    "epoll_wait",
    "epoll_pwait",
    "sigtimedwait",
    "semtimedop",
    "recv",
    "read_socket",
    "accept",
    "io_getevents",
];

/// The child: makes one call, or all at once, each in a thread of its own.
pub(crate) fn run(name: &str) {
    if name == "signal" {
        return run_with_signal();
    }
    let report = |case: Case| {
        let begin = Instant::now();
        let result = (case.1)();
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let errno = if result < 0 { errno } else { 0 };
        println!("{} {result} {errno} {}", case.0, begin.elapsed().as_millis());
    };
    println!("ready");
    if name == "all" {
        let threads = CASES.iter().map(|case| std::thread::spawn(move || report(*case)));
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    } else {
        report(*CASES.iter().find(|case| case.0 == name).unwrap());
    }
}

/// What is done to the child while it waits.
fn disturb(program: &Program, how: &str) {
    std::thread::sleep(WAIT / 4);
    match how {
        "arm" => {
            arm(&mut WriteProtect::new().unwrap(), program);
        }
        "stop" => {
            program.signal(libc::SIGSTOP);
            std::thread::sleep(Duration::from_millis(20));
            program.signal(libc::SIGCONT);
        }
        _ => {}
    }
}

/// The names of those calls that did not end as they should.
fn disturbed(how: &str, names: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in names {
        let mut program = Program::start(&format!("blocked {name}"));
        disturb(&program, how);
        let count = if *name == "all" { CASES.len() } else { 1 };
        for _ in 0..count {
            let line = program.line();
            let fields: Vec<&str> = line.split(' ').collect();
            let case = CASES.iter().find(|case| case.0 == fields[0]).expect("a report");
            let (result, errno) = (fields[1].parse::<i64>(), fields[2].parse::<i32>());
            let waited = Duration::from_millis(fields[3].parse().unwrap());
            let right = (result.unwrap(), errno.unwrap()) == (case.2, case.3);
            if !right || waited + Duration::from_millis(5) < WAIT {
                wrong.push(case.0.to_owned());
            }
        }
    }
    wrong
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn one_waiting_thread_does_not_notice_the_injection() {
    let names: Vec<&str> = CASES.iter().map(|case| case.0).collect();
    assert_eq!(disturbed("arm", &names), [""; 0]);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn many_waiting_threads_do_not_notice_the_stop() {
    assert_eq!(disturbed("arm", &["all"]), [""; 0]);
}

/// The control: by a plain stop, these are disturbed.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_plain_stop_is_noticed() {
    assert_eq!(disturbed("stop", TOUCHY), TOUCHY);
}

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn handle(_: i32) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// The child: waits, with a handler for a signal.
fn run_with_signal() {
    // SAFETY: the handler only counts.
    unsafe { libc::signal(libc::SIGUSR1, handle as *const () as libc::sighandler_t) };
    println!("ready");
    let result = epoll_wait();
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    println!("{result} {errno} {}", HANDLED.load(Ordering::SeqCst));
}

/// A signal is a reason for `EINTR`, also if it comes while we stop the thread.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_signal_still_interrupts() {
    let mut program = Program::start("blocked signal");
    std::thread::sleep(WAIT / 5);
    program.stop();
    program.signal(libc::SIGUSR1);
    arm(&mut WriteProtect::new().unwrap(), &program);
    let state = std::fs::read_to_string(format!("/proc/{}/stat", program.pid())).unwrap();
    assert!(state.contains(") T "), "it is to stay stopped: {state}");
    program.signal(libc::SIGCONT);
    assert_eq!(program.line(), format!("-1 {} 1", libc::EINTR));
}

fn time() -> libc::timespec {
    libc::timespec { tv_sec: 0, tv_nsec: WAIT.as_nanos() as i64 }
}

fn epoll_wait() -> i64 {
    // SAFETY: one event fits into `event`.
    unsafe {
        let mut event = std::mem::zeroed();
        let epoll = libc::epoll_create1(0);
        libc::epoll_wait(epoll, &mut event, 1, WAIT.as_millis() as i32).into()
    }
}

fn epoll_pwait() -> i64 {
    // SAFETY: one event fits into `event`; the mask is initialised.
    unsafe {
        let mut event = std::mem::zeroed();
        let mut mask = std::mem::zeroed();
        libc::sigfillset(&mut mask);
        let epoll = libc::epoll_create1(0);
        libc::epoll_pwait(epoll, &mut event, 1, WAIT.as_millis() as i32, &mask).into()
    }
}

fn sigtimedwait() -> i64 {
    // SAFETY: all pointers are to valid values.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGUSR2);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut());
        libc::sigtimedwait(&set, ptr::null_mut(), &time()).into()
    }
}

fn semtimedop() -> i64 {
    // SAFETY: one operation is given, on a semaphore of ours, removed again.
    unsafe {
        let set = libc::semget(libc::IPC_PRIVATE, 1, 0o600);
        let mut down = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
        let time = time();
        let result = libc::syscall(libc::SYS_semtimedop, set, &raw mut down, 1, &raw const time);
        let errno = *libc::__errno_location();
        libc::semctl(set, 0, libc::IPC_RMID);
        *libc::__errno_location() = errno;
        result
    }
}

fn socket_pair() -> [i32; 2] {
    let mut pair = [0; 2];
    let limit = libc::timeval { tv_sec: 0, tv_usec: WAIT.as_micros() as i64 };
    // SAFETY: `pair` takes two descriptors; `limit` is as long as said.
    unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr());
        limit_receive(pair[0], limit);
    }
    pair
}

/// # Safety
/// `socket` must be a socket.
unsafe fn limit_receive(socket: i32, limit: libc::timeval) {
    let (option, length) = (libc::SO_RCVTIMEO, size_of_val(&limit) as u32);
    // SAFETY: `limit` is valid and as long as said.
    unsafe {
        libc::setsockopt(socket, libc::SOL_SOCKET, option, (&raw const limit).cast(), length)
    };
}

fn recv() -> i64 {
    let mut byte = 0_u8;
    // SAFETY: one byte fits into `byte`.
    unsafe { libc::recv(socket_pair()[0], (&raw mut byte).cast(), 1, 0) as i64 }
}

fn read_socket() -> i64 {
    let mut byte = 0_u8;
    // SAFETY: one byte fits into `byte`.
    unsafe { libc::read(socket_pair()[0], (&raw mut byte).cast(), 1) as i64 }
}

fn accept() -> i64 {
    // SAFETY: listens on a loopback address the kernel chooses; asks for none.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        libc::listen(socket, 1);
        let limit = libc::timeval { tv_sec: 0, tv_usec: WAIT.as_micros() as i64 };
        limit_receive(socket, limit);
        libc::accept(socket, ptr::null_mut(), ptr::null_mut()).into()
    }
}

fn io_getevents() -> i64 {
    let (mut context, mut event) = (0_u64, [0_u64; 4]);
    // SAFETY: a context and one event (32 bytes) fit where the pointers point.
    unsafe {
        libc::syscall(libc::SYS_io_setup, 4, &raw mut context);
        let time = time();
        libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), &raw const time)
    }
}

fn nanosleep() -> i64 {
    // SAFETY: a valid time; no remainder asked for.
    unsafe { libc::nanosleep(&time(), ptr::null_mut()).into() }
}

fn futex() -> i64 {
    let word = 0_u32;
    let time = time();
    // SAFETY: waits on a word of ours that nobody changes.
    unsafe { libc::syscall(libc::SYS_futex, &raw const word, libc::FUTEX_WAIT, 0, &raw const time) }
}

fn poll() -> i64 {
    // SAFETY: no descriptors are given.
    unsafe { libc::poll(ptr::null_mut(), 0, WAIT.as_millis() as i32).into() }
}

fn ppoll() -> i64 {
    // SAFETY: no descriptors are given; time and mask are valid.
    unsafe {
        let mut mask = std::mem::zeroed();
        libc::sigfillset(&mut mask);
        libc::ppoll(ptr::null_mut(), 0, &time(), &mask).into()
    }
}

fn select() -> i64 {
    let mut limit = libc::timeval { tv_sec: 0, tv_usec: WAIT.as_micros() as i64 };
    let none = ptr::null_mut;
    // SAFETY: no descriptors are given; the limit is valid.
    unsafe { libc::select(0, none(), none(), none(), &mut limit).into() }
}
