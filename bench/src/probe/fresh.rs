//! The client that opens a connection for every request.
//!
//! As open a loop as the other: request number *n* is due at *n* ÷ rate, and a
//! latency runs from there, the handshake included. Requests do not wait for
//! each other, so while the server is gone they pile up, as strangers at its
//! door would. None is tried again: what the kernel's own patience does not
//! get through has failed.
//!
//! Requests overtake each other, so the answers prove less than those of one
//! connection: only that a counter ends between what was acknowledged and what
//! was asked for.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};
use serde::{Deserialize, Serialize};

use super::client::{due_at, micros};
use super::dialect::{Answer, counters};
use super::ledger::Settlement;
use super::link::{Asked, InFlight, Link, Stamped};
use super::record::{Bucket, Gap, Latency, Record, Recorded};
use super::{Shared, Spec, lock};

/// The longest sleep: how late a stop may be noticed.
const NAP: Duration = Duration::from_millis(5);

/// How many reasons of failures are kept.
const KEPT_REASONS: usize = 5;

/// What came of requests over new connections.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Strangers {
    /// Requests a second that were due.
    pub rate: u32,
    /// Requests that came due.
    pub scheduled: u64,
    /// Those answered well.
    pub answered: u64,
    /// Those refused, reset, or never answered.
    pub failed: u64,
    /// Why, the first few.
    pub reasons: Vec<String>,
    /// Reads that answered something else than what is kept.
    pub changed: u64,
    /// From the moment a request was due, the handshake included.
    pub latency: Latency,
    /// The longest time without an answer to any of them.
    pub longest_gap: Gap,
    /// 10 ms buckets.
    pub timeline: Vec<Bucket>,
    /// When requests that failed had been due, in milliseconds.
    #[serde(skip)]
    pub failed_ms: Vec<f64>,
    /// Every answer.
    #[serde(skip)]
    pub recorded: Recorded,
    /// Who is owed what.
    #[serde(skip)]
    pub account: Account,
}

/// What was asked of each counter, and what was acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Account {
    first: Vec<u64>,
    asked: Vec<u64>,
    acked: Vec<u64>,
}

impl Account {
    /// Opens it with each counter's value before the first write.
    pub fn open(first: Vec<u64>) -> Account {
        let none = vec![0; first.len()];
        Account { asked: none.clone(), acked: none, first }
    }

    /// Compares the counters as they are now with what was told.
    pub fn settle(&self, values: &[u64]) -> Settlement {
        let mut settled = Settlement { acked: self.acked.iter().sum(), ..Settlement::default() };
        for (at, first) in self.first.iter().enumerate() {
            let value = values.get(at).copied().unwrap_or_default();
            settled.missing += (first + self.acked[at]).saturating_sub(value);
            settled.surplus += value.saturating_sub(first + self.asked[at]);
        }
        settled.found = settled.acked.saturating_sub(settled.missing);
        settled
    }
}

/// Asks until told to stop.
pub(super) fn run(spec: &Spec, shared: &Shared, origin: Instant) -> Result<Strangers, String> {
    let keys = spec.fresh_keys();
    let dialect = spec.dialect.as_ref();
    let first = counters(dialect, spec.targets[0], &keys, Duration::from_secs(5))?;
    let begin = micros(origin.elapsed());
    let mut strangers = At {
        spec,
        shared,
        origin,
        begin,
        keys,
        open: Vec::new(),
        record: Record::default(),
        seen: Strangers {
            rate: spec.fresh_rate,
            account: Account::open(first),
            ..Strangers::default()
        },
    };
    strangers.serve();
    Ok(strangers.finish())
}

struct At<'a> {
    spec: &'a Spec,
    shared: &'a Shared,
    origin: Instant,
    /// When the first request was due, in microseconds since the origin.
    begin: u64,
    keys: Vec<String>,
    open: Vec<Link>,
    record: Record,
    seen: Strangers,
}

impl At<'_> {
    fn serve(&mut self) {
        let patience = micros(self.spec.drain);
        let mut ended = None;
        loop {
            let now = self.now_us();
            if ended.is_none() {
                while self.due_us(self.seen.scheduled) <= now {
                    self.begin(self.seen.scheduled);
                    self.seen.scheduled += 1;
                }
                ended = self.shared.stop.load(Ordering::Acquire).then_some(now);
            }
            if ended.is_some_and(|at| self.open.is_empty() || now > at + patience) {
                return;
            }
            self.wait();
            self.go_on();
        }
    }

    fn now_us(&self) -> u64 {
        micros(self.origin.elapsed())
    }

    fn due_us(&self, number: u64) -> u64 {
        self.begin + due_at(number, self.spec.fresh_rate)
    }

    /// Opens a connection and puts its only question into it.
    fn begin(&mut self, number: u64) {
        let due = self.due_us(number);
        let to = lock(&self.shared.targets)[0];
        let asked = self.spec.asked_by_a_stranger(number);
        let dialect = self.spec.dialect.as_ref();
        let question = match asked {
            Asked::Count(counter) => {
                self.seen.account.asked[counter as usize] += 1;
                dialect.count(&self.keys[counter as usize])
            }
            Asked::Read(key) => {
                let content = self.spec.content.as_ref();
                dialect.read(content.map_or("", |c| c.keys[key as usize].as_str()))
            }
        };
        match call(to) {
            Ok(stream) => {
                let mut link = Link::of(dialect, stream);
                link.out.extend(question);
                let sent_us = self.now_us();
                link.in_flight.push_back(InFlight { asked, scheduled_us: due, sent_us });
                self.open.push(link);
            }
            Err(e) => self.failed(due, e.desc().to_owned()),
        }
    }

    fn wait(&self) {
        let next = Duration::from_micros(self.due_us(self.seen.scheduled));
        let nap = next.saturating_sub(self.origin.elapsed()).min(NAP);
        let wants = |link: &Link| {
            if link.out.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT }
        };
        let mut all: Vec<_> =
            self.open.iter().map(|l| PollFd::new(l.stream.as_fd(), wants(l))).collect();
        // An interrupted sleep is a short one.
        let _ = ppoll(&mut all, Some(nap.into()), None);
    }

    /// Takes every connection as far as it goes.
    fn go_on(&mut self) {
        let silence = micros(self.spec.silence);
        for mut link in std::mem::take(&mut self.open) {
            let Some(request) = link.in_flight.front() else { continue };
            let (due, asked) = (request.scheduled_us, request.asked);
            let late = self.now_us() > request.sent_us + silence;
            match answer(&mut link, self.origin) {
                Ok(Some((answer, at))) => self.answered(asked, answer, due, at),
                Ok(None) if late => self.failed(due, "no answer in time".to_owned()),
                Ok(None) => self.open.push(link),
                Err(why) => self.failed(due, why),
            }
        }
    }

    fn answered(&mut self, asked: Asked, answer: Answer, due: u64, at: u64) {
        match (asked, answer) {
            (_, Answer::Refused(why)) => return self.failed(due, why),
            (Asked::Count(counter), answer) if answer.number().is_some() => {
                self.seen.account.acked[counter as usize] += 1;
            }
            (Asked::Count(_), answer) => return self.failed(due, format!("answer {answer:?}")),
            (Asked::Read(key), answer) => {
                let is_right = self.spec.content.as_ref().is_some_and(|c| c.is(key, &answer));
                self.seen.changed += u64::from(!is_right);
            }
        }
        self.seen.answered += 1;
        self.record.acknowledged(due, at);
    }

    fn failed(&mut self, due: u64, why: String) {
        self.seen.failed += 1;
        self.seen.failed_ms.push(due as f64 / 1e3);
        if self.seen.reasons.len() < KEPT_REASONS && !self.seen.reasons.contains(&why) {
            self.seen.reasons.push(why);
        }
    }

    fn finish(mut self) -> Strangers {
        for link in std::mem::take(&mut self.open) {
            let due = link.in_flight.front().map_or(0, |r| r.scheduled_us);
            self.failed(due, "no answer until the end".to_owned());
        }
        let end = self.now_us();
        let recorded = self.record.finish(end);
        Strangers {
            latency: recorded.latency,
            longest_gap: recorded.gaps.first().copied().unwrap_or_default(),
            timeline: recorded.timeline.clone(),
            recorded,
            ..self.seen
        }
    }
}

/// Begins to connect.
fn call(to: SocketAddr) -> Result<TcpStream, Errno> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(family, SockType::Stream, flags, None)?;
    let stream = TcpStream::from(socket);
    // Only a little time is lost where it is refused.
    let _ = stream.set_nodelay(true);
    match socket::connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(stream),
        Err(e) => Err(e),
    }
}

/// Sends what is to be sent, and gives the answer and when it came.
fn answer(link: &mut Link, origin: Instant) -> Result<Option<(Answer, u64)>, String> {
    if !link.flush().map_err(|e| e.to_string())? {
        return Ok(None);
    }
    let mut stamped = Stamped { stream: &link.stream, origin, read_us: 0 };
    let answer = link.parser.next(&mut stamped)?;
    Ok(answer.map(|answer| (answer, stamped.read_us)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_end_between_what_was_acknowledged_and_what_was_asked() {
        let mut account = Account::open(vec![5, 0]);
        (account.asked, account.acked) = (vec![3, 2], vec![2, 2]);
        assert_eq!(account.settle(&[7, 2]).missing, 0);
        assert_eq!(account.settle(&[8, 2]).surplus, 0, "one was not answered");
        assert_eq!(account.settle(&[6, 2]).missing, 1);
        assert_eq!(account.settle(&[9, 3]).surplus, 2);
    }
}
