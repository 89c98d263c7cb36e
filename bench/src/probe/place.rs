//! Where a client's threads run.
//!
//! A socket belongs to the network namespace its thread was in when it was
//! opened. The lab's client lives in a namespace of its own; a [`Place`] is
//! how the probe and the workloads get there without knowing about it.

use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// Work for a thread at a [`Place`].
pub type Job = Box<dyn FnOnce() + Send + 'static>;

/// Starts threads somewhere, for example in the client's network namespace.
///
/// Any `Fn(&str, Job) -> io::Result<JoinHandle<()>>` is a place. It must have
/// entered the namespace before it calls the job.
pub trait Place {
    /// Runs `job` on a new thread called `name` at this place.
    ///
    /// # Errors
    /// When no thread can be made or the place cannot be entered.
    fn start(&self, name: &str, job: Job) -> io::Result<JoinHandle<()>>;
}

impl<F: Fn(&str, Job) -> io::Result<JoinHandle<()>>> Place for F {
    fn start(&self, name: &str, job: Job) -> io::Result<JoinHandle<()>> {
        self(name, job)
    }
}

/// The caller's own namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Here;

impl Place for Here {
    fn start(&self, name: &str, job: Job) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name.to_owned()).spawn(job)
    }
}

/// Runs `work` at `place` and waits for what it returns.
///
/// # Errors
/// When the place cannot be entered, or the work panicked there.
pub fn within<T: Send + 'static>(
    place: &dyn Place,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (give, take) = mpsc::channel();
    let job = Box::new(move || {
        // The receiver waits below for as long as the job lives.
        let _ = give.send(work());
    });
    let thread = place.start(name, job)?;
    let result = take.recv();
    // A panic shows as the missing result.
    let _ = thread.join();
    result.map_err(|_| io::Error::other(format!("the thread {name} ended without a result")))
}
