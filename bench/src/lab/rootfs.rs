//! The hosts' root file systems, built from Debian packages and kept.
//!
//! A build happens beside its final place and is renamed into it, so what is
//! there is whole. The folder's name carries a hash of the recipe: a changed
//! recipe is another root.

use super::error::Context as _;
use super::paths::{cache, lock, names};
use super::{LabError, LabSpec, Result, machine, run};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Which Debian the hosts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Docker 28.5, CRIU 4.2.
    Forky,
    /// Docker 26.1, with the CRIU of forky: its own fails on new kernels.
    Trixie,
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forky => "forky",
            Self::Trixie => "trixie",
        })
    }
}

/// What every host has, beyond Debian's minimum and CRIU.
const PACKAGES: [&str; 18] = [
    "busybox-static",
    "ca-certificates",
    "conntrack",
    "containerd",
    "docker-cli",
    "docker.io",
    "iproute2",
    "iptables",
    "iputils-ping",
    "kmod",
    "nftables",
    "procps",
    "python3",
    "redis-server",
    "redis-tools",
    "runc",
    "tar",
    "zstd",
];

/// Keys of Debian's releases, old and coming.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Counts changes of the recipe that the package list does not show.
const RECIPE: u32 = 1;

/// Where a root is built.
const BUILDING: &str = "building";

/// The name of this recipe's folder.
fn folder_name(suite: Suite) -> String {
    let recipe = format!("{suite} {RECIPE} {} {}", super::image::RECIPE, PACKAGES.join(" "));
    let hash = blake3::hash(recipe.as_bytes()).to_hex();
    format!("{suite}-{}", &hash[..12])
}

/// The folder with the suite's root (`rootfs/`) and images.
pub(super) fn home(suite: Suite) -> PathBuf {
    cache().join(folder_name(suite))
}

/// As [`home`], built if need be.
pub(super) fn ensure(spec: &LabSpec) -> Result<PathBuf> {
    let home = home(spec.suite);
    if home.join("rootfs").is_dir() {
        return Ok(home);
    }
    if let Err(busy) = try_lock_hint() {
        (spec.progress)(busy);
    }
    let _lock = lock(&cache().join("build.lock"))?;
    if home.join("rootfs").is_dir() {
        return Ok(home);
    }
    let building = cache().join(BUILDING);
    clear(&building)?;
    let mirror = mirror(spec)?;
    (spec.progress)(&format!("building the root of {} (half a minute, once)", spec.suite));
    build(spec.suite, &mirror, &building.join("rootfs"))?;
    clear(&home)?;
    fs::rename(&building, &home).on("keeping", &home)?;
    Ok(home)
}

/// The folder with the suite's root and images, both there.
pub(crate) fn ready(spec: &LabSpec) -> Result<PathBuf> {
    machine::install_tools(spec.progress)?;
    let home = ensure(spec)?;
    super::image::ensure(&home, spec.progress)?;
    Ok(home)
}

/// Where packages come from.
pub(crate) fn mirror(spec: &LabSpec) -> Result<String> {
    spec.mirror.clone().map_or_else(own_mirror, Ok)
}

/// The folder of all that is cached.
pub(crate) fn folder() -> PathBuf {
    cache()
}

/// Waits until nobody else builds anything there.
pub(crate) fn build_lock() -> Result<nix::fcntl::Flock<fs::File>> {
    lock(&cache().join("build.lock"))
}

/// Says so if another lab is building, since the wait may be long.
fn try_lock_hint() -> std::result::Result<(), &'static str> {
    let path = cache().join("build.lock");
    let Ok(file) = fs::File::open(path) else { return Ok(()) };
    match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(()),
        Err(_) => Err("waiting for another lab that builds its root"),
    }
}

/// Removes every cached root and image.
pub(super) fn purge() -> Result<()> {
    let labs = names()?;
    if !labs.is_empty() {
        return Err(LabError::InUse(labs.join(", ")));
    }
    let _lock = lock(&cache().join("build.lock"))?;
    let entries = fs::read_dir(cache()).on("reading", cache())?.flatten();
    // Only what is ours: the folder may be one the user named.
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = ["forky-", "trixie-", "vm-", super::extra::PREFIX];
        if name == BUILDING || ours.iter().any(|prefix| name.starts_with(*prefix)) {
            clear(&entry.path())?;
        }
    }
    let _ = fs::remove_file(cache().join("build.lock"));
    let _ = fs::remove_dir(cache());
    Ok(())
}

fn clear(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).on("removing", dir),
        _ => Ok(()),
    }
}

/// A command that builds a root of a variant of Debian's.
pub(super) fn mmdebstrap(variant: &str) -> std::process::Command {
    let mut command = run::leashed("mmdebstrap");
    command.args(["--mode=root", "--format=directory", "--components=main"]);
    command.arg(format!("--variant={variant}"));
    // A snapshot of a suite that is still in the making may be past its date.
    command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    command.arg("--aptopt=Apt::Install-Recommends \"false\"");
    for kind in ["doc", "man", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{kind}/*"));
    }
    if Path::new(KEYRING).exists() {
        command.arg(format!("--keyring={KEYRING}"));
    }
    command
}

fn build(suite: Suite, mirror: &str, root: &Path) -> Result<()> {
    let parent = root.parent().unwrap_or(root);
    fs::create_dir_all(parent).on("making", parent)?;
    let mut packages = PACKAGES.join(",");
    let mut command = mmdebstrap("minbase");
    let mut sources = format!("deb {mirror} {suite} main\n");
    match suite {
        Suite::Forky => packages += ",criu",
        Suite::Trixie => {
            sources += &format!("deb {mirror} {} main\n", Suite::Forky);
            command.arg(
                "--setup-hook=mkdir -p \"$1/etc/apt/preferences.d\" && \
                 printf 'Package: *\\nPin: release n=forky\\nPin-Priority: 50\\n' \
                 > \"$1/etc/apt/preferences.d/lab\"",
            );
            command.arg(
                "--customize-hook=chroot \"$1\" apt-get install -y -t forky \
                 --no-install-recommends criu",
            );
        }
    }
    command.arg(format!("--include={packages}"));
    command.arg(suite.to_string()).arg(root).arg("-");
    let doing = format!("building the root of {suite} from {mirror}");
    run::run_with(&doing, &mut command, sources.as_bytes()).map(|_| ())
}

/// The mirror that the machine's own apt takes Debian from.
fn own_mirror() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        release
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix('='))
            .map(|v| v.trim_matches('"').to_owned())
    };
    let codename = value("VERSION_CODENAME").filter(|_| value("ID").as_deref() == Some("debian"));
    let Some(codename) = codename.filter(|_| machine::has_apt()) else {
        return Err(LabError::Missing(
            "it is not a Debian, so its package mirror is not known: name one with --mirror".into(),
        ));
    };
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let more = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let mut more: Vec<_> = more.map(|e| e.path()).collect();
    more.sort();
    files.extend(more);
    files
        .iter()
        .filter_map(|f| fs::read_to_string(f).ok())
        .find_map(|text| mirror_in(&text, &codename))
        .ok_or_else(|| {
            LabError::Missing(format!(
                "its apt sources name no mirror of {codename}: name one with --mirror"
            ))
        })
}

/// Finds the mirror of a suite in an apt source file, of either format.
fn mirror_in(text: &str, codename: &str) -> Option<String> {
    one_line(text, codename).or_else(|| deb822(text, codename))
}

/// `deb [options] URI SUITE COMPONENT…`
fn one_line(text: &str, codename: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let mut words = rest.split_whitespace();
        let uri = words.next()?;
        (words.next()? == codename && words.any(|w| w == "main")).then(|| uri.to_owned())
    })
}

/// Stanzas of `Field: values`, values continued on indented lines.
fn deb822(text: &str, codename: &str) -> Option<String> {
    let plain: String =
        text.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
    plain.split("\n\n").find_map(|stanza| {
        let unfolded = stanza.replace("\n ", " ").replace("\n\t", " ");
        let values = |field: &str| -> Vec<String> {
            unfolded
                .lines()
                .filter_map(|l| l.split_once(':'))
                .find(|(name, _)| name.trim().eq_ignore_ascii_case(field))
                .map(|(_, v)| v.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default()
        };
        let has = |field: &str, word: &str| values(field).iter().any(|v| v == word);
        let fits = has("Types", "deb")
            && has("Suites", codename)
            && has("Components", "main")
            && !has("Enabled", "no");
        if fits { values("URIs").into_iter().next() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_either_format() {
        let old = "# deb http://no/ bookworm main\ndeb-src http://src/ bookworm main\n\
                   deb http://other.example/apt stable main\n\
                   deb [arch=amd64 signed-by=/k] http://m.example/debian bookworm contrib main\n";
        assert_eq!(mirror_in(old, "bookworm").as_deref(), Some("http://m.example/debian"));
        let new = "Types: deb\nURIs: http://sec.example/s\nSuites: bookworm-security\n\
                   Components: main\n\nTypes: deb deb-src\n# a remark\n\
                   URIs: http://m.example/debian http://second/\n\
                   Suites: bookworm\n bookworm-updates\nComponents: main\n";
        assert_eq!(mirror_in(new, "bookworm").as_deref(), Some("http://m.example/debian"));
    }

    #[test]
    fn sources_of_other_suites_and_disabled_ones_are_passed_over() {
        assert_eq!(mirror_in("deb http://m/ stable main\n", "bookworm"), None);
        let off = "Enabled: no\nTypes: deb\nURIs: http://m/\nSuites: bookworm\nComponents: main\n";
        assert_eq!(mirror_in(off, "bookworm"), None);
        assert_eq!(mirror_in("deb http://m/ bookworm universe\n", "bookworm"), None);
    }

    #[test]
    fn each_suite_has_its_own_folder() {
        assert_ne!(folder_name(Suite::Forky), folder_name(Suite::Trixie));
        assert!(folder_name(Suite::Forky).starts_with("forky-"));
    }
}
