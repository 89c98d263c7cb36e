//! An open connection of the client: what goes out, what is awaited, what
//! comes back, and when.
//!
//! The socket is our own, and not a client library's, because these would hide
//! when a connection was lost and with which requests in flight.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::dialect::{Dialect, Parse};

/// At most this much is encoded ahead of the socket.
pub(super) const CHUNK: usize = 64 << 10;

/// An open connection.
pub(super) struct Link {
    pub(super) stream: TcpStream,
    pub(super) parser: Box<dyn Parse>,
    pub(super) out: Vec<u8>,
    written: usize,
    pub(super) in_flight: VecDeque<InFlight>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To count up the counter of this number.
    Count(u32),
    /// What is kept at the key of this number.
    Read(u32),
}

/// A request that was sent and not yet answered.
pub(super) struct InFlight {
    pub(super) asked: Asked,
    pub(super) scheduled_us: u64,
    pub(super) sent_us: u64,
}

/// Reads from the socket and remembers when it last gave bytes.
pub(super) struct Stamped<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) origin: Instant,
    pub(super) read_us: u64,
}

impl Read for Stamped<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let answer = self.stream.read(into);
            match answer {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(some) => {
                    self.read_us = self.origin.elapsed().as_micros() as u64;
                    return Ok(some);
                }
            }
        }
    }
}

impl Link {
    pub(super) fn open(
        dialect: &dyn Dialect,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<Link> {
        let stream = TcpStream::connect_timeout(&to, patience)?;
        // On loopback a client that tries long enough is given the very port
        // it calls, and then talks to itself.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(io::Error::from(ErrorKind::ConnectionRefused));
        }
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Link::of(dialect, stream))
    }

    /// A connection that is open, or about to be.
    pub(super) fn of(dialect: &dyn Dialect, stream: TcpStream) -> Link {
        let mut out = Vec::with_capacity(2 * CHUNK);
        out.extend(dialect.greeting());
        Link { stream, parser: dialect.parser(), out, written: 0, in_flight: VecDeque::new() }
    }

    /// Writes what is encoded; `true` when all of it went out.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while self.written < self.out.len() {
            match (&self.stream).write(&self.out[self.written..]) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero)),
                Ok(some) => self.written += some,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(true)
    }
}
