//! How much of the machine a thread claims.

/// What work may take of the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A share like everybody's.
    Share,
    /// What others leave over: see [`be_polite`].
    Rest,
}

impl Claim {
    /// Runs `work` with that claim, and waits for it. Blocks.
    pub fn run<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        if self == Self::Share {
            return work();
        }
        // Manners cannot be taken back without a right to: a thread of its own.
        let polite = || {
            be_polite();
            work()
        };
        std::thread::scope(|scope| scope.spawn(polite).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Makes the calling thread the last to get a core that others want, too. It
/// still gets on: about a seventieth of a core that one other thread fills.
pub fn be_polite() {
    const NICEST: libc::c_int = 19;
    // SAFETY: changes a number of the calling thread (setpriority(2): 0 means
    // the caller, on Linux its thread); no memory is involved. It cannot fail
    // for want of rights, as it only gives up.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICEST) };
}

#[cfg(test)]
mod tests {
    use super::Claim;

    #[test]
    fn only_the_calling_thread_steps_back() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields = stat.rsplit_once(") ").unwrap().1;
            fields.split(' ').nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        assert_eq!(Claim::Rest.run(nice), 19);
        assert_eq!(Claim::Share.run(nice), before);
        assert_eq!(nice(), before);
    }
}
