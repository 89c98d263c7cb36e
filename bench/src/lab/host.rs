//! One host of a lab: starting it, and doing things in it.

use super::cgroup::{self, HostCgroups};
use super::error::Context as _;
use super::init::{ENVIRONMENT, InitSpec};
use super::paths::Paths;
use super::{LabError, LabSpec, Result, network, run};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long Docker may take to answer after its host was started.
const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds to wait instead, where that is too short: on an emulated machine.
const PATIENCE_VARIABLE: &str = "BLIP_LAB_PATIENCE";

/// How long a program of a host may take to answer after its start.
pub(super) fn patience() -> Duration {
    let patience = std::env::var(PATIENCE_VARIABLE).ok().and_then(|n| n.parse().ok());
    patience.map_or(PATIENCE, Duration::from_secs)
}

/// Joins the cgroups named before `--`, then becomes the command after it.
const JOIN: &str = r#"while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs" || exit 125; shift; done
shift; exec "$@""#;

/// A host that runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    name: String,
    address: Ipv4Addr,
    pid: u32,
    /// When its init started, in clock ticks since boot: tells it from a
    /// later process of the same number.
    started: u64,
    cgroups: HostCgroups,
}

/// What all hosts of a lab are started from.
pub(super) struct Plan<'a> {
    pub(super) paths: &'a Paths,
    pub(super) slot: u8,
    pub(super) spec: &'a LabSpec,
    /// The program that is the hosts' init.
    pub(super) program: &'a Path,
    /// Folders that make up the root file system, the uppermost first.
    pub(super) layers: &'a [PathBuf],
    /// The archive of images.
    pub(super) images: &'a Path,
}

/// Starts a host, and waits until Docker answers and has images and network.
pub(super) fn start(plan: &Plan<'_>, index: usize, names: &[String]) -> Result<Host> {
    let name = &names[index];
    let address = |i: usize| network::address(plan.slot, network::FIRST_HOST + i as u8);
    let cgroups = cgroup::create(&plan.paths.name, name, plan.spec.cgroup)?;
    let dir = plan.paths.host(name);
    fs::create_dir_all(&dir).on("making", &dir)?;
    let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for (i, name) in names.iter().enumerate() {
        hosts += &format!("{} {name}\n", address(i));
    }
    let init = InitSpec {
        name: name.clone(),
        hosts,
        cgroups: cgroups.roots.clone(),
        mode: plan.spec.cgroup,
        v1: cgroups.v1.clone(),
        net: plan.paths.net(name),
        layers: plan.layers.to_vec(),
        dir: dir.clone(),
    };
    let log = dir.join("init.log");
    let pid = spawn(plan.program, &init, &log)?;
    let Some(started) = start_time(pid) else {
        return Err(failure(name, "its init ended at once", &log));
    };
    let host = Host { name: name.clone(), address: address(index), pid, started, cgroups };
    host.wait_for_docker(&log)?;
    host.furnish(plan)?;
    Ok(host)
}

/// Starts a host's init and learns its process number.
fn spawn(program: &Path, init: &InitSpec, log: &Path) -> Result<u32> {
    let spec = init.dir.join("init.json");
    let bytes = serde_json::to_vec_pretty(init).map_err(std::io::Error::from);
    fs::write(&spec, bytes.on("encoding", &spec)?).on("writing", &spec)?;
    let file = fs::File::create(log).on("opening", log)?;
    // On a leash, so that no step of a killed `up` goes on behind the back of
    // whoever cleans up after it. What it starts is in the host's cgroups.
    let said = run::program("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .args(["lab-init", "enter"])
        .arg(&spec)
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(file)
        .output()
        .on("starting", program)?;
    let pid = String::from_utf8_lossy(&said.stdout).trim().parse();
    pid.map_err(|_| failure(&init.name, "its namespaces could not be made", log))
}

fn failure(host: &str, why: &str, log: &Path) -> LabError {
    let log = fs::read_to_string(log).unwrap_or_default();
    LabError::Host { host: host.into(), why: why.into(), log: run::last_lines(&log, 12) }
}

/// When a process started, if it is there and not dead.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.nth(18)?.parse().ok() }
}

impl Host {
    /// `a`, `b`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the lab's subnet.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its init, as the machine numbers it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether its init still runs.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Its root folder, as the machine's own programs reach it.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    /// Docker's API socket, as the machine's own programs reach it.
    pub fn docker_socket(&self) -> PathBuf {
        self.root().join("run/docker.sock")
    }

    /// Its root cgroups, one per hierarchy, as the machine names them.
    pub fn cgroups(&self) -> &[PathBuf] {
        &self.cgroups.roots
    }

    /// A command of the host's own, run in all its namespaces and cgroups
    /// with a clean environment. However the child ends, so does the command
    /// (though not what it put in the background).
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Command {
        let mut command = run::program("sh");
        command.env_clear().envs(ENVIRONMENT);
        if let Some(terminal) = std::env::var_os("TERM") {
            command.env("TERM", terminal);
        }
        command.args(["-c", JOIN, "sh"]).args(&self.cgroups.homes).arg("--");
        command.args(["nsenter", "--target", &self.pid.to_string()]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]);
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]).args(argv);
        command
    }

    /// Runs a command of the host's own to its end and gives what it printed.
    ///
    /// # Errors
    /// If it fails, with the end of what it said.
    pub fn run<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<String> {
        let words: Vec<_> = argv.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        let doing = format!("running `{}` on host {}", words.join(" "), self.name);
        let output = run::run(&doing, &mut self.command(argv))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Puts a program of the machine into the host, also over one that runs.
    ///
    /// # Errors
    /// If either file cannot be read or written.
    pub fn install(&self, program: impl AsRef<Path>, at: impl AsRef<Path>) -> Result<()> {
        let at = at.as_ref();
        let to = self.root().join(at.strip_prefix("/").unwrap_or(at));
        let new = to.with_extension("new");
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir).on("making", dir)?;
        }
        fs::copy(program.as_ref(), &new).on("copying", program.as_ref())?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).on("writing", &new)?;
        fs::rename(&new, &to).on("writing", &to)
    }

    /// The end of dockerd's log.
    pub fn docker_log(&self) -> String {
        let log = fs::read_to_string(self.root().join("var/log/dockerd.log"));
        run::last_lines(&log.unwrap_or_default(), 12)
    }

    /// Gives Docker the images of an archive.
    pub(super) fn load(&self, archive: &Path) -> Result<()> {
        let images = fs::File::open(archive).on("opening", archive)?;
        let mut load = self.command(&["docker", "load", "--quiet"]);
        load.stdin(images);
        run::run(&format!("loading images on host {}", self.name), &mut load).map(|_| ())
    }

    fn wait_for_docker(&self, log: &Path) -> Result<()> {
        let patience = patience();
        let deadline = Instant::now() + patience;
        while !answers(&self.docker_socket()) {
            if !self.is_alive() {
                return Err(failure(&self.name, "its init ended", log));
            }
            if Instant::now() > deadline {
                return Err(LabError::Host {
                    host: self.name.clone(),
                    why: format!("Docker did not answer within {} s", patience.as_secs()),
                    log: self.docker_log(),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Gives Docker the images and the network, and CRIU its first look at
    /// the kernel, which it remembers in `/run`.
    fn furnish(&self, plan: &Plan<'_>) -> Result<()> {
        self.load(plan.images)?;
        let gateway = network::address(plan.slot, network::GATEWAY).to_string();
        let (subnet, range) = (network::subnet(plan.slot), network::container_range(plan.slot));
        self.run(&[
            "docker",
            "network",
            "create",
            "--driver",
            "macvlan",
            "--opt",
            "parent=eth0",
            "--subnet",
            &subnet,
            "--gateway",
            &gateway,
            "--ip-range",
            &range,
            "blipnet",
        ])?;
        self.run(&["criu", "check"]).map(|_| ())
    }
}

/// Whether Docker answers on its socket.
fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let wait = Some(Duration::from_secs(5));
    let mut answer = [0; 12]; // HTTP/1.x 200
    stream.set_read_timeout(wait).is_ok()
        && stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer.windows(4).any(|w| w == b" 200")
}
