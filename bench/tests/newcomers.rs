//! New connections while a container moves: none is refused or reset, however
//! slowly the program accepts them, and who never accepts is told of.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;

use blip_bench::lab::{CgroupMode, Suite};
use hosts::Hosts;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Port 7000 answers every line, over as many connections as wanted; 7001 serves
/// one connection after the other, slowly; 7002 accepts nobody until it is told
/// to, by the word `accept` on port 7000.
const SERVER: &str = "
import socket, threading, time
def listen(port, backlog):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('0.0.0.0', port))
    s.listen(backlog)
    return s
lines, slow, lazy = listen(7000, 128), listen(7001, 128), listen(7002, 8)
def serve(c):
    for line in c.makefile():
        if line == 'accept\\n':
            d, _ = lazy.accept()
            d.sendall(b'at last\\n')
            keep.append(d)
        c.sendall(line.encode())
def accept_all():
    while True:
        threading.Thread(target=serve, args=(lines.accept()[0],), daemon=True).start()
def accept_slowly():
    while True:
        c, _ = slow.accept()
        time.sleep(0.02)
        c.sendall(c.makefile().readline().encode())
        c.close()
keep = []
threading.Thread(target=accept_slowly, daemon=True).start()
accept_all()
";

/// Longest that a new connection may take: a client repeats its first word
/// after one, three and seven seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Says a word over a connection and hears it again.
fn echo(stream: &TcpStream, word: &str) -> io::Result<()> {
    let mut to = stream;
    to.write_all(format!("{word}\n").as_bytes())?;
    let heard = line(stream)?;
    if heard == word { Ok(()) } else { Err(io::Error::other(format!("{word}: heard '{heard}'"))) }
}

fn line(stream: &TcpStream) -> io::Result<String> {
    let mut heard = String::new();
    BufReader::new(stream).read_line(&mut heard)?;
    Ok(heard.trim_end().to_owned())
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

struct Stage {
    hosts: Hosts,
    ip: Ipv4Addr,
}

impl Stage {
    /// Opens a connection from the lab's client.
    fn connect(&self, port: u16) -> TcpStream {
        let to = SocketAddr::from((self.ip, port));
        let opened = self.hosts.lab.client().spawn(move || connect(to)).join();
        opened.expect("thread").expect("the client's network").expect("a connection")
    }

    /// New connections from several clients at once until they are stopped.
    fn storm(&self, port: u16, clients: u32, pause: Duration) -> Storm {
        let stop = Arc::new(AtomicBool::new(false));
        let to = SocketAddr::from((self.ip, port));
        let one = |number: u32| {
            let stop = stop.clone();
            self.hosts.lab.client().spawn(move || {
                let mut seen = Seen::default();
                while !stop.load(Ordering::Relaxed) {
                    let since = Instant::now();
                    match connect(to).and_then(|stream| echo(&stream, &format!("{number}"))) {
                        Ok(()) => seen.served += 1,
                        Err(error) => seen.errors.push(error.to_string()),
                    }
                    seen.longest = seen.longest.max(since.elapsed());
                    std::thread::sleep(pause);
                }
                seen
            })
        };
        let threads = (0..clients).map(one).collect();
        Storm { stop, threads }
    }
}

struct Storm {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<blip_bench::lab::Result<Seen>>>,
}

#[derive(Debug, Default)]
struct Seen {
    served: u32,
    errors: Vec<String>,
    longest: Duration,
}

impl Storm {
    fn end(self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for thread in self.threads {
            let seen = thread.join().expect("thread").expect("the client's network");
            all.served += seen.served;
            all.errors.extend(seen.errors);
            all.longest = all.longest.max(seen.longest);
        }
        eprintln!("{what}: {} served, the slowest in {:.0?}", all.served, all.longest);
        assert!(all.served > 20, "{what}: {all:?}");
        assert!(all.errors.is_empty(), "{what}: {:?}", all.errors);
    }
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn nobody_who_connects_during_a_move_is_turned_away() {
    let hosts = Hosts::up("new", CgroupMode::V2, Suite::Forky);
    let ip = hosts.lab.container_address(1);
    let options = format!("--network blipnet --ip {ip}");
    hosts.run("server", &options, "blip/python:latest", &["python3", "-c", SERVER]);
    std::thread::sleep(Duration::from_millis(500));
    let stage = Stage { hosts, ip };
    let regular = stage.connect(7000);
    echo(&regular, "before").expect("an answer");

    who_never_accepts_is_named(&stage, &regular);
    killed_while_new_connections_are_held(&stage, &regular);
    a_storm_at_a_slow_door(&stage, &regular);
    who_never_accepts_can_be_given_up(stage.hosts);
}

/// With somebody in the queue for good there is no move, and nothing happens.
fn who_never_accepts_is_named(stage: &Stage, regular: &TcpStream) {
    let hosts = &stage.hosts;
    let before = hosts.identity("server");
    let patient = stage.connect(7002);
    let storm = stage.storm(7000, 2, Duration::from_millis(5));
    let (code, lines, err) = hosts.start_migration("server").end();
    eprintln!("{err}");
    assert_eq!(code, Some(1), "{err}\n{}", lines.join("\n"));
    assert!(err.contains("1 connection to port 7002 (python3)"), "{err}");
    assert!(err.contains("--unaccepted reset"), "{err}");
    echo(regular, "kept").expect("the old connection");
    storm.end("who never accepts");
    echo(regular, "accept").expect("the old connection");
    assert_eq!(line(&patient).expect("its turn"), "at last");
    assert_eq!(hosts.identity("server"), before);
    hosts.source_is_clean("who never accepts", Some("server"));
    hosts.target_is_empty("who never accepts");
}

/// The guard lets them in.
fn killed_while_new_connections_are_held(stage: &Stage, regular: &TcpStream) {
    let hosts = &stage.hosts;
    let patient = stage.connect(7002);
    let mut migration = hosts.start_migration("server");
    migration.wait_for("end pre_copy");
    std::thread::sleep(Duration::from_millis(500));
    let pid = hosts.inspect(hosts.a(), "server", ".State.Pid");
    let list = ["nsenter", "-n", "-t", &pid, "nft", "list", "tables"];
    assert!(hosts.a().run(&list).expect("nft").contains("blip_"), "nothing was held back");
    migration.kill();
    hosts.source_is_clean("killed while holding", Some("server"));
    hosts.target_is_empty("killed while holding");
    echo(&stage.connect(7000), "new").expect("a new connection");
    echo(regular, "accept").expect("the old connection");
    assert_eq!(line(&patient).expect("its turn"), "at last");
}

/// Asked to, blip moves a container without those whom it does not accept: they
/// are told, and nobody else is.
fn who_never_accepts_can_be_given_up(hosts: Hosts) {
    let ip = hosts.lab.container_address(2);
    let options = format!("--network blipnet --ip {ip}");
    hosts.run("stubborn", &options, "blip/python:latest", &["python3", "-c", SERVER]);
    std::thread::sleep(Duration::from_millis(500));
    let stage = Stage { hosts, ip };
    let (regular, patient) = (stage.connect(7000), stage.connect(7002));
    echo(&regular, "before").expect("an answer");
    stage.hosts.migrate_with("stubborn", "--unaccepted reset");
    echo(&regular, "moved").expect("the old connection");
    let turned_away = echo(&patient, "anybody?").expect_err("nobody is there");
    assert_eq!(turned_away.kind(), io::ErrorKind::ConnectionReset, "{turned_away}");
}

/// The queue is hardly ever empty, and yet the container moves.
fn a_storm_at_a_slow_door(stage: &Stage, regular: &TcpStream) {
    let hosts = &stage.hosts;
    let patient = stage.connect(7002);
    let storms =
        [stage.storm(7000, 2, Duration::from_millis(1)), stage.storm(7001, 8, Duration::ZERO)];
    std::thread::sleep(Duration::from_millis(500));
    echo(regular, "accept").expect("the old connection");
    let report = hosts.migrate("server");
    eprintln!("downtime {} ms, notes {}", report["downtime_ms"], report["notes"]);
    echo(regular, "moved").expect("the old connection");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(line(&patient).expect("its turn"), "at last");
    for (storm, what) in storms.into_iter().zip(["quick", "slow"]) {
        storm.end(what);
    }
    hosts.source_is_clean("after the storm", None);
    hosts.target_is_clean("after the storm");
}
