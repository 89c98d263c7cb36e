//! A virtual machine with another kernel: some of blip's ways need what this
//! machine's kernel lacks (soft-dirty bits, for one).
//!
//! QEMU and the kernel are Debian packages, unpacked into the lab's cache; the
//! disk holds the lab's root, so that a lab stands in the machine as it stands
//! outside. The processor is emulated: figures of time mean nothing, counts
//! and ratios do.
//!
//! ```text
//! parts   what it is made of: emulator, kernel, disk; cached
//! job     the command and its files, as a tar on a second disk
//! qemu    one boot: output as it comes, exit code, time limit
//! ```
//!
//! **Invariants.** Nothing written in the machine outlasts it. A machine that
//! says nothing within its time is a failure of its own kind, never a result.

mod job;
mod parts;
mod qemu;

pub use parts::Kernel;

use crate::lab::{LabError, Suite};
use std::path::PathBuf;
use std::time::Duration;

/// Result of everything in this module.
pub type Result<T> = std::result::Result<T, VmError>;

/// What to run, and in which machine.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// Whose kernel.
    pub kernel: Kernel,
    /// Whose root file system.
    pub suite: Suite,
    /// Whether labs in it can have the programs that blip is compared with.
    pub peers: bool,
    /// The command, its words unquoted.
    pub command: Vec<String>,
    /// Files to be found in the machine at the same paths; programs without
    /// their debugging information.
    pub files: Vec<PathBuf>,
    /// Its memory in MiB.
    pub memory: u32,
    /// Whether the kernel makes huge pages by itself.
    pub huge_pages: bool,
    /// How long it may run.
    pub limit: Duration,
    /// Where Debian's packages come from; by default as for the lab.
    pub mirror: Option<String>,
    /// Is told what takes long.
    pub progress: fn(&str),
}

impl VmSpec {
    /// A command on the kernel of Debian 13, with what most need.
    pub fn new(command: Vec<String>) -> Self {
        Self {
            kernel: Kernel::Trixie,
            suite: Suite::Forky,
            peers: false,
            command,
            files: Vec::new(),
            memory: 3072,
            huge_pages: false,
            limit: Duration::from_secs(600),
            mirror: None,
            progress: |_| {},
        }
    }
}

/// Why a command could not be run in a machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The parts could not be had.
    #[error(transparent)]
    Parts(#[from] LabError),
    /// A package holds no kernel that can be booted.
    #[error("there is no kernel in {0}: clear the cache with `blip-bench lab down --all --purge`")]
    NoKernel(PathBuf),
    /// A file to be taken along is not there.
    #[error("there is no file {0} to take into the machine")]
    NoFile(PathBuf),
    /// The machine did not tell how the command ended.
    #[error("the virtual machine {how}; its console ends with:\n{console}")]
    Silent {
        /// What became of it instead.
        how: String,
        /// The last lines of its console.
        console: String,
    },
}

/// Runs a command in a machine of its own; its output goes to this program's,
/// as it comes. Answers its exit code.
///
/// # Errors
/// [`VmError`]; the command's own failure is none.
pub fn run(spec: &VmSpec) -> Result<i32> {
    let parts = parts::ensure(spec)?;
    let job = job::pack(spec)?;
    qemu::boot(spec, &parts, &job)
}
