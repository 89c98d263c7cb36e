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

/// Has cargo build the engine, if cargo started this program. Not for a test: the
/// tests of the workspace have it built, and cargo, called by what it runs, builds
/// all dependencies again over those that it has (ring's build script looks at the
/// package's name).
fn build(me: &Path) -> Result<()> {
    if is_test() {
        return Ok(());
    }
    let (Some(cargo), Some(package)) =
        (std::env::var_os("CARGO"), std::env::var_os("CARGO_MANIFEST_DIR"))
    else {
        return Ok(());
    };
    let profile = me.parent().and_then(Path::file_name).unwrap_or_default();
    let mut build = Command::new(cargo);
    // With this package beside it the features of all dependencies are those
    // this program was built with: nothing is built twice.
    build.current_dir(package).args(["build", "--quiet", "--workspace", "--bin", "blip"]);
    if profile == "release" {
        build.arg("--release");
    }
    let status = build.stdin(Stdio::null()).status().context("running cargo to build blip")?;
    anyhow::ensure!(status.success(), "blip could not be built; cargo says why above");
    Ok(())
}

/// Whether this process is a test: cargo puts those into a folder `deps`.
fn is_test() -> bool {
    let me = std::env::current_exe().unwrap_or_default();
    me.parent().and_then(Path::file_name).is_some_and(|folder| folder == "deps")
}
