//! Taking the place: what the holder does before `create` returns.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};

use super::console::Console;
use crate::runtime::args::Global;
use crate::runtime::bundle::{Bundle, Network};
use crate::runtime::cgroup::Seats;
use crate::runtime::log::rfc3339;
use crate::runtime::procfs;
use crate::runtime::stage::wire::{self, HolderUp, Report};
use crate::runtime::stage::{HolderRecord, StageDir};

/// Names the socket at which Docker waits for the container's terminal.
pub(in crate::runtime) const CONSOLE_VARIABLE: &str = "BLIP_CONSOLE_SOCKET";

/// What the holder stands on.
pub(super) struct Place {
    pub(super) id: String,
    pub(super) stage: StageDir,
    pub(super) bundle: Bundle,
    /// runc's global options, as Docker gave them to `create`.
    pub(super) global: Vec<OsString>,
    /// runc's state directory.
    pub(super) root: Option<PathBuf>,
    pub(super) netns: PathBuf,
    /// The network namespace it came from, which runc must run in.
    pub(super) host_netns: fs::File,
    /// The cgroups it came from.
    pub(super) home: Seats,
    /// The container's cgroups.
    pub(super) seats: Seats,
    console: Option<Console>,
    agent: Option<UnixStream>,
    commands: Option<UnixListener>,
    signals: Option<SignalFd>,
}

/// Sets up everything and tells `create`, which waits at `READY-FD`, either
/// `ready` or the reason why not.
pub(super) fn stand(args: &[OsString]) -> Option<Place> {
    let ready: RawFd = args.get(3)?.to_str()?.parse().ok()?;
    let mut tell =
        fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{ready}")).ok()?;
    close_all_but(&[tell.as_raw_fd()]);
    match take_place(args) {
        Ok(place) => {
            tell.write_all(b"ready").ok()?;
            Some(place)
        }
        Err(why) => {
            let _ = tell.write_all(why.as_bytes());
            None
        }
    }
}

fn take_place(args: &[OsString]) -> Result<Place, String> {
    let [id, stage, bundle, _ready, global @ ..] = args else {
        return Err("too few arguments".into());
    };
    let id = id.to_string_lossy().into_owned();
    let stage = StageDir::given(Path::new(stage));
    let bundle = Bundle::read(Path::new(bundle))?;
    let options = Global::parse(global).0;
    let during = |what: &'static str| move |e: nix::Error| format!("{what}: {e}");

    let _ = prctl::set_name(c"blip-holder");
    nix::unistd::setsid().map_err(during("setsid"))?;
    prctl::set_child_subreaper(true).map_err(during("become a subreaper"))?;
    let console = make_console(&bundle)?;
    spare_from_oom();
    let host_netns =
        fs::File::open("/proc/self/ns/net").map_err(|e| format!("open the own netns: {e}"))?;
    let netns = match bundle.network() {
        Network::Fresh => {
            unshare(CloneFlags::CLONE_NEWNET).map_err(during("make a network namespace"))?;
            loopback_up().map_err(during("bring the loopback device up"))?;
            PathBuf::from(format!("/proc/{}/ns/net", std::process::id()))
        }
        Network::Joined(path) => path,
        Network::Host => return Err("the host's network cannot be staged".into()),
    };
    let home = Seats::current().map_err(|e| format!("find the own cgroup: {e}"))?;
    let seats = home.of_container(bundle.cgroups_path(), options.systemd_cgroup);
    seats.take().map_err(|e| format!("enter the cgroup of the container: {e}"))?;
    let signals = catch_signals().map_err(during("catch signals"))?;

    let fail = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let mut agent = UnixStream::connect(stage.socket()).map_err(fail("reach the agent of blip"))?;
    let _ = fs::remove_file(stage.holder_socket());
    let commands = UnixListener::bind(stage.holder_socket()).map_err(fail("listen"))?;
    let pid = i32::try_from(std::process::id()).map_err(|e| e.to_string())?;
    let record = HolderRecord {
        pid,
        starttime: procfs::starttime(pid).unwrap_or(0),
        bundle: bundle.dir().to_owned(),
        rootfs: bundle.rootfs(),
        created: rfc3339(SystemTime::now()),
    };
    stage.write_record(&record).map_err(fail("write the record"))?;
    let up = HolderUp {
        pid,
        bundle: record.bundle,
        rootfs: record.rootfs,
        netns: netns.clone(),
        bind_mounts: bundle.bind_mounts(),
        cgroups_path: bundle.cgroups_path().to_owned(),
    };
    wire::send(&mut agent, &Report::HolderUp(up)).map_err(fail("reach the agent of blip"))?;
    Ok(Place {
        id,
        stage,
        bundle,
        root: options.root,
        global: global.to_vec(),
        netns,
        host_netns,
        home,
        seats,
        console,
        agent: Some(agent),
        commands: Some(commands),
        signals: Some(signals),
    })
}

/// A terminal, if the container is to have one; the caller leads a session.
fn make_console(bundle: &Bundle) -> Result<Option<Console>, String> {
    if !bundle.terminal() {
        return Ok(None);
    }
    let socket = std::env::var_os(CONSOLE_VARIABLE)
        .ok_or("the container has a terminal, and Docker names no socket for it")?;
    let console = Console::make(Path::new(&socket));
    console.map(Some).map_err(|e| format!("make its terminal: {e}"))
}

impl Place {
    pub(super) fn take_console(&mut self) -> Option<Console> {
        self.console.take()
    }

    pub(super) fn take_agent(&mut self) -> UnixStream {
        self.agent.take().expect("taken once, by Holder::new")
    }

    pub(super) fn take_commands(&mut self) -> UnixListener {
        self.commands.take().expect("taken once, by Holder::new")
    }

    pub(super) fn take_signals(&mut self) -> SignalFd {
        self.signals.take().expect("taken once, by Holder::new")
    }
}

/// Closes everything inherited beyond standard input, output and error.
fn close_all_but(keep: &[RawFd]) {
    let Ok(open) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> =
        open.filter_map(Result::ok).filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && !keep.contains(fd)) {
        // The descriptor of the listing itself is closed already.
        let _ = nix::unistd::close(fd);
    }
}

/// runc, CRIU and the hook inherit this. They run inside the container's
/// memory limit, and CRIU's death would let go of the tasks it holds; CRIU
/// gives restored tasks their own value back.
fn spare_from_oom() {
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
}

/// What ends a process politely is noted, everything else keeps its meaning.
fn catch_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
    ] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Sets the loopback device up, which runc does for a container it starts and
/// nobody does for one that is restored: one `RTM_NEWLINK` message
/// (rtnetlink(7)) for interface 1.
fn loopback_up() -> nix::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const LOOPBACK: i32 = 1;
    let up = u32::try_from(libc::IFF_UP).unwrap_or(1);
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence and port
    message.extend_from_slice(&[0; 4]); // any family, padding, any type
    message.extend_from_slice(&LOOPBACK.to_ne_bytes());
    message.extend_from_slice(&up.to_ne_bytes());
    message.extend_from_slice(&up.to_ne_bytes());
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    send(netlink.as_raw_fd(), &message, MsgFlags::empty()).map(drop)
}

/// Lets go of the container's standard input, output and error, so that they
/// end when the container's own ends do.
pub(super) fn drop_stdio() {
    if let Ok(null) = fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}
