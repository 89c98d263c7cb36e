//! What the lab needs of the machine it runs on.

use super::cgroup::{self, CgroupMode};
use super::error::Context as _;
use super::paths::Paths;
use super::{LabError, Result, network, run};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use std::fs;
use std::path::{Path, PathBuf};

/// Programs the lab runs, and the Debian packages they come in.
const TOOLS: [(&str, &str); 12] = [
    ("mmdebstrap", "mmdebstrap"),
    ("gpgv", "gpgv"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("tar", "tar"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("chroot", "coreutils"),
    ("sha256sum", "coreutils"),
    ("sh", "dash"),
];

/// Refuses in one line if not root.
pub(super) fn need_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(LabError::NeedsRoot) }
}

/// Whether the machine has Debian's package tools.
pub(super) fn has_apt() -> bool {
    run::find("apt-get").is_some() && run::find("dpkg").is_some()
}

/// Installs the programs that the lab needs and the machine lacks, or names
/// them.
pub(super) fn install_tools(progress: fn(&str)) -> Result<()> {
    install(&TOOLS, progress)
}

/// Installs what is missing of `(program, Debian package)` pairs, or names it.
///
/// # Errors
/// Without apt-get, or when it fails.
pub fn install(tools: &[(&str, &str)], progress: fn(&str)) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|(tool, _)| run::find(tool).is_none()).collect();
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    if !has_apt() {
        let tools: Vec<_> = missing.iter().map(|(tool, _)| *tool).collect();
        return Err(LabError::Missing(format!(
            "it has no apt-get to install {} with; install them by hand",
            tools.join(", ")
        )));
    }
    progress(&format!("installing {} by apt-get", packages.join(" ")));
    let doing = format!("installing {}", packages.join(" "));
    let install = || {
        run::run(
            &doing,
            run::program("apt-get")
                .args(["install", "-y", "-q", "--no-install-recommends"])
                .args(["-o", "DPkg::Lock::Timeout=300"])
                .args(&packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    if install().is_err() {
        // Most often the package lists are missing or old.
        run::run(
            "refreshing the package lists",
            run::program("apt-get").args(["update", "-q", "-o", "DPkg::Lock::Timeout=300"]),
        )?;
        install()?;
    }
    Ok(())
}

/// Names every kernel feature that is missing, all at once.
pub(super) fn check_kernel(mode: CgroupMode, paths: &Paths) -> Result<()> {
    let mut lacks = cgroup::lacking(mode, &cgroup::hierarchies()?);
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        if !Path::new("/proc/self/ns").join(kind).exists() {
            lacks.push(format!("{kind} namespaces"));
        }
    }
    if !has_file_system("overlay") {
        lacks.push("the overlay file system (CONFIG_OVERLAY_FS)".into());
    }
    lacks.extend(network_lacks()?);
    lacks.extend(unfit_folder(&paths.var)?);
    if lacks.is_empty() { Ok(()) } else { Err(LabError::Missing(lacks.join("; "))) }
}

/// Tries each kind of device in a network of its own.
fn network_lacks() -> Result<Vec<String>> {
    const STEPS: [(&str, &str, &str); 4] = [
        ("ip", "link add name t-br type bridge", "bridges (CONFIG_BRIDGE)"),
        ("ip", "link add name t-veth type veth peer name t-peer", "veth pairs (CONFIG_VETH)"),
        ("ip", "link add link t-veth name t-mac type macvlan", "macvlan (CONFIG_MACVLAN)"),
        (
            "tc",
            "qdisc add dev t-peer root tbf rate 8mbit burst 16kb latency 50ms",
            "the tbf queue (CONFIG_NET_SCH_TBF)",
        ),
    ];
    network::within_new(|| {
        let fails = |tool: &str, args: &str| {
            run::run("trying the kernel", run::program(tool).args(args.split(' '))).is_err()
        };
        Ok(STEPS
            .into_iter()
            .filter(|(tool, args, _)| fails(tool, args))
            .map(|(_, _, what)| what.into())
            .collect())
    })
}

/// Whether the kernel knows a file system, loading its module if need be.
fn has_file_system(name: &str) -> bool {
    let known = || {
        fs::read_to_string("/proc/filesystems")
            .is_ok_and(|list| list.lines().any(|l| l.split_whitespace().last() == Some(name)))
    };
    known() || {
        let _ = run::run("loading a module", run::program("modprobe").arg(name));
        known()
    }
}

/// Refuses a folder that cannot be the writable part of an overlay.
fn unfit_folder(dir: &Path) -> Result<Option<String>> {
    let there = dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    let kind = statfs(there).on("looking at", there)?.filesystem_type();
    Ok((kind == OVERLAYFS_SUPER_MAGIC).then(|| {
        format!(
            "a folder for writable layers ({} is on an overlay: set BLIP_LAB_VAR to one on ext4, xfs, btrfs or tmpfs)",
            there.display()
        )
    }))
}

/// Where `blip-bench` is: it is the init of the hosts.
pub(super) fn init_program(given: Option<&Path>) -> Result<PathBuf> {
    const NAME: &str = "blip-bench";
    if let Some(program) = given {
        return program.canonicalize().on("finding", program);
    }
    let own = std::env::current_exe().on("finding", "/proc/self/exe")?;
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join(NAME));
    let itself = std::iter::once(own.clone()).filter(|p| p.file_name() == Some(NAME.as_ref()));
    itself.chain(beside).find(|p| p.is_file()).ok_or_else(|| {
        LabError::Missing(format!(
            "no {NAME} beside {}: build it with `cargo build -p {NAME}`",
            own.display()
        ))
    })
}
