//! What the machine is to do: a tar with a script and the files it needs.

use super::{Result, VmError, VmSpec};
use crate::lab::{on, run};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The script's name; `init.sh` runs it.
const SCRIPT: &str = "blip-job";
/// The tar's name.
const TAR: &str = "job.tar";
/// The folder of what is taken along.
const ALONG: &str = "along";

/// A job on disk; gone when dropped.
#[derive(Debug)]
pub(super) struct Job {
    folder: TempDir,
}

impl Job {
    /// The tar.
    pub(super) fn tar(&self) -> PathBuf {
        self.folder.path().join(TAR)
    }

    /// Where the machine's console and the exit code go.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Packs the command and its files.
pub(super) fn pack(spec: &VmSpec) -> Result<Job> {
    let folder = tempfile::tempdir().map_err(|e| on("making", "a folder for the job", e))?;
    let job = Job { folder };
    let script = job.file(SCRIPT);
    fs::write(&script, script_of(&spec.command)).map_err(|e| on("writing", &script, e))?;
    let mut tar = run::program("tar");
    tar.arg("--create").arg("--file").arg(job.tar());
    tar.arg("--directory").arg(job.folder.path()).arg(SCRIPT);
    let along = job.file(ALONG);
    fs::create_dir(&along).map_err(|e| on("making", &along, e))?;
    if !spec.files.is_empty() {
        tar.arg("--directory").arg(&along);
    }
    for file in &spec.files {
        let found = fs::canonicalize(file).map_err(|_| VmError::NoFile(file.clone()))?;
        let place = found.strip_prefix("/").unwrap_or(&found);
        lay_out(&found, &along.join(place))?;
        tar.arg(place);
    }
    run::run("packing the job", &mut tar)?;
    // A disk is whole sectors, and an empty one no disk at all.
    let path = job.tar();
    pad(&path).map_err(|e| on("padding", &path, e))?;
    Ok(job)
}

/// Copies a file; a program without its debugging information, which is most
/// of it and would have to be unpacked by an emulated processor.
fn lay_out(file: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).map_err(|e| on("making", parent, e))?;
    let mut strip = run::program("strip");
    strip.args(["--strip-debug", "-o"]).arg(to).arg(file);
    if run::run("stripping a program", &mut strip).is_err() {
        // No program, or there is no `strip`.
        fs::copy(file, to).map_err(|e| on("copying", file, e))?;
    }
    Ok(())
}

fn pad(path: &Path) -> std::io::Result<()> {
    let file = fs::File::options().write(true).open(path)?;
    let length = file.metadata()?.len();
    file.set_len(length.next_multiple_of(4096))
}

/// The command as a shell script.
fn script_of(command: &[String]) -> String {
    let words: Vec<String> = command.iter().map(|word| quote(word)).collect();
    format!(
        "export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         hostname vm\ncd /root\n{}\n",
        words.join(" ")
    )
}

/// A word that the shell takes as it stands.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_command_as_they_are() {
        let words = ["printf", "%s|", "a b", "it's", "$HOME", "", "x;y\n*"];
        let script = script_of(&words.map(str::to_owned));
        let line = script.split_once("cd /root\n").expect("the command").1;
        let output = std::process::Command::new("sh").args(["-c", line]).output().expect("sh");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|it's|$HOME||x;y\n*|");
    }
}
