//! The first process of a host.
//!
//! It runs in two steps, both the `blip-bench` program itself. [`enter`] is
//! ordinary: it joins the host's cgroups and network, leaves the machine's
//! other namespaces and starts the second step, which thereby is process 1 of
//! the host. [`serve`] lays out the file systems, makes the built root the
//! only thing to be seen, starts containerd and dockerd, and from then on only
//! reaps. When it dies the kernel ends every process of the host.
//!
//! Both steps run before any other thread of the program exists.

use super::cgroup::{self, CgroupMode, V1Mount};
use super::error::Context as _;
use super::{LabError, Result, network, run};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitStatus, waitpid};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// All that the first process must know.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct InitSpec {
    /// The host's name.
    pub(super) name: String,
    /// Lines for `/etc/hosts`.
    pub(super) hosts: String,
    /// Cgroups to join, as the machine sees them.
    pub(super) cgroups: Vec<PathBuf>,
    /// Which cgroup version to show.
    pub(super) mode: CgroupMode,
    /// On v1, what to mount.
    pub(super) v1: Vec<V1Mount>,
    /// The mount of its network namespace.
    pub(super) net: PathBuf,
    /// The built root file system, never written: its layers, the uppermost
    /// first.
    pub(super) layers: Vec<PathBuf>,
    /// The host's own folder: upper, work, docker, containerd, root.
    pub(super) dir: PathBuf,
}

/// The environment of everything in a host.
pub(super) const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
];

const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// First step: leaves the machine's namespaces, starts `serve` as process 1
/// of new ones, and prints the process number the machine knows it by.
///
/// # Errors
/// The step that failed.
pub fn enter(spec: &Path) -> Result<()> {
    let init = read(spec)?;
    for cgroup in &init.cgroups {
        fs::write(cgroup.join("cgroup.procs"), "0").on("joining the cgroup", cgroup)?;
    }
    network::enter(&init.net)?;
    nix::unistd::setsid().on("starting a session for", &init.name)?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .on("making namespaces for", &init.name)?;
    let child = Command::new("/proc/self/exe")
        .args(["lab-init", "serve"])
        .arg(spec)
        .stdin(Stdio::null())
        .stdout(Stdio::from(fs::File::create("/dev/null").on("opening", "/dev/null")?))
        .spawn()
        .on("starting the init of", &init.name)?;
    writeln!(std::io::stdout(), "{}", child.id()).on("reporting the init of", &init.name)
}

/// Second step: process 1 of the host. Returns only on failure.
///
/// # Errors
/// The step that failed; the host then ends.
pub fn serve(spec: &Path) -> Result<()> {
    let init = read(spec)?;
    let root = lay_out(&init)?;
    settle(&init, &root)?;
    switch_root(&root)?;
    let mut daemons = start_docker()?;
    loop {
        match waitpid(None, None) {
            Ok(status) => note_end(&mut daemons, status),
            // No child at all: wait for someone to enter and leave orphans.
            Err(Errno::ECHILD) => std::thread::sleep(Duration::from_millis(200)),
            Err(_) => {}
        }
    }
}

fn read(spec: &Path) -> Result<InitSpec> {
    let bytes = fs::read(spec).on("reading", spec)?;
    serde_json::from_slice(&bytes).map_err(std::io::Error::from).on("understanding", spec)
}

fn folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).on("making", path)
}

/// Mounts a kernel file system, making its folder.
fn put(kind: &str, at: &Path, flags: MsFlags, options: &str) -> Result<()> {
    folder(at)?;
    mount(Some(kind), at, Some(kind), flags, Some(options)).on("mounting on", at)
}

fn bind(from: &Path, at: &Path) -> Result<()> {
    folder(from)?;
    folder(at)?;
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).on("mounting on", at)
}

/// Builds the host's file system below its folder and gives its root.
fn lay_out(init: &InitSpec) -> Result<PathBuf> {
    let none = MsFlags::empty();
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .on("detaching from the machine's mounts", "/")?;
    let [upper, work, root] = ["upper", "work", "root"].map(|d| init.dir.join(d));
    for dir in [&upper, &work] {
        folder(dir)?;
    }
    let layers: Vec<String> = init.layers.iter().map(|l| l.display().to_string()).collect();
    let (upper, work, layers) = (upper.display(), work.display(), layers.join(":"));
    put("overlay", &root, none, &format!("lowerdir={layers},upperdir={upper},workdir={work}"))?;
    // An overlay cannot be the writable part of Docker's own overlays.
    for dir in ["docker", "containerd"] {
        bind(&init.dir.join(dir), &root.join("var/lib").join(dir))?;
    }
    put("proc", &root.join("proc"), safe, "")?;
    put("sysfs", &root.join("sys"), safe, "")?;
    put("tmpfs", &root.join("run"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755")?;
    put("tmpfs", &root.join("tmp"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    lay_out_devices(&root.join("dev"))?;
    lay_out_cgroups(init, &root.join("sys/fs/cgroup"))?;
    Ok(root)
}

fn lay_out_devices(dev: &Path) -> Result<()> {
    const NODES: [(&str, u64, u64); 8] = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("kmsg", 1, 11),
        ("tty", 5, 0),
        ("net/tun", 10, 200),
    ];
    put("tmpfs", dev, MsFlags::MS_NOSUID, "mode=755")?;
    folder(&dev.join("net"))?;
    for (name, major, minor) in NODES {
        let path = dev.join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
            .on("making the device", &path)?;
        // The mode above was cut by the umask.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
            .on("making the device", &path)?;
    }
    put("devpts", &dev.join("pts"), MsFlags::MS_NOSUID, "newinstance,ptmxmode=0666,mode=620")?;
    put("tmpfs", &dev.join("shm"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    put("mqueue", &dev.join("mqueue"), MsFlags::MS_NOSUID, "")?;
    for (target, name) in [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        symlink(target, dev.join(name)).on("linking", dev.join(name))?;
    }
    Ok(())
}

fn lay_out_cgroups(init: &InitSpec, at: &Path) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match init.mode {
        CgroupMode::V2 => {
            put("cgroup2", at, flags, "")?;
            let home = at.join("init/cgroup.procs");
            fs::write(&home, "0").on("joining the cgroup", &home)?;
            cgroup::hand_down_controllers(at);
        }
        CgroupMode::V1 => {
            put("tmpfs", at, flags, "mode=755")?;
            for hierarchy in &init.v1 {
                put("cgroup", &at.join(&hierarchy.folder), flags, &hierarchy.options)?;
            }
        }
    }
    Ok(())
}

/// Gives the host its name and Docker its settings.
fn settle(init: &InitSpec, root: &Path) -> Result<()> {
    const DAEMON: &str = "{\n  \"storage-driver\": \"overlay2\",\n  \"experimental\": true,\n  \
                          \"features\": { \"containerd-snapshotter\": false }\n}\n";
    nix::unistd::sethostname(&init.name).on("naming the host", &init.name)?;
    folder(&root.join("etc/docker"))?;
    for (path, text) in [
        ("etc/hostname", format!("{}\n", init.name)),
        ("etc/hosts", init.hosts.clone()),
        ("etc/resolv.conf", String::new()),
        ("etc/docker/daemon.json", DAEMON.into()),
    ] {
        fs::write(root.join(path), text).on("writing", root.join(path))?;
    }
    Ok(())
}

/// Makes `root` the root, with nothing of the machine's files left to see,
/// and lets mounts spread below it as they do on a machine run by systemd.
fn switch_root(root: &Path) -> Result<()> {
    let old = root.join("mnt");
    folder(&old)?;
    nix::unistd::pivot_root(root, &old).on("changing the root to", root)?;
    nix::unistd::chdir("/").on("entering", "/")?;
    umount2("/mnt", MntFlags::MNT_DETACH).on("unmounting", "/mnt")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
        .on("sharing mounts of", "/")
}

/// Starts containerd, waits for its socket, then starts dockerd.
fn start_docker() -> Result<Vec<(&'static str, Child)>> {
    let mut containerd = daemon("containerd", &[])?;
    let deadline = Instant::now() + super::host::patience();
    while UnixStream::connect(CONTAINERD).is_err() {
        let ended = containerd.try_wait().on("waiting for", CONTAINERD)?;
        if ended.is_some() || Instant::now() > deadline {
            let log = fs::read_to_string(log_of("containerd")).unwrap_or_default();
            return Err(LabError::Host {
                host: "localhost".into(),
                why: "containerd did not open its socket".into(),
                log: run::last_lines(&log, 8),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let dockerd = daemon("dockerd", &["--containerd", CONTAINERD])?;
    Ok(vec![("containerd", containerd), ("dockerd", dockerd)])
}

fn log_of(program: &str) -> PathBuf {
    format!("/var/log/{program}.log").into()
}

fn daemon(program: &'static str, args: &[&str]) -> Result<Child> {
    let log = log_of(program);
    let file = fs::File::options().create(true).append(true).open(&log).on("opening", &log)?;
    let both = file.try_clone().on("opening", &log)?;
    // A daemon of many containers needs more files than a login shell gives;
    // even root may not be allowed more than the hard limit.
    Command::new("sh")
        .args(["-c", "ulimit -n \"$(ulimit -H -n)\"; exec \"$0\" \"$@\"", program])
        .args(args)
        .env_clear()
        .envs(ENVIRONMENT)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(both)
        .spawn()
        .on("starting", program)
}

/// Says in the host's log when a daemon ended; orphans end without a word.
fn note_end(daemons: &mut Vec<(&'static str, Child)>, status: WaitStatus) {
    let ended = status.pid().map_or(0, |pid| pid.as_raw() as u32);
    daemons.retain(|(name, child)| {
        if child.id() == ended {
            let _ = writeln!(std::io::stderr(), "{name} ended: {status:?}");
        }
        child.id() != ended
    });
}
