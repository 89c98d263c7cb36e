//! The conversation with the restorer, as CRIU's `criu/uffd.c` holds it.
//!
//! Over a unix stream: for each task its pid inside the container as a native
//! `i32`, then one byte that carries the task's userfaultfd; for a dead task
//! its negated pid and nothing else; at the end the `u32` `0x52535446`. No pid
//! is as large as that number, so the word alone tells them apart, and the
//! number of tasks need not be known. Bytes may arrive in pieces.

use super::error::LazyError;
use crate::sys::uffd_copy::{Uffd, receive};
use blip_transport::page::SpaceId;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Name of the socket in CRIU's work directory.
pub(super) const SOCKET: &str = "lazy-pages.socket";
/// "The restore is finished."
pub(super) const FINISHED: u32 = 0x5253_5446;
/// Upper limit of pids in Linux.
const PID_LIMIT: i32 = 4 << 20;

/// Binds `dir/lazy-pages.socket`, accessible to this user only from the start.
pub(super) fn bind_in(dir: &Path) -> io::Result<UnixListener> {
    let handle = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(dir)?;
    // Addresses of unix sockets end at 107 bytes; directories do not.
    let path = format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd());
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The mode of the socket becomes that of the file, so there is no moment in
    // which others could connect.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
    listen(&fd, Backlog::new(4)?)?;
    Ok(UnixListener::from(fd))
}

/// What the restorer said.
#[derive(Debug)]
pub(super) enum Said {
    /// A task and its memory.
    Task(SpaceId, Uffd),
    /// A task that is dead and has no memory.
    Dead,
    /// All tasks are restored.
    Finished,
    /// It hung up.
    Closed,
    /// Nothing whole yet.
    Nothing,
}

/// A connected restorer.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    word: [u8; 4],
    have: usize,
    /// The task whose descriptor comes next.
    announced: Option<SpaceId>,
}

impl Client {
    /// Takes over a connection, if it comes from this very user.
    pub(super) fn accept(stream: UnixStream) -> Option<Self> {
        let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
        let trusted = peer.uid() == nix::unistd::geteuid().as_raw();
        trusted.then_some(Self { stream, word: [0; 4], have: 0, announced: None })
    }

    /// Reads on, as far as that is possible without waiting.
    pub(super) fn listen(&mut self) -> Result<Said, LazyError> {
        match self.announced {
            Some(space) => self.descriptor(space),
            None => self.word(),
        }
    }

    fn word(&mut self) -> Result<Said, LazyError> {
        let got = match receive(&self.stream, &mut self.word[self.have..]) {
            Ok(got) => got,
            Err(e) => return waits(e),
        };
        if !got.fds.is_empty() || got.truncated {
            return Err(LazyError::protocol("a descriptor came without a pid before it"));
        }
        if got.bytes == 0 {
            return match self.have {
                0 => Ok(Said::Closed),
                have => Err(LazyError::protocol(format!("it hung up after {have} bytes of a pid"))),
            };
        }
        self.have += got.bytes;
        if self.have < self.word.len() {
            return Ok(Said::Nothing);
        }
        self.have = 0;
        match i32::from_ne_bytes(self.word) {
            word if word as u32 == FINISHED => Ok(Said::Finished),
            pid if pid > 0 && pid < PID_LIMIT => {
                self.announced = Some(SpaceId(pid as u32));
                self.listen()
            }
            pid if pid < 0 && pid > -PID_LIMIT => Ok(Said::Dead),
            word => Err(LazyError::protocol(format!("{word:#x} is no pid"))),
        }
    }

    fn descriptor(&mut self, space: SpaceId) -> Result<Said, LazyError> {
        let mut carrier = [0u8; 1];
        let mut got = match receive(&self.stream, &mut carrier) {
            Ok(got) => got,
            Err(e) => return waits(e),
        };
        let pid = space.0;
        let (Some(fd), true, false) = (got.fds.pop(), got.fds.is_empty(), got.truncated) else {
            let what =
                if got.bytes == 0 { "it hung up" } else { "there was no descriptor, or many" };
            return Err(LazyError::protocol(format!("after the pid {pid} {what}")));
        };
        self.announced = None;
        let uffd = Uffd::adopt(fd).map_err(|e| {
            LazyError::protocol(format!("the descriptor of process {pid} is no userfaultfd: {e}"))
        })?;
        Ok(Said::Task(space, uffd))
    }
}

fn waits(error: io::Error) -> Result<Said, LazyError> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Said::Nothing),
        io::ErrorKind::ConnectionReset => Ok(Said::Closed),
        _ => Err(LazyError::System { what: "hear the restorer", error }),
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
