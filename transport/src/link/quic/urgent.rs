//! Urgent requests: small questions, raw answers, ahead of all bulk data.
//!
//! Requests are pipelined: any number may be waiting, answers may come in any
//! order. A request is `u64` number and postcard; a reply is the same number
//! and raw bytes.

use super::frame::{FrameReader, FrameWriter, decode, encode};
use super::pacer::Paced;
use super::settings::Priority;
use crate::link::LinkError;
use bytes::{Buf, Bytes};
use quinn::{RecvStream, SendStream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Largest urgent request, encoded.
pub const MAX_URGENT_REQUEST: usize = 64 << 10;
/// Largest urgent reply.
pub const MAX_URGENT_REPLY: usize = 2 << 20;

/// Requests that may wait to be written before askers wait too.
const QUEUE: usize = 256;
/// Bytes of a request's number.
const NUMBER: usize = size_of::<u64>();

const NAME: &str = "urgent";

/// The asking end. Cheap to clone; all clones share one stream, which ends
/// with the last of them.
#[derive(Clone)]
pub struct Urgent(Arc<Asker>);

struct Asker {
    outbox: mpsc::Sender<(u64, Bytes)>,
    waiting: Arc<Mutex<Waiting>>,
    tasks: [JoinHandle<()>; 2],
}

/// Who waits for which reply.
#[derive(Default)]
struct Waiting {
    next: u64,
    askers: HashMap<u64, oneshot::Sender<Result<Bytes, LinkError>>>,
    /// Set once nothing can come any more.
    failed: Option<LinkError>,
}

impl Urgent {
    pub(super) fn new(send: SendStream, receive: RecvStream) -> Self {
        let waiting = Arc::<Mutex<Waiting>>::default();
        let (outbox, queue) = mpsc::channel(QUEUE);
        let writer = FrameWriter::new(send, NAME, NUMBER + MAX_URGENT_REQUEST, Priority::URGENT.0);
        let reader = FrameReader::new(receive, NAME, NUMBER + MAX_URGENT_REPLY);
        let tasks = [
            tokio::spawn(write_requests(writer, queue, waiting.clone())),
            tokio::spawn(read_replies(reader, waiting.clone())),
        ];
        Self(Arc::new(Asker { outbox, waiting, tasks }))
    }

    /// Asks, and waits for the answer. Cancel-safe: a dropped request is
    /// forgotten, its answer thrown away.
    ///
    /// # Errors
    /// The connection is lost, the other end answers no more, or the request
    /// exceeds [`MAX_URGENT_REQUEST`].
    pub async fn request<T: Serialize + ?Sized>(&self, request: &T) -> Result<Bytes, LinkError> {
        let body = encode(request, NAME)?;
        if body.len() > MAX_URGENT_REQUEST {
            let (size, limit) = (body.len() as u64, MAX_URGENT_REQUEST as u64);
            return Err(LinkError::FrameTooBig { stream: NAME, size, limit });
        }
        let (number, answer) = lock(&self.0.waiting).enlist()?;
        let _forget = Forget { waiting: &self.0.waiting, number };
        // If the writer is gone it has left its error for us.
        let _ = self.0.outbox.send((number, body)).await;
        answer.await.unwrap_or(Err(LinkError::Ended { stream: NAME }))
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Waiting {
    fn enlist(&mut self) -> Result<(u64, oneshot::Receiver<Result<Bytes, LinkError>>), LinkError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let (asker, answer) = oneshot::channel();
        let number = self.next;
        self.next += 1;
        self.askers.insert(number, asker);
        Ok((number, answer))
    }

    fn answer(&mut self, mut reply: Bytes) -> Result<(), LinkError> {
        let malformed = |why: &str| LinkError::Malformed { stream: NAME, why: why.into() };
        if reply.len() < NUMBER {
            return Err(malformed("a reply without a number"));
        }
        let number = reply.get_u64_le();
        if number >= self.next {
            return Err(malformed("a reply to a question never asked"));
        }
        // Absent if the asker has given up; it does not matter then.
        if let Some(asker) = self.askers.remove(&number) {
            let _ = asker.send(Ok(reply));
        }
        Ok(())
    }

    fn fail(&mut self, error: LinkError) {
        for (_, asker) in self.askers.drain() {
            let _ = asker.send(Err(error.clone()));
        }
        self.failed.get_or_insert(error);
    }
}

/// Strikes a request off the list when its asker stops waiting.
struct Forget<'a> {
    waiting: &'a Mutex<Waiting>,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).askers.remove(&self.number);
    }
}

async fn write_requests(
    mut writer: FrameWriter,
    mut queue: mpsc::Receiver<(u64, Bytes)>,
    waiting: Arc<Mutex<Waiting>>,
) {
    while let Some((number, body)) = queue.recv().await {
        if let Err(error) = writer.send(&number.to_le_bytes(), body).await {
            lock(&waiting).fail(error);
            return;
        }
    }
}

async fn read_replies(mut reader: FrameReader, waiting: Arc<Mutex<Waiting>>) {
    let error = loop {
        let handled = match reader.expect().await {
            Ok(reply) => lock(&waiting).answer(reply),
            Err(error) => Err(error),
        };
        if let Err(error) = handled {
            break error;
        }
    };
    lock(&waiting).fail(error);
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of a request; its reply must name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(u64);

/// A request to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<T> {
    /// To be given to [`UrgentReplies::reply`].
    pub id: RequestId,
    /// The question.
    pub what: T,
}

/// The answering end.
pub struct UrgentServer {
    requests: FrameReader,
    replies: UrgentReplies,
}

/// Sends replies. Cheap to clone: several tasks may answer.
#[derive(Clone)]
pub struct UrgentReplies(Arc<tokio::sync::Mutex<FrameWriter>>);

impl UrgentServer {
    pub(super) fn new(send: SendStream, receive: RecvStream, paced: Paced) -> Self {
        let writer = FrameWriter::new(send, NAME, NUMBER + MAX_URGENT_REPLY, Priority::URGENT.0);
        let writer = writer.paced(paced);
        Self {
            requests: FrameReader::new(receive, NAME, NUMBER + MAX_URGENT_REQUEST),
            replies: UrgentReplies(Arc::new(tokio::sync::Mutex::new(writer))),
        }
    }

    /// The next request; `None` once the asking end is done. Cancel-safe.
    ///
    /// # Errors
    /// The connection is lost, or what came is no request for a `T`.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<Asked<T>>, LinkError> {
        let Some(mut frame) = self.requests.next().await? else { return Ok(None) };
        if frame.len() < NUMBER {
            return Err(LinkError::Malformed {
                stream: NAME,
                why: "a request without a number".into(),
            });
        }
        let id = RequestId(frame.get_u64_le());
        Ok(Some(Asked { id, what: decode(&frame, NAME)? }))
    }

    /// A handle to answer with, also from other tasks.
    pub fn replies(&self) -> UrgentReplies {
        self.replies.clone()
    }
}

impl UrgentReplies {
    /// Answers request `id`. Not cancel-safe: see [the module](super).
    ///
    /// # Errors
    /// The connection is lost, nobody waits any more, or the answer exceeds
    /// [`MAX_URGENT_REPLY`].
    pub async fn reply(&self, id: RequestId, answer: Bytes) -> Result<(), LinkError> {
        self.0.lock().await.send(&id.0.to_le_bytes(), answer).await
    }
}
