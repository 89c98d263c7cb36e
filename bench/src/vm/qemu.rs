//! One boot of a machine.

use super::job::Job;
use super::parts::Parts;
use super::{Result, VmError, VmSpec};
use crate::lab::{on, run};
use std::fs;
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
    let ended = loop {
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
    let code = fs::read_to_string(job.file("code")).unwrap_or_default();
    match (code.trim().parse(), ended) {
        (Ok(code), _) => Ok(code),
        (Err(_), Some(status)) => Err(silent(format!("ended without a word ({status})"), job)),
        (Err(_), None) => Err(silent(format!("was not done within {:?}", spec.limit), job)),
    }
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
    command.arg("-kernel").arg(&parts.kernel).args(["-append", KERNEL_LINE]);
    command.args(["-drive", &drive("root", &parts.disk, "snapshot=on")]);
    command.args(["-device", "nvme,drive=root,serial=root"]);
    command.args(["-drive", &drive("job", &job.tar(), "readonly=on")]);
    command.args(["-device", "virtio-blk-pci,drive=job", "-device", "virtio-serial-pci"]);
    command.args(["-chardev", "stdio,id=out,signal=off"]);
    command.args(["-device", "virtserialport,chardev=out,nr=1"]);
    command.args(["-chardev", &format!("file,id=code,path={}", escape(&job.file("code")))]);
    command.args(["-device", "virtserialport,chardev=code,nr=2"]);
    command.args(["-serial", &format!("file:{}", escape(&job.file("console")))]);
    command.stdin(Stdio::null());
    command
}

fn drive(id: &str, file: &Path, how: &str) -> String {
    format!("file={},format=raw,if=none,id={id},{how}", escape(file))
}

/// In QEMU's options a comma is written twice.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
