//! A container whose address stays behind: on the default bridge, with
//! published ports. Its connections are reset, new ones are forwarded.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;

use blip_bench::lab::{CgroupMode, Client, Suite};
use hosts::Hosts;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Answers on TCP and UDP with what it is sent, and prints how each connection
/// ended: `end`, or the number of the error.
const ECHO: &str = "
import socket, threading
def talk(peer):
    try:
        while True:
            said = peer.recv(4096)
            if not said:
                return print('end', flush=True)
            peer.sendall(b'<' + said)
    except OSError as error:
        print('error', error.errno, flush=True)
def datagrams():
    port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    port.bind(('', 9090))
    while True:
        said, peer = port.recvfrom(4096)
        port.sendto(b'<' + said, peer)
threading.Thread(target=datagrams, daemon=True).start()
door = socket.create_server(('', 8080), backlog=64)
print('ready', flush=True)
while True:
    peer, _ = door.accept()
    threading.Thread(target=talk, args=(peer,), daemon=True).start()
";

const LIMIT: Duration = Duration::from_secs(8);

fn start(hosts: &Hosts, name: &str, options: &str) {
    hosts.run(name, options, "blip/python:latest", &["python3", "-c", ECHO]);
    let until = Instant::now() + Duration::from_secs(10);
    while !hosts.docker(hosts.a(), &format!("logs {name}")).contains("ready") {
        assert!(Instant::now() < until, "the program did not begin");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"hallo")?;
    let mut answer = [0; 6];
    stream.read_exact(&mut answer)?;
    if &answer == b"<hallo" { Ok(()) } else { Err(io::Error::other("another answer")) }
}

fn ask_udp(addr: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut answer = [0; 16];
    let mut last = Ok(());
    for _ in 0..5 {
        socket.send_to(b"hallo", addr)?;
        match socket.recv(&mut answer) {
            Ok(6) => return Ok(()),
            Ok(_) => return Err(io::Error::other("another answer")),
            Err(error) => last = Err(error),
        }
    }
    last
}

fn at<T: Send + 'static>(client: &Client, work: impl FnOnce() -> T + Send + 'static) -> T {
    client.spawn(work).join().expect("thread").expect("the client's network")
}

/// What clients saw that connect anew all the time, one after the other.
#[derive(Debug, Default)]
struct Seen {
    served: usize,
    /// Reset after they had been accepted: those of the moment of the move.
    reset: usize,
    slowest: Duration,
    refused: Vec<String>,
}

fn callers(client: &Client, addr: SocketAddr, stop: Arc<AtomicBool>) -> JoinHandle<Seen> {
    let client = client.clone();
    std::thread::spawn(move || {
        at(&client, move || {
            let mut seen = Seen::default();
            while !stop.load(Ordering::Relaxed) {
                let since = Instant::now();
                match connect(addr) {
                    Err(error) => seen.refused.push(format!("{error} after {:?}", since.elapsed())),
                    Ok(mut stream) => match ask(&mut stream) {
                        Ok(()) => seen.served += 1,
                        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                            seen.reset += 1;
                        }
                        Err(error) => seen.refused.push(format!("connected, then {error}")),
                    },
                }
                seen.slowest = seen.slowest.max(since.elapsed());
                std::thread::sleep(Duration::from_millis(10));
            }
            seen
        })
    })
}

/// A client that only listens, and one whose next request is under way.
fn the_connections_end_with_a_reset(hosts: &Hosts, flags: &str) {
    let client = hosts.lab.client();
    let addr = SocketAddr::from((hosts.a().address(), 8080));
    let (mut idle, mut busy) = at(&client, move || {
        let mut two = [connect(addr).expect("connect"), connect(addr).expect("connect")];
        two.iter_mut().for_each(|stream| ask(stream).expect("an answer"));
        two.into()
    });
    let waiting = std::thread::spawn(move || {
        let read = idle.read(&mut [0]);
        (read, Instant::now())
    });
    let stop = Arc::new(AtomicBool::new(false));
    let asking = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let mut asked = 0;
            loop {
                match ask(&mut busy) {
                    Ok(()) => asked += 1,
                    Err(error) => return (asked, error),
                }
                assert!(!stop.load(Ordering::Relaxed), "it lives on after {asked} answers");
            }
        })
    };
    let callers = callers(&client, addr, stop.clone());
    std::thread::sleep(Duration::from_millis(300));
    let report = hosts.migrate_with("echo", flags);
    let moved = Instant::now();
    std::thread::sleep(Duration::from_millis(1500));
    stop.store(true, Ordering::Relaxed);

    let (read, when) = waiting.join().expect("the idle client");
    let error = read.expect_err("an end without an error");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "the idle client: {error}");
    assert!(when < moved + Duration::from_secs(1), "{:?} after the move", when - moved);
    let (asked, error) = asking.join().expect("the busy client");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "after {asked}: {error}");
    let seen = callers.join().expect("the callers");
    eprintln!("downtime {} ms; asked {asked} times; {seen:?}", report["downtime_ms"]);
    // Inside: its ends report ECONNABORTED, no orderly end.
    // (The file: `docker logs` may hide the newest lines of a log that came along.)
    let read = "cat $(docker inspect --format '{{.LogPath}}' echo)";
    let log = hosts.b().run(&["sh", "-c", read]).expect("the log");
    let errors = log.matches("error 103").count();
    assert!(errors >= 2, "the container does not know: {log}");
    assert!(seen.served > 0 && seen.reset <= 1, "{seen:?}");
    if flags.contains("--forward") {
        assert!(seen.refused.is_empty(), "{seen:?}");
    }
}

fn words(hosts: &Hosts, words: &[&str]) -> String {
    let argv: Vec<&str> = std::iter::once("blip").chain(words.iter().copied()).collect();
    hosts.a().run(&argv).expect("blip")
}

/// Says `hallo` from the source itself.
fn from_the_source(hosts: &Hosts, address: &str) {
    let script = format!(
        "exec 3<>/dev/tcp/{address}/8080 && printf hallo >&3 && read -r -N 6 -t 5 a <&3 && \
         [ \"$a\" = '<hallo' ]"
    );
    hosts.a().run(&["bash", "-c", &script]).unwrap_or_else(|e| panic!("{address}: {e}"));
}

fn new_ones_are_forwarded(hosts: &Hosts) {
    let client = hosts.lab.client();
    let addr = SocketAddr::from((hosts.a().address(), 8080));
    at(&client, move || ask(&mut connect(addr).expect("connect")).expect("forwarded"));
    at(&client, move || {
        ask_udp(SocketAddr::new(addr.ip(), 9090)).expect("datagrams are forwarded")
    });
    from_the_source(hosts, "127.0.0.1");
    from_the_source(hosts, "::1");
    let list = words(hosts, &["forward", "list"]);
    assert!(list.contains("echo to") && list.contains("0.0.0.0:8080"), "{list}");
    assert!(words(hosts, &["status"]).contains("Forwarded"), "not in blip status");
}

/// New connections are refused, at the latest after two seconds. One that is
/// made just when the listener ends may be reset.
fn refused(hosts: &Hosts) {
    let addr = SocketAddr::from((hosts.a().address(), 8080));
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        match at(&hosts.lab.client(), move || connect(addr)).map_err(|error| error.kind()) {
            Err(io::ErrorKind::ConnectionRefused) => return,
            Ok(_) | Err(io::ErrorKind::ConnectionReset) => {
                assert!(Instant::now() < until, "somebody listens still");
            }
            Err(other) => panic!("not refused but {other}"),
        }
    }
}

fn tidy(hosts: &Hosts) {
    for host in [hosts.a(), hosts.b()] {
        let all = hosts.docker(host, "ps --all --quiet");
        hosts.docker(host, &format!("rm --force {}", all.replace('\n', " ")));
    }
}

fn a_published_container_leaves(hosts: &Hosts) {
    let publish = "--publish 8080:8080 --publish 9090:9090/udp";
    start(hosts, "echo", publish);
    the_connections_end_with_a_reset(hosts, "--forward 10m");
    new_ones_are_forwarded(hosts);
    words(hosts, &["forward", "stop", "echo"]);
    refused(hosts);
    hosts.source_is_clean("after the forwarder was stopped", None);
    tidy(hosts);

    // A forwarder that is killed leaves nothing in force, and what it left on
    // record goes with the next command; one whose time is up leaves nothing.
    start(hosts, "echo", publish);
    hosts.migrate_with("echo", "--forward");
    let list = words(hosts, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let pid = status["forwarded"][0]["pid"].to_string();
    hosts.a().run(&["kill", "-9", &pid]).expect("kill");
    refused(hosts);
    assert!(words(hosts, &["forward", "list"]).contains("Nothing is forwarded"));
    hosts.source_is_clean("after the forwarder was killed", None);
    tidy(hosts);

    start(hosts, "echo", "--network own --publish 8080");
    hosts.docker(hosts.b(), "network create own");
    hosts.migrate_with("echo", "--forward 2s");
    let ports = ".NetworkSettings.Ports";
    let port = hosts.inspect(hosts.b(), "echo", ports);
    std::thread::sleep(Duration::from_secs(3));
    hosts.source_is_clean("after the forwarder's time", None);
    eprintln!("the port Docker had chosen is kept: {port}");
    tidy(hosts);
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn connections_are_reset_and_new_ones_forwarded() {
    let hosts = Hosts::up("else", CgroupMode::V2, Suite::Forky);
    hosts.docker(hosts.a(), "network create own");
    a_published_container_leaves(&hosts);

    // Without a forwarder new connections are refused; nobody hangs.
    start(&hosts, "echo", "--publish 8080:8080");
    the_connections_end_with_a_reset(&hosts, "");
    refused(&hosts);
    hosts.source_is_clean("after the move", None);
    tidy(&hosts);

    start(&hosts, "echo", "--publish 8080:8080");
    let to = hosts.b().address().to_string();
    let said = hosts.blip(&[], &["migrate", "echo", "--to", &to, "--tcp", "keep"]);
    assert!(said.code == Some(3) && said.err.contains("--tcp close"), "{said:?}");
    let said = hosts.blip(&[], &["migrate", "--forward", "echo", "--to", &to]);
    assert!(said.code == Some(2) && said.err.contains("before --forward"), "{said:?}");
}
