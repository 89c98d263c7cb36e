//! A container with a terminal moves: its shell with what it has stopped and
//! what it knows, and whoever is attached is told.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;

use blip_bench::lab::{CgroupMode, Host, Suite};
use hosts::Hosts;
use nix::pty::{Winsize, openpty};
use std::fs::File;
use std::io::{Read, Write};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(8);

/// A `docker attach` at a terminal of its own.
struct Session {
    keyboard: File,
    screen: Arc<Mutex<String>>,
    child: Child,
}

impl Session {
    fn attach(host: &Host, name: &str) -> Self {
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).expect("a terminal");
        let mut command = host.command(&["docker", "attach", name]);
        let slave = || pair.slave.try_clone().expect("a copy");
        command.stdin(slave()).stdout(slave()).stderr(slave());
        let child = command.spawn().expect("docker attach");
        drop(command);
        let keyboard: File = pair.master.into();
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut from, to) = (keyboard.try_clone().expect("a copy"), screen.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = from.read(&mut buffer) {
                to.lock().expect("screen").push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self { keyboard, screen, child }
    }

    /// Types, and waits until something new is on the screen.
    fn types(&mut self, keys: &str, answer: &str) {
        let seen = self.screen.lock().expect("screen").len();
        self.keyboard.write_all(keys.as_bytes()).expect("typing");
        self.shows(seen, answer);
    }

    fn shows(&self, after: usize, answer: &str) {
        let until = Instant::now() + LIMIT;
        loop {
            let screen = self.screen.lock().expect("screen").clone();
            if screen[after.min(screen.len())..].contains(answer) {
                return;
            }
            assert!(Instant::now() < until, "no '{answer}' on the screen: {screen}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for its end.
    fn ends(&mut self) -> Option<i32> {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code();
            }
            assert!(Instant::now() < until, "docker attach goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_shell_lives_on_and_its_user_is_told() {
    let hosts = Hosts::up("term", CgroupMode::V2, Suite::Forky);
    let (a, b) = (hosts.a(), hosts.b());
    hosts.run("term", "--interactive --tty", "blip/busybox:latest", &["sh"]);
    let mut here = Session::attach(a, "term");
    here.types("\n", "# ");
    here.types("known=42\n", "# ");
    // It runs when it answers: before, the key would be the shell's.
    here.types("cat\n", "cat\r\n");
    std::thread::sleep(Duration::from_millis(300));
    here.types("there\n", "there\r\nthere");
    here.types("\u{1a}", "Stopped");

    hosts.migrate("term");
    here.shows(0, "has moved to");
    here.ends();
    hosts.target_is_clean("after the move");

    let mut there = Session::attach(b, "term");
    there.types("\n", "# ");
    there.types("echo it is $known\n", "it is 42");
    there.types("jobs\n", "Stopped");
    there.types("stty size\n", "30 100");
    there.types("fg %1\n", "cat");
    there.types("said again\n", "said again\r\nsaid again");
    there.types("\u{3}", "# ");
    there.types("echo last; exit 7\n", "\r\nlast");
    there.ends();
    assert_eq!(hosts.inspect(b, "term", ".State.ExitCode"), "7");
    let log = hosts.docker(b, "logs term");
    assert!(log.contains("known=42") && log.contains("it is 42"), "{log}");
    hosts.docker(b, "rm term");
    hosts.target_is_empty("after its end");
}
