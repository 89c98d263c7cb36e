//! `blip-bench vm`.

use blip_bench::lab::Suite;
use blip_bench::vm::{self, Kernel, VmSpec};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Which command, and which machine.
#[derive(Debug, Args)]
pub(super) struct VmCommand {
    /// Whose kernel: bookworm has 6.1, trixie 6.12
    #[arg(long, default_value = "trixie")]
    kernel: Kernel,
    /// Debian suite of the root file system
    #[arg(long, default_value = "forky")]
    suite: Suite,
    /// Take the programs that blip is compared with along
    #[arg(long)]
    peers: bool,
    /// A file to be found in the machine at the same path; may be repeated
    #[arg(long = "with", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Memory of the machine in MiB
    #[arg(long, default_value_t = 3072)]
    memory: u32,
    /// Let the kernel make huge pages by itself
    #[arg(long)]
    huge_pages: bool,
    /// Seconds the machine may run
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// Package mirror; by default that of this machine's apt
    #[arg(long, value_name = "URI")]
    mirror: Option<String>,
    /// The command and its arguments
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

impl VmCommand {
    /// Runs the command; ends as it ended.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let code = vm::run(&VmSpec {
            kernel: self.kernel,
            suite: self.suite,
            peers: self.peers,
            command: self.command,
            files: self.files,
            memory: self.memory,
            huge_pages: self.huge_pages,
            limit: Duration::from_secs(self.limit),
            mirror: self.mirror,
            progress: |text| eprintln!("vm: {text}"),
        })?;
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
    }
}
