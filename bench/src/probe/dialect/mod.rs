//! What a client and a server say to each other: one protocol, one file.
//!
//! A dialect puts two things into words: *count this counter up and tell me its
//! new value* (an acknowledged write) and *give me this* (a read whose content
//! is known beforehand). It is all that the probe knows about a workload.
//!
//! **Invariant**: servers answer in the order they were asked, so an answer
//! need not say which question it belongs to.

pub mod http;
pub mod memcached;
pub mod postgres;
pub mod resp;

use std::fmt::Debug;
use std::io::{self, ErrorKind, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A protocol.
pub trait Dialect: Debug + Send + Sync {
    /// What a connection begins with, before the first question.
    fn greeting(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Counts `key` up by one and answers the new value.
    fn count(&self, key: &str) -> Vec<u8>;

    /// Answers what is kept at `key`.
    fn read(&self, key: &str) -> Vec<u8>;

    /// Asks for a counter's value without changing it.
    fn look(&self, key: &str) -> Vec<u8> {
        self.read(key)
    }

    /// Understands the answers of one connection.
    fn parser(&self) -> Box<dyn Parse>;
}

/// Understands a connection's answers.
pub trait Parse: Send {
    /// The next answer, or `None` if there is no whole one yet. Reads only
    /// when what was read before holds none.
    ///
    /// # Errors
    /// When the connection is closed or broken, or what comes is no answer.
    fn next(&mut self, from: &mut dyn Read) -> Result<Option<Answer>, String>;
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A number.
    Count(u64),
    /// What is kept somewhere.
    Content(Vec<u8>),
    /// No: nothing was done.
    Refused(String),
}

impl Answer {
    /// The number it is, or spells.
    pub fn number(&self) -> Option<u64> {
        match self {
            Answer::Count(number) => Some(*number),
            Answer::Content(text) => std::str::from_utf8(text).ok()?.trim().parse().ok(),
            Answer::Refused(_) => None,
        }
    }
}

/// How many bytes at the front are a whole message, and what answer it is;
/// `None`: there is more to come. A message may be no answer to anything.
type Cut = Result<Option<(usize, Option<Answer>)>, String>;

/// Gathers bytes until a whole message is there.
struct Cutter {
    cut: fn(&[u8]) -> Cut,
    bytes: Vec<u8>,
    eaten: usize,
}

impl Cutter {
    fn new(cut: fn(&[u8]) -> Cut) -> Self {
        Cutter { cut, bytes: Vec::new(), eaten: 0 }
    }
}

impl Parse for Cutter {
    fn next(&mut self, from: &mut dyn Read) -> Result<Option<Answer>, String> {
        loop {
            match (self.cut)(&self.bytes[self.eaten..])? {
                Some((len, answer)) => {
                    self.eaten += len;
                    match answer {
                        Some(answer) => return Ok(Some(answer)),
                        None => continue,
                    }
                }
                None => {
                    self.bytes.drain(..self.eaten);
                    self.eaten = 0;
                }
            }
            let mut more = [0; 16 << 10];
            match from.read(&mut more) {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(some) => self.bytes.extend(&more[..some]),
                Err(e) if is_silence(&e) => return Ok(None),
                Err(e) => return Err(e.to_string()),
            }
        }
    }
}

/// Whether a read found nothing, for now.
fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A conversation that waits for its answers, for filling and checking.
pub struct Talk {
    stream: TcpStream,
    parser: Box<dyn Parse>,
}

/// How many questions are asked before their answers are waited for.
const AHEAD: usize = 64;

impl Talk {
    /// Connects from the calling thread's network namespace.
    ///
    /// # Errors
    /// When nobody answers within `patience`, which is also the limit for each
    /// later answer.
    pub fn open(dialect: &dyn Dialect, addr: SocketAddr, patience: Duration) -> io::Result<Talk> {
        let mut stream = TcpStream::connect_timeout(&addr, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(&dialect.greeting())?;
        Ok(Talk { stream, parser: dialect.parser() })
    }

    /// Asks one question.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub fn ask(&mut self, question: &[u8]) -> Result<Answer, String> {
        self.stream.write_all(question).map_err(|e| e.to_string())?;
        self.answer()
    }

    /// Asks many questions, some ahead of their answers.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub fn ask_all<Q: AsRef<[u8]>>(
        &mut self,
        questions: impl IntoIterator<Item = Q>,
        mut answered: impl FnMut(usize, Answer) -> Result<(), String>,
    ) -> Result<(), String> {
        let (mut asked, mut told) = (0, 0);
        for question in questions {
            self.stream.write_all(question.as_ref()).map_err(|e| e.to_string())?;
            asked += 1;
            if asked - told > AHEAD {
                answered(told, self.answer()?)?;
                told += 1;
            }
        }
        while told < asked {
            answered(told, self.answer()?)?;
            told += 1;
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<Answer, String> {
        let answer = self.parser.next(&mut self.stream)?;
        answer.ok_or_else(|| "no answer in time".to_owned())
    }
}

/// The counters' values; one that is not there counts 0.
///
/// # Errors
/// When the server does not answer.
pub fn counters(
    dialect: &dyn Dialect,
    addr: SocketAddr,
    keys: &[String],
    patience: Duration,
) -> Result<Vec<u64>, String> {
    let why = |e: &dyn std::fmt::Display| format!("could not read the counters at {addr}: {e}");
    let mut values = vec![0; keys.len()];
    let mut talk = Talk::open(dialect, addr, patience).map_err(|e| why(&e))?;
    let asked = talk.ask_all(keys.iter().map(|key| dialect.look(key)), |at, answer| {
        values[at] = answer.number().unwrap_or_default();
        Ok(())
    });
    asked.map_err(|e| why(&e)).map(|()| values)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers come in pieces of any size, and are the same.
    pub(super) fn in_pieces(dialect: &dyn Dialect, bytes: &[u8]) -> Vec<Answer> {
        let mut seen: Vec<Vec<Answer>> = Vec::new();
        for size in [1, 2, 7, bytes.len()] {
            let mut parser = dialect.parser();
            let mut answers = Vec::new();
            for piece in bytes.chunks(size) {
                let mut source = Piece(piece);
                while let Some(answer) = parser.next(&mut source).expect("understood") {
                    answers.push(answer);
                }
            }
            seen.push(answers);
        }
        seen.dedup();
        assert_eq!(seen.len(), 1, "pieces matter: {seen:?}");
        seen.remove(0)
    }

    struct Piece<'a>(&'a [u8]);

    impl Read for Piece<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { self.0.read(into) }
        }
    }

    #[test]
    fn numbers_may_be_spelled() {
        assert_eq!(Answer::Content(b"12\n".to_vec()).number(), Some(12));
        assert_eq!(Answer::Content(b"twelve".to_vec()).number(), None);
        assert_eq!(Answer::Refused("12".to_owned()).number(), None);
    }
}
