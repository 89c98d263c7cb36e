//! A bad road for datagrams: late, with losses, and cut when told to.
//!
//! Not every kernel has netem, so delay and loss are made here: a program that
//! stands between a client and a server of UDP and passes datagrams on, both
//! ways. To the server each client is a socket of the relay's; to a client the
//! relay is the server. What is lost follows from a seed and the number of the
//! datagram, and from nothing else.
//!
//! **Invariants**: datagrams of one direction never overtake each other; what
//! waits is bounded, and what does not fit is counted apart from what is lost
//! on purpose.

mod weather;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::probe::Place;
pub use weather::{Counts, Weather};
use weather::{Datagram, Road};

/// The longest sleep: how late a stop may be noticed.
const NAP: Duration = Duration::from_millis(10);

/// Datagrams taken from a socket before others have their turn.
const TURN: usize = 64;

/// What sockets hold while the relay is not run.
const BUFFER: usize = 8 << 20;

/// A relay at work. Dropping it ends it.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// From when until when nothing passes.
    cut: Mutex<Option<(Instant, Instant)>>,
    counts: Mutex<Counts>,
}

impl Shared {
    fn is_cut(&self, now: Instant) -> bool {
        let cut = *self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        cut.is_some_and(|(from, until)| (from..until).contains(&now))
    }
}

impl Relay {
    /// Listens at `at`, a port of its own choice if that has none, and passes
    /// on to `to`. `place` decides in which network namespace.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(
        place: &dyn Place,
        at: SocketAddr,
        to: SocketAddr,
        weather: Weather,
    ) -> io::Result<Relay> {
        let shared = Arc::new(Shared::default());
        let (tell, told) = mpsc::channel();
        let own = Arc::clone(&shared);
        let job = move || {
            let front = UdpSocket::bind(at).and_then(prepared);
            let address = front.as_ref().map_err(|e| io::Error::from(e.kind()));
            // The starter waits for this one message.
            let _ = tell.send(address.and_then(UdpSocket::local_addr));
            if let Ok(front) = front {
                Passage::new(front, to, weather).serve(&own);
            }
        };
        let thread = place.start("relay", Box::new(job))?;
        let address = told.recv().map_err(io::Error::other)??;
        Ok(Relay { address, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nothing pass for so long, beginning after `after`.
    pub fn cut(&self, after: Duration, length: Duration) {
        let from = Instant::now() + after;
        let mut cut = self.shared.cut.lock().unwrap_or_else(PoisonError::into_inner);
        *cut = Some((from, from + length));
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// Both directions between the clients and the server.
struct Passage {
    front: UdpSocket,
    to: SocketAddr,
    /// Each client, and the socket that is that client to the server.
    clients: Vec<(SocketAddr, UdpSocket)>,
    known: HashMap<SocketAddr, usize>,
    there: Road,
    back: Road,
    counts: Counts,
}

impl Passage {
    fn new(front: UdpSocket, to: SocketAddr, weather: Weather) -> Passage {
        Passage {
            front,
            to,
            clients: Vec::new(),
            known: HashMap::new(),
            there: Road::new(weather, 0),
            back: Road::new(weather, 1),
            counts: Counts::default(),
        }
    }

    fn serve(&mut self, shared: &Shared) {
        while !shared.stop.load(Ordering::Acquire) {
            self.wait();
            let now = Instant::now();
            let is_cut = shared.is_cut(now);
            self.take(now, is_cut);
            self.give(Instant::now());
            *shared.counts.lock().unwrap_or_else(PoisonError::into_inner) = self.counts;
        }
    }

    /// Sleeps until a datagram comes, or one is due.
    fn wait(&self) {
        let due = [self.there.next_due(), self.back.next_due()].into_iter().flatten().min();
        let nap = due.map_or(NAP, |due| due.saturating_duration_since(Instant::now()).min(NAP));
        let sockets = std::iter::once(&self.front).chain(self.clients.iter().map(|c| &c.1));
        let mut all: Vec<_> = sockets.map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
        // An interrupted sleep is a short one.
        let _ = ppoll(&mut all, Some(nap.into()), None);
    }

    /// Puts what has come on its road.
    fn take(&mut self, now: Instant, is_cut: bool) {
        let mut bytes = [0; 65_536];
        for _ in 0..TURN {
            let Ok((len, from)) = self.front.recv_from(&mut bytes) else { break };
            let Some(client) = self.client(from) else { continue };
            let datagram = Datagram { client, bytes: bytes[..len].to_vec() };
            self.there.put(datagram, now, is_cut, &mut self.counts);
        }
        for (client, (_, socket)) in self.clients.iter().enumerate() {
            for _ in 0..TURN {
                let Ok(len) = socket.recv(&mut bytes) else { break };
                let datagram = Datagram { client, bytes: bytes[..len].to_vec() };
                self.back.put(datagram, now, is_cut, &mut self.counts);
            }
        }
    }

    /// Passes on what is due. What a socket does not take is lost, as on any
    /// road.
    fn give(&mut self, now: Instant) {
        while let Some(datagram) = self.there.take_due(now) {
            let sent = self.clients[datagram.client].1.send(&datagram.bytes);
            self.counts.sent(sent.is_ok());
        }
        while let Some(datagram) = self.back.take_due(now) {
            let sent = self.front.send_to(&datagram.bytes, self.clients[datagram.client].0);
            self.counts.sent(sent.is_ok());
        }
    }

    /// The number of this client, who may be new.
    fn client(&mut self, from: SocketAddr) -> Option<usize> {
        if let Some(known) = self.known.get(&from) {
            return Some(*known);
        }
        let any = SocketAddr::new(self.front.local_addr().ok()?.ip(), 0);
        let socket = UdpSocket::bind(any).and_then(prepared).ok()?;
        socket.connect(self.to).ok()?;
        self.clients.push((from, socket));
        self.known.insert(from, self.clients.len() - 1);
        Some(self.clients.len() - 1)
    }
}

/// Makes a socket ready for many datagrams at once.
fn prepared(socket: UdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    for set in [
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER),
        setsockopt(&socket, sockopt::SndBufForce, &BUFFER),
    ] {
        // Not being allowed to costs losses under load only, and these count.
        set.or_else(|e| if e == nix::errno::Errno::EPERM { Ok(()) } else { Err(e) })?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Here;

    fn bound() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        socket
    }

    #[test]
    fn datagrams_pass_both_ways_and_each_client_is_itself() {
        let server = bound();
        let to = server.local_addr().expect("an address");
        let any = "127.0.0.1:0".parse().expect("an address");
        let relay = Relay::start(&Here, any, to, Weather::default()).expect("a relay");
        let (one, two) = (bound(), bound());
        let mut bytes = [0; 100];
        for (client, word) in [(&one, b"one"), (&two, b"two"), (&one, b"eno")] {
            client.send_to(word, relay.address()).expect("sent");
            let (len, from) = server.recv_from(&mut bytes).expect("it came");
            assert_eq!(bytes[..len], *word);
            server.send_to(word, from).expect("sent");
            let len = client.recv(&mut bytes).expect("it came back");
            assert_eq!(bytes[..len], *word);
        }
        relay.cut(Duration::ZERO, Duration::from_secs(60));
        one.send_to(b"lost", relay.address()).expect("sent");
        server.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
        assert!(server.recv_from(&mut bytes).is_err(), "it is cut");
    }
}
