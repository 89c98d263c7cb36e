//! nginx and two hundred clients that keep their connections.

use crate::hosts::Hosts;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const IMAGE: &str = "blip/nginx:latest";
const CLIENTS: usize = 200;
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(10);
const CONFIGURATION: &str = "user root root; worker_processes 2; daemon off; pid /tmp/nginx.pid; \
    error_log stderr; events { worker_connections 1024; } \
    http { access_log off; keepalive_requests 1000000; keepalive_timeout 300; \
    server { listen 80; location / { return 200 served; } } }";

/// Every request is answered, over the connection that the client began with.
pub(crate) fn serves_all_its_clients(hosts: &Hosts) {
    hosts.lab.add_further_image(IMAGE).expect("nginx's image");
    let ip = hosts.lab.container_address(2);
    let script = format!(
        "mkdir -p /var/lib/nginx /var/log/nginx; printf %s '{CONFIGURATION}' >/tmp/nginx.conf; \
         exec nginx -c /tmp/nginx.conf"
    );
    let options = format!("--network blipnet --ip {ip} --user 0");
    hosts.run("nginx", &options, IMAGE, &["sh", "-c", &script]);
    std::thread::sleep(Duration::from_millis(500));
    let stop = Arc::new(AtomicBool::new(false));
    let one = |_| {
        let stop = stop.clone();
        hosts.lab.client().spawn(move || client(ip, &stop))
    };
    let clients: Vec<_> = (0..CLIENTS).map(one).collect();
    std::thread::sleep(Duration::from_millis(1500));
    let report = hosts.migrate("nginx");
    std::thread::sleep(Duration::from_millis(1500));
    stop.store(true, Ordering::Relaxed);

    let (mut slowest, mut failed, mut requests) = (Vec::new(), Vec::new(), 0);
    for client in clients {
        match client.join().expect("thread").expect("the client's network") {
            Ok((count, longest)) => {
                requests += count;
                slowest.push(longest);
            }
            Err(error) => failed.push(error.to_string()),
        }
    }
    assert!(failed.is_empty(), "{} clients failed: {failed:?}", failed.len());
    slowest.sort_unstable();
    let at = |share: usize| slowest[(slowest.len() - 1) * share / 100].as_millis();
    eprintln!(
        "nginx: {requests} requests of {CLIENTS} clients, none failed; downtime {} ms; the slowest \
         answer of each: least {} ms, median {} ms, 90 % {} ms, 99 % {} ms, most {} ms",
        report["downtime_ms"],
        at(0),
        at(50),
        at(90),
        at(99),
        at(100)
    );
    assert!(requests > 10 * CLIENTS, "only {requests} requests");
    hosts.source_is_clean("after nginx", None);
    hosts.target_is_clean("after nginx");
}

/// Asks again and again over one connection; how often, and the slowest answer.
fn client(ip: Ipv4Addr, stop: &AtomicBool) -> io::Result<(usize, Duration)> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((ip, 80)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let since = Instant::now();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"served") {
            let mut part = [0; 1024];
            let length = stream.read(&mut part)?;
            if length == 0 {
                return Err(io::Error::other("the connection ended"));
            }
            answer.extend(&part[..length]);
        }
        if !answer.starts_with(b"HTTP/1.1 200") {
            return Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
        }
        longest = longest.max(since.elapsed());
        count += 1;
        std::thread::sleep(PAUSE);
    }
    Ok((count, longest))
}
