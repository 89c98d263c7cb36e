//! The lab on the real kernel: what it makes works, and it leaves nothing.

use blip_bench::lab::{CgroupMode, Host, Lab, LabError, LabSpec, Suite};
use blip_transport::units::Bandwidth;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_blip-bench");

/// A lab that goes when its test ends, however it ends.
struct Guard(String);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = Lab::remove(&self.0);
    }
}

/// A name no other test, nor other run of this one, uses.
fn fresh_name(test: &str) -> (String, Guard) {
    let name = format!("t-{test}-{}", std::process::id());
    (name.clone(), Guard(name))
}

fn spec(name: &str, cgroup: CgroupMode, suite: Suite) -> LabSpec {
    let program = Some(BINARY.into());
    LabSpec { name: name.into(), cgroup, suite, program, progress: |_| {}, ..LabSpec::default() }
}

/// All that a lab could leave on the machine.
#[derive(Debug, Default, PartialEq, Eq)]
struct Traces {
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    files: BTreeSet<String>,
    processes: BTreeSet<String>,
    links: BTreeSet<String>,
}

impl Traces {
    /// What bears the lab's name now, and the machine's network links.
    fn of(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mut traces = Self::default();
        for mount in mounts.lines() {
            let at = mount.split(' ').nth(4).expect("a mount point");
            if mount.contains(&format!("/blip-lab/{name}/")) {
                traces.mounts.insert(at.into());
            }
            if mount.contains(" - cgroup") {
                let top = Path::new(at).join(format!("blip-lab-{name}"));
                if top.exists() {
                    traces.cgroups.insert(top.display().to_string());
                }
            }
        }
        for dir in ["/run/blip-lab", "/var/lib/blip-lab"] {
            for file in [name.to_owned(), format!("{name}.lock")] {
                let path = Path::new(dir).join(file);
                if path.exists() {
                    traces.files.insert(path.display().to_string());
                }
            }
        }
        for slot in fs::read_dir("/run/blip-lab/.slots").into_iter().flatten().flatten() {
            if fs::read_link(slot.path()).is_ok_and(|to| to == Path::new(name)) {
                traces.files.insert(slot.path().display().to_string());
            }
        }
        for process in fs::read_dir("/proc").expect("/proc").flatten() {
            let read = |file| fs::read_to_string(process.path().join(file)).unwrap_or_default();
            let of_lab = read("cgroup").contains(&format!("/blip-lab-{name}/"))
                || read("cmdline").contains(&format!("/blip-lab/{name}/"));
            // The dead wait for the machine's init, which is not ours to hurry.
            if of_lab && !read("stat").contains(") Z ") {
                let pid = process.file_name().to_string_lossy().into_owned();
                traces.processes.insert(format!("{pid} {} {}", read("cmdline"), read("stat")));
            }
        }
        let links = fs::read_dir("/sys/class/net").expect("links").flatten();
        traces.links = links.map(|l| l.file_name().to_string_lossy().into_owned()).collect();
        traces
    }
}

/// Waits for something that comes by itself.
fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !there() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start_redis(host: &Host, address: Ipv4Addr) {
    let ip = address.to_string();
    let run = ["docker", "run", "-d", "--name", "redis", "--network", "blipnet", "--ip", &ip];
    host.run(&[&run[..], &["--mac-address", "02:42:00:00:00:07", "blip/redis:latest"]].concat())
        .expect("docker run");
}

fn ping(address: Ipv4Addr) -> std::io::Result<String> {
    let at = (address, 6379).into();
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A container of one host answers the client and the other host.
fn redis_answers_everyone(lab: &Lab) {
    let (a, b) = (lab.host("a").expect("a"), lab.host("b").expect("b"));
    let address = lab.container_address(7);
    start_redis(a, address);
    wait_for("Redis on the wire", || {
        let answer = lab.client().spawn(move || ping(address)).join().expect("thread");
        answer.expect("in the client's network").is_ok_and(|a| a == "+PONG\r\n")
    });
    let said = b.run(&["redis-cli", "-h", &address.to_string(), "ping"]).expect("redis-cli");
    assert_eq!(said.trim(), "PONG");
}

fn version_of(host: &Host, what: &str) -> String {
    let format = format!("{{{{{what}}}}}");
    host.run(&["docker", "info", "--format", &format]).expect("docker info").trim().into()
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_v2_lab_works_and_leaves_nothing() {
    let (name, _guard) = fresh_name("v2");
    let before = Traces::of(&name);
    let spec = spec(&name, CgroupMode::V2, Suite::Forky);
    let lab = Lab::up(&spec).expect("up");
    assert!(lab.is_fresh());
    let [a, b] = lab.hosts() else { panic!("two hosts") };
    assert_eq!(version_of(a, ".CgroupVersion"), "2");
    assert_eq!(version_of(a, ".Driver"), "overlay2");
    redis_answers_everyone(&lab);

    let ids = |host: &Host| -> BTreeSet<String> {
        let ids = host.run(&["docker", "images", "-q", "--no-trunc"]).expect("images");
        ids.lines().map(str::to_owned).collect()
    };
    assert_eq!(ids(a), ids(b), "images must be the same on all hosts");
    assert_eq!(ids(a).len(), 3);

    let again = Lab::up(&spec).expect("second up");
    assert!(!again.is_fresh());
    assert_eq!(again.host("a").expect("a").pid(), a.pid());
    let other = LabSpec { hosts: 3, ..spec.clone() };
    assert!(matches!(Lab::up(&other), Err(LabError::Different { .. })));

    let during = Traces::of(&name);
    assert_eq!(during.links, before.links, "the lab's wires are not in the machine's network");
    assert!(!during.mounts.is_empty() && !during.cgroups.is_empty());
    assert!(!during.files.is_empty() && !during.processes.is_empty());
    lab.down().expect("down");
    assert_eq!(Traces::of(&name), before);
    assert!(matches!(Lab::open(&name), Err(LabError::NotUp(_))));
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_v1_lab_works_and_leaves_nothing_not_even_frozen() {
    let (name, _guard) = fresh_name("v1");
    let before = Traces::of(&name);
    let lab = match Lab::up(&spec(&name, CgroupMode::V1, Suite::Forky)) {
        Ok(lab) => lab,
        Err(LabError::Missing(what)) => {
            // A machine of v2 only: the refusal must name the controllers.
            assert!(what.contains("cgroup v1 controller"), "{what}");
            return;
        }
        Err(other) => panic!("{other}"),
    };
    let a = lab.host("a").expect("a");
    assert_eq!(version_of(a, ".CgroupVersion"), "1");
    redis_answers_everyone(&lab);
    a.run(&["docker", "pause", "redis"]).expect("pause");
    lab.down().expect("down with a frozen container");
    assert_eq!(Traces::of(&name), before);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_trixie_lab_has_docker_26_and_a_criu_that_works() {
    let (name, _guard) = fresh_name("trixie");
    let lab = Lab::up(&spec(&name, CgroupMode::V2, Suite::Trixie)).expect("up");
    let a = lab.host("a").expect("a");
    assert!(version_of(a, ".ServerVersion").starts_with("26."));
    let criu = a.run(&["criu", "--version"]).expect("criu");
    assert!(criu.contains("Version: 4."), "{criu}");
    redis_answers_everyone(&lab);
    // An established connection is what an old CRIU fails on.
    let address = lab.container_address(7);
    let connection = lab.client().spawn(move || TcpStream::connect((address, 6379)));
    let connection = connection.join().expect("thread").expect("namespace").expect("connect");
    let pid = a.run(&["docker", "inspect", "-f", "{{.State.Pid}}", "redis"]).expect("inspect");
    fs::create_dir(a.root().join("tmp/img")).expect("folder");
    let dump = format!(
        "criu dump -t {} -D /tmp/img --leave-running --tcp-established --ext-unix-sk \
         --external 'mnt[]' --manage-cgroups=ignore -o log || {{ tail -5 /tmp/img/log; exit 1; }}",
        pid.trim()
    );
    a.run(&["sh", "-c", &dump]).expect("dump");
    drop(connection);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn hosts_take_programs_commands_and_limits() {
    let (name, _guard) = fresh_name("use");
    let lab = Lab::up(&spec(&name, CgroupMode::V2, Suite::Forky)).expect("up");
    let a = lab.host("a").expect("a");

    a.install("/bin/true", "/usr/local/bin/blip").expect("install");
    a.run(&["blip"]).expect("the installed program");
    a.install("/bin/false", "/usr/local/bin/blip").expect("install over it");
    assert!(a.run(&["blip"]).is_err());

    // Killing the child kills the command, not only its wrapping.
    let mut child = a.command(&["sleep", "31536000"]).spawn().expect("sleep");
    let sleeping = || a.run(&["pgrep", "-f", "^sleep 31536000"]).is_ok();
    wait_for("the sleeper", sleeping);
    child.kill().expect("kill");
    child.wait().expect("wait");
    wait_for("its end", || !sleeping());

    let exec = |argv: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(["lab", "exec", "--name", &name]).args(argv).stderr(Stdio::null());
        command.status().expect("lab exec").code()
    };
    assert_eq!(exec(&["a", "--", "sh", "-c", "exit 7"]), Some(7));
    assert_eq!(exec(&["b", "--", "sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(exec(&["client", "--", "true"]), Some(0));
    assert_eq!(exec(&["z", "--", "true"]), Some(1));

    let limits = || a.run(&["tc", "qdisc", "show", "dev", "eth0"]).expect("tc");
    lab.rate_limit("a", Some(Bandwidth(12_500_000.0))).expect("limit");
    assert!(limits().contains("tbf") && limits().contains("rate 100Mbit"), "{}", limits());
    lab.rate_limit("a", None).expect("no limit");
    assert!(!limits().contains("tbf"));

    // A host that died makes the lab one that is not up.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(a.pid()).expect("pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill init");
    wait_for("its end", || !a.is_alive());
    assert!(matches!(Lab::open(&name), Err(LabError::NotUp(_))));
    let lab = Lab::up(&spec(&name, CgroupMode::V2, Suite::Forky)).expect("up");
    assert!(lab.is_fresh());

    // What was raised for the machine goes back with the lab, also if nobody is
    // left to do it.
    let pipes = || fs::read_to_string("/proc/sys/fs/pipe-max-size").expect("the limit of pipes");
    let before = pipes();
    std::mem::forget(lab.allow_large_pipes().expect("large pipes"));
    assert!(pipes().trim().parse::<u64>().is_ok_and(|limit| limit >= 4 << 20), "{}", pipes());
    lab.down().expect("down");
    assert_eq!(pipes(), before);
}

/// Starts `lab up` and kills it when `sign` of its progress appears.
fn killed_up(name: &str, what: &str, sign: &Path) {
    let mut up = Command::new(BINARY);
    up.args(["lab", "up", "--name", name]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = up.spawn().expect("lab up");
    wait_for(what, || sign.exists());
    child.kill().expect("kill");
    child.wait().expect("wait");
    assert!(matches!(Lab::open(name), Err(LabError::NotUp(_))), "killed too late: {what}");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn an_up_killed_in_the_middle_is_cleaned_up() {
    let (name, _guard) = fresh_name("kill");
    let before = Traces::of(&name);
    // The cached root must be there, or the steps below never begin.
    Lab::up(&spec(&name, CgroupMode::V2, Suite::Forky)).expect("up").down().expect("down");

    let net = format!("/run/blip-lab/{name}/net");
    let var = format!("/var/lib/blip-lab/{name}/b");
    let steps = [
        ("the switch", format!("{net}/switch")),
        ("the cables", format!("{net}/b")),
        ("a host's init", format!("{var}/init.log")),
        ("a host's Docker", format!("{var}/docker/overlay2")),
    ];
    for (what, sign) in &steps {
        killed_up(&name, what, Path::new(sign));
        assert_ne!(Traces::of(&name), before, "nothing was there to clean: {what}");
        Lab::remove(&name).expect("down");
        assert_eq!(Traces::of(&name), before, "after a kill at {what}");
    }
    // And an `up` right after one that died makes a lab that works.
    let (what, sign) = &steps[3];
    killed_up(&name, what, Path::new(sign));
    let lab = Lab::up(&spec(&name, CgroupMode::V2, Suite::Forky)).expect("up");
    redis_answers_everyone(&lab);
    lab.down().expect("down");
    assert_eq!(Traces::of(&name), before);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn without_root_there_is_one_plain_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let open = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
    };
    let copy = dir.path().join("blip-bench");
    fs::copy(BINARY, &copy).expect("copy");
    open(dir.path());
    open(&copy);
    for verb in [&["up"][..], &["status"], &["down"], &["exec", "a", "--", "true"]] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--clear-groups"]).arg(&copy).arg("lab").args(verb);
        let output = command.output().expect("setpriv");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(said.contains("needs root") && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_name_that_is_no_name_is_refused() {
    let output =
        Command::new(BINARY).args(["lab", "up", "--name", "../etc"]).output().expect("lab up");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
}
