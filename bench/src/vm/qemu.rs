//! One boot of a machine.

use super::job::Job;
use super::parts::Parts;
use super::{Result, VmError, VmSpec};
use crate::lab::{on, run};
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where the loader and the libraries are among QEMU's unpacked packages: they
/// are run from there, as they fit no other system's.
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// `nokaslr`, the clocks and the mitigations: each is slow or fails when
/// emulated.
const KERNEL_LINE: &str = "console=ttyS0 root=/dev/nvme0n1 rootfstype=ext4 rw init=/init panic=-1 \
     quiet mitigations=off nokaslr tsc=reliable no_timer_check";

/// Boots the machine, waits for its end, and answers the job's exit code.
pub(super) fn boot(spec: &VmSpec, parts: &Parts, job: &Job) -> Result<i32> {
    let begun = Instant::now();
    let mut child =
        command(spec, parts, job).spawn().map_err(|e| on("starting", &parts.emulator, e))?;
    let mut said = 0;
    let ended = loop {
        pass_on(&job.file("out"), &mut said);
        match child.try_wait().map_err(|e| on("waiting for", &parts.emulator, e))? {
            Some(status) => break Some(status),
            None if begun.elapsed() > spec.limit => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    pass_on(&job.file("out"), &mut said);
    let code = fs::read_to_string(job.file("code")).unwrap_or_default();
    match (code.trim().parse(), ended) {
        (Ok(code), _) => Ok(code),
        (Err(_), Some(status)) => Err(silent(format!("ended without a word ({status})"), job)),
        (Err(_), None) => Err(silent(format!("was not done within {:?}", spec.limit), job)),
    }
}

/// Shows what the command has said since the last time. That nobody listens is
/// no failure.
fn pass_on(output: &Path, said: &mut u64) {
    let Ok(mut file) = fs::File::open(output) else { return };
    let mut stdout = std::io::stdout().lock();
    if file.seek(SeekFrom::Start(*said)).is_ok() {
        *said += std::io::copy(&mut file, &mut stdout).unwrap_or(0);
    }
    let _ = stdout.flush();
}

fn silent(how: String, job: &Job) -> VmError {
    let console = fs::read(job.file("console")).unwrap_or_default();
    VmError::Silent { how, console: run::last_lines(&String::from_utf8_lossy(&console), 20) }
}

fn command(spec: &VmSpec, parts: &Parts, job: &Job) -> Command {
    let root = &parts.emulator;
    // With it ends the machine if this program does.
    let mut command = run::program("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(root.join(LOADER));
    command.arg("--library-path").arg(root.join(LIBRARIES));
    command.arg(root.join("usr/bin/qemu-system-x86_64"));
    command.arg("-L").arg(root.join("usr/share/qemu"));
    command.arg("-L").arg(root.join("usr/share/seabios"));
    command.args(["-accel", "tcg,thread=multi,tb-size=256", "-M", "q35", "-cpu", "max"]);
    command.args(["-smp", "2", "-m", &spec.memory.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(&parts.kernel).args(["-append", &kernel_line(spec)]);
    command.args(["-drive", &drive("root", &parts.disk, "snapshot=on")]);
    command.args(["-device", "nvme,drive=root,serial=root"]);
    command.args(["-drive", &drive("job", &job.tar(), "readonly=on")]);
    command.args(["-device", "virtio-blk-pci,drive=job", "-device", "virtio-serial-pci"]);
    // Files, as a terminal or a pipe that closes would block the machine.
    for (number, port) in ["out", "code"].into_iter().enumerate() {
        command.args(["-chardev", &format!("file,id={port},path={}", escape(&job.file(port)))]);
        command.args(["-device", &format!("virtserialport,chardev={port},nr={}", number + 1)]);
    }
    command.args(["-serial", &format!("file:{}", escape(&job.file("console")))]);
    command.stdin(Stdio::null());
    command
}

/// Pages of 2 MiB would count as one where soft-dirty bits are kept.
fn kernel_line(spec: &VmSpec) -> String {
    let huge = if spec.huge_pages { "always" } else { "never" };
    format!("{KERNEL_LINE} transparent_hugepage={huge}")
}

fn drive(id: &str, file: &Path, how: &str) -> String {
    format!("file={},format=raw,if=none,id={id},{how}", escape(file))
}

/// In QEMU's options a comma is written twice.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
