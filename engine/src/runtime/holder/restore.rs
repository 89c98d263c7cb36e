//! `runc restore`: starting it, stopping it, and what came of it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::OnceLock;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::console::Console;
use super::setup::Place;
use crate::criu::preload;
use crate::runtime::exclusion;
use crate::runtime::hook::{self, ACTION_VARIABLE, BLIP_VARIABLE, STAGE_VARIABLE};
use crate::runtime::procfs;
use crate::runtime::real::find_runc;
use crate::runtime::stage::wire::{RestoreSpec, TcpMode, TmpfsPlace};

/// The most of a log that is reported, in bytes.
const LOG_TAIL: usize = 8 * 1024;

/// Starts `runc restore` and returns its pid; it inherits the container's
/// standard input, output and error.
pub(super) fn spawn(
    place: &Place,
    spec: &RestoreSpec,
    console: Option<&mut Console>,
) -> Result<i32, String> {
    let runc = find_runc().map_err(|e| e.to_string())?;
    let script =
        hook::install_script().map_err(|e| format!("cannot install CRIU's action script: {e}"))?;
    let myself =
        std::env::current_exe().map_err(|e| format!("cannot find the own program: {e}"))?;
    let bundle = place.bundle.write_for_restore(&place.stage, &place.netns)?;
    let conf = place.stage.criu_conf();
    let lines = criu_conf(&script, place.seats.unified_path().as_deref(), spec);
    fs::write(&conf, lines).map_err(|e| format!("cannot write {}: {e}", conf.display()))?;

    let mut command = Command::new(runc);
    command
        .args(&place.global)
        .arg("--log")
        .arg(place.stage.runc_log())
        .args(["--log-format", "json"]);
    command.args(["restore", "--detach", "--no-subreaper", "--file-locks", "--ext-unix-sk"]);
    command.arg("--bundle").arg(bundle).arg("--image-path").arg(&spec.images);
    command.arg("--work-path").arg(&spec.work).arg("--pid-file").arg(place.stage.init_pid_file());
    command.args(["--manage-cgroups-mode", spec.cgroups.as_str()]);
    if spec.tcp == TcpMode::Established {
        command.arg("--tcp-established");
    }
    if spec.lazy {
        command.arg("--lazy-pages");
    }
    if let Some(console) = console {
        let socket = console.listen(place.stage.console_socket());
        let socket = socket.map_err(|e| format!("cannot wait for the terminal: {e}"))?;
        command.arg("--console-socket").arg(socket);
    }
    command.arg(&place.id);
    command.env(STAGE_VARIABLE, place.stage.path()).env(BLIP_VARIABLE, myself);
    if let Some(library) = library() {
        command.env("LD_PRELOAD", preload::path_of(library)).env(ACTION_VARIABLE, &script);
    }
    let child = spawn_apart(command, &place.host_netns, &spec.tmpfs)
        .map_err(|e| format!("cannot start runc: {e}"))?;
    i32::try_from(child.id()).map_err(|e| e.to_string())
}

/// What CRIU is to load ([`preload::for_restore`]), open as long as this process
/// lives.
fn library() -> Option<&'static fs::File> {
    static LIBRARY: OnceLock<Option<fs::File>> = OnceLock::new();
    LIBRARY.get_or_init(preload::for_restore).as_ref()
}

/// Starts a command in other namespaces than this process's.
///
/// * The network is `netns`: runc takes the one it runs in for the host's and
///   refuses to set sysctls of a container there.
/// * The mounts are a copy of this process's, with the tmpfs that the container
///   is to have. Nobody else sees those; what the container has not taken is
///   gone when runc and CRIU are, however they end.
///
/// A thread of its own changes over, so that `/proc/<holder>/ns/net` names the
/// container's at every moment.
fn spawn_apart(
    mut command: Command,
    netns: &fs::File,
    tmpfs: &[TmpfsPlace],
) -> std::io::Result<Child> {
    std::thread::scope(|scope| {
        let apart = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            // What the host unmounts is to go here, too.
            let (nothing, follow) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE);
            mount(nothing, "/", nothing, follow, nothing)?;
            for place in tmpfs {
                let options = Some(place.options.as_str());
                mount(Some("tmpfs"), &place.path, Some("tmpfs"), MsFlags::empty(), options)?;
            }
            command.spawn()
        });
        apart
            .join()
            .unwrap_or_else(|_| Err(std::io::Error::other("the thread that starts it panicked")))
    })
}

/// What runc has no option for.
///
/// `cgroup` is the container's path in the unified hierarchy: runc 1.1 does not
/// tell CRIU, which would then restore into a cgroup named like the source's.
fn criu_conf(script: &Path, cgroup: Option<&str>, spec: &RestoreSpec) -> String {
    let mut conf = format!("action-script \"{}\"\n", script.display());
    if let Some(path) = cgroup {
        conf.push_str(&format!("cgroup-root \":{path}\"\n"));
    }
    if spec.tcp == TcpMode::Close {
        conf.push_str("tcp-close\n");
    }
    for place in &spec.tmpfs {
        conf.push_str(&format!("external mnt[{}]:{}\n", place.key, place.path.display()));
    }
    for line in &spec.criu_options {
        conf.push_str(line);
        conf.push('\n');
    }
    conf
}

/// The restored init, or why there is none.
pub(super) fn outcome(place: &Place, spec: &RestoreSpec, status: u8) -> Result<i32, String> {
    if status != 0 {
        let log = spec.work.join("restore.log");
        let criu = fs::read(&log).unwrap_or_default();
        if let Some(said) = String::from_utf8_lossy(&criu).lines().find_map(hook::refusal) {
            return Err(format!("the restored container was ended before it ran: {said}"));
        }
        let said = fs::read_to_string(place.stage.runc_log()).unwrap_or_default();
        let why = last_error(&said).unwrap_or_else(|| format!("it ended with status {status}"));
        return Err(format!(
            "runc could not restore the container: {why} (CRIU's log: {})",
            log.display()
        ));
    }
    let file = place.stage.init_pid_file();
    let pid =
        fs::read_to_string(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    pid.trim().parse().map_err(|_| format!("{} holds no pid", file.display()))
}

/// The message of the last error in runc's JSON log.
fn last_error(log: &str) -> Option<String> {
    log.lines().rev().find_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        let grave = matches!(entry["level"].as_str(), Some("error" | "fatal"));
        grave.then(|| entry["msg"].as_str().unwrap_or_default().to_owned())
    })
}

/// The errors of CRIU's log and its last lines.
pub(super) fn log_tail(work: &Path) -> String {
    let log = fs::read(work.join("restore.log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    let late = lines.len().saturating_sub(5);
    let mut tail = String::new();
    for (at, line) in lines.iter().enumerate() {
        if (at >= late || line.contains("Error") || line.starts_with("blip"))
            && tail.len() < LOG_TAIL
        {
            tail.push_str(line);
            tail.push('\n');
        }
    }
    tail
}

/// Ends a restore that waits in front of a parked inventory: it reads an
/// empty one, and fails of itself. Does nothing in any other case.
pub(super) fn unpark(images: &Path) {
    let path = images.join("inventory.img");
    if fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_fifo()) {
        drop(fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path));
    }
}

/// Ends what a failed restore may have left to its subreaper.
pub(super) fn end_children() {
    let me = procfs::own_pid();
    for _ in 0..1000 {
        if procfs::children(me).into_iter().all(procfs::is_ending) {
            return;
        }
        exclusion::end_restore(me);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Clears what runc leaves when it was killed in the middle of a restore: the
/// container's root mounted in its state directory. `runc delete` would remove
/// that directory *with* what is mounted there.
pub(in crate::runtime) fn clear_runc_leftovers(root: Option<&Path>, id: &str) {
    let state = root.unwrap_or(Path::new("/run/runc")).join(id);
    if state.join("state.json").exists() {
        return;
    }
    let mounted = state.join("criu-root");
    while umount2(&mounted, MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_dir(&mounted) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {}
        _ => drop(fs::remove_dir(&state)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::stage::{CgroupMode, TmpfsPlace};

    #[test]
    fn runcs_last_error_is_the_reason() {
        let log = "{\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"error\",\"msg\":\"first\"}\n\
                   {\"level\":\"error\",\"msg\":\"criu failed: type NOTIFY errno 0\"}\nnot json\n";
        assert_eq!(last_error(log).unwrap(), "criu failed: type NOTIFY errno 0");
        assert_eq!(last_error("\n"), None);
    }

    #[test]
    fn the_tail_keeps_errors_from_early_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = String::from("(00.1) Error (criu/x.c:1): early\n");
        (0..100).for_each(|n| log.push_str(&format!("line {n}\n")));
        fs::write(dir.path().join("restore.log"), log).unwrap();
        let tail = log_tail(dir.path());
        assert!(
            tail.contains("early") && tail.contains("line 99") && !tail.contains("line 50"),
            "{tail}"
        );
    }

    #[test]
    fn criu_is_told_what_runc_cannot_say() {
        let spec = RestoreSpec {
            images: "/i".into(),
            work: "/w".into(),
            lazy: true,
            tcp: TcpMode::Close,
            cgroups: CgroupMode::Soft,
            tmpfs: vec![TmpfsPlace {
                key: "blip-tmpfs-0".into(),
                path: "/t/0".into(),
                options: "mode=755".into(),
            }],
            criu_options: vec!["ghost-limit 10M".into()],
        };
        let script = Path::new("/var/lib/blip/x");
        assert_eq!(
            criu_conf(script, None, &spec),
            "action-script \"/var/lib/blip/x\"\ntcp-close\n\
             external mnt[blip-tmpfs-0]:/t/0\nghost-limit 10M\n"
        );
        assert!(
            criu_conf(script, Some("/docker/c1"), &spec)
                .contains("\ncgroup-root \":/docker/c1\"\n")
        );
    }

    #[test]
    fn a_full_mount_point_is_never_removed() {
        let root = tempfile::tempdir().unwrap();
        let mounted = root.path().join("c1/criu-root");
        fs::create_dir_all(&mounted).unwrap();
        fs::write(mounted.join("precious"), "x").unwrap();
        clear_runc_leftovers(Some(root.path()), "c1");
        assert!(mounted.join("precious").exists());
    }
}
