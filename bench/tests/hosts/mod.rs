//! Two hosts of a lab with blip on them: what the end-to-end tests stand on.

use blip_bench::demo::blip_beside;
use blip_bench::lab::{CgroupMode, Client, Host, Lab, LabSpec, Suite};
use blip_bench::probe::verify::Expected;
use blip_bench::probe::{Job, Place};
use blip_bench::workload::dataset::Dataset;
use blip_bench::workload::redis::Redis;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const BINARY: &str = env!("CARGO_BIN_EXE_blip-bench");
const BLIP: &str = "/usr/local/bin/blip";
/// How soon the source must answer its client after anything went wrong.
pub(crate) const BACK: Duration = Duration::from_secs(2);
/// How long an agent may take to remove what a broken migration left.
const TIDY: Duration = Duration::from_secs(10);

/// One lab at a time: the machine has few cores, and some steps have limits.
static TURN: Mutex<()> = Mutex::new(());

/// Host `a` is the source, host `b` the target. All goes when this is dropped,
/// also by a panic.
pub(crate) struct Hosts {
    pub(crate) lab: Lab,
    agent: Option<Child>,
    /// What blip is told by its environment.
    environment: Vec<&'static str>,
    /// What is mounted on the target while there is no container.
    mounts: BTreeSet<String>,
    _sweep: Sweep,
    _turn: MutexGuard<'static, ()>,
}

struct Sweep(String);

impl Drop for Sweep {
    fn drop(&mut self) {
        let _ = Lab::remove(&self.0);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.kill_agent();
    }
}

impl Hosts {
    /// Brings the lab up, with two paired hosts and an agent on the second.
    pub(crate) fn up(test: &str, cgroup: CgroupMode, suite: Suite) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let blip = blip_beside(Path::new(BINARY)).expect("the program blip");
        let name = format!("m-{test}-{}", std::process::id());
        let sweep = Sweep(name.clone());
        let program = Some(BINARY.into());
        let spec = LabSpec { name, cgroup, suite, program, progress: |_| {}, ..LabSpec::default() };
        let lab = Lab::up(&spec).expect("a lab");
        for host in lab.hosts() {
            host.install(&blip, BLIP).expect("installing blip");
        }
        let mut hosts = Self {
            lab,
            agent: None,
            environment: Vec::new(),
            mounts: BTreeSet::new(),
            _sweep: sweep,
            _turn: turn,
        };
        hosts.mounts = mounts(hosts.b());
        for (host, other) in [(hosts.a(), hosts.b()), (hosts.b(), hosts.a())] {
            let key = other.run(&[BLIP, "pair", "show"]).expect("pair show");
            host.run(&[BLIP, "pair", "add", key.trim(), other.name()]).expect("pair add");
        }
        hosts.start_agent();
        hosts
    }

    pub(crate) fn a(&self) -> &Host {
        self.lab.host("a").expect("host a")
    }

    pub(crate) fn b(&self) -> &Host {
        self.lab.host("b").expect("host b")
    }

    /// Starts the agent; returns when it listens.
    pub(crate) fn start_agent(&mut self) {
        let words = [&self.program()[..], &["agent"]].concat();
        let mut command = self.b().command(&words);
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut agent = command.spawn().expect("blip agent");
        let mut said = BufReader::new(agent.stderr.take().expect("stderr"));
        let mut log = String::new();
        while !log.contains("listening") {
            let read = said.read_line(&mut log).expect("reading the agent's log");
            assert!(read > 0, "the agent ended: {log}");
        }
        // What it says later is shown with a test that fails.
        std::thread::spawn(move || {
            said.lines().map_while(Result::ok).for_each(|l| eprintln!("agent: {l}"))
        });
        self.agent = Some(agent);
    }

    /// Has blip on both hosts bear with one that is silent for a minute: the test
    /// stops it. `more` is for its environment, too. Ends the agent and starts it
    /// again.
    pub(crate) fn be_patient(&mut self, more: &[&'static str]) {
        self.kill_agent();
        self.environment = [&["BLIP_PATIENCE=60"], more].concat();
        self.start_agent();
    }

    /// blip, with its environment.
    fn program(&self) -> Vec<&'static str> {
        [&["env"][..], &self.environment, &[BLIP]].concat()
    }

    /// `kill -9`.
    pub(crate) fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// `docker …` on a host, which must succeed.
    pub(crate) fn docker(&self, host: &Host, words: &str) -> String {
        let words: Vec<&str> = std::iter::once("docker").chain(words.split(' ')).collect();
        host.run(&words).expect("docker").trim().to_owned()
    }

    /// A field of `docker inspect`.
    pub(crate) fn inspect(&self, host: &Host, name: &str, field: &str) -> String {
        let format = format!("{{{{{field}}}}}");
        host.run(&["docker", "inspect", "--format", &format, name]).expect("inspect").trim().into()
    }

    /// Starts a container on the source.
    pub(crate) fn run(&self, name: &str, options: &str, image: &str, command: &[&str]) {
        self.run_on(self.a(), name, options, image, command);
    }

    /// Starts a container.
    pub(crate) fn run_on(
        &self,
        host: &Host,
        name: &str,
        options: &str,
        image: &str,
        command: &[&str],
    ) {
        let mut words = vec!["docker", "run", "--detach", "--name", name];
        words.extend(options.split_whitespace());
        words.push(image);
        words.extend(command);
        host.run(&words).expect("docker run");
    }

    /// Starts a Redis on the source that holds `bytes` of data.
    pub(crate) fn redis(&self, name: &str, number: u8, bytes: u64) -> (SocketAddr, Expected) {
        let ip = self.lab.container_address(number);
        let options = format!("--network blipnet --ip {ip} --restart unless-stopped");
        let words = "redis-server --save  --appendonly no --protected-mode no";
        let command: Vec<&str> = words.split(' ').collect();
        self.run(name, &options, "blip/redis:latest", &command);
        let addr = SocketAddr::from((ip, 6379));
        let filling = self.lab.client().spawn(move || {
            let redis = Redis::at(addr);
            redis.wait_ready(Duration::from_secs(20)).expect("Redis answers");
            redis.fill(Dataset { bytes, seed: 5 }).expect("filled");
            Expected::ask(&redis).expect("asked")
        });
        (addr, filling.join().expect("thread").expect("the client's network"))
    }

    /// Gives `blipnet` and the client IPv6 addresses too; no container may be
    /// there yet.
    pub(crate) fn dual_stack(&self) -> DualStack {
        let subnet = self.lab.subnet();
        let slot = subnet.split('.').nth(2).expect("a slot");
        let net6 = |last: &str| format!("fd90:0:0:{slot}::{last}");
        let gateway = subnet.replace(".0/24", ".1");
        let range = subnet.replace(".0/24", ".128/25");
        for host in self.lab.hosts() {
            self.docker(host, "network rm blipnet");
            let create = format!(
                "network create --driver macvlan --opt parent=eth0 --subnet {subnet} --gateway \
                 {gateway} --ip-range {range} --ipv6 --subnet {}/64 --gateway {} blipnet",
                net6(""),
                net6("1")
            );
            self.docker(host, &create);
        }
        let client = self.lab.client();
        let address = format!("{}/64", net6("100"));
        let ip = ["ip", "-6", "addr", "add", &address, "dev", "eth0", "nodad"];
        let added = client.command(&ip).status().expect("ip");
        assert!(added.success(), "{ip:?}");
        let v6 = |last| net6(last).parse().expect("an address");
        DualStack {
            client: [client.address().into(), v6("100")],
            container: [self.lab.container_address(1).into(), v6("129")],
        }
    }

    /// Runs `blip …` on the source to its end.
    pub(crate) fn blip(&self, environment: &[(&str, &str)], words: &[&str]) -> Said {
        let mut argv = vec!["env".to_owned()];
        argv.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
        argv.push(BLIP.into());
        argv.extend(words.iter().map(|&word| word.to_owned()));
        let output = self.a().command(&argv).output().expect("blip");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { code: output.status.code(), err: text(&output.stderr) }
    }

    /// Starts `blip migrate --json` of a container to the target.
    pub(crate) fn start_migration(&self, name: &str) -> Migration {
        self.start_migration_with(name, "")
    }

    /// The same with more flags.
    pub(crate) fn start_migration_with(&self, name: &str, flags: &str) -> Migration {
        self.start_migration_to(name, &self.b().address().to_string(), flags)
    }

    /// The same over a road that is not the straight one.
    pub(crate) fn start_migration_to(&self, name: &str, to: &str, flags: &str) -> Migration {
        let mut words: Vec<&str> = self.program();
        words.extend(["migrate", name, "--to", to, "--json"]);
        words.extend(flags.split_whitespace());
        let mut command = self.a().command(&words);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("blip migrate");
        let out = BufReader::new(child.stdout.take().expect("stdout"));
        let err = child.stderr.take().expect("stderr");
        let err = std::thread::spawn(move || io::read_to_string(err).unwrap_or_default());
        Migration { child, out, err: Some(err) }
    }

    /// Moves a container, which must work, and gives the report.
    pub(crate) fn migrate(&self, name: &str) -> Value {
        self.migrate_with(name, "")
    }

    /// The same with more flags.
    pub(crate) fn migrate_with(&self, name: &str, flags: &str) -> Value {
        let (code, lines, err) = self.start_migration_with(name, flags).end();
        assert_eq!(code, Some(0), "{err}\n{}", lines.join("\n"));
        let report: Value = serde_json::from_str(lines.last().expect("a report")).expect("JSON");
        assert_eq!(report["event"], "finished");
        report
    }

    /// What a container is, in a line: changes if it is touched.
    pub(crate) fn identity(&self, name: &str) -> String {
        let fields = ".Id}} {{.Name}} {{.State.Status}} {{.State.Pid}} {{.State.StartedAt}} \
                      {{.RestartCount}} {{.HostConfig.RestartPolicy.Name";
        self.inspect(self.a(), name, fields)
    }

    /// Nothing of blip is left on the target, and no container.
    pub(crate) fn target_is_empty(&self, step: &str) {
        self.settles(step, || {
            let mut left = leftovers(self.b(), &[]);
            let containers = self.docker(self.b(), "ps --all --format {{.Names}}({{.Status}})");
            left.extend(containers.lines().map(|c| format!("container {c}")));
            left.extend(mounts(self.b()).difference(&self.mounts).cloned());
            left
        });
    }

    /// Nothing of blip is left on the source, in the container's network
    /// neither if it still runs there.
    pub(crate) fn source_is_clean(&self, step: &str, running: Option<&str>) {
        self.settles(step, || {
            let mut left = leftovers(self.a(), &[]);
            if let Some(name) = running {
                let pid = self.inspect(self.a(), name, ".State.Pid");
                let list = ["nsenter", "-n", "-t", &pid, "nft", "list", "tables"];
                left.extend(ours(&self.a().run(&list).expect("nft")));
            }
            left
        });
    }

    /// After a move: nothing but the container and the holder over it.
    pub(crate) fn target_is_clean(&self, step: &str) {
        self.settles(step, || leftovers(self.b(), &["runtime"]));
    }

    fn settles(&self, step: &str, left: impl Fn() -> Vec<String>) {
        let until = Instant::now() + TIDY;
        loop {
            let left = left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "{step}: left over: {left:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Addresses, IPv4 and IPv6.
pub(crate) struct DualStack {
    pub(crate) client: [IpAddr; 2],
    /// One for a container.
    pub(crate) container: [IpAddr; 2],
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) err: String,
}

/// A `blip migrate` under way.
pub(crate) struct Migration {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    err: Option<JoinHandle<String>>,
}

impl Migration {
    /// Reads on until an event fits: `begin freeze`, `round 0`.
    pub(crate) fn wait_for(&mut self, sign: &str) {
        let come = self.comes_to_event(|event| {
            let phase = event["phase"].as_str().unwrap_or_default();
            format!("{} {phase}", event["event"].as_str().unwrap_or_default()) == sign
        });
        come.unwrap_or_else(|all| panic!("no event '{sign}' came, but: {all}"));
    }

    /// Reads on until a note begins so; if it ends before, all it said.
    pub(crate) fn comes_to_note(&mut self, beginning: &str) -> Result<(), String> {
        self.comes_to_event(|event| {
            let text = event["text"].as_str().unwrap_or_default();
            event["event"] == "note" && text.starts_with(beginning)
        })
    }

    fn comes_to_event(&mut self, is_it: impl Fn(&Value) -> bool) -> Result<(), String> {
        let mut line = String::new();
        let mut all = String::new();
        while self.out.read_line(&mut line).expect("an event") > 0 {
            if is_it(&serde_json::from_str(&line).expect("JSON")) {
                return Ok(());
            }
            all += &std::mem::take(&mut line);
        }
        Err(all + &self.errors())
    }

    /// All it said on standard error, once it has ended.
    fn errors(&mut self) -> String {
        self.err.take().map(|thread| thread.join().expect("thread")).unwrap_or_default()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// As Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        let outer = self.child.id();
        let path = format!("/proc/{outer}/task/{outer}/children");
        let inner = std::fs::read_to_string(path).expect("children");
        let inner = inner.trim().parse().expect("one child");
        let signal = nix::sys::signal::Signal::SIGINT;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(inner), signal).expect("kill");
    }

    /// Waits for its good end; gives the report and when the grant was given,
    /// since 1970, or a little later.
    pub(crate) fn granted(mut self) -> (Value, Duration) {
        let mut begun = Duration::MAX;
        let (mut granted, mut report) = (Duration::ZERO, Value::Null);
        for line in self.out.by_ref().lines().map_while(Result::ok) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
            let event: Value = serde_json::from_str(&line).expect("JSON");
            let at = Duration::from_secs_f64(event["at_ms"].as_f64().unwrap_or_default() / 1e3);
            // A line may be read late, never early.
            begun = begun.min(now - at);
            if event["event"] == "begin" && event["phase"] == "grant" {
                granted = at;
            }
            report = event;
        }
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "{status}: {}", self.errors());
        (report, begun + granted)
    }

    /// Waits for its end: exit code, remaining events, standard error.
    pub(crate) fn end(mut self) -> (Option<i32>, Vec<String>, String) {
        let lines = self.out.by_ref().lines().map_while(Result::ok).collect();
        let status = self.child.wait().expect("wait");
        (status.code(), lines, self.errors())
    }
}

/// A client with one established connection, which it keeps.
pub(crate) struct Regular {
    stream: TcpStream,
    client: Client,
    addr: SocketAddr,
}

impl Regular {
    pub(crate) fn of(hosts: &Hosts, addr: SocketAddr) -> Self {
        let client = hosts.lab.client();
        let open = client.spawn(move || TcpStream::connect(addr).expect("connect"));
        let stream = open.join().expect("thread").expect("the client's network");
        stream.set_nodelay(true).expect("nodelay");
        let mut regular = Self { stream, client, addr };
        regular.asks(Duration::from_secs(2)).expect("an answer");
        regular
    }

    /// Asks over the old connection.
    fn asks(&mut self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))?;
        ping(&mut self.stream)
    }

    /// The old connection and a new one are answered within [`BACK`].
    pub(crate) fn is_served(&mut self, step: &str) {
        let since = Instant::now();
        self.asks(BACK).unwrap_or_else(|e| panic!("{step}: no answer to the old connection: {e}"));
        let addr = self.addr;
        let fresh = self.client.spawn(move || {
            let mut stream = TcpStream::connect_timeout(&addr, BACK)?;
            stream.set_read_timeout(Some(BACK))?;
            ping(&mut stream)
        });
        let fresh = fresh.join().expect("thread").expect("the client's network");
        fresh.unwrap_or_else(|e| panic!("{step}: no answer to a new connection: {e}"));
        eprintln!("{step}: served after {:.0?}", since.elapsed());
        assert!(since.elapsed() < BACK, "{step}: served after {:?}", since.elapsed());
    }
}

fn ping(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    if &answer == b"+PONG\r\n" { Ok(()) } else { Err(io::Error::other("no PONG")) }
}

/// The lab's client namespace as a place for the probe.
pub(crate) struct AtClient(pub(crate) Client);

impl Place for AtClient {
    fn start(&self, name: &str, job: Job) -> io::Result<JoinHandle<()>> {
        let client = self.0.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            client.enter_net().expect("the client's network");
            job();
        })
    }
}

/// A lab host's mount points.
fn mounts(host: &Host) -> BTreeSet<String> {
    let text = host.run(&["cat", "/proc/self/mountinfo"]).expect("mountinfo");
    text.lines().filter_map(|line| line.split(' ').nth(4)).map(|at| format!("mount {at}")).collect()
}

/// Rules, files and processes that blip has on a host; the agent itself and
/// subcommands in `allowed` do not count.
fn leftovers(host: &Host, allowed: &[&str]) -> Vec<String> {
    let mut left = ours(&host.run(&["nft", "list", "tables"]).expect("nft"));
    let list = "for d in stage arrivals departures; do \
                  for f in /run/blip/$d/*; do [ -e \"$f\" ] && echo \"$f\"; done; done; \
                for p in /proc/[0-9]*; do read -r c < $p/comm && case $c in blip-bench) ;; blip|criu|blip-*) \
                  echo \"process ${p#/proc/} $(tr '\\0' ' ' < $p/cmdline)\";; esac; done; true";
    let said = host.run(&["sh", "-c", list]).expect("listing");
    let expected = |line: &&str| {
        let mut words = line.split_whitespace();
        let words = [words.next(), words.nth(1), words.next()];
        let blip = words[0] == Some("process") && words[1].is_some_and(|w| w.ends_with("blip"));
        let verb = words[2].unwrap_or_default();
        blip && (verb == "agent" || allowed.contains(&verb))
    };
    left.extend(said.lines().filter(|line| !expected(line)).map(str::to_owned));
    left
}

fn ours(tables: &str) -> Vec<String> {
    tables.lines().filter(|line| line.contains("blip_")).map(str::to_owned).collect()
}
