//! Ctrl-C: a lab that a command has brought up goes with the command.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use crate::lab::Lab;

/// As a shell tells of a command that SIGINT has ended.
const EXIT: i32 = 130;

static DOOMED: Mutex<Vec<String>> = Mutex::new(Vec::new());
static LISTEN: Once = Once::new();
static CAME: AtomicBool = AtomicBool::new(false);

/// A lab that goes at an interrupt, as long as this lives.
#[derive(Debug)]
pub struct Doomed(String);

/// Dooms the lab of this name, unless it is up already or is to be kept.
pub fn doom(name: &str, keep: bool) -> Option<Doomed> {
    if keep || Lab::open(name).is_ok() {
        return None;
    }
    LISTEN.call_once(|| {
        if let Err(error) = ctrlc::set_handler(end) {
            tracing::warn!("an interrupt will leave the lab up: {error}");
        }
    });
    doomed().push(name.to_owned());
    Some(Doomed(name.to_owned()))
}

impl Drop for Doomed {
    fn drop(&mut self) {
        doomed().retain(|name| *name != self.0);
    }
}

/// After an interrupt this does not return: the lab is going, and what is done in
/// it from now on means nothing.
pub fn stop_if_it_came() {
    while CAME.load(Ordering::Acquire) {
        std::thread::park();
    }
}

fn doomed() -> MutexGuard<'static, Vec<String>> {
    DOOMED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end() {
    CAME.store(true, Ordering::Release);
    let names = doomed().clone();
    for name in names {
        let _ = writeln!(std::io::stderr(), "interrupted: the lab '{name}' is taken down");
        if let Err(error) = Lab::remove(&name) {
            let _ = writeln!(std::io::stderr(), "{error}; try: blip-bench lab down --name {name}");
        }
    }
    std::process::exit(EXIT);
}
