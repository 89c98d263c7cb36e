//! The container's files, on the lab's real hosts: volumes, bind mounts and
//! images that move, come back, are refused, or do not fit.

// Each test program uses a part of it.
#[allow(dead_code)]
mod pair;

use blip_bench::lab::Host;
use pair::Pair;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Writes to files in every way there is and remembers what they must hold;
/// compares when it is told to, and says `OK` or what is wrong. Ends with 42.
const WRITER: &str = r#"
import mmap, os, random, signal, sys, time
PAGE, PAGES = 4096, 4096
places = sys.argv[1:]
random.seed(1)
def page(n): return n.to_bytes(8, "little") * (PAGE // 8)
class Place:
    def __init__(self, path):
        self.path, self.count, self.files = path, 0, {}
        self.fd = os.open(path + "/big", os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.fd, PAGE * PAGES)
        self.map = mmap.mmap(self.fd, PAGE * PAGES)
        self.pages = {}
        for p in range(PAGES):
            self.pages[p] = p
            os.pwrite(self.fd, page(p), p * PAGE)
        self.log = open(path + "/log", "a")
        self.lines = 0
        self.deleted = os.open(path + "/deleted", os.O_RDWR | os.O_CREAT)
        os.write(self.deleted, b"still here")
        os.unlink(path + "/deleted")
    def step(self, n):
        p = random.randrange(PAGES)
        self.pages[p] = n
        if n % 2: self.map[p * PAGE:(p + 1) * PAGE] = page(n)
        else: os.pwrite(self.fd, page(n), p * PAGE)
        self.log.write("line %d\n" % self.lines); self.log.flush(); self.lines += 1
        if n % 50 == 0: os.fsync(self.fd)
        name = "%s/file-%d" % (self.path, n % 20)
        if n % 3 == 0:
            with open(name + ".new", "w") as f: f.write("content %d" % n)
            os.rename(name + ".new", name)
            self.files[name] = "content %d" % n
        elif n % 7 == 0 and name in self.files:
            os.unlink(name); del self.files[name]
    def wrong(self):
        for p, n in self.pages.items():
            if os.pread(self.fd, PAGE, p * PAGE) != page(n): return "page %d" % p
        with open(self.path + "/big", "rb") as again:
            if again.read() != b"".join(page(self.pages[p]) for p in range(PAGES)): return "big"
        if open(self.path + "/log").read() != "".join("line %d\n" % i for i in range(self.lines)): return "log"
        for name, text in self.files.items():
            if open(name).read() != text: return name
        names = {n for n in os.listdir(self.path) if n.startswith("file-")}
        if names != {os.path.basename(n) for n in self.files}: return "names %s" % names
        if os.pread(self.deleted, 100, 0) != b"still here": return "deleted"
all = [Place(p) for p in places]
ask = []
signal.signal(signal.SIGUSR1, lambda *_: ask.append(1))
signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
print("ready", flush=True)
n = 100000
while True:
    n += 1
    for place in all: place.step(n)
    if ask:
        ask.pop()
        bad = ["%s in %s" % (p.wrong(), p.path) for p in all if p.wrong()]
        with open("/verdict.new", "w") as f: f.write("OK %d" % n if not bad else "BAD " + ", ".join(bad))
        os.rename("/verdict.new", "/verdict")
    time.sleep(0.002)
"#;

impl Pair {
    /// The writer compares its files with its memory. (By a file: what Docker
    /// shows of the log of a container that has arrived may lag.)
    fn is_right(&self, host: &Host, name: &str, step: &str) {
        self.docker(host, &format!("exec {name} rm -f /verdict"));
        self.docker(host, &format!("kill --signal USR1 {name}"));
        let until = Instant::now() + Duration::from_secs(20);
        let ask = ["docker", "exec", name, "cat", "/verdict"];
        loop {
            let said = host.run(&ask).unwrap_or_default();
            if !said.is_empty() {
                return assert!(said.starts_with("OK "), "{step}: {said}");
            }
            assert!(Instant::now() < until, "{step}: {name} says nothing");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn start_writer(&self, name: &str, options: &str, places: &[&str]) {
        let command = [&["python3", "-c", WRITER], places].concat();
        self.hosts.run(name, options, "blip/python:latest", &command);
        let until = Instant::now() + Duration::from_secs(20);
        while self.docker(self.hosts.a(), &format!("logs {name}")) != "ready" {
            assert!(Instant::now() < until, "{name} does not begin");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts a container on the source with an address of its own: each
    /// host's Docker gives addresses without regard to the other.
    fn run_at(&self, number: u8, name: &str, image: &str) {
        let ip = self.hosts.lab.container_address(number);
        self.hosts.run(name, &format!("--network blipnet --ip {ip}"), image, &TICKER);
    }
}

fn volumes_on(host: &Host, pair: &Pair) -> String {
    pair.docker(host, "volume ls --quiet")
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn volumes_and_paths_move_there_and_back() {
    let pair = Pair::up("vol");
    let (a, b) = (pair.hosts.a(), pair.hosts.b());
    pair.docker(a, "volume create --label color=blue things");
    pair.sh(a, "mkdir -p /srv/deep/tree && echo old >/srv/deep/tree/old && echo one >/srv/conf");
    let options = "--network blipnet --volume things:/things --volume /anonymous \
                   --volume /srv/deep/tree:/tree --volume /srv/conf:/etc/one.conf:ro \
                   --tmpfs /scratch";
    pair.start_writer("writer", options, &["/things", "/anonymous", "/tree", "/scratch", "/root"]);
    pair.is_right(a, "writer", "before");

    pair.refused(&["writer"], &["/srv/deep/tree at /tree", "--bind copy=/tree", "/srv/conf"]);
    let binds = ["writer", "--bind", "copy=/tree", "--bind", "copy=/etc/one.conf"];
    pair.refused(&[&binds[..], &["--bind", "copy=/nowhere"]].concat(), &["/nowhere", "/tree"]);
    pair.sh(b, "mkdir -p /srv/deep/tree && touch /srv/deep/tree/foreign");
    pair.refused(&binds, &["/srv/deep/tree already", "something in it"]);
    pair.sh(b, "rm -r /srv/deep");
    pair.docker(b, "volume create things");
    pair.sh(b, "touch /var/lib/docker/volumes/things/_data/foreign");
    pair.refused(&binds, &["volume 'things' with something in it", "docker volume rm"]);
    pair.docker(b, "volume rm things");
    pair.is_right(a, "writer", "after the refusals");

    let there = pair.migrate(a, b, &binds);
    pair.is_right(b, "writer", "there");
    eprintln!("there: downtime {} ms, {} bytes", there["downtime_ms"], there["bytes_sent"]);
    let labels = pair.docker(b, "volume inspect --format {{.Labels}} things");
    assert_eq!(labels, "map[color:blue]");
    assert_eq!(pair.docker(b, "exec writer cat /etc/one.conf /tree/old"), "one\nold");
    assert_eq!(volumes_on(b, &pair).lines().count(), 2);

    let back = pair.migrate(b, a, &binds);
    pair.is_right(a, "writer", "back");
    eprintln!("back: downtime {} ms, {} bytes", back["downtime_ms"], back["bytes_sent"]);
    pair.docker(a, "stop writer");
    assert_eq!(pair.hosts.inspect(a, "writer", ".State.ExitCode"), "42");
}

/// Says something twice a second, without a sleep that a dump would cut short.
const TICKER: [&str; 3] = ["sh", "-c", "while :; do date >>/ticks; sleep 0.2; done"];

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn an_image_that_the_target_lacks_is_shipped_once() {
    let pair = Pair::up("image");
    let (a, b) = (pair.hosts.a(), pair.hosts.b());
    let size = 8 << 20;
    pair.hosts.run("base", "", "blip/python:latest", &["sleep", "1000"]);
    pair.sh(a, &format!("docker exec base sh -c 'head -c {size} /dev/urandom >/blob'"));
    pair.docker(a, "commit base made/here:v1");
    pair.docker(a, "rm -f base");
    let id = pair.hosts.inspect(a, "made/here:v1", ".Id");

    // The upper layer only: the lower one is there under another name.
    pair.run_at(1, "one", "made/here:v1");
    let report = pair.migrate(a, b, &["one"]);
    assert_eq!(pair.hosts.inspect(b, "made/here:v1", ".Id"), id);
    assert_eq!(pair.hosts.inspect(b, "one", ".Image"), id);
    let sent = report["bytes_sent"].as_u64().expect("bytes");
    assert!((size..size * 5 / 4).contains(&sent), "{sent} bytes for {size}");
    // Now it is there.
    pair.run_at(2, "two", "made/here:v1");
    let report = pair.migrate(a, b, &["two", "--rename", "second", "--remove-source"]);
    let sent = report["bytes_sent"].as_u64().expect("bytes");
    assert!(sent < size / 4, "{sent} bytes for nothing");
    assert_eq!(pair.sh(b, "docker exec second cat /blob | wc -c"), size.to_string());
    let left = pair.docker(a, "ps --all --format {{.Names}}");
    assert!(left.contains("one.moved-") && !left.contains("two"), "{left}");

    // All of it; and a name that means another image there is left alone.
    for name in ["one", "second"] {
        pair.docker(b, &format!("rm -f {name}"));
    }
    pair.docker(b, "rmi -f made/here:v1 blip/python:latest");
    pair.docker(b, "tag blip/busybox:latest made/here:v1");
    let foreign = pair.hosts.inspect(b, "made/here:v1", ".Id");
    pair.run_at(3, "three", "made/here:v1");
    pair.migrate(a, b, &["three"]);
    assert_eq!(pair.hosts.inspect(b, "three", ".Image"), id);
    assert_eq!(pair.hosts.inspect(b, "made/here:v1", ".Id"), foreign);
}

/// Starts this host's dockerd again with images in containerd's store, as a
/// new Docker 29 has them, and brings `image` along.
fn keep_images_in_containerd(pair: &Pair, host: &Host, image: &str) {
    let script = format!(
        "set -e; docker save {image} -o /root/image.tar
         sed -i 's/\"overlay2\"/\"overlayfs\"/; s/\"containerd-snapshotter\": false/\"containerd-snapshotter\": true/' \
             /etc/docker/daemon.json
         old=$(cat /run/docker.pid); kill $old; while [ -d /proc/$old ]; do sleep 0.1; done
         setsid dockerd --containerd /run/containerd/containerd.sock \
             >>/var/log/dockerd.log 2>&1 </dev/null &
         n=0; until docker info >/dev/null 2>&1; do
             n=$((n+1)); [ $n -lt 100 ] || {{ tail -n 20 /var/log/dockerd.log >&2; exit 1; }}
             sleep 0.2
         done
         docker load -i /root/image.tar; rm /root/image.tar"
    );
    pair.sh(host, &script);
    let store = pair.docker(host, "info --format {{.DriverStatus}}");
    assert!(store.contains("containerd.snapshotter"), "{store}");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn images_in_containerds_store_move_too() {
    let pair = Pair::up("ctrd");
    let (a, b) = (pair.hosts.a(), pair.hosts.b());
    pair.run_at(1, "mixed", "blip/busybox:latest");
    keep_images_in_containerd(&pair, b, "blip/python:latest");
    pair.refused(&["mixed"], &["containerd's store, unlike the source", "the same store"]);
    pair.docker(a, "rm -f mixed");

    // Now on both: the image is shipped, and the same there.
    keep_images_in_containerd(&pair, a, "blip/busybox:latest");
    let id = pair.hosts.inspect(a, "blip/busybox:latest", ".Id");
    pair.run_at(2, "moves", "blip/busybox:latest");
    pair.sh(a, "docker exec moves sh -c 'echo kept >/note; rm /bin/vi'");
    for (from, to) in [(a, b), (b, a)] {
        let report = pair.migrate(from, to, &["moves"]);
        eprintln!("{} bytes", report["bytes_sent"]);
        assert_eq!(pair.hosts.inspect(to, "blip/busybox:latest", ".Id"), id);
        assert_eq!(pair.hosts.inspect(to, "moves", ".Image"), id);
        assert_eq!(pair.docker(to, "exec moves cat /note"), "kept");
        assert!(to.run(&["docker", "exec", "moves", "ls", "/bin/vi"]).is_err());
    }
    let ticks = || pair.docker(a, "exec moves wc -l /ticks");
    let then = ticks();
    std::thread::sleep(Duration::from_secs(1));
    assert_ne!(ticks(), then, "it runs on");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_disk_that_is_or_becomes_full_leaves_the_container_where_it_is() {
    let pair = Pair::up("full");
    let (a, b) = (pair.hosts.a(), pair.hosts.b());
    pair.sh(b, "mkdir -p /srv && mount -t tmpfs -o size=32m small /srv");
    pair.sh(a, "mkdir -p /srv/data && head -c 64m /dev/urandom >/srv/data/big");
    let options = "--network blipnet --volume /srv/data:/data --volume other:/other";
    pair.hosts.run("grows", options, "blip/busybox:latest", &TICKER);
    let words = ["grows", "--bind", "copy=/data"];
    pair.refused(&words, &["MiB free at /srv", "need about"]);
    let before = pair.hosts.identity("grows");

    // It fits when it is looked at, and grows while it is copied.
    pair.sh(a, "head -c 1m /dev/urandom >/srv/data/big");
    pair.sh(a, "head -c 4m /dev/urandom >/var/lib/docker/volumes/other/_data/slow");
    let slow = blip_transport::units::Bandwidth(2e6);
    pair.hosts.lab.rate_limit("b", Some(slow)).expect("limit");
    let growing = "sleep 1; for i in $(seq 64); do \
                   head -c 1m /dev/urandom >>/srv/data/big; sleep 0.1; done";
    let mut growing = a.command(&["sh", "-c", growing]).spawn().expect("sh");
    let (code, _, said) = pair.try_migrate(a, b, &words);
    pair.hosts.lab.rate_limit("b", None).expect("no limit");
    let _ = growing.wait();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.to_lowercase().contains("no space left"), "{said}");
    assert_eq!(pair.hosts.identity("grows"), before);
    pair.hosts.source_is_clean("after a full disk", Some("grows"));
    assert_eq!(pair.sh(b, "ls /srv"), "");
    pair.sh(b, "umount /srv");
    pair.hosts.target_is_empty("after a full disk");
    assert_eq!(volumes_on(b, &pair), "");
}

/// What `docker inspect` shows and what becomes of it. `None`: it is the same.
/// In this order of first match, by the beginning of the path.
const FIELDS: [(&str, Option<&str>); 41] = [
    ("NetworkSettings.Networks.*.IPAMConfig", Some("asks for the address that the container has")),
    ("Config.MacAddress", Some("kept on networks that move; Docker then shows it here, too")),
    ("Config.Volumes", None),
    ("Config", None),
    ("HostConfig.AutoRemove", Some("off on the target while it arrives and after")),
    ("HostConfig.Runtime", Some("blip stands in for runc, and passes every command on")),
    ("HostConfig.ContainerIDFile", Some("left out: a file of `docker run`")),
    ("HostConfig.VolumesFrom", Some("the volumes themselves are mounted instead")),
    ("HostConfig", None),
    ("NetworkSettings.Networks.*.IPAddress", None),
    ("NetworkSettings.Networks.*.MacAddress", None),
    ("NetworkSettings.Networks.*.Aliases", None),
    ("NetworkSettings.Networks.*.Links", None),
    ("NetworkSettings.Networks.*.DNSNames", Some("the short ID in it is the new one")),
    ("NetworkSettings.Networks.*.EndpointID", Some("new")),
    ("NetworkSettings.Networks.*.NetworkID", Some("the network of this name on the target")),
    ("NetworkSettings.Networks", None),
    ("NetworkSettings.SandboxID", Some("new")),
    ("NetworkSettings.SandboxKey", Some("new")),
    ("NetworkSettings", None),
    ("Mounts", Some("same places; anonymous volumes get new names")),
    ("State.Pid", Some("new")),
    ("State.StartedAt", Some("when Docker on the target began to start it")),
    ("State.Health", Some("begins anew")),
    ("State", None),
    ("RestartCount", Some("0")),
    ("Id", Some("new")),
    ("Created", Some("when it was created on the target")),
    ("Name", None),
    ("Image", None),
    ("Path", None),
    ("Args", None),
    ("ExecIDs", Some("sessions of docker exec stay behind")),
    ("GraphDriver", Some("the target's own directories")),
    ("LogPath", Some("the target's own; what was logged before comes along")),
    ("HostnamePath", Some("the target's own")),
    ("HostsPath", Some("the target's own")),
    ("ResolvConfPath", Some("the target's own")),
    ("AppArmorProfile", None),
    ("MountLabel", None),
    ("", None),
];

/// One container with a bit of everything.
const EVERYTHING: &str = "--network blipnet --network-alias web --env COLOR=blue --label team=x \
    --user 0:0 --workdir /tmp --hostname box --domainname example.org --ulimit nofile=2048:4096 \
    --ulimit core=0 --cap-drop ALL --cap-add NET_BIND_SERVICE --security-opt no-new-privileges \
    --security-opt apparmor=unconfined \
    --device /dev/null:/dev/mine:rwm --restart on-failure:3 --health-cmd true \
    --health-interval 1s --log-driver json-file --log-opt max-size=1m --log-opt max-file=2 \
    --stop-signal SIGINT --stop-timeout 7 --read-only --tmpfs /tmp --init --interactive \
    --add-host other:10.1.1.1 --dns 10.9.9.9 --dns-search lan --shm-size 32m \
    --sysctl net.ipv4.ip_unprivileged_port_start=0 --oom-score-adj 100 --group-add 5 \
    --publish 8080:80 --expose 90 --annotation a=b --volume named:/named --volume /anonymous \
    --memory 200m --cpu-shares 512 --cpuset-cpus 0 --pids-limit 50";

fn flat(value: &Value, path: &str, out: &mut std::collections::BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flat(value, &path, out);
            }
        }
        // Left out, empty and null mean the same.
        Value::Null => {}
        Value::Array(all) if all.is_empty() => {}
        Value::Object(_) => {}
        Value::String(text) if text.is_empty() => {}
        value => drop(out.insert(path.to_owned(), value.clone())),
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('.'), path.split('.'));
    pattern.all(|name| path.next().is_some_and(|p| name.is_empty() || name == "*" || name == p))
}

fn inspection(pair: &Pair, host: &Host, name: &str) -> std::collections::BTreeMap<String, Value> {
    let text = pair.docker(host, &format!("inspect {name}"));
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let mut fields = Default::default();
    flat(&all[0], "", &mut fields);
    fields
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn what_docker_inspect_shows_is_as_the_table_says() {
    let pair = Pair::up("inspect");
    let (a, b) = (pair.hosts.a(), pair.hosts.b());
    pair.hosts.run("all", EVERYTHING, "blip/busybox:latest", &TICKER);
    let before = inspection(&pair, a, "all");
    pair.migrate(a, b, &["all"]);
    let after = inspection(&pair, b, "all");
    let mut wrong = Vec::new();
    for path in before.keys().chain(after.keys()).collect::<std::collections::BTreeSet<_>>() {
        let (_, note) = FIELDS.iter().find(|(pattern, _)| fits(pattern, path)).expect("a rule");
        let (old, new) = (before.get(path), after.get(path));
        if old != new && note.is_none() {
            wrong.push(format!("{path}: {old:?} became {new:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The table of the README.
    for (pattern, note) in FIELDS.iter().filter(|(pattern, _)| !pattern.is_empty()) {
        println!("| `{pattern}` | {} |", note.unwrap_or("carried"));
    }
}
