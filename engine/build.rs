//! Builds the libraries that CRIU is started with (`preload/lib.rs` where it dumps,
//! `preload/restore.rs` where it restores), and tells
//! tests whether they are built for root: those that need it are then run, and
//! reported as ignored otherwise.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rustc-check-cfg=cfg(blip_root)");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=preload");
    let root = std::fs::read_to_string("/proc/self/status").is_ok_and(|s| {
        s.lines().any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0"))
    });
    if root {
        println!("cargo:rustc-cfg=blip_root");
    }
    for (source, name) in [("lib", "blip_preload"), ("restore", "blip_restore")] {
        let library = PathBuf::from(variable("OUT_DIR")).join(format!("{name}.so"));
        if let Err(why) = build(source, name, &library) {
            // blip works without them, if not as well: see `criu/preload.rs`.
            println!("cargo:warning=CRIU will be started without blip's library: {why}");
            if let Err(error) = std::fs::write(&library, []) {
                panic!("cannot write {library:?}: {error}");
            }
        }
    }
}

/// Compiles a library for the machine that blip is built for.
fn build(source: &str, name: &str, library: &Path) -> Result<(), String> {
    let arch = variable("CARGO_CFG_TARGET_ARCH");
    if arch != "x86_64" && arch != "aarch64" {
        return Err(format!("it knows no system calls of {arch}"));
    }
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--crate-type", "cdylib", "--crate-name", name, "--edition", "2024"]);
    rustc.args(["-O", "-C", "panic=abort", "-C", "strip=symbols", "--target"]);
    rustc.arg(variable("TARGET"));
    // The C library's symbols are those of the CRIU it is loaded into.
    rustc.args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles"]);
    if variable("CARGO_CFG_TARGET_ENV") == "musl" {
        rustc.args(["-C", "target-feature=-crt-static"]);
    }
    if let Ok(linker) = std::env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    let output = rustc.arg("-o").arg(library).arg(format!("preload/{source}.rs")).output();
    let output = output.map_err(|error| format!("cannot run rustc: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).replace('\n', " "))
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}
