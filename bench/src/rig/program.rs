//! Finding the `blip` program the hosts are given.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The program `given`, or else the one that was built with this one.
///
/// Under `cargo run` it is built first if need be, in the same profile: cargo
/// builds only the package it was asked to run.
///
/// # Errors
/// When there is none, with the command that builds it.
pub fn blip(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        anyhow::ensure!(path.is_file(), "there is no program at {}", path.display());
        return Ok(path.to_owned());
    }
    blip_beside(&std::env::current_exe().context("finding this program's own path")?)
}

/// The `blip` beside the program `me`, built first if need be when cargo runs
/// this process.
///
/// # Errors
/// When there is none, with the command that builds it.
pub fn blip_beside(me: &Path) -> Result<PathBuf> {
    let beside = me.with_file_name("blip");
    build(me)?;
    if !beside.is_file() {
        bail!(
            "there is no `blip` beside {}; build it with `cargo build --release -p blip-engine` \
             or name it with --blip",
            me.display()
        );
    }
    Ok(beside)
}

/// Has cargo build the engine, if cargo started this program.
fn build(me: &Path) -> Result<()> {
    let (Some(cargo), Some(package)) =
        (std::env::var_os("CARGO"), std::env::var_os("CARGO_MANIFEST_DIR"))
    else {
        return Ok(());
    };
    let profile = me.parent().and_then(Path::file_name).unwrap_or_default();
    let mut build = Command::new(cargo);
    build.current_dir(package);
    // In the way this process was built, the features of all dependencies are the
    // same: nothing is built twice.
    if is_test() {
        build.args(["test", "--quiet", "--workspace", "--no-run"]);
    } else {
        build.args(["build", "--quiet", "--workspace", "--bin", "blip"]);
    }
    if profile == "release" {
        build.arg("--release");
    }
    without_our_package(&mut build);
    let status = build.stdin(Stdio::null()).status().context("running cargo to build blip")?;
    anyhow::ensure!(status.success(), "blip could not be built; cargo says why above");
    Ok(())
}

/// Leaves out what cargo says of the package of the program that it runs: build
/// scripts (ring's) are run again if it changes, and all that depends on them is
/// built again, by every other call of cargo.
fn without_our_package(cargo: &mut Command) {
    let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ours.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
}

/// Whether this process is a test: cargo puts those into a folder `deps`.
fn is_test() -> bool {
    let me = std::env::current_exe().unwrap_or_default();
    me.parent().and_then(Path::file_name).is_some_and(|folder| folder == "deps")
}
