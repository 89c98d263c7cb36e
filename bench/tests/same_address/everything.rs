//! A container that holds one of everything moves, and finds all of it again:
//! connections made from either side with bytes in both queues, IPv4 and IPv6,
//! and whatever a process can hold open.

use crate::hosts::{DualStack, Hosts};
use blip_bench::capture::{Frame, Move, objections};
use blip_bench::lab::Client;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PROGRAM: &str = include_str!("program.py");
/// Bytes that each connection of the client sends.
const INBOUND: usize = 300_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Moves it, and has the segment watched meanwhile.
pub(crate) fn finds_all_of_it_again(hosts: &Hosts, net: &DualStack) {
    let mut stage = Stage::set(hosts, net.client, net.container);
    let counts = stage.ask("ready");
    let writers = stage.send_streams();
    stage.send_datagrams();
    std::thread::sleep(Duration::from_millis(300));

    let mac = mac_of(&hosts.inspect(hosts.a(), "everything", MAC));
    let recording = hosts.lab.record().expect("a recording");
    let (report, grant) = hosts.start_migration("everything").granted();
    eprintln!("downtime {} ms; in the queues: {counts}", report["downtime_ms"]);
    assert_eq!(stage.ask("echo"), "echo");
    let knocks: Vec<_> = stage.there.iter().map(|&there| knock(&stage.client, there)).collect();
    let seen = stage.ask("check");
    let bad: Vec<_> = seen
        .as_object()
        .expect("a list of checks")
        .iter()
        .filter(|(name, said)| *name != "sent" && **said != "ok")
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(seen.as_object().is_some_and(|all| all.len() > 15), "{seen}");
    for knock in knocks {
        assert_eq!(knock.join().expect("thread").expect("the client's network"), "come in");
    }
    stage.read_streams(&seen["sent"]);
    stage.read_answers();
    for writer in writers {
        writer.join().expect("what was sent was taken");
    }
    let frames = recording.end().expect("a whole recording");
    let (from, to) = ("to-a".to_owned(), "to-b".to_owned());
    let moved = Move { mac, addresses: net.container.into(), from, to, grant };
    the_segment_saw_one_owner(&frames, &moved);
    hosts.source_is_clean("after everything", None);
    hosts.target_is_clean("after everything");
}

const MAC: &str = "range .NetworkSettings.Networks}}{{.MacAddress}}{{end";

fn mac_of(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a MAC address")).collect();
    bytes.try_into().expect("six bytes")
}

/// And would have told of two: the same recording, doctored, is objected to.
fn the_segment_saw_one_owner(frames: &[Frame], moved: &Move) {
    let told = objections(frames, moved);
    assert!(told.is_empty(), "{told:#?}");
    let of = |port: &str| {
        let spoken = |f: &&Frame| f.port == port && f.mac == moved.mac;
        frames.iter().filter(spoken).cloned().collect::<Vec<_>>()
    };
    let (old, new) = (of(&moved.from), of(&moved.to));
    let (last, first) = (old.last().expect("frames"), new.first().expect("frames"));
    eprintln!(
        "{} frames: {} of the source, the target's {} from {:.1?} later on, {:.1?} after the grant",
        frames.len(),
        old.len(),
        new.len(),
        first.at - last.at,
        first.at - moved.grant
    );
    let late = Frame { at: first.at + Duration::from_micros(1), ..last.clone() };
    let early = Frame { at: moved.grant - Duration::from_micros(1), ..first.clone() };
    for (fault, word) in [(late, "after the target's first"), (early, "before the grant")] {
        let told = objections(&[frames, &[fault]].concat(), moved).join("; ");
        assert!(told.contains(word), "{told}");
    }
}

struct Stage {
    client: Client,
    control: BufReader<TcpStream>,
    streams: BTreeMap<String, TcpStream>,
    datagrams: Vec<UdpSocket>,
    /// The container's addresses.
    there: [IpAddr; 2],
}

impl Stage {
    /// Starts the program and opens what the client has to open.
    fn set(hosts: &Hosts, here: [IpAddr; 2], there: [IpAddr; 2]) -> Self {
        let client = hosts.lab.client();
        let [out4, out6] = here.map(|here| accept_one(&client, SocketAddr::new(here, 9000)));
        let options = format!("--network blipnet --ip {} --ip6 {}", there[0], there[1]);
        let (here4, here6) = (here[0].to_string(), here[1].to_string());
        let command = ["python3", "-c", PROGRAM, &here4, &here6];
        hosts.run("everything", &options, "blip/python:latest", &command);
        let control = connect(&client, SocketAddr::new(there[0], 7000));
        let opened = [
            ("in_v4", connect(&client, SocketAddr::new(there[0], 7001))),
            ("in_v6", connect(&client, SocketAddr::new(there[1], 7001))),
            ("out_v4", out4.join().expect("thread").expect("the client's network")),
            ("out_v6", out6.join().expect("thread").expect("the client's network")),
        ];
        let bind = move || here.map(|here| UdpSocket::bind((here, 9001)).expect("port 9001"));
        let datagrams = client.spawn(bind).join().expect("thread").expect("the client's network");
        Self {
            client,
            control: BufReader::new(control),
            streams: opened.map(|(name, stream)| (name.to_owned(), stream)).into(),
            datagrams: datagrams.into(),
            there,
        }
    }

    /// Says a word to the program and hears its answer.
    fn ask(&mut self, word: &str) -> Value {
        self.control.get_mut().write_all(format!("{word}\n").as_bytes()).expect("the control");
        let mut line = String::new();
        self.control.read_line(&mut line).expect("an answer");
        let plain = || Value::String(line.trim().to_owned());
        serde_json::from_str(&line).unwrap_or_else(|_| plain())
    }

    /// Sends more than the container's queues hold: the rest waits here.
    fn send_streams(&self) -> Vec<JoinHandle<()>> {
        let send = |(name, stream): (&String, &TcpStream)| {
            let mut stream = stream.try_clone().expect("a copy");
            let bytes = pattern(seed(name) + 100, INBOUND);
            std::thread::spawn(move || stream.write_all(&bytes).expect("sending"))
        };
        self.streams.iter().map(send).collect()
    }

    fn send_datagrams(&self) {
        for (socket, there) in self.datagrams.iter().zip(self.there) {
            for (port, number) in [7003, 7004].into_iter().flat_map(|p| (0..3).map(move |n| (p, n)))
            {
                let text = format!("datagram {number}");
                socket.send_to(text.as_bytes(), (there, port)).expect("a datagram");
            }
        }
    }

    /// Every byte that the program sent, before the move and since.
    fn read_streams(&mut self, sent: &Value) {
        for (name, stream) in &mut self.streams {
            let length = sent[name].as_u64().expect("a count") as usize;
            assert!(length > 100_000, "{name}: only {length} bytes were sent");
            let mut bytes = vec![0; length];
            stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
            stream.read_exact(&mut bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(bytes == pattern(seed(name), length), "{name}: other bytes than were sent");
        }
    }

    fn read_answers(&self) {
        for socket in &self.datagrams {
            socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
            let mut answers = BTreeMap::new();
            for _ in 0..6 {
                let mut answer = [0; 64];
                let (length, from) = socket.recv_from(&mut answer).expect("an answer");
                let text = String::from_utf8_lossy(&answer[..length]).into_owned();
                answers.entry(from.port()).or_insert_with(Vec::new).push(text);
            }
            let all = ["answer 0", "answer 1", "answer 2"].map(str::to_owned).to_vec();
            assert_eq!(answers, [(7003, all.clone()), (7004, all)].into());
        }
    }
}

fn seed(name: &str) -> usize {
    ["in_v4", "in_v6", "out_v4", "out_v6"].iter().position(|n| *n == name).expect("a name") + 1
}

/// The same as in the program.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (seed * 31 + i % 65536 * 7 + ((i % 65536) >> 8) * 13) as u8).collect()
}

fn accept_one(client: &Client, at: SocketAddr) -> JoinHandle<blip_bench::lab::Result<TcpStream>> {
    let (tell, told) = std::sync::mpsc::channel();
    let accepting = client.spawn(move || {
        let listener = TcpListener::bind(at).expect("port 9000");
        tell.send(()).expect("somebody waits");
        listener.accept().expect("a connection").0
    });
    told.recv_timeout(PATIENCE).expect("a listener");
    accepting
}

/// Connects as soon as somebody listens.
fn connect(client: &Client, to: SocketAddr) -> TcpStream {
    let connecting = client.spawn(move || {
        let until = Instant::now() + PATIENCE;
        loop {
            match TcpStream::connect_timeout(&to, Duration::from_secs(5)) {
                Ok(stream) => return stream,
                Err(e) => assert!(Instant::now() < until, "{to}: {e}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    connecting.join().expect("thread").expect("the client's network")
}

/// Somebody new at the listening socket.
fn knock(client: &Client, there: IpAddr) -> JoinHandle<blip_bench::lab::Result<String>> {
    client.spawn(move || {
        let mut stream = TcpStream::connect((there, 7002)).expect("a connection");
        stream.write_all(b"knock").expect("sending");
        let mut said = [0; 7];
        stream.read_exact(&mut said).expect("an answer");
        String::from_utf8_lossy(&said).into_owned()
    })
}
