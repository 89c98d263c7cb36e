//! Starting, finding and stopping the programs that are tracked.

use blip_engine::track::{Scan, Stop, Task, Tracker};
use blip_transport::page::SpaceId;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs instead of the test harness when this is the child.
extern "C" fn become_child() {
    // glibc has set up its environment by now; Rust's runtime needs nothing.
    let Ok(role) = std::env::var("BLIP_CHILD") else { return };
    let (name, argument) = role.split_once(' ').unwrap_or((&role, ""));
    match name {
        "hostile" => crate::hostile::run(argument),
        "scribbler" => crate::hostile::scribble(),
        "direct" => crate::hostile::direct(argument),
        "turncoat" => crate::hostile::turncoat(),
        "large" => crate::measured::run(argument),
        "blocked" => crate::blocked::run(argument),
        "still" => crate::untouched::run(argument),
        _ => {}
    }
    std::process::exit(0);
}

#[used]
#[unsafe(link_section = ".init_array")]
static BECOME_CHILD: extern "C" fn() = become_child;

/// A running child and its descendants; killed when dropped.
pub(crate) struct Program {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Program {
    /// Starts this binary as `role` and waits for its first line, `ready`.
    pub(crate) fn start(role: &str) -> Self {
        Self::start_with(role, |_| ())
    }

    /// The same, with a say in how.
    pub(crate) fn start_with(role: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        // A process group of its own, so that all of them can be signalled.
        command.env("BLIP_CHILD", role).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut program = Self { child, lines };
        let line = program.line();
        assert_eq!(line, "ready", "the child could not start");
        program
    }

    /// The next line it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// It and all its descendants that have memory.
    pub(crate) fn tasks(&self) -> Vec<Task> {
        let mut pids = vec![self.pid()];
        let mut next = 0;
        while let Some(&pid) = pids.get(next) {
            next += 1;
            let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
            for thread in threads.into_iter().flatten().flatten() {
                let children = std::fs::read_to_string(thread.path().join("children"));
                let children = children.unwrap_or_default();
                pids.extend(children.split_whitespace().filter_map(|c| c.parse::<i32>().ok()));
            }
        }
        pids.into_iter().map(|pid| Task { pid, space: SpaceId(pid as u32) }).collect()
    }

    /// Sends a signal to all of them.
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: no memory is touched; the group is our child's own.
        unsafe { libc::kill(-self.pid(), signal) };
    }

    /// Stops all of them and waits until every thread stands still.
    pub(crate) fn stop(&self) -> Vec<Task> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            self.signal(libc::SIGSTOP);
            std::thread::sleep(Duration::from_millis(20));
            let tasks = self.tasks();
            if tasks.iter().all(|task| stands_still(task.pid)) && tasks == self.tasks() {
                return tasks;
            }
            assert!(Instant::now() < deadline, "the child does not stop");
            // A parent in vfork waits, deaf, for its stopped child.
            self.signal(libc::SIGCONT);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Scans until a single process is armed: on a busy machine it may not stop in
/// time, and is then left for the next round.
pub(crate) fn arm(tracker: &mut dyn Tracker, program: &Program) -> Scan {
    for _ in 0..100 {
        let scan = tracker.scan(&program.tasks(), Stop::Live).unwrap();
        if tracker.stats().last.injected == 1 {
            return scan;
        }
        assert_eq!(tracker.stats().last.untracked, 1);
    }
    panic!("the child could not be armed: nothing is tested");
}

/// Whether every thread of a process is stopped, or a zombie.
fn stands_still(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    threads.into_iter().flatten().flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z', 'X']))
    })
}
