//! The `blip` command: moves a running Docker container to another host.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Docker calls the runtime for every command on a container and waits for
    // it: no parser, no async runtime on that way.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(word) if word == "runtime" => blip_engine::runtime::main(arguments.collect()),
        Some(word) if word == blip_engine::guard::SUBCOMMAND => guard(arguments.next()),
        _ => blip_engine::cli::main(),
    }
}

fn guard(charge: Option<std::ffi::OsString>) -> ExitCode {
    let charge = charge.unwrap_or_default();
    match blip_engine::guard::main(&charge.to_string_lossy()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
