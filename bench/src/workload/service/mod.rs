//! Services that are moved: one service, one file.
//!
//! A service says which container it is, how clients speak to it, how it is
//! filled, and afterwards what is not as it was. Which requests were
//! acknowledged is the probe's business and the same for all.
//!
//! **Invariant**: everything in a service's memory or files that a client could
//! ask for is either counted by the probe, or known from a seed, or checked by
//! the service itself; [`Holdings::changed`] says which part of it is wrong.

pub mod memcached;
pub mod nginx;
pub mod pool;
pub mod postgres;
pub mod redis;
pub mod web;
pub mod writer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::writer::Stats;
use crate::lab::Application;
use crate::probe::Content;
use crate::probe::dialect::{Dialect, Talk};

/// How long a service may take to answer: a large one fills its memory first.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How many keys a client that reads goes round.
const READ_KEYS: usize = 10_000;

/// What `docker run` is told.
#[derive(Clone, Debug)]
pub struct Container {
    /// The image.
    pub image: &'static str,
    /// What the image is made of, where not every lab has it.
    pub application: Option<&'static Application>,
    /// Words for `docker run` itself.
    pub options: Vec<String>,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Where it listens.
    pub port: u16,
}

impl Container {
    fn made_of(application: &'static Application, command: &[&str], port: u16) -> Container {
        let application = Some(application);
        Container {
            application,
            ..Container::of(application.map_or("", |a| a.image), command, port)
        }
    }

    fn of(image: &'static str, command: &[&str], port: u16) -> Container {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        Container { image, application: None, options: Vec::new(), command, port }
    }
}

/// A service. What has an address is called at the client's place.
pub trait Service: Send + Sync {
    /// What it is, in a few words.
    fn describe(&self) -> String;

    /// Bytes of data it holds.
    fn memory(&self) -> u64;

    /// The container it runs in.
    fn container(&self) -> Container;

    /// How clients speak to it.
    fn dialect(&self) -> Arc<dyn Dialect>;

    /// The most requests a second that it is asked, where that is few.
    fn most_requests(&self) -> Option<u32> {
        None
    }

    /// Whether clients can only read.
    fn only_reads(&self) -> bool {
        false
    }

    /// A program that loads it beside the probe.
    fn crowd(&self, _addr: SocketAddr) -> Option<Crowd> {
        None
    }

    /// Waits until it answers, fills it, and makes the counters that clients
    /// will count with.
    ///
    /// # Errors
    /// When it does not answer, or does not hold what was put into it.
    fn settle(&self, addr: SocketAddr, counters: &[String]) -> Result<Arc<dyn Holdings>>;
}

/// What a service held before it was moved.
pub trait Holdings: Send + Sync {
    /// What clients may read; empty if they cannot.
    fn content(&self) -> Arc<Content> {
        Arc::default()
    }

    /// What is not as it was, one line each.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn changed(&self, addr: SocketAddr) -> Result<Vec<String>>;

    /// What it has done so far, if it is one that does something by itself.
    fn stats(&self, _addr: SocketAddr) -> Option<Stats> {
        None
    }
}

/// A program that is a client of its own beside the probe, and how it is called.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// Whose root it is run from.
    pub application: &'static Application,
    /// The words that prepare the service for it.
    pub prepare: Vec<String>,
    /// The words that have it work until it is killed.
    pub run: Vec<String>,
}

/// Opens a conversation, trying until the service answers `question`.
fn ready(dialect: &dyn Dialect, addr: SocketAddr, question: &[u8]) -> Result<Talk> {
    let began = Instant::now();
    loop {
        let opened = Talk::open(dialect, addr, Duration::from_secs(60)).map_err(|e| e.to_string());
        let why = match opened.and_then(|mut talk| talk.ask(question).map(|_| talk)) {
            Ok(talk) => return Ok(talk),
            Err(why) => why,
        };
        if began.elapsed() > PATIENCE {
            return Err(anyhow!("nobody answers at {addr}: {why}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Opens a conversation with a service that has answered before.
fn again(dialect: &dyn Dialect, addr: SocketAddr) -> Result<Talk> {
    Talk::open(dialect, addr, PATIENCE).map_err(|e| anyhow!("nobody answers at {addr}: {e}"))
}

/// Asks for every key of `content` again and counts those that are different.
fn compare(dialect: &dyn Dialect, addr: SocketAddr, content: &Content) -> Result<Vec<String>> {
    let mut talk = again(dialect, addr)?;
    let mut wrong = Vec::new();
    let questions = content.keys.iter().map(|key| dialect.read(key));
    let asked = talk.ask_all(questions, |at, answer| {
        if !content.is(at as u32, &answer) {
            wrong.push(content.keys[at].clone());
        }
        Ok(())
    });
    asked.map_err(|why| anyhow!("reading everything at {addr}: {why}"))?;
    let all = content.keys.len();
    let first = wrong.first().map(|first| {
        format!("{} of {all} values are not what they were, {first} for one", wrong.len())
    });
    Ok(first.into_iter().collect())
}
