//! Where the lazy-pages server gets its bytes: the store, else the source.

use super::intake::{Intake, read, write};
use crate::lazy::{Local, PageSource, RemoteAnswer, RemoteInbox, Urgency};
use crate::protocol::PageRequest;
use blip_transport::link::quic::Connection;
use blip_transport::page::{PageAt, PageBytes, PageRun, SpaceId};
use blip_transport::store::{PageStore, StoredPage};
use blip_transport::units::PAGE_SIZE;
use bytes::{Buf, Bytes};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Tags before each page of an answer to a [`PageRequest`].
pub mod tag {
    /// The source has no such page.
    pub const GONE: u8 = 0;
    /// All zeros; nothing follows.
    pub const ZERO: u8 = 1;
    /// The bytes follow.
    pub const DATA: u8 = 2;
}

/// The store of a migration, seen by the lazy-pages server.
pub struct StoredPages {
    intake: Arc<Intake>,
    wanted: mpsc::UnboundedSender<PageAt>,
}

impl StoredPages {
    /// Serves out of `intake`; asks the source over `link` for what it lacks
    /// and puts the answers into `inbox`.
    pub fn new(intake: Arc<Intake>, link: Connection, inbox: RemoteInbox) -> Arc<Self> {
        let (wanted, requests) = mpsc::unbounded_channel();
        tokio::spawn(fetch(requests, link, inbox));
        Arc::new(Self { intake, wanted })
    }
}

impl PageSource for StoredPages {
    fn local(&self, at: PageAt, into: &mut PageBytes) -> Local {
        look_up(&read(&self.intake.store), at, into)
    }

    fn local_run(&self, space: SpaceId, run: PageRun, into: &mut [PageBytes], found: &mut [Local]) {
        let store = read(&self.intake.store);
        for ((index, into), found) in run.pages().zip(into).zip(found) {
            *found = look_up(&store, PageAt { space, index }, into);
        }
    }

    fn request_remote(&self, at: PageAt, _urgency: Urgency) {
        // No receiver: the link is gone, which the inbox has been told.
        let _ = self.wanted.send(at);
    }

    fn settled(&self, space: SpaceId, run: PageRun) {
        let mut store = write(&self.intake.store);
        for index in run.pages() {
            store.release(PageAt { space, index });
        }
    }
}

fn look_up(store: &PageStore, at: PageAt, into: &mut PageBytes) -> Local {
    match store.get(at) {
        None => Local::Absent,
        Some(StoredPage::Zero) => Local::Zero,
        Some(StoredPage::Data(bytes)) => {
            *into = *bytes;
            Local::Data
        }
    }
}

/// Asks for pages as they are wanted, as many at once as have piled up.
async fn fetch(mut wanted: mpsc::UnboundedReceiver<PageAt>, link: Connection, inbox: RemoteInbox) {
    let mut urgent = None;
    let mut pages = Vec::with_capacity(PageRequest::LIMIT);
    while wanted.recv_many(&mut pages, PageRequest::LIMIT).await > 0 {
        let stream = match urgent.take() {
            Some(stream) => Ok(stream),
            None => link.open_urgent().await,
        };
        let answered = match stream {
            Ok(stream) => {
                let request = PageRequest { pages: std::mem::take(&mut pages) };
                let answer = stream.request(&request).await;
                urgent = Some(stream);
                answer.map(|bytes| (request.pages, bytes))
            }
            Err(e) => Err(e),
        };
        match answered {
            Ok((asked, bytes)) => deliver(&asked, bytes, &inbox),
            Err(e) => return inbox.source_lost(e.to_string()),
        }
    }
}

/// An answer that is too short says `gone` for the rest: never zeros.
fn deliver(asked: &[PageAt], mut bytes: Bytes, inbox: &RemoteInbox) {
    for &at in asked {
        let tag = if bytes.has_remaining() { bytes.get_u8() } else { tag::GONE };
        let answer = match tag {
            tag::ZERO => RemoteAnswer::Zero,
            tag::DATA if bytes.remaining() >= PAGE_SIZE => {
                let mut page = Box::new([0; PAGE_SIZE]);
                bytes.copy_to_slice(&mut page[..]);
                RemoteAnswer::Data(page)
            }
            _ => RemoteAnswer::Gone,
        };
        inbox.answer(at, answer);
    }
}
