//! The `blip` command.
fn main() -> std::process::ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(word) if word == "runtime" => blip_engine::runtime::main(args.collect()),
        _ => std::process::ExitCode::FAILURE,
    }
}
