//! The client's thread: one socket, one schedule, one clock.
//!
//! Write number *n* is due at *n* ÷ rate, whatever the server does. The thread
//! sleeps in `ppoll` until the next write is due or an answer is there, so
//! sending never waits for answers and answers never wait for sending.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};

use super::dialect::{self, Answer};
use super::ledger::Ledger;
use super::link::{Asked, CHUNK, InFlight, Link, Stamped};
use super::record::{Record, Recorded};
use super::report::Connection;
use super::{Shared, Spec, lock};

/// The longest sleep: how late a stop or a new target may be noticed.
const NAP: Duration = Duration::from_millis(5);

/// How long the first answers may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many connections are kept in the report.
const KEPT_CONNECTIONS: usize = 64;

/// What the thread leaves behind.
#[derive(Default)]
pub(super) struct Finished {
    pub(super) ledger: Ledger,
    pub(super) recorded: Recorded,
    pub(super) duration_ms: f64,
    pub(super) scheduled: u64,
    pub(super) unsent: u64,
    pub(super) reconnects: u64,
    pub(super) connections: Vec<Connection>,
}

/// The thread's body: connect, say so, write until told to stop, report.
pub(super) fn run(
    spec: &Spec,
    shared: &Shared,
    ready: &Sender<Result<Instant, String>>,
    done: &Sender<Finished>,
) {
    // Without this the kernel may wake us 50 µs late. Only precision is lost
    // if it is refused.
    let _ = nix::sys::prctl::set_timerslack(1);
    // The receivers live as long as the probe; without it nobody asks.
    match Client::open(spec, shared) {
        Ok(client) => {
            let _ = ready.send(Ok(client.origin));
            let _ = done.send(client.serve());
        }
        Err(why) => {
            let _ = ready.send(Err(why));
        }
    }
}

struct Client<'a> {
    spec: &'a Spec,
    shared: &'a Shared,
    /// Of each counter, and of each thing to be read.
    counts: Vec<Vec<u8>>,
    reads: Vec<Vec<u8>>,
    origin: Instant,
    targets: Vec<SocketAddr>,
    targets_edition: u64,
    next_target: usize,
    link: Option<Link>,
    next_attempt: Instant,
    ledger: Ledger,
    record: Record,
    /// Writes that have come due / have been sent.
    due: u64,
    sent: u64,
    /// Until when answers were waited for that never came.
    gave_up_us: u64,
    reconnects: u64,
    connections: Vec<Connection>,
}

impl<'a> Client<'a> {
    fn open(spec: &'a Spec, shared: &'a Shared) -> Result<Self, String> {
        let (addr, keys) = (spec.targets[0], spec.keys());
        let dialect = spec.dialect.as_ref();
        let values = dialect::counters(dialect, addr, &keys, PATIENCE)?;
        let reads = spec.content.iter().flat_map(|c| &c.keys);
        let now = Instant::now();
        let mut client = Client {
            spec,
            shared,
            counts: keys.iter().map(|key| dialect.count(key)).collect(),
            reads: reads.map(|key| dialect.read(key)).collect(),
            origin: now,
            targets: spec.targets.clone(),
            targets_edition: 0,
            next_target: 0,
            link: None,
            next_attempt: now,
            ledger: Ledger::open(values),
            record: Record::default(),
            due: 0,
            sent: 0,
            gave_up_us: 0,
            reconnects: 0,
            connections: Vec::new(),
        };
        let link = Link::open(dialect, addr, PATIENCE).map_err(|e| e.to_string())?;
        client.origin = Instant::now();
        client.opened(addr, link);
        Ok(client)
    }

    fn serve(mut self) -> Finished {
        let patience = micros(self.spec.drain);
        let mut ended = None;
        loop {
            let now = self.now_us();
            if ended.is_none() {
                self.due = self.due_by(now);
                ended = self.shared.stop.load(Ordering::Acquire).then_some(now);
            }
            if let Some(at) = ended.filter(|at| self.settled() || now > at + patience) {
                return self.finish(at);
            }
            self.follow_target();
            self.connect();
            self.send();
            self.wait();
            self.receive();
        }
    }

    /// How many writes are due at this time: the first one is due at zero.
    fn due_by(&self, now_us: u64) -> u64 {
        let passed = u128::from(now_us) * u128::from(self.spec.rate) / 1_000_000;
        passed as u64 + 1
    }

    fn now_us(&self) -> u64 {
        micros(self.origin.elapsed())
    }

    /// Nothing is due that was not sent, nothing sent that was not answered.
    fn settled(&self) -> bool {
        let answered = self.link.as_ref().is_none_or(|l| l.in_flight.is_empty());
        answered && self.sent == self.due
    }

    fn follow_target(&mut self) {
        let edition = self.shared.targets_edition.load(Ordering::Acquire);
        if edition == self.targets_edition {
            return;
        }
        self.targets_edition = edition;
        self.targets = lock(&self.shared.targets).clone();
        let connected = self.link.as_ref().and_then(|l| l.stream.peer_addr().ok());
        if connected.is_some_and(|peer| !self.targets.contains(&peer)) {
            self.lost("told to go elsewhere");
        }
        self.next_target = 0;
        self.next_attempt = Instant::now();
    }

    fn connect(&mut self) {
        if self.link.is_some() || Instant::now() < self.next_attempt {
            return;
        }
        let to = self.targets[self.next_target % self.targets.len()];
        match Link::open(self.spec.dialect.as_ref(), to, self.spec.connect_timeout) {
            Ok(link) => self.opened(to, link),
            Err(_) => {
                self.next_target += 1;
                self.next_attempt = Instant::now() + self.spec.retry;
            }
        }
    }

    fn opened(&mut self, to: SocketAddr, link: Link) {
        self.link = Some(link);
        if self.connections.len() < KEPT_CONNECTIONS {
            self.connections.push(Connection {
                to,
                opened_ms: self.now_us() as f64 / 1e3,
                lost_ms: None,
                why: None,
            });
        }
    }

    /// Writes in flight become ambiguous, and the next target is tried.
    fn lost(&mut self, why: &str) {
        let Some(link) = self.link.take() else { return };
        if !link.in_flight.is_empty() {
            self.gave_up_us = self.now_us();
        }
        link.in_flight.iter().for_each(|request| self.unanswered(request.asked));
        self.reconnects += 1;
        self.next_target += 1;
        self.next_attempt = Instant::now();
        let now = self.now_us();
        if let Some(last) = self.connections.last_mut().filter(|c| c.lost_ms.is_none()) {
            last.lost_ms = Some(now as f64 / 1e3);
            last.why = Some(why.to_owned());
        }
    }

    /// Sends what is due, as far as the socket takes it.
    fn send(&mut self) {
        loop {
            let now = self.now_us();
            let Some(link) = &mut self.link else { return };
            while link.out.len() < CHUNK && self.sent < self.due {
                let asked = self.spec.asked(self.sent);
                link.out.extend(match asked {
                    Asked::Count(counter) => &self.counts[counter as usize],
                    Asked::Read(key) => &self.reads[key as usize],
                });
                link.in_flight.push_back(InFlight {
                    asked,
                    scheduled_us: due_at(self.sent, self.spec.rate),
                    sent_us: now,
                });
                self.sent += 1;
            }
            match link.flush() {
                Ok(true) if self.sent < self.due => {}
                Ok(_) => return,
                Err(why) => return self.lost(&why.to_string()),
            }
        }
    }

    /// Sleeps until an answer is there or the next write is due.
    fn wait(&self) {
        let next = Duration::from_micros(due_at(self.due, self.spec.rate));
        let nap = next.saturating_sub(self.origin.elapsed()).min(NAP);
        let Some(link) = &self.link else {
            return std::thread::sleep(nap.min(self.spec.retry));
        };
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, !link.out.is_empty());
        // An interrupted sleep is a short one.
        let _ = ppoll(&mut [PollFd::new(link.stream.as_fd(), flags)], Some(nap.into()), None);
    }

    /// Takes all answers that are there.
    fn receive(&mut self) {
        let Some(link) = &mut self.link else { return };
        let mut stamped = Stamped { stream: &link.stream, origin: self.origin, read_us: 0 };
        let gone = loop {
            let answer = match link.parser.next(&mut stamped) {
                Ok(Some(answer)) => answer,
                Ok(None) => break None,
                Err(why) => break Some(why),
            };
            let Some(request) = link.in_flight.pop_front() else {
                break Some("an answer nobody asked for".to_owned());
            };
            let answered = (request.scheduled_us, stamped.read_us);
            match (request.asked, answer) {
                (_, Answer::Refused(_)) => self.ledger.refused(),
                (Asked::Count(counter), answer) => match answer.number() {
                    Some(value) => {
                        self.ledger.acknowledged(counter, value);
                        self.record.acknowledged(answered.0, answered.1);
                    }
                    None => break Some(format!("an answer that is no number: {answer:?}")),
                },
                (Asked::Read(key), answer) => {
                    let is_right = self.spec.content.as_ref().is_some_and(|c| c.is(key, &answer));
                    self.ledger.read(key, is_right);
                    self.record.acknowledged(answered.0, answered.1);
                }
            }
        };
        let (now, acked) = (self.now_us(), self.ledger.acked() + self.ledger.reads());
        self.shared.acked.store(acked, Ordering::Relaxed);
        let oldest = self.link.as_ref().and_then(|l| l.in_flight.front());
        let silent = oldest.is_some_and(|w| now > w.sent_us + micros(self.spec.silence));
        match gone {
            Some(why) => self.lost(&why),
            None if silent => self.lost("silent for too long"),
            None => {}
        }
    }

    fn unanswered(&mut self, asked: Asked) {
        match asked {
            Asked::Count(counter) => self.ledger.unanswered(counter),
            Asked::Read(_) => self.ledger.unread(),
        }
    }

    fn finish(mut self, ended_us: u64) -> Finished {
        // Whoever still waits for an answer has waited until now.
        let waited_us = if self.settled() { self.gave_up_us } else { self.now_us() };
        for request in self.link.take().into_iter().flat_map(|l| l.in_flight) {
            self.unanswered(request.asked);
        }
        Finished {
            ledger: self.ledger,
            recorded: self.record.finish(ended_us.max(waited_us)),
            duration_ms: ended_us as f64 / 1e3,
            scheduled: self.due,
            unsent: self.due - self.sent,
            reconnects: self.reconnects,
            connections: self.connections,
        }
    }
}

/// When a write is due, in microseconds after the first.
pub(super) fn due_at(number: u64, rate: u32) -> u64 {
    let at = u128::from(number) * 1_000_000;
    at.div_ceil(u128::from(rate)) as u64
}

pub(super) fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}
