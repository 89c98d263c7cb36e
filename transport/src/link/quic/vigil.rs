//! A closer watch on the other end, for times in which waiting costs.
//!
//! The idle timeout is generous: a host that is busy for a second must not end
//! a migration that has copied for minutes. While a container stands still
//! nobody has that patience. Both ends show life every
//! [`KEEP_ALIVE`](super::settings::KEEP_ALIVE), so silence is told apart from
//! having nothing to say by counting datagrams.

use super::connection::{CloseCode, Connection};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often the count is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Closes a connection as soon as nothing at all has come for a while. Ends
/// with the value.
#[derive(Debug)]
pub struct Vigil {
    watching: JoinHandle<()>,
    silent: Arc<AtomicBool>,
}

impl Vigil {
    /// Watches from now on; `limit` should be several
    /// [`KEEP_ALIVE`](super::settings::KEEP_ALIVE).
    pub fn keep(link: &Connection, limit: Duration) -> Self {
        let silent = Arc::new(AtomicBool::new(false));
        let watching = tokio::spawn(watch(link.clone(), limit, silent.clone()));
        Self { watching, silent }
    }

    /// Whether the connection was closed by this watch.
    pub fn saw_silence(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }
}

impl Drop for Vigil {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

async fn watch(link: Connection, limit: Duration, silent: Arc<AtomicBool>) {
    let (mut seen, mut since) = (link.stats().received, Instant::now());
    loop {
        let asleep = Instant::now();
        tokio::time::sleep(LOOK).await;
        let received = link.stats().received;
        // If this process itself was held up, what came meanwhile has not been
        // counted yet: that is no silence of the other end's.
        let held_up = asleep.elapsed() > LOOK * 4;
        if received != seen || held_up {
            (seen, since) = (received, Instant::now());
        } else if since.elapsed() >= limit {
            silent.store(true, Ordering::Relaxed);
            return link.close(CloseCode::Aborted, "nothing was heard any more").await;
        }
    }
}
