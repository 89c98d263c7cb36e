//! Is this still the process, and the program, that it was?

use std::io;

/// What names one program run by one process: a process ID that was given
/// again has another start time, and `execve` places the new program anew.
///
/// With address randomisation off, a program that executes itself looks the
/// same. That is found out otherwise (the old address space is dead) and costs
/// nothing but the word "restarted": its mappings are not armed, so all its
/// pages count as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    start_time: u64,
    layout: [u64; 5],
}

impl Identity {
    /// Reads it; `None` if the process has ended, is a zombie, or has no memory.
    pub(super) fn read(pid: i32) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => Ok(Self::parse(&stat)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Parses `/proc/PID/stat`, see proc_pid_stat(5). The command in it may
    /// hold anything, also spaces and parentheses.
    fn parse(stat: &str) -> Option<Self> {
        // Field 3, the state, is the first after the command.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
        if matches!(*fields.first()?, "Z" | "X" | "x") {
            return None;
        }
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        // No address space: a kernel thread, or on its way out.
        if field(23)? == 0 {
            return None;
        }
        let [code, code_end, stack, data, brk] = [26, 27, 28, 45, 47].map(field);
        Some(Self { start_time: field(22)?, layout: [code?, code_end?, stack?, data?, brk?] })
    }
}

/// Whether an error from `/proc/PID/…` says that the process is gone.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(state: char, start: u64, stack: u64) -> String {
        format!(
            "7 (a ) b) {state} 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 {start} 1 1 \
             18446744073709551615 100 200 {stack} 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 300 400 500 \
             600 700 800 900 0"
        )
    }

    #[test]
    fn start_time_and_layout_make_the_identity() {
        let first = Identity::parse(&stat('S', 5, 9));
        assert!(first.is_some());
        assert_eq!(first, Identity::parse(&stat('R', 5, 9)));
        assert_ne!(first, Identity::parse(&stat('S', 6, 9)), "process ID given again");
        assert_ne!(first, Identity::parse(&stat('S', 5, 8)), "another program");
        assert_eq!(None, Identity::parse(&stat('Z', 5, 9)));
    }

    #[test]
    fn we_are_ourselves() {
        let own = std::process::id() as i32;
        assert!(Identity::read(own).unwrap().is_some());
        assert_eq!(Identity::read(own).unwrap(), Identity::read(own).unwrap());
    }
}
