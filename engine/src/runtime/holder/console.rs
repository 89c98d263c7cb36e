//! The terminal of a container that has one.
//!
//! Docker wants the master of a terminal when it creates the container; CRIU
//! makes the real one, in the container's own devpts, when it restores it. So
//! the holder makes a second terminal: Docker gets its master, and the holder
//! carries every byte between its slave, which changes none, and the real
//! master, until the last writer of that is gone.
//!
//! ```text
//! docker attach ── shim ── master | slave ── holder ── master | slave ── shell
//!                          the stand-in                the container's
//! ```

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::sys::tty;

/// How long what the container has written last may take to get out.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// The stand-in's slave, and the container's master once there is one.
pub(super) struct Console {
    slave: File,
    real: Arc<OnceLock<File>>,
    output: Option<JoinHandle<()>>,
}

impl Console {
    /// Makes the stand-in and gives its master to whoever listens at `socket`.
    /// The caller leads a session and has no terminal.
    pub(super) fn make(socket: &Path) -> io::Result<Self> {
        let pair = openpty(None, None)?;
        let mut raw = tcgetattr(&pair.slave)?;
        cfmakeraw(&mut raw);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &raw)?;
        tty::control(pair.slave.as_fd())?;
        let docker = UnixStream::connect(socket)?;
        let name = b"/dev/ptmx";
        let fds = [pair.master.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(docker.as_raw_fd(), &[IoSlice::new(name)], &rights, MsgFlags::empty(), None)?;
        Ok(Self { slave: pair.slave.into(), real: Arc::default(), output: None })
    }

    /// Where `runc restore` is to send the container's master; made anew.
    pub(super) fn listen(&mut self, socket: PathBuf) -> io::Result<PathBuf> {
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)?;
        let (real, slave) = (self.real.clone(), self.slave.try_clone()?);
        self.output = Some(std::thread::spawn(move || {
            if let Ok(master) = receive(&listener) {
                carry(&real, master, slave);
            }
        }));
        Ok(socket)
    }

    /// The size that Docker gave the stand-in is the container's.
    pub(super) fn resize(&self) {
        if let Some(real) = self.real.get() {
            let _ = tty::copy_size(self.slave.as_fd(), real.as_fd());
        }
    }

    /// The container has ended: waits until what it wrote last is out.
    pub(super) fn flush(&mut self) {
        let until = Instant::now() + FLUSH_LIMIT;
        let carrying = |output: &Option<JoinHandle<()>>| {
            output.as_ref().is_some_and(|output| !output.is_finished())
        };
        while carrying(&self.output) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The descriptor that comes over the first connection.
fn receive(listener: &UnixListener) -> io::Result<File> {
    let (runc, _) = listener.accept()?;
    let mut name = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let got =
        recvmsg::<()>(runc.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for message in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = message
            && let Some(&fd) = fds.first()
        {
            return Ok(File::from(tty::received(fd)));
        }
    }
    Err(io::Error::other("runc sent no terminal"))
}

/// Carries both ways: input on a thread of its own, output on this one.
fn carry(real: &Arc<OnceLock<File>>, master: File, slave: File) {
    let _ = real.set(master);
    let Some(master) = real.get() else { return };
    let _ = tty::copy_size(slave.as_fd(), master.as_fd());
    if let (Ok(from), Ok(to)) = (slave.try_clone(), master.try_clone()) {
        std::thread::spawn(move || pump(from, to));
    }
    if let Ok(from) = master.try_clone() {
        pump(from, slave);
    }
}

/// Until one side is gone: a terminal whose other end nobody holds reads as an
/// error.
fn pump(mut from: File, mut to: File) {
    let mut buffer = [0; 8192];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if to.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
