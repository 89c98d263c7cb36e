//! The client of a lab: a network namespace, nothing more.
//!
//! Programs and threads put there keep the machine's files and processes; only
//! their network is the lab's.

use super::paths::Paths;
use super::{Result, network, run};
use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

/// The client's network namespace.
#[derive(Clone, Debug)]
pub struct Client {
    net: PathBuf,
    address: Ipv4Addr,
}

impl Client {
    pub(super) fn new(paths: &Paths, slot: u8) -> Self {
        let address = network::address(slot, network::CLIENT);
        Self { net: paths.net(network::CLIENT_NAME), address }
    }

    pub(super) fn switch(paths: &Paths, slot: u8) -> Self {
        let address = network::address(slot, network::GATEWAY);
        Self { net: paths.net(network::SWITCH), address }
    }

    /// Its address on the lab's subnet.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command of the machine, run in the client's network. It is the
    /// command itself that runs as the child: killing the child kills it.
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Command {
        let mut net = std::ffi::OsString::from("--net=");
        net.push(&self.net);
        let mut command = run::program("nsenter");
        command.arg(net).arg("--").args(argv);
        command
    }

    /// Moves the calling *thread* into the client's network, for good: every
    /// socket it opens from now on is there, and so are threads it starts.
    ///
    /// # Errors
    /// If the lab is down.
    pub fn enter_net(&self) -> Result<()> {
        network::enter(&self.net)
    }

    /// Runs `work` on a thread of its own inside the client's network. The
    /// thread's result is an error if it could not get there.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<Result<T>> {
        let client = self.clone();
        std::thread::spawn(move || {
            client.enter_net()?;
            Ok(work())
        })
    }
}
