//! The part of CRIU's RPC protocol that blip speaks (`images/rpc.proto` of
//! CRIU 4.x), over the sequential-packet socket of a `criu swrk` child.
//!
//! A worker is a process of ours that serves exactly one request. With
//! `notify_scripts` it stops at named points and waits for our word; the two
//! that matter are `pre-dump` (loaded, nothing touched yet) and `post-dump`
//! (every image written, all tasks still held).

use prost::Message;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// `criu_req_type` values.
mod kind {
    pub(super) const DUMP: i32 = 1;
    pub(super) const NOTIFY: i32 = 6;
    pub(super) const VERSION: i32 = 10;
    pub(super) const SINGLE_PRE_DUMP: i32 = 13;
}

/// `criu_cg_mode::SOFT`: keep existing cgroup properties on restore.
pub const CGROUP_MODE_SOFT: i32 = 3;
/// `criu_network_lock_method::SKIP`: the caller has locked the network.
pub const NETWORK_LOCK_SKIP: i32 = 3;

/// `criu_pre_dump_mode::SPLICE`: pages go through pipes while the tree stands.
pub const PRE_DUMP_SPLICE: i32 = 1;
/// `criu_pre_dump_mode::VM_READ`: pages are read when it runs again.
pub const PRE_DUMP_READ: i32 = 2;

/// `criu_opts`, the fields a dump of ours sets.
#[derive(Clone, PartialEq, Message)]
pub struct Opts {
    /// Open directory for the images.
    #[prost(int32, required, tag = "1")]
    pub images_dir_fd: i32,
    /// Root of the process tree.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    /// Accept unix sockets with one end outside.
    #[prost(bool, optional, tag = "4")]
    pub ext_unix_sk: Option<bool>,
    /// Dump established TCP connections.
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    /// Allow a terminal that is not ours.
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    /// Dump file locks.
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    /// 0 (quiet) to 4.
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    /// Name in the work directory.
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    /// Stop at the named points and ask.
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    /// Root file system of the tree.
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    /// Directory of the images this one stands on, relative to its own.
    #[prost(string, optional, tag = "14")]
    pub parent_img: Option<String>,
    /// Have the kernel note which pages are written from now on.
    #[prost(bool, optional, tag = "15")]
    pub track_mem: Option<bool>,
    /// Open directory for log and sockets.
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    /// Allow hard links to deleted files to be made.
    #[prost(bool, optional, tag = "18")]
    pub link_remap: Option<bool>,
    /// Whether cgroups are dumped.
    #[prost(bool, optional, tag = "24")]
    pub manage_cgroups: Option<bool>,
    /// How.
    #[prost(int32, optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    /// Largest deleted-but-open file to put into the images, in bytes.
    #[prost(uint32, optional, tag = "35")]
    pub ghost_limit: Option<u32>,
    /// Resources that are not CRIU's to dump.
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    /// Freezer directory that holds the tree.
    #[prost(string, optional, tag = "44")]
    pub freeze_cgroup: Option<String>,
    /// Leave out connections that nobody has accepted yet.
    #[prost(bool, optional, tag = "46")]
    pub tcp_skip_in_flight: Option<bool>,
    /// Leave private anonymous memory out of the images.
    #[prost(bool, optional, tag = "48")]
    pub lazy_pages: Option<bool>,
    /// Accept a pts master without its other end.
    #[prost(bool, optional, tag = "50")]
    pub orphan_pts_master: Option<bool>,
    /// More options, in a file.
    #[prost(string, optional, tag = "51")]
    pub config_file: Option<String>,
    /// Dump established TCP connections as closed ones, and leave them alone.
    #[prost(bool, optional, tag = "52")]
    pub tcp_close: Option<bool>,
    /// How a pre-dump takes the pages.
    #[prost(int32, optional, tag = "61")]
    pub pre_dump_mode: Option<i32>,
    /// Who keeps packets away.
    #[prost(int32, optional, tag = "64")]
    pub network_lock: Option<i32>,
}

/// `criu_req`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    opts: Option<Opts>,
    #[prost(bool, optional, tag = "3")]
    notify_success: Option<bool>,
}

/// `criu_notify`.
#[derive(Clone, PartialEq, Message)]
struct Notify {
    #[prost(string, optional, tag = "1")]
    script: Option<String>,
}

/// `criu_version`.
#[derive(Clone, Copy, PartialEq, Message)]
struct VersionReply {
    #[prost(int32, required, tag = "1")]
    major: i32,
    #[prost(int32, required, tag = "2")]
    minor: i32,
    #[prost(int32, optional, tag = "4")]
    sublevel: Option<i32>,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(bool, required, tag = "2")]
    success: bool,
    #[prost(message, optional, tag = "5")]
    notify: Option<Notify>,
    #[prost(int32, optional, tag = "7")]
    errno: Option<i32>,
    #[prost(string, optional, tag = "9")]
    message: Option<String>,
    #[prost(message, optional, tag = "10")]
    version: Option<VersionReply>,
}

/// What went wrong with a worker.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// It could not be started.
    #[error(
        "cannot start {program:?}: {source}; install CRIU 4.2 or newer, or name it with BLIP_CRIU"
    )]
    Start {
        /// What was to be run.
        program: PathBuf,
        /// Why it did not.
        source: io::Error,
    },
    /// Its socket broke.
    #[error("lost the connection to criu: {0}")]
    Socket(#[from] io::Error),
    /// It ended without an answer.
    #[error("criu ended before it had answered{}", log_tail(.log))]
    Ended {
        /// The end of its log.
        log: String,
    },
    /// It said no.
    #[error("criu failed{}{}", .message.as_deref().map(|m| format!(": {m}")).unwrap_or_default(), log_tail(.log))]
    Refused {
        /// Its own message, if it sent one.
        message: Option<String>,
        /// The end of its log.
        log: String,
    },
    /// It said something outside the protocol.
    #[error("criu answered out of protocol: {0}")]
    Protocol(String),
}

fn log_tail(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; its log ends with:\n{log}") }
}

/// Variables added to a worker's environment.
pub type Environment = Vec<(&'static str, String)>;

/// What a worker says next.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// It stands at the named point and waits.
    At(String),
    /// The request is done.
    Done,
}

/// A running `criu swrk`. Dropping it kills it: tasks it held are let go into
/// whatever cgroup state they are in.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    socket: UnixStream,
    log: Option<PathBuf>,
}

/// CRIU's program: `BLIP_CRIU`, or `criu` in the search path.
pub fn program() -> PathBuf {
    std::env::var_os("BLIP_CRIU").unwrap_or_else(|| OsString::from("criu")).into()
}

impl Worker {
    /// Starts a worker. `log` is where its log will be, to quote from.
    pub fn start(log: Option<&Path>, environment: Environment) -> Result<Self, RpcError> {
        let (ours, theirs) = seqpacket_pair()?;
        let program = program();
        let child = Command::new(&program)
            .arg("swrk")
            .arg(theirs.as_raw_fd().to_string())
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| RpcError::Start { program, source })?;
        Ok(Self { child, socket: ours, log: log.map(Into::into) })
    }

    /// Process ID of the worker on this host.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Asks for a dump; [`Worker::next`] tells how it goes.
    pub async fn dump(&mut self, opts: Opts) -> Result<(), RpcError> {
        self.send(&Request { kind: kind::DUMP, opts: Some(opts), notify_success: None }).await
    }

    /// Asks for one pre-dump; [`Worker::next`] tells how it goes.
    pub async fn pre_dump(&mut self, opts: Opts) -> Result<(), RpcError> {
        let kind = kind::SINGLE_PRE_DUMP;
        self.send(&Request { kind, opts: Some(opts), notify_success: None }).await
    }

    /// Answers a stop: go on, or fail.
    pub async fn answer(&mut self, go_on: bool) -> Result<(), RpcError> {
        self.send(&Request { kind: kind::NOTIFY, opts: None, notify_success: Some(go_on) }).await
    }

    /// The worker's next word.
    pub async fn next(&mut self) -> Result<Said, RpcError> {
        let response = self.receive().await?;
        if response.kind == kind::NOTIFY {
            let script = response.notify.and_then(|n| n.script).unwrap_or_default();
            return Ok(Said::At(script));
        }
        if response.success {
            return Ok(Said::Done);
        }
        Err(RpcError::Refused { message: response.message, log: self.log_tail() })
    }

    /// `(major, minor, sublevel)` of this machine's CRIU.
    pub async fn version() -> Result<(i32, i32, i32), RpcError> {
        let mut worker = Self::start(None, Environment::new())?;
        worker.send(&Request { kind: kind::VERSION, opts: None, notify_success: None }).await?;
        let reply = worker.receive().await?;
        let version =
            reply.version.ok_or_else(|| RpcError::Protocol("no version in the reply".into()))?;
        Ok((version.major, version.minor, version.sublevel.unwrap_or(0)))
    }

    /// Kills the worker and waits for its end.
    pub async fn kill(mut self) {
        // An error means that it has ended already, which is what is wanted.
        let _ = self.child.kill().await;
    }

    /// Lets it live on its own: it sees the end of its socket.
    pub fn detach(self) {
        // tokio kills on drop; a child that is leaked is not dropped.
        std::mem::forget(self.child);
    }

    async fn send(&mut self, request: &Request) -> Result<(), RpcError> {
        match self.socket.write_all(&request.encode_to_vec()).await {
            Err(e) if gone(&e) => Err(RpcError::Ended { log: self.log_tail() }),
            other => Ok(other?),
        }
    }

    async fn receive(&mut self) -> Result<Response, RpcError> {
        // CRIU's own answers are well below this; a larger one is cut and
        // then fails to decode.
        let mut buffer = vec![0; 64 << 10];
        match self.socket.read(&mut buffer).await {
            Ok(0) => Err(RpcError::Ended { log: self.log_tail() }),
            Err(e) if gone(&e) => Err(RpcError::Ended { log: self.log_tail() }),
            Err(e) => Err(e.into()),
            Ok(length) => {
                Response::decode(&buffer[..length]).map_err(|e| RpcError::Protocol(e.to_string()))
            }
        }
    }

    /// The last lines of the log that say what went wrong.
    fn log_tail(&self) -> String {
        let Some(text) = self.log.as_ref().and_then(|path| std::fs::read(path).ok()) else {
            return String::new();
        };
        let text = String::from_utf8_lossy(&text);
        let errors: Vec<&str> = text.lines().filter(|line| line.contains("Error")).collect();
        let lines = if errors.is_empty() { text.lines().collect() } else { errors };
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

fn gone(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// A connected pair of sequential-packet sockets: ours closes on exec, the
/// child's is inherited. Each read or write of ours is one packet, which is all
/// that the stream type is used for.
fn seqpacket_pair() -> io::Result<(UnixStream, OwnedFd)> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let ours = std::os::unix::net::UnixStream::from(ours);
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs))
}
