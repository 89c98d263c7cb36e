//! Memory that processes share moves once, ahead of the freeze, and whole.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;

use blip_bench::lab::{CgroupMode, Suite};
use hosts::Hosts;
use std::time::{Duration, Instant};

/// Three processes share 32 MiB of each kind: an anonymous mapping, a System V
/// segment, and a file in memory. All of it is filled once; in the first MiB
/// the children then write number after number, each twice. On SIGUSR1 the
/// parent writes down a digest of what stays and whether the numbers agree.
const SHARER: &str = r#"
import ctypes, hashlib, mmap, os, random, signal, struct, time
MIB = 1 << 20
SIZE, BUSY = 32 * MIB, MIB
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(0, SIZE, 0o1600)
address = libc.shmat(segment, None, 0)
file = os.memfd_create("shared")
os.ftruncate(file, SIZE)
areas = [
    memoryview(mmap.mmap(-1, SIZE)),
    memoryview((ctypes.c_char * SIZE).from_address(address)).cast("B"),
    memoryview(mmap.mmap(file, SIZE)),
]
for number, area in enumerate(areas):
    area[BUSY:] = random.Random(number).randbytes(SIZE - BUSY)
for child in range(2):
    if os.fork() == 0:
        count = 0
        while True:
            count += 1
            for area in areas:
                at = 4096 * (2 * (count % 100) + child)
                area[at:at + 16] = struct.pack("QQ", count, count)
            time.sleep(0.002)
def answer(text):
    with open("/tmp/new", "w") as file:
        file.write(text)
    os.rename("/tmp/new", "/tmp/answer")
def tell(*_):
    digest = hashlib.sha256()
    agree, latest = True, 0
    for area in areas:
        digest.update(area[BUSY:])
        for at in range(0, 200 * 4096, 4096):
            one, two = struct.unpack("QQ", area[at:at + 16])
            agree &= abs(one - two) <= 1
            latest = max(latest, one)
    answer(f"{digest.hexdigest()} {agree} {latest}")
signal.signal(signal.SIGUSR1, tell)
answer("none")
print("ready", flush=True)
while True:
    time.sleep(1)
"#;

/// Has the parent look, and answers what it found: digest, agreement, count.
fn look(hosts: &Hosts, on_target: bool) -> (String, bool, u64) {
    let host = if on_target { hosts.b() } else { hosts.a() };
    // Not by the log: one that was brought along hides as many of the newest
    // bytes from Docker.
    let answer = || hosts.docker(host, "exec sharer sh -c cat</tmp/answer");
    let (before, until) = (answer(), Instant::now() + Duration::from_secs(20));
    hosts.docker(host, "kill --signal USR1 sharer");
    let said = loop {
        let now = answer();
        if now != before {
            break now;
        }
        assert!(Instant::now() < until, "the container does not answer: {now}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let words: Vec<&str> = said.split(' ').collect();
    let [digest, agree, latest] = words[..] else { panic!("{said}") };
    (digest.into(), agree == "True", latest.parse().expect("a number"))
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn shared_memory_moves_once_and_whole() {
    let hosts = Hosts::up("shared", CgroupMode::V2, Suite::Forky);
    let command = ["python3", "-c", SHARER];
    hosts.run("sharer", "--network blipnet", "blip/python:latest", &command);
    let until = Instant::now() + Duration::from_secs(30);
    while !hosts.docker(hosts.a(), "logs sharer").contains("ready") {
        assert!(Instant::now() < until, "the container does not begin");
        std::thread::sleep(Duration::from_millis(100));
    }
    let before = look(&hosts, false);
    let (code, lines, err) = hosts.start_migration("sharer").end();
    assert_eq!(code, Some(0), "{err}\n{}", lines.join("\n"));
    let after = look(&hosts, true);
    assert_eq!((&after.0, after.1), (&before.0, true), "what was shared has changed");
    assert!(after.2 > before.2, "the children write on");

    // CRIU is kept from it, and what crosses the link inside the freeze is what
    // the children have written since.
    let events: Vec<serde_json::Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let report = events.last().expect("a report");
    let wire = |round: &serde_json::Value| round["bytes_wire"].as_u64().expect("a number");
    let first = wire(&report["rounds"][0]);
    let notes: Vec<&str> = events.iter().filter_map(|event| event["text"].as_str()).collect();
    let numbers = |begin: &str| -> Option<[u64; 2]> {
        let note = notes.iter().find(|text| text.starts_with(begin))?;
        let numbers = note.split(' ').filter_map(|word| word.parse().ok());
        numbers.collect::<Vec<_>>().try_into().ok()
    };
    let [all, crossed] = numbers("shared memory holds").expect("a note");
    eprintln!("{notes:?}; the first round {first}; downtime {} ms", report["downtime_ms"]);
    assert!(all > 90 << 20, "{notes:?}");
    assert!(crossed * 15 < all, "{notes:?}");
    let imaged = numbers("images hold").map_or(0, |[raw, _]| raw);
    assert!(imaged < 16 << 20, "CRIU has copied it, too: {notes:?}");
    assert!(first < 140 << 20, "each object is sent once: {report}");
}
