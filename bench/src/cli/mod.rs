//! The command line: one subcommand, one file.
//!
//! **Invariant.** No thread is started before [`run`] has chosen the
//! subcommand: the init of a lab's host is one of them.

mod lab;
mod vm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Proves what blip does, on hosts made on this one machine.
#[derive(Debug, Parser)]
#[command(name = "blip-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Docker hosts on this machine, made from Debian packages (needs root)
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Move a busy Redis between two Docker hosts and prove that nothing is lost
    Demo(blip_bench::demo::DemoCommand),
    /// Measure: scenarios × methods × links, again and again, all verified
    Run(blip_bench::run::RunCommand),
    /// Tables, pictures and a page of what `run` measured
    Report(blip_bench::report::ReportCommand),
    /// Run a command on another kernel, in a virtual machine (needs root)
    Vm(vm::VmCommand),
    /// The memory writer, a workload that checks itself; runs in a container
    #[command(hide = true)]
    Writer(blip_bench::workload::writer::WriterCommand),
    /// Compare the planner with simpler rules and an oracle, under virtual time
    Simulate(blip_bench::simulate::SimulateCommand),
    /// The init of a lab's host
    #[command(hide = true, subcommand)]
    LabInit(lab::InitCommand),
}

/// Does what the command line asks.
///
/// # Errors
/// Whatever the subcommand could not do.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Lab(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Run(command) => command.run(),
        Command::Report(command) => command.run(),
        Command::Writer(command) => command.run().map(|()| ExitCode::SUCCESS),
        Command::Simulate(command) => command.run(),
        Command::Vm(command) => command.run(),
        Command::LabInit(command) => command.run(),
    }
}
