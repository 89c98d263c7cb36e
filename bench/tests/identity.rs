//! What of a container's identity travels: each option of `docker run` is
//! given, and looked at before and after the move, in `docker inspect` and
//! where it is in force. The table that comes of it is the one published in
//! `results/identity`; `BLIP_PUBLISH=1` writes it anew.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;

use blip_bench::lab::{CgroupMode, Host, Suite};
use hosts::Hosts;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a container is given, and where that can be seen.
struct Given {
    /// In words.
    what: &'static str,
    /// For `docker run`.
    given: &'static str,
    /// Where `docker inspect` shows it, below the container; several by blanks.
    shown: &'static str,
    /// A shell command in the container that shows it in force; empty: none.
    force: &'static str,
}

const fn option(
    what: &'static str,
    given: &'static str,
    shown: &'static str,
    force: &'static str,
) -> Given {
    Given { what, given, shown, force }
}

/// All at once, on a network of the user's.
const ALL: &[Given] = &[
    option("environment", "--env COLOUR=blue", "Config.Env", "tr '\\0' '\\n' </proc/1/environ"),
    option("labels", "--label tier=web", "Config.Labels", ""),
    option(
        "command",
        "",
        "Path Args Config.Cmd Config.Entrypoint",
        "tr '\\0' ' ' </proc/1/cmdline",
    ),
    option(
        "user and groups",
        "--user 0:1000 --group-add 1001",
        "Config.User HostConfig.GroupAdd",
        "grep -E '^(Uid|Gid|Groups)' /proc/1/status",
    ),
    option("working directory", "--workdir /usr", "Config.WorkingDir", "readlink /proc/1/cwd"),
    option(
        "host name",
        "--hostname front --domainname lab.test",
        "Config.Hostname Config.Domainname",
        "cat /proc/sys/kernel/hostname /etc/hostname /proc/sys/kernel/domainname",
    ),
    option(
        "memory limit",
        "--memory 96m --memory-reservation 48m",
        "HostConfig.Memory HostConfig.MemorySwap HostConfig.MemoryReservation",
        "cd /sys/fs/cgroup; cat memory.max memory.swap.max memory.low 2>/dev/null || \
         cd memory && cat memory.limit_in_bytes memory.soft_limit_in_bytes",
    ),
    option(
        "CPU limits",
        "--cpus 0.75 --cpu-shares 512 --cpuset-cpus 0",
        "HostConfig.NanoCpus HostConfig.CpuShares HostConfig.CpusetCpus",
        "cd /sys/fs/cgroup; cat cpu.max cpu.weight cpuset.cpus 2>/dev/null || \
         cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus",
    ),
    option(
        "pids limit",
        "--pids-limit 77",
        "HostConfig.PidsLimit",
        "cd /sys/fs/cgroup; cat pids.max 2>/dev/null || cat pids/pids.max",
    ),
    option(
        "ulimits",
        "--ulimit nofile=2048:4096 --ulimit core=0",
        "HostConfig.Ulimits",
        "grep -E 'open files|core file' /proc/1/limits",
    ),
    option(
        "OOM score",
        "--oom-score-adj 123",
        "HostConfig.OomScoreAdj",
        "cat /proc/1/oom_score_adj",
    ),
    option(
        "capabilities",
        "--cap-drop ALL --cap-add NET_BIND_SERVICE --cap-add CHOWN",
        "HostConfig.CapAdd HostConfig.CapDrop",
        "grep ^Cap /proc/1/status",
    ),
    option(
        "no new privileges",
        "--security-opt no-new-privileges",
        "HostConfig.SecurityOpt",
        "grep NoNewPrivs /proc/1/status",
    ),
    option(
        "seccomp, the default profile",
        "",
        "HostConfig.SecurityOpt",
        "grep ^Seccomp /proc/1/status",
    ),
    option(
        "devices",
        "--device /dev/zero:/dev/nought:r",
        "HostConfig.Devices",
        "ls -l /dev/nought | cut -c1-10; ls -l /dev/nought | grep -o '1, *5'",
    ),
    option("restart policy", "--restart on-failure:3", "HostConfig.RestartPolicy", ""),
    option(
        "health check",
        "--health-cmd true --health-interval 1s",
        "Config.Healthcheck State.Health.Status",
        "",
    ),
    option(
        "log driver and options",
        "--log-driver json-file --log-opt max-size=1m --log-opt max-file=3",
        "HostConfig.LogConfig",
        "",
    ),
    option(
        "stop signal and timeout",
        "--stop-signal SIGINT --stop-timeout 3",
        "Config.StopSignal Config.StopTimeout",
        "",
    ),
    option(
        "read-only root",
        "--read-only",
        "HostConfig.ReadonlyRootfs",
        "touch /x 2>&1 | grep -o Read-only",
    ),
    option("init process", "--init", "HostConfig.Init", "cat /proc/1/comm"),
    option(
        "open standard input",
        "--interactive",
        "Config.OpenStdin Config.AttachStdin Config.StdinOnce",
        "",
    ),
    option(
        "sysctls",
        "--sysctl net.ipv4.ip_unprivileged_port_start=80 --sysctl kernel.shm_rmid_forced=1",
        "HostConfig.Sysctls",
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced",
    ),
    option(
        "tmpfs",
        "--tmpfs /scratch:size=4m,mode=1777,noexec",
        "HostConfig.Tmpfs",
        "grep -o ' /scratch tmpfs .*noexec' /proc/mounts; df -k /scratch | grep -o 4096 | head -1",
    ),
    option(
        "size of /dev/shm",
        "--shm-size 20m",
        "HostConfig.ShmSize",
        "df -k /dev/shm | grep -o 20480 | head -1",
    ),
    option(
        "DNS",
        "--dns 192.0.2.53 --dns-search lab.test --dns-option ndots:2",
        "HostConfig.Dns HostConfig.DnsSearch HostConfig.DnsOptions",
        "grep -E '^(search|options)' /etc/resolv.conf",
    ),
    option("extra hosts", "--add-host db:192.0.2.7", "HostConfig.ExtraHosts", "grep db /etc/hosts"),
    option(
        "user network and aliases",
        "--network own --network-alias api",
        "HostConfig.NetworkMode NetworkSettings.Networks.own.DNSNames.0 NetworkSettings.Networks.own.Aliases",
        "nslookup api 127.0.0.11 2>&1 | grep -c Address",
    ),
    option(
        "published ports",
        "--publish 8088:80 --publish 127.0.0.1:8089:81/udp --expose 82",
        "HostConfig.PortBindings NetworkSettings.Ports Config.ExposedPorts",
        "",
    ),
    option("IPC namespace", "--ipc private", "HostConfig.IpcMode", ""),
    option(
        "cgroup namespace",
        "--cgroupns private",
        "HostConfig.CgroupnsMode",
        "cat /proc/1/cgroup",
    ),
    option(
        "masked and read-only paths",
        "",
        "HostConfig.MaskedPaths HostConfig.ReadonlyPaths",
        "wc -c </proc/timer_list; touch /proc/sys/kernel/x 2>&1 | grep -o Read-only",
    ),
    option("annotations", "--annotation owner=blip", "HostConfig.Annotations", ""),
];

/// What stands for itself, each in a container of its own.
const ALONE: &[Given] = &[
    option(
        "seccomp, unconfined",
        "--security-opt seccomp=unconfined",
        "HostConfig.SecurityOpt",
        "grep ^Seccomp /proc/1/status",
    ),
    option(
        "seccomp, a profile of one's own",
        "--security-opt seccomp=/tmp/profile.json",
        "HostConfig.SecurityOpt",
        "grep ^Seccomp /proc/1/status; mkdir /tmp/made 2>&1 | grep -o permitted",
    ),
    option("links", "--link other:neighbour", "HostConfig.Links", "grep -c neighbour /etc/hosts"),
    option(
        "terminal",
        "--tty",
        "Config.Tty",
        "test -c /dev/console && cat /proc/1/stat | cut -d' ' -f7",
    ),
    option("no network", "--network none", "HostConfig.NetworkMode", "ls /sys/class/net"),
    option("removal when it ends", "--rm", "HostConfig.AutoRemove", ""),
];

/// What differs by nature, and why; `*` stands for any one name.
const DIFFERS: &[(&str, &str)] = &[
    ("Id", "each Docker names its own containers"),
    ("Created", "it was made there when it came"),
    ("Name", "as long as `--rename` does not say otherwise, the same"),
    ("State.Pid", "the number of its first process on that host"),
    ("State.StartedAt", "Docker there started it when it came"),
    ("State.Health", "the checks go on; their log is the other Docker's"),
    ("ResolvConfPath", "a path of that Docker's"),
    ("HostnamePath", "a path of that Docker's"),
    ("HostsPath", "a path of that Docker's"),
    ("LogPath", "a path of that Docker's; its content came along"),
    ("GraphDriver.Data", "paths of that Docker's"),
    ("HostConfig.Runtime", "`blip`, which passes every command on to runc"),
    ("HostConfig.Links", "the same links; Docker writes them with the container's name"),
    ("NetworkSettings.SandboxID", "that host's network namespace"),
    ("NetworkSettings.SandboxKey", "that host's network namespace"),
    ("NetworkSettings.EndpointID", "that Docker's"),
    ("NetworkSettings.IPAddress", "an address of that host's network"),
    ("NetworkSettings.MacAddress", "on macvlan it moves along"),
    ("NetworkSettings.Gateway", "that host's"),
    ("NetworkSettings.Networks.*.NetworkID", "that Docker's"),
    ("NetworkSettings.Networks.*.EndpointID", "that Docker's"),
    ("NetworkSettings.Networks.*.IPAddress", "on macvlan it moves along"),
    ("NetworkSettings.Networks.*.MacAddress", "on macvlan it moves along"),
    ("NetworkSettings.Networks.*.Gateway", "that host's"),
    ("NetworkSettings.Networks.*.DNSNames", "the short ID among them is the new one"),
];

const PROFILE: &str = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],
    "action":"SCMP_ACT_ERRNO"}]}"#;

/// Does nothing, without a sleep that a dump would cut short.
const WAITS: [&str; 3] = ["sh", "-c", "while :; do sleep 1; done"];

/// Where this machine has limits: a kernel gives each controller to one version.
fn with_limits() -> CgroupMode {
    let found = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let has = |name| found.split_whitespace().any(|word| word == name);
    if has("cpu") && has("memory") { CgroupMode::V2 } else { CgroupMode::V1 }
}

/// Until Docker has looked after its health, if it does.
fn is_looked_after(hosts: &Hosts, host: &Host, name: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    let field = "if .State.Health}}{{.State.Health.Status}}{{end";
    while hosts.inspect(host, name, field) == "starting" {
        assert!(Instant::now() < until, "{name} is not looked after");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// `docker inspect` of one container, as leaves by their paths.
fn inspect(hosts: &Hosts, host: &Host, name: &str) -> (Value, BTreeMap<String, Value>) {
    let text = hosts.docker(host, &format!("inspect {name}"));
    let whole: Value = serde_json::from_str(&text).expect("JSON");
    let mut leaves = BTreeMap::new();
    flatten(&whole[0], "", &mut leaves);
    (whole[0].clone(), leaves)
}

fn flatten(value: &Value, path: &str, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(field, &format!("{path}{dot}{name}"), into);
            }
        }
        leaf => drop(into.insert(path.to_owned(), leaf.clone())),
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    let mut names = path.split('.');
    pattern.split('.').all(|part| names.next().is_some_and(|name| part == "*" || part == name))
}

/// Leaves that differ and must not.
fn unexpected(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> Vec<String> {
    let paths = before.keys().chain(after.keys().filter(|path| !before.contains_key(*path)));
    let differs = |path: &&String| before.get(*path) != after.get(*path);
    let excused = |path: &&String| DIFFERS.iter().any(|(pattern, _)| fits(pattern, path));
    let show = |path: &String| format!("{path}: {:?} → {:?}", before.get(path), after.get(path));
    paths.filter(differs).filter(|path| !excused(path)).map(show).collect()
}

fn field<'a>(whole: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(whole, |at, name| match name.parse::<usize>() {
        Ok(number) => &at[number],
        Err(_) => &at[name],
    })
}

fn in_force(host: &Host, name: &str, option: &Given) -> String {
    let script = format!("{}; true", option.force);
    let said = host.run(&["docker", "exec", name, "sh", "-c", &script]);
    said.unwrap_or_else(|error| format!("({error})")).trim().to_owned()
}

/// Starts a container with these options, moves it, and adds a row for each.
fn moves(hosts: &Hosts, name: &str, options: &[Given], rows: &mut Vec<String>) {
    let given: Vec<&str> = options.iter().map(|option| option.given).collect();
    hosts.run(name, &given.join(" "), "blip/busybox:latest", &WAITS);
    let look = |host: &Host| -> Vec<String> {
        let forced = options.iter().filter(|option| !option.force.is_empty());
        forced.map(|option| in_force(host, name, option)).collect()
    };
    is_looked_after(hosts, hosts.a(), name);
    let (before, before_leaves) = inspect(hosts, hosts.a(), name);
    let force_before = look(hosts.a());
    hosts.migrate(name);
    is_looked_after(hosts, hosts.b(), name);
    let (after, after_leaves) = inspect(hosts, hosts.b(), name);
    let force_after = look(hosts.b());
    let other = unexpected(&before_leaves, &after_leaves);
    assert!(other.is_empty(), "{name}: {other:#?}");

    let mut forced = force_before.iter().zip(&force_after);
    for option in options {
        for path in
            option.shown.split(' ').filter(|path| !DIFFERS.iter().any(|(p, _)| fits(p, path)))
        {
            assert_eq!(field(&before, path), field(&after, path), "{}: {path}", option.what);
        }
        let seen = if option.force.is_empty() {
            "not looked at"
        } else {
            let (before, after) = forced.next().expect("one for each");
            assert!(!before.is_empty() && !before.starts_with('('), "{}: {before}", option.what);
            assert_eq!(before, after, "{}: in force", option.what);
            "the same"
        };
        let given = if option.given.is_empty() { "(default)" } else { option.given };
        rows.push(format!("| {} | `{given}` | {seen} | carried |", option.what));
    }
}

/// What is refused, by name, and untouched.
fn is_refused(hosts: &Hosts, what: &str, given: &str, why: &str, rows: &mut Vec<String>) {
    hosts.run("refused", given, "blip/busybox:latest", &WAITS);
    let to = hosts.b().address().to_string();
    let said = hosts.blip(&[], &["migrate", "refused", "--to", &to]);
    assert!(said.code == Some(3) && said.err.contains(why), "{what}: {said:?}");
    hosts.docker(hosts.a(), "rm --force refused");
    rows.push(format!("| {what} | `{given}` | – | refused |"));
}

fn page(rows: &[String]) -> String {
    let mut page = String::from(
        "# What of a container's identity travels\n\nMade by `BLIP_PUBLISH=1 cargo test -p \
         blip-bench --test identity`, which compares every field of\n`docker inspect` and, where \
         the third column says *the same*, what is in force in the container,\nbefore and after a \
         move between two hosts (Docker 28.5). A field that differs and is not\nlisted \
         below fails the test.\n\n| what | given | in force | verdict |\n|---|---|---|---|\n",
    );
    for row in rows {
        let _ = writeln!(page, "{row}");
    }
    page += "\nWhat differs by nature:\n\n| field | why |\n|---|---|\n";
    for (path, why) in DIFFERS {
        let _ = writeln!(page, "| `{path}` | {why} |");
    }
    page
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn docker_inspect_says_the_same_there() {
    let hosts = Hosts::up("same", with_limits(), Suite::Forky);
    let mut rows = Vec::new();
    for host in [hosts.a(), hosts.b()] {
        hosts.docker(host, "network create own");
        hosts.run_on(host, "other", "", "blip/busybox:latest", &WAITS);
    }
    let write = format!("cat >/tmp/profile.json <<'EOT'\n{PROFILE}\nEOT");
    hosts.a().run(&["sh", "-c", &write]).expect("the profile");
    moves(&hosts, "all", ALL, &mut rows);
    for (number, option) in ALONE.iter().enumerate() {
        moves(&hosts, &format!("alone{number}"), std::slice::from_ref(option), &mut rows);
    }
    for (what, given, why) in [
        ("host network", "--network host", "network of host"),
        ("privileged", "--privileged", "privileged"),
        ("host PIDs", "--pid host", "PID namespace of host"),
        ("host IPC", "--ipc host", "IPC namespace of host"),
        (
            "tasks of a Swarm service (secrets, configs)",
            "--label com.docker.swarm.task.id=x",
            "Swarm",
        ),
        ("a link to a container that is not there", "--link alone5:x", "is linked with 'alone5'"),
    ] {
        if what.starts_with("a link") {
            hosts.docker(hosts.b(), "rm --force alone5");
            hosts.run("alone5", "", "blip/busybox:latest", &WAITS);
        }
        is_refused(&hosts, what, given, why, &mut rows);
    }
    let page = page(&rows);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/identity/README.md");
    if std::env::var_os("BLIP_PUBLISH").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder");
        std::fs::write(&path, &page).expect("publishing");
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(published, page, "the published table is another: publish it with BLIP_PUBLISH=1");
}
