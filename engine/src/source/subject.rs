//! The container that is to move, and everything that stands in its way.
//! Nothing here touches it.

use super::addresses::Addresses;
use super::in_memory::InMemory;
use super::volumes::{Choice, Plan, size_of};
use crate::bundle::{Bundle, BundleError};
use crate::cgroup::{CgroupError, Freezer};
use crate::connections;
use crate::criu::predump::PreDumpSpec;
use crate::criu::preload::Preload;
use crate::descriptors::{self, Descriptor};
use crate::docker::{Docker, DockerError, Inspection};
use crate::image::Held;
use crate::network::{self, Neighbour};
use crate::protocol::{CheckRequest, Finding, HostFacts};
use crate::track::Task;
use blip_transport::units::ByteSize;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Label of containers that Swarm has made.
const SWARM_TASK: &str = "com.docker.swarm.task.id";

/// How long a health check is given to end.
const GUEST_LIMIT: Duration = Duration::from_millis(1500);

/// Why a container cannot even be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// Docker.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// Its bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Its freezer.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// To freeze it would freeze blip.
    #[error(
        "container '{name}' shares its cgroup {path:?} with blip itself; give the container a \
         cgroup of its own (no --cgroup-parent that blip runs in)"
    )]
    Together {
        /// Its name.
        name: String,
        /// The cgroup.
        path: PathBuf,
    },
    /// It does not run.
    #[error("container '{name}' is {state}; blip moves running containers: docker {remedy} {name}")]
    NotRunning {
        /// Its name.
        name: String,
        /// What it is instead.
        state: &'static str,
        /// The Docker command that makes it run.
        remedy: &'static str,
    },
}

/// A running container of this host.
#[derive(Debug)]
pub struct Subject {
    /// What Docker says.
    pub inspection: Inspection,
    /// What the OCI runtime says.
    pub bundle: Bundle,
    /// What holds all its processes.
    pub freezer: Freezer,
    /// Its addresses move with it.
    pub keep_addresses: bool,
    /// Its open TCP connections move with it.
    pub keep_connections: bool,
    /// Its networks, as far as addresses go.
    pub addresses: Addresses,
    /// Upper directory of its overlay: the writable layer.
    pub upper: Option<PathBuf>,
    /// Its mounts, and what becomes of them.
    pub plan: Plan,
    /// Its own file systems in memory.
    pub tmpfs: Vec<InMemory>,
    /// Layers of its image, lowest first; none if this Docker lost the image.
    pub layers: Vec<String>,
    /// Whether this Docker keeps images in containerd's store.
    pub containerd_images: bool,
    /// What the target has of the image; all of it, until it was asked.
    pub image_there: Held,
}

impl Subject {
    /// Finds the container. `on_bridges`: it is to keep addresses on bridge
    /// networks too.
    pub async fn find(
        docker: &Docker,
        name: &str,
        choices: &[Choice],
        on_bridges: bool,
    ) -> Result<Self, SubjectError> {
        let inspection = docker.inspect(name).await?;
        let stopped = |state, remedy| {
            let name = inspection.name.clone();
            SubjectError::NotRunning { name, state, remedy }
        };
        if !inspection.running || inspection.pid == 0 {
            return Err(stopped("not running", "start"));
        }
        if inspection.paused {
            return Err(stopped("paused", "unpause"));
        }
        // With Docker's own runtime the process Docker knows is init itself;
        // with blip's it is the holder, whose child is init: only that one is
        // in the container's cgroup and namespaces.
        let init = crate::runtime::restored_init(inspection.pid);
        let mut bundle = Bundle::of(&inspection.id, init)?;
        let tmpfs = InMemory::all(init, &bundle.external);
        bundle.external.extend(tmpfs.iter().flat_map(InMemory::external));
        let freezer = Freezer::of(init)?;
        if freezer.holds(std::process::id())? {
            return Err(SubjectError::Together { name: inspection.name, path: freezer.path });
        }
        let addresses = Addresses::of(docker, &inspection, on_bridges).await?;
        let keep_addresses = addresses.can_move();
        let upper = upper_directory(init);
        let plan = Plan::of(docker, &inspection, choices).await?;
        let layers = docker.image_layers(&inspection.image).await.unwrap_or_default();
        let containerd_images = docker.keeps_images_in_containerd().await?;
        Ok(Self {
            inspection,
            bundle,
            freezer,
            keep_addresses,
            keep_connections: keep_addresses,
            addresses,
            upper,
            plan,
            tmpfs,
            layers,
            containerd_images,
            image_there: Held::Whole,
        })
    }

    /// Whether its connections end on this host, with a reset to each peer: its
    /// address stays here. Of an address that has moved, this host says nothing.
    pub fn closes_here(&self) -> bool {
        !self.keep_connections && !self.keep_addresses
    }

    /// Who it knows on its segment now, if its address moves.
    pub async fn neighbours(&self) -> Vec<Neighbour> {
        if self.keep_addresses { network::neighbours(self.init()).await } else { Vec::new() }
    }

    /// Does with its connections what the user wants, if that is possible.
    pub fn settle_connections(&mut self, wanted: connections::Choice) -> Option<Finding> {
        let name = &self.inspection.name;
        self.keep_connections = self.keep_addresses && wanted != connections::Choice::Close;
        let has_networks = !self.inspection.networks().is_empty();
        match wanted {
            connections::Choice::Keep if !self.keep_addresses => Some(Finding::blocker(
                format!("the address of container '{name}' stays here, and so do its connections"),
                "let them be closed (--tcp close), or use a macvlan network",
            )),
            _ if !self.keep_addresses && has_networks => Some(Finding::note(
                "the container's address changes: its network is local to this host",
                "clients' connections are reset once it has moved; a macvlan network keeps \
                 address and connections, and with --keep-address a bridge that both hosts are on",
            )),
            connections::Choice::Close if has_networks => Some(Finding::note(
                "the container keeps its address, and no connection",
                "clients see a reset when they next send something",
            )),
            _ => None,
        }
    }

    /// Its init on this host.
    pub fn init(&self) -> i32 {
        crate::runtime::restored_init(self.inspection.pid)
    }

    /// Its processes: thread-group leaders only, as this host and as the
    /// container number them.
    pub fn tasks(&self) -> Result<Vec<Task>, CgroupError> {
        let pids = self.freezer.processes()?;
        Ok(pids.into_iter().filter_map(Task::of).collect())
    }

    /// What CRIU's pre-dumps of it need; their images go under `work`.
    pub fn pre_dumps(&self, work: &Path) -> PreDumpSpec {
        PreDumpSpec {
            pid: self.init(),
            rootfs: self.bundle.rootfs.clone(),
            external: self.bundle.external.clone(),
            directory: work.join("pre-dumps"),
        }
    }

    /// The same, once a health check that may be running has ended: Docker runs
    /// it as a guest, every now and then.
    fn tasks_without_guests(&self) -> Result<Vec<Task>, CgroupError> {
        let until = Instant::now() + GUEST_LIMIT;
        loop {
            let tasks = self.tasks()?;
            if Instant::now() > until || strangers(self.init(), &tasks).is_empty() {
                return Ok(tasks);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Memory it holds now, shared pages counted once per process.
    pub fn memory(&self) -> Result<ByteSize, CgroupError> {
        let pids = self.freezer.processes()?;
        Ok(ByteSize(pids.into_iter().map(|pid| status_kib(pid, "VmRSS:") * 1024).sum()))
    }

    /// What it is to be on the target, perhaps by another name.
    pub fn copy_of(&self, rename: Option<&str>) -> Inspection {
        match rename {
            Some(name) => self.inspection.clone().renamed(name),
            None => self.inspection.clone(),
        }
    }

    /// What the target must have.
    pub fn requirements(
        &self,
        source: &HostFacts,
        rename: Option<&str>,
    ) -> Result<CheckRequest, CgroupError> {
        Ok(CheckRequest {
            source: source.clone(),
            name: self.copy_of(rename).name,
            image: self.inspection.image.clone(),
            image_name: self.inspection.image_name(),
            layers: self.layers.clone(),
            containerd_images: self.containerd_images,
            networks: self.inspection.networks().into_keys().collect(),
            wanted: self.addresses.wanted(&self.inspection),
            links: self.inspection.links(),
            memory: self.memory()?,
            layer: self.upper.as_deref().map(size_of).unwrap_or_default(),
            mounts: self.plan.told(),
            apparmor: self.inspection.all.app_armor_profile.clone().unwrap_or_default(),
        })
    }

    /// What of the container itself stands in the way.
    pub fn findings(&self) -> Result<Vec<Finding>, CgroupError> {
        let mut findings = Vec::new();
        findings.extend(self.plan.findings.iter().cloned());
        findings.extend(self.configuration_findings());
        let tasks = self.tasks_without_guests()?;
        findings.extend(strangers(self.init(), &tasks).into_iter().map(|pid| {
            Finding::blocker(
                format!(
                    "process {} (pid {pid}) came into container '{}' from outside, as by `docker \
                     exec`",
                    command_of(pid),
                    self.inspection.name
                ),
                "CRIU moves what descends from the container's init: end that process first",
            )
        }));
        for task in tasks {
            findings.extend(process_findings(task.pid));
        }
        findings.dedup();
        Ok(findings)
    }

    fn configuration_findings(&self) -> Vec<Finding> {
        let name = &self.inspection.name;
        let host = self.inspection.all.host_config.clone().unwrap_or_default();
        let mut findings = Vec::new();
        let network = host.network_mode.unwrap_or_default();
        if network == "host" || network.starts_with("container:") {
            findings.push(Finding::blocker(
                format!("container '{name}' uses the network of {network}"),
                "blip moves containers with a network of their own",
            ));
        }
        if host.privileged == Some(true) {
            findings.push(Finding::blocker(
                format!("container '{name}' is privileged"),
                "run it with the capabilities and devices it needs instead",
            ));
        }
        for (what, mode) in [("PID", host.pid_mode), ("IPC", host.ipc_mode)] {
            let mode = mode.unwrap_or_default();
            if mode == "host" || mode.starts_with("container:") {
                findings.push(Finding::blocker(
                    format!("container '{name}' uses the {what} namespace of {mode}"),
                    "blip moves containers with namespaces of their own",
                ));
            }
        }
        if self.bundle.terminal {
            findings.push(Finding::note(
                format!("container '{name}' has a terminal: sessions attached to it here end"),
                "they are told so; docker attach goes on there",
            ));
        }
        let config = self.inspection.all.config.clone().unwrap_or_default();
        if config.labels.is_some_and(|labels| labels.contains_key(SWARM_TASK)) {
            findings.push(Finding::blocker(
                format!(
                    "container '{name}' is a task of a Swarm service, with its secrets and configs"
                ),
                "Swarm places it itself, and would start another: move the service, not the task",
            ));
        }
        if self.upper.is_none() {
            findings.push(Finding::blocker(
                format!("the root of container '{name}' is no overlay"),
                "use the storage driver overlay2",
            ));
        }
        findings.extend(self.addresses.findings(name));
        findings
    }
}

fn status_kib(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn command_of(pid: i32) -> String {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    command.trim().to_owned()
}

/// Processes in the container's cgroup that do not descend from its init.
fn strangers(init: i32, tasks: &[Task]) -> Vec<i32> {
    let parents: BTreeMap<i32, i32> =
        tasks.iter().filter_map(|task| Some((task.pid, parent_of(task.pid)?))).collect();
    unrelated(init, &parents)
}

/// Those that no chain of parents leads from to `init`.
fn unrelated(init: i32, parents: &BTreeMap<i32, i32>) -> Vec<i32> {
    let descends = |&pid: &i32| {
        let chain = std::iter::successors(Some(pid), |pid| parents.get(pid).copied());
        // A chain cannot be longer than there are processes.
        chain.take(parents.len() + 1).any(|pid| pid == init)
    };
    parents.keys().filter(|pid| !descends(pid)).copied().collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// What CRIU cannot dump of a process, by name.
fn process_findings(pid: i32) -> Vec<Finding> {
    let mut findings = Vec::new();
    let who = format!("process {} (pid {pid})", command_of(pid));
    // Reading the resource limits of others' processes takes a capability that
    // root lacks in some containers and virtual machines, or our library.
    if !owned_by_root(pid) && !may_read_limits() && !Preload::is_built_in() {
        findings.push(Finding::blocker(
            format!("{who} is not root's, and blip lacks CAP_SYS_RESOURCE"),
            "CRIU cannot read its resource limits: give blip the capability",
        ));
    }
    let open = descriptors::of(pid).unwrap_or_default();
    let links: Vec<_> = open.iter().map(|descriptor| descriptor.link.clone()).collect();
    for (kind, what) in undumpable(&links) {
        findings.push(Finding::blocker(
            format!("{who} has {what} open ({kind})"),
            "CRIU cannot dump it; configure the program not to use it",
        ));
    }
    let semaphore = |descriptor: &Descriptor| {
        descriptor.link == "anon_inode:[eventfd]"
            && descriptor.info(pid).is_some_and(|info| is_semaphore(&info))
    };
    if open.iter().any(semaphore) {
        findings.push(Finding::blocker(
            format!("{who} has an eventfd that counts as a semaphore (EFD_SEMAPHORE)"),
            "CRIU would make a plain counter of it; configure the program not to use it",
        ));
    }
    findings
}

/// Whether an eventfd gives one at a time.
fn is_semaphore(fdinfo: &str) -> bool {
    let mode = fdinfo.lines().find_map(|line| line.strip_prefix("eventfd-semaphore:"));
    mode.is_some_and(|mode| mode.trim() == "1")
}

/// One that has ended since needs no leave.
fn owned_by_root(pid: i32) -> bool {
    fs::metadata(format!("/proc/{pid}")).map_or(true, |meta| meta.uid() == 0)
}

fn may_read_limits() -> bool {
    const CAP_SYS_RESOURCE: u64 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & (1 << CAP_SYS_RESOURCE) != 0)
}

fn undumpable(links: &[String]) -> Vec<(String, &'static str)> {
    let known = [
        ("anon_inode:[userfaultfd]", "a userfaultfd"),
        ("anon_inode:[io_uring]", "an io_uring"),
        ("anon_inode:[perf_event]", "a perf event"),
        ("anon_inode:bpf-map", "a BPF map"),
        ("anon_inode:bpf-prog", "a BPF program"),
        ("anon_inode:[fanotify]", "a fanotify group it may not restore"),
        ("anon_inode:kvm-vm", "a KVM machine"),
        ("/dev/fuse", "a FUSE channel"),
        ("/dev/kvm", "the KVM device"),
        ("/dev/nvidia", "a GPU"),
        ("/dev/dri/", "a GPU"),
        ("/dev/infiniband/", "an RDMA device"),
    ];
    let mut found: Vec<_> = links
        .iter()
        .filter_map(|link| {
            let (_, what) = known.iter().find(|(prefix, _)| link.starts_with(prefix))?;
            Some((link.clone(), *what))
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The upper directory of the overlay that is a process' root.
fn upper_directory(pid: i32) -> Option<PathBuf> {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
    parse_upper(&mounts)
}

fn parse_upper(mountinfo: &str) -> Option<PathBuf> {
    let root = mountinfo.lines().find(|line| line.split(' ').nth(4) == Some("/"))?;
    let (_, right) = root.split_once(" - ")?;
    let mut fields = right.split(' ');
    if fields.next()? != "overlay" {
        return None;
    }
    let options = fields.nth(1)?;
    let upper = options.split(',').find_map(|option| option.strip_prefix("upperdir="))?;
    Some(Path::new(upper).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_semaphore_is_told_from_a_counter() {
        let info = |mode: u8| format!("flags:\t02\neventfd-count: 7\neventfd-semaphore: {mode}\n");
        assert!(is_semaphore(&info(1)) && !is_semaphore(&info(0)));
        assert!(!is_semaphore("flags:\t02\neventfd-count: 7\n"), "an old kernel does not tell");
    }

    #[test]
    fn the_upper_directory_is_that_of_the_root() {
        let text = "101 56 0:59 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/u/diff,workdir=/w\n\
                    103 101 0:68 / /proc rw - proc proc rw\n";
        assert_eq!(parse_upper(text), Some("/u/diff".into()));
        assert_eq!(parse_upper("1 2 0:3 / / rw - ext4 /dev/sda rw\n"), None);
    }

    #[test]
    fn who_does_not_descend_from_init_is_a_stranger() {
        let parents = BTreeMap::from([(10, 1), (11, 10), (12, 11), (20, 2), (21, 20)]);
        assert_eq!(unrelated(10, &parents), [20, 21]);
    }

    #[test]
    fn what_criu_cannot_dump_is_named_once() {
        let links = ["anon_inode:[io_uring]", "socket:[1]", "anon_inode:[io_uring]"];
        let links = links.map(str::to_owned);
        assert_eq!(undumpable(&links), [(links[0].clone(), "an io_uring")]);
    }
}
