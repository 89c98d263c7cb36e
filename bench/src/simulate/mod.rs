//! The planner under virtual time: what it would do with containers and links
//! of every kind, beside what simpler rules would do and what would have been
//! best.
//!
//! **Invariant**: the same seeds give the same results, bit for bit.

mod oracle;
mod render;
pub mod run;
mod summary;
pub mod workload;

use anyhow::{Context as _, Result};
use clap::Args;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

/// Compares the planner with simpler rules and with an oracle, under virtual time.
#[derive(Debug, Args)]
pub struct SimulateCommand {
    /// Where to write the results
    #[arg(long, value_name = "DIR", default_value = "results/planner")]
    out: PathBuf,
}

impl SimulateCommand {
    /// Runs every case and writes the results.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn run(self) -> Result<ExitCode> {
        let results = all(&run::cases());
        let write = |name: &str, text: String| {
            let path = self.out.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        fs::create_dir_all(&self.out).with_context(|| format!("making {}", self.out.display()))?;
        write("simulation.csv", summary::csv(&results))?;
        write("README.md", summary::readme(&results))?;
        write("downtime.svg", render::downtimes(&results))?;
        print!("{}", summary::tables(&results));
        Ok(ExitCode::SUCCESS)
    }
}

/// The results of all cases, in their order.
fn all(cases: &[run::Case]) -> Vec<run::Result> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(cases.len()).max(1);
    thread::scope(|scope| {
        let parts: Vec<_> = cases
            .chunks(cases.len().div_ceil(workers))
            .map(|part| scope.spawn(|| part.iter().flat_map(run::compare).collect::<Vec<_>>()))
            .collect();
        let join = |part: thread::ScopedJoinHandle<'_, Vec<run::Result>>| {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        parts.into_iter().flat_map(join).collect()
    })
}

#[cfg(test)]
mod tests;
