//! The `blip-bench` command.

mod cli;

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "blip-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
