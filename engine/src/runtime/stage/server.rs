//! The agent's end of the stage: one socket, one stream of events.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::wire::{self, HolderOrder, HookOrder, MAX_LINE, Report, RestoreSpec};
use super::{StageDir, StageError};

/// What happens on the stage, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageEvent {
    /// What the holder or the hook says. After [`Report::StartAsked`] a restore
    /// may be ordered; after [`Report::Held`] say [`go`](StageServer::go) or
    /// [`die`](StageServer::die).
    Said(Report),
    /// The hook left before it was told anything: nothing can run any more.
    HookGone,
    /// The holder's end of the socket is closed. Expected after `Restored`
    /// and `Failed`; otherwise Docker or somebody else ended it.
    HolderGone,
}

type Shared = Arc<Mutex<Clients>>;

#[derive(Default)]
struct Clients {
    holder: Option<OwnedWriteHalf>,
    hook: Option<OwnedWriteHalf>,
}

/// Listens on a stage's socket; dropping it closes the socket and all
/// connections, upon which the holder ends and the hook kills what it holds.
pub struct StageServer {
    events: mpsc::UnboundedReceiver<StageEvent>,
    clients: Shared,
    accepting: JoinHandle<()>,
}

impl StageServer {
    /// Starts to listen. Do so before `docker start`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(stage: &StageDir) -> Result<Self, StageError> {
        let path = stage.socket();
        let fail = |source| StageError::Io { what: "listen on", path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(fail)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        let (tell, events) = mpsc::unbounded_channel();
        let clients = Shared::default();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&clients), tell));
        Ok(Self { events, clients, accepting })
    }

    /// The next event; `None` only when listening failed for good.
    pub async fn next(&mut self) -> Option<StageEvent> {
        self.events.recv().await
    }

    /// Orders the restore. Valid after [`Report::StartAsked`].
    ///
    /// # Errors
    /// When the holder cannot be reached.
    pub async fn restore(&self, spec: RestoreSpec) -> io::Result<()> {
        self.tell_holder(&HolderOrder::Restore(spec)).await
    }

    /// Lets the held container run. From here on this host owns it.
    ///
    /// The word is written whole or not at all; an error means that it was
    /// not heard.
    ///
    /// # Errors
    /// When no hook waits for it.
    pub async fn go(&self) -> io::Result<()> {
        self.tell_hook(HookOrder::Go).await
    }

    /// Ends everything: what is held is killed before it runs, a restore under
    /// way is stopped, and the holder tells Docker `why`.
    ///
    /// Does nothing for those who are gone already.
    pub async fn die(&self, why: &str) {
        let _ = self.tell_hook(HookOrder::Die).await;
        let _ = self.tell_holder(&HolderOrder::Die { why: why.to_owned() }).await;
    }

    async fn tell_holder(&self, order: &HolderOrder) -> io::Result<()> {
        let mut to = lock(&self.clients).holder.take().ok_or_else(|| gone("holder"))?;
        let sent = to.write_all(&wire::line(order)).await;
        lock(&self.clients).holder = Some(to);
        sent
    }

    async fn tell_hook(&self, order: HookOrder) -> io::Result<()> {
        // Taken for good: the hook listens to one word only.
        let mut to = lock(&self.clients).hook.take().ok_or_else(|| gone("hook"))?;
        to.write_all(&wire::line(&order)).await
    }
}

impl Drop for StageServer {
    fn drop(&mut self) {
        self.accepting.abort();
        *lock(&self.clients) = Clients::default();
    }
}

fn gone(who: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, format!("the {who} is not connected"))
}

fn lock(clients: &Shared) -> std::sync::MutexGuard<'_, Clients> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: UnixListener, clients: Shared, tell: mpsc::UnboundedSender<StageEvent>) {
    let mut serving = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        serving.spawn(serve(stream, Arc::clone(&clients), tell.clone()));
    }
}

/// One client, from its first word to its last.
async fn serve(stream: UnixStream, clients: Shared, tell: mpsc::UnboundedSender<StageEvent>) {
    let (read, write) = stream.into_split();
    let mut lines = BufReader::new(read);
    match next_report(&mut lines).await {
        Some(Report::HolderUp(up)) => {
            lock(&clients).holder = Some(write);
            let _ = tell.send(StageEvent::Said(Report::HolderUp(up)));
            while let Some(report) = next_report(&mut lines).await {
                let _ = tell.send(StageEvent::Said(report));
            }
            lock(&clients).holder = None;
            let _ = tell.send(StageEvent::HolderGone);
        }
        Some(Report::Held { init_pid }) => {
            lock(&clients).hook = Some(write);
            let _ = tell.send(StageEvent::Said(Report::Held { init_pid }));
            while next_report(&mut lines).await.is_some() {}
            if lock(&clients).hook.take().is_some() {
                let _ = tell.send(StageEvent::HookGone);
            }
        }
        other => tracing::warn!(?other, "a stranger on the stage socket"),
    }
}

async fn next_report(lines: &mut BufReader<OwnedReadHalf>) -> Option<Report> {
    let mut line = Vec::new();
    lines.take(MAX_LINE as u64).read_until(b'\n', &mut line).await.ok()?;
    if line.pop() != Some(b'\n') {
        return None;
    }
    wire::parse(&line).map_err(|e| tracing::warn!("stage socket: {e}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::stage::{CgroupMode, HolderUp, TcpMode};
    use std::os::unix::net::UnixStream as Blocking;

    fn up() -> HolderUp {
        HolderUp {
            pid: 7,
            bundle: "/b".into(),
            rootfs: "/r".into(),
            netns: "/n".into(),
            bind_mounts: vec![],
            cgroups_path: "/docker/c1".into(),
        }
    }

    fn spec() -> RestoreSpec {
        RestoreSpec {
            images: "/i".into(),
            work: "/w".into(),
            lazy: false,
            tcp: TcpMode::Established,
            cgroups: CgroupMode::Soft,
            tmpfs: Vec::new(),
            criu_options: vec![],
        }
    }

    #[tokio::test]
    async fn holder_and_hook_each_hear_their_own_orders() {
        let root = tempfile::tempdir().unwrap();
        let stage = StageDir::make(root.path(), "c1").unwrap();
        let mut server = StageServer::listen(&stage).unwrap();
        assert!(server.restore(spec()).await.is_err(), "nobody there yet");

        let mut holder = Blocking::connect(stage.socket()).unwrap();
        wire::send(&mut holder, &Report::HolderUp(up())).unwrap();
        assert_eq!(server.next().await, Some(StageEvent::Said(Report::HolderUp(up()))));
        assert!(server.go().await.is_err(), "the holder is no hook");
        server.restore(spec()).await.unwrap();

        let mut hook = Blocking::connect(stage.socket()).unwrap();
        wire::send(&mut hook, &Report::Held { init_pid: 9 }).unwrap();
        assert_eq!(server.next().await, Some(StageEvent::Said(Report::Held { init_pid: 9 })));
        server.go().await.unwrap();
        assert!(server.go().await.is_err(), "the word is given once");

        let heard = tokio::task::spawn_blocking(move || {
            let order: Option<HolderOrder> =
                wire::receive(&mut std::io::BufReader::new(&holder)).unwrap();
            let word: Option<HookOrder> =
                wire::receive(&mut std::io::BufReader::new(&hook)).unwrap();
            (order, word)
        });
        assert_eq!(heard.await.unwrap(), (Some(HolderOrder::Restore(spec())), Some(HookOrder::Go)));
        assert_eq!(
            server.next().await,
            Some(StageEvent::HolderGone),
            "a served hook leaves silently"
        );
    }

    #[tokio::test]
    async fn a_hook_that_leaves_unserved_is_told() {
        let root = tempfile::tempdir().unwrap();
        let stage = StageDir::make(root.path(), "c1").unwrap();
        let mut server = StageServer::listen(&stage).unwrap();
        let mut hook = Blocking::connect(stage.socket()).unwrap();
        wire::send(&mut hook, &Report::Held { init_pid: 9 }).unwrap();
        assert_eq!(server.next().await, Some(StageEvent::Said(Report::Held { init_pid: 9 })));
        drop(hook);
        assert_eq!(server.next().await, Some(StageEvent::HookGone));
        assert!(server.go().await.is_err());
    }

    #[tokio::test]
    async fn a_dropped_server_hangs_up() {
        let root = tempfile::tempdir().unwrap();
        let stage = StageDir::make(root.path(), "c1").unwrap();
        let mut server = StageServer::listen(&stage).unwrap();
        let mut hook = Blocking::connect(stage.socket()).unwrap();
        wire::send(&mut hook, &Report::Held { init_pid: 9 }).unwrap();
        server.next().await.unwrap();
        drop(server);
        let word = tokio::task::spawn_blocking(move || {
            wire::receive::<HookOrder>(&mut std::io::BufReader::new(&hook))
        });
        assert_eq!(word.await.unwrap().unwrap(), None, "the end of the stream, not an order");
    }
}
