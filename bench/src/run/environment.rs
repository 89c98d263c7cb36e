//! Where and with what a bench ran, as far as it explains the numbers.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::demo::machine::Machine;

/// One session of the bench; a bench that was resumed has several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// When it began, in seconds since 1970.
    pub began_unix_s: u64,
    /// The words after `blip-bench`.
    pub command: Vec<String>,
    /// Version of the bench.
    pub version: String,
    /// The sources it was built from, as far as git knows; empty otherwise.
    pub revision: String,
    /// Whether it was built with optimisation.
    pub optimised: bool,
    /// The machine under all hosts.
    pub machine: Machine,
    /// How the processor's frequency is chosen; empty where nobody says.
    pub governor: String,
    /// Whether the kernel gives huge pages to whoever does not ask:
    /// `[always]`, `[madvise]` or `[never]` is the choice.
    pub huge_pages: String,
}

impl Environment {
    /// This machine and this program, now.
    pub fn here() -> Environment {
        let read = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Environment {
            began_unix_s: unix_now(),
            command: std::env::args().skip(1).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: revision(),
            optimised: !cfg!(debug_assertions),
            machine: Machine::here(),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled"),
        }
    }

    /// What a reader of the numbers should know, in words.
    pub fn warnings(&self) -> Vec<String> {
        let mut all = Vec::new();
        if !self.optimised {
            all.push("built without --release: its numbers say little about blip".to_owned());
        }
        let load: f64 = self.machine.load.parse().unwrap_or_default();
        if load > 0.5 {
            all.push(format!("the machine was busy when it began (load {load}): wait and repeat"));
        }
        if !["", "performance"].contains(&self.governor.as_str()) {
            let governor = &self.governor;
            all.push(format!(
                "the processor's frequency follows the governor `{governor}`: choose `performance`"
            ));
        }
        all
    }
}

/// Seconds since 1970.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What git says of the folder the bench was started in.
fn revision() -> String {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--exclude", "*"]);
    let said = git.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let said = said.ok().filter(|s| s.status.success()).map(|s| s.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).trim().to_owned()
}
