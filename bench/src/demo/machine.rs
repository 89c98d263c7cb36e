//! The machine the demo ran on, as far as it explains the numbers.

use std::fs;

use serde::{Deserialize, Serialize};

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Processors this process may use.
    pub cores: usize,
    /// What the processor calls itself; empty where it does not say.
    pub processor: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Mean number of running processes in the minute before, from
    /// `/proc/loadavg`: noise, if it is not small.
    pub load: String,
}

impl Machine {
    /// This machine, now. What cannot be read is empty.
    pub fn here() -> Machine {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let load = read("/proc/loadavg");
        Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: field(&read("/proc/cpuinfo"), "model name").to_owned(),
            memory_bytes: kibibytes(field(&read("/proc/meminfo"), "MemTotal")) * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

/// The value of a `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let mut pairs = text.lines().filter_map(|l| l.split_once(':'));
    pairs.find(|(key, _)| key.trim() == name).map_or("", |(_, value)| value.trim())
}

fn kibibytes(text: &str) -> u64 {
    let number = text.split(' ').next().unwrap_or_default();
    number.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotalX: 1 kB\nMemTotal:       24576 kB\nmodel name\t: Some CPU @ 2: 3\n";
        assert_eq!(kibibytes(field(text, "MemTotal")), 24_576);
        assert_eq!(field(text, "model name"), "Some CPU @ 2: 3");
        assert_eq!(field(text, "absent"), "");
    }
}
