//! The lab: two or more Docker hosts on one Linux machine.
//!
//! A host of the lab is a set of namespaces (network, mount, PID, IPC, UTS,
//! cgroup) over a root file system built once from Debian packages, with its
//! own containerd and dockerd. Hosts and a client namespace hang on one bridge
//! that lives in a namespace of its own, so nothing of a lab is seen in the
//! machine's own network and several labs stand side by side:
//!
//! ```text
//!            switch (bridge 10.90.SLOT.1)
//!           /            |              \
//!   a 10.90.SLOT.11   b …12   …   client 10.90.SLOT.100
//!   └ containers on `blipnet` (macvlan): 10.90.SLOT.128 – 254
//! ```
//!
//! **Invariants.** Everything a lab leaves in the kernel or on disk is found
//! by the lab's *name* alone (its cgroups, its folders, its namespace mounts),
//! so [`Lab::remove`] needs no record to clean up after a crash. `state.json`
//! is written last: a lab without it never became ready and is swept away by
//! the next [`Lab::up`]. Every process of a host is in the lab's cgroups.

mod capture;
mod cgroup;
mod client;
mod error;
pub(crate) mod extra;
mod host;
mod image;
mod init;
mod machine;
mod network;
mod paths;
mod pipes;
pub(crate) mod rootfs;
pub(crate) mod run;
mod state;

pub use capture::Recording;
pub use cgroup::CgroupMode;
pub use client::Client;
pub use error::LabError;
pub(crate) use error::on;
pub use host::Host;
pub use image::{Application, POSTGRESQL};
pub use init::{enter as enter_host, serve as serve_host};
pub use machine::install;
pub use pipes::LargePipes;
pub use rootfs::Suite;
pub use state::Status;

use blip_transport::units::Bandwidth;
use paths::{Paths, valid_name};
use state::State;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Result of everything in this module.
pub type Result<T> = std::result::Result<T, LabError>;

/// The most hosts one lab may have: their names are letters.
pub const MOST_HOSTS: usize = 26;

/// What lab to bring up.
#[derive(Clone, Debug)]
pub struct LabSpec {
    /// Its name: part of every name it leaves on the machine.
    pub name: String,
    /// How many hosts: `a`, `b`, …
    pub hosts: usize,
    /// Which cgroup version the hosts see.
    pub cgroup: CgroupMode,
    /// Which Debian the hosts run.
    pub suite: Suite,
    /// Whether the hosts also have the programs that blip is compared with.
    pub peers: bool,
    /// Package mirror; by default the one the machine's own apt uses.
    pub mirror: Option<String>,
    /// The `blip-bench` program, which is also the hosts' init. By default it
    /// is looked for beside the running program.
    pub program: Option<PathBuf>,
    /// Told one short line at each step that takes time.
    pub progress: fn(&str),
}

impl Default for LabSpec {
    fn default() -> Self {
        Self {
            name: "blip".into(),
            hosts: 2,
            cgroup: CgroupMode::V2,
            suite: Suite::Forky,
            peers: false,
            mirror: None,
            program: None,
            progress: |line| {
                let _ = writeln!(std::io::stderr(), "lab: {line}");
            },
        }
    }
}

/// A lab that is up. Dropping it leaves it up; see [`Lab::down`].
#[derive(Debug)]
pub struct Lab {
    state: State,
    fresh: bool,
}

impl Lab {
    /// Brings the lab up, or finds it up. What an `up` that died left behind
    /// is removed first.
    ///
    /// # Errors
    /// [`LabError::NeedsRoot`], [`LabError::Missing`] naming what the machine
    /// lacks, [`LabError::Different`] if the name is taken by a lab of another
    /// shape, or the step that failed; then nothing is left behind.
    pub fn up(spec: &LabSpec) -> Result<Self> {
        machine::need_root()?;
        let paths = Paths::new(valid_name(&spec.name)?);
        let _lock = paths.lock()?;
        if let Some(state) = State::read(&paths)?.filter(State::alive) {
            state.same_shape(spec)?;
            return Ok(Self { state, fresh: false });
        }
        sweep(&paths)?;
        let made = make(spec, &paths);
        if made.is_err() {
            sweep(&paths)?;
        }
        Ok(Self { state: made?, fresh: true })
    }

    /// Finds a lab that is up.
    ///
    /// # Errors
    /// [`LabError::NotUp`] if there is none of this name, or it is not ready.
    pub fn open(name: &str) -> Result<Self> {
        machine::need_root()?;
        let paths = Paths::new(valid_name(name)?);
        match State::read(&paths)?.filter(State::alive) {
            Some(state) => Ok(Self { state, fresh: false }),
            None => Err(LabError::NotUp(name.into())),
        }
    }

    /// All labs of this machine, ready or not.
    ///
    /// # Errors
    /// [`LabError::NeedsRoot`], or if the labs' folder cannot be read.
    pub fn all() -> Result<Vec<Status>> {
        machine::need_root()?;
        paths::names()?.iter().map(|name| Status::of(&Paths::new(name))).collect()
    }

    /// Removes whatever there is of the lab of this name, also after a crash.
    /// The cached root file systems and images stay; see [`Lab::purge`].
    ///
    /// # Errors
    /// If something could not be removed.
    pub fn remove(name: &str) -> Result<()> {
        machine::need_root()?;
        let paths = Paths::new(valid_name(name)?);
        let _lock = paths.lock()?;
        sweep(&paths)
    }

    /// Removes the cached root file systems and images of all labs.
    ///
    /// # Errors
    /// [`LabError::InUse`] while a lab stands on them.
    pub fn purge() -> Result<()> {
        machine::need_root()?;
        rootfs::purge()
    }

    /// Takes the lab down and leaves nothing of it behind but the cache.
    ///
    /// # Errors
    /// If something could not be removed.
    pub fn down(self) -> Result<()> {
        Self::remove(&self.state.name)
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Whether this [`Lab::up`] made it, rather than finding it.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Which Debian the hosts run.
    pub fn suite(&self) -> Suite {
        self.state.suite
    }

    /// The lab's subnet, as `10.90.SLOT.0/24`.
    pub fn subnet(&self) -> String {
        network::subnet(self.state.slot)
    }

    /// An address for a container on `blipnet`; `n` from 0 to 126.
    pub fn container_address(&self, n: u8) -> std::net::Ipv4Addr {
        network::address(self.state.slot, network::CONTAINERS + n.min(126))
    }

    /// The host of this name.
    ///
    /// # Errors
    /// [`LabError::NoHost`] naming those there are.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.state.hosts.iter().find(|h| h.name() == name).ok_or_else(|| LabError::NoHost {
            lab: self.state.name.clone(),
            host: name.into(),
            known: self.state.hosts.iter().map(Host::name).collect::<Vec<_>>().join(", "),
        })
    }

    /// All hosts, in order.
    pub fn hosts(&self) -> &[Host] {
        &self.state.hosts
    }

    /// The client's network namespace.
    pub fn client(&self) -> Client {
        Client::new(&Paths::new(&self.state.name), self.state.slot)
    }

    /// The namespace of the bridge that joins hosts and client; what stands
    /// there is between them all.
    pub fn switch(&self) -> Client {
        Client::switch(&Paths::new(&self.state.name), self.state.slot)
    }

    /// What `lab status` tells of it.
    pub fn status(&self) -> Status {
        Status::from_state(&self.state)
    }

    /// Gives every host the image `name`, made of `program` (one of the
    /// machine's own, found in the image by its name) and the libraries it
    /// needs. Its ID is the same on every host.
    ///
    /// # Errors
    /// If it cannot be made, or Docker does not take it.
    pub fn add_image(&self, name: &str, program: &Path) -> Result<()> {
        let work = Paths::new(&self.state.name).var.join("image.building");
        let home = rootfs::home(self.state.suite);
        let archive = image::around(program, name, &home, &work)?;
        let loaded = self.hosts().iter().try_for_each(|host| host.load(&archive));
        let _ = std::fs::remove_dir_all(&work);
        loaded
    }

    /// Gives every host the image `name`, if it is one that is made of their own
    /// root and that they do not have from the beginning (memcached, nginx).
    ///
    /// # Errors
    /// If it cannot be made, or Docker does not take it.
    pub fn add_further_image(&self, name: &str) -> Result<()> {
        let work = Paths::new(&self.state.name).var.join("image.building");
        let home = rootfs::home(self.state.suite);
        let Some(archive) = image::further(name, &home, &work)? else { return Ok(()) };
        let loaded = self.hosts().iter().try_for_each(|host| host.load(&archive));
        let _ = std::fs::remove_dir_all(&work);
        loaded
    }

    /// Gives every host the image of an application, with the same ID on each.
    /// It is made, once, from the packages of `mirror`, by default those of the
    /// machine's own; that takes half a minute.
    ///
    /// # Errors
    /// If it cannot be made, or Docker does not take it.
    pub fn add_application(&self, application: &Application, mirror: Option<&str>) -> Result<()> {
        let spec = LabSpec { mirror: mirror.map(str::to_owned), ..LabSpec::default() };
        let (home, suite) = (rootfs::home(self.state.suite), self.state.suite);
        let mirror = || rootfs::mirror(&spec);
        let archive = image::ensure_application(&home, application, suite, mirror)?;
        self.hosts().iter().try_for_each(|host| host.load(&archive))
    }

    /// A program of an application that was [added](Self::add_application), run
    /// in the client's network. Its files are those of the image.
    pub fn client_program(
        &self,
        application: &Application,
        argv: &[&str],
    ) -> std::process::Command {
        let root = image::application_root(&rootfs::home(self.state.suite), application);
        let mut words: Vec<&std::ffi::OsStr> = vec!["chroot".as_ref(), root.as_ref()];
        words.extend(argv.iter().map(std::ffi::OsStr::new));
        self.client().command(&words)
    }

    /// Limits what flows to and from `host` to `rate` each way, by a token
    /// bucket on both ends of its cable; `None` lifts the limit.
    ///
    /// # Errors
    /// If there is no such host or `tc` refuses.
    pub fn rate_limit(&self, host: &str, rate: Option<Bandwidth>) -> Result<()> {
        let host = self.host(host)?;
        network::rate_limit(&Paths::new(&self.state.name), host.name(), rate)
    }
}

/// Makes a lab where none is. Leaves a mess if it fails, for `sweep`.
fn make(spec: &LabSpec, paths: &Paths) -> Result<State> {
    if !(1..=MOST_HOSTS).contains(&spec.hosts) {
        return Err(LabError::Hosts(spec.hosts));
    }
    let program = machine::init_program(spec.program.as_deref())?;
    machine::install_tools(spec.progress)?;
    machine::check_kernel(spec.cgroup, paths)?;
    let base = rootfs::ensure(spec)?;
    let images = image::ensure(&base, spec.progress)?;
    let extra = extra::ensure(spec, &base)?;
    let layers: Vec<PathBuf> = extra.into_iter().chain([base.join("rootfs")]).collect();

    paths.create()?;
    let slot = paths.claim_slot()?;
    let names: Vec<String> = ('a'..='z').take(spec.hosts).map(String::from).collect();
    network::create(paths, slot, &names)?;
    let plan =
        host::Plan { paths, slot, spec, program: &program, layers: &layers, images: &images };
    (spec.progress)(&format!("starting {} hosts of {}", names.len(), spec.suite));
    let hosts = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..names.len())
            .map(|i| {
                let (plan, names) = (&plan, &names);
                scope.spawn(move || host::start(plan, i, names))
            })
            .collect();
        starting
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err(LabError::Panicked)))
            .collect::<Result<Vec<Host>>>()
    })?;
    let state = State::new(spec, slot, hosts);
    state.write(paths)?;
    Ok(state)
}

/// Removes everything that bears the lab's name. Idempotent.
fn sweep(paths: &Paths) -> Result<()> {
    cgroup::kill_and_remove(&paths.name)?;
    network::remove(paths)?;
    pipes::put_back(paths)?;
    paths.remove()
}
