//! How much of the machine a thread claims.

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
    #[test]
    fn only_the_calling_thread_steps_back() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields = stat.rsplit_once(") ").unwrap().1;
            fields.split(' ').nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        let polite = std::thread::spawn(move || {
            super::be_polite();
            nice()
        });
        assert_eq!(polite.join().unwrap(), 19);
        assert_eq!(nice(), before);
    }
}
