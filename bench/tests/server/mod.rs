//! A Redis of one's own, for tests of the probe.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use blip_bench::workload::dataset::Dataset;
use blip_bench::workload::redis::Redis;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What it is filled with.
pub(crate) const DATA: Dataset = Dataset { bytes: 4 << 20, seed: 1 };

/// A private server on a free loopback port; it ends with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Server {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        Server::at(free.expect("a free loopback port"))
    }

    pub(crate) fn at(addr: SocketAddr) -> Server {
        // One test installs, the others wait for it.
        static INSTALLED: std::sync::Once = std::sync::Once::new();
        INSTALLED.call_once(|| {
            let tools = [("redis-server", "redis-server")];
            blip_bench::lab::install(&tools, |_| {}).expect("redis-server can be installed");
        });
        let dir = tempfile::tempdir().expect("a directory for the server");
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &addr.port().to_string()])
            .args(["--save", "", "--appendonly", "no"])
            .args(["--enable-debug-command", "yes", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        let server = Server { child, addr, _dir: dir };
        server.redis().wait_ready(Duration::from_secs(10)).expect("the server answers");
        server
    }

    pub(crate) fn redis(&self) -> Redis {
        Redis::at(self.addr)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the server is ours");
    }

    /// Kills it and starts an empty one in its place.
    pub(crate) fn replace(&mut self) {
        self.end();
        *self = Server::at(self.addr);
    }

    pub(crate) fn end(&mut self) {
        self.child.kill().expect("the server is ours");
        self.child.wait().expect("the server was started here");
    }

    pub(crate) fn ask(&self, words: &[&str]) {
        let mut connection = self.redis().connect().expect("a connection");
        let mut ask = redis::Cmd::new();
        words.iter().for_each(|w| {
            ask.arg(*w);
        });
        ask.exec(&mut connection).expect("the server obeys");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
