//! A second layer over a host's root: the programs blip is compared with.
//!
//! Most labs do without it. It is made on an overlay over the finished root and
//! kept beside it; its folder's name carries a hash of the recipe and of the
//! root.

use super::error::Context as _;
use super::paths::{cache, lock};
use super::{LabSpec, Result, run};
use std::fs;
use std::path::{Path, PathBuf};

/// Debian's packages of peers.
const PACKAGES: [&str; 2] = ["incus-base", "podman"];

/// Peers that are put in as soon as Debian has them.
const HOPED_FOR: [&str; 1] = ["dmtcp"];

/// With what the name of every folder of layers begins.
pub(super) const PREFIX: &str = "peers-";

/// Runs in a mount namespace of its own. What it needs of the machine is its
/// way to the package mirror, which a host of the lab does not have.
const BUILD: &str = r#"
set -e
base=$1 new=$2 packages=$3 hoped=$4
root=$new/root
mkdir -p "$new/upper" "$new/work" "$root"
mount -t overlay peers -o "lowerdir=$base,upperdir=$new/upper,workdir=$new/work" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
rm -f "$root/etc/resolv.conf"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
# No daemon is to be started by being installed.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive
chroot "$root" apt-get update -q -o 'Acquire::Check-Valid-Until=false'
for package in $hoped; do
  if chroot "$root" apt-cache show "$package" >"$root/tmp/shown" 2>&1 && [ -s "$root/tmp/shown" ]; then
    packages="$packages $package"
  fi
done
chroot "$root" apt-get install -y -q --no-install-recommends $packages
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root/usr/sbin/policy-rc.d"
umount "$root/tmp" "$root/proc" "$root"
"#;

/// Counts changes of the recipe that the lists above do not show.
const RECIPE: u32 = 1;

/// The layer over the root in `home`, made if need be; none for a lab without
/// peers.
pub(crate) fn ensure(spec: &LabSpec, home: &Path) -> Result<Option<PathBuf>> {
    spec.peers.then(|| made(spec, home)).transpose()
}

fn made(spec: &LabSpec, home: &Path) -> Result<PathBuf> {
    let (packages, hoped) = (PACKAGES.join(" "), HOPED_FOR.join(" "));
    let recipe = format!("{RECIPE} {} {BUILD} {packages} {hoped}", home.display());
    let hash = blake3::hash(recipe.as_bytes()).to_hex();
    let layer = cache().join(format!("{PREFIX}{}-{}", spec.suite, &hash[..12]));
    if layer.is_dir() {
        return Ok(layer);
    }
    let _lock = lock(&cache().join("build.lock"))?;
    if layer.is_dir() {
        return Ok(layer);
    }
    (spec.progress)("adding the peers' packages to the root (a minute, once)");
    let new = cache().join(format!("{PREFIX}building"));
    clear(&new)?;
    let mut build = run::leashed("sh");
    build.args(["-c", BUILD, "sh"]).arg(home.join("rootfs")).arg(&new);
    build.args([packages, hoped]);
    run::run("adding the peers' packages to the root", &mut build)?;
    fs::rename(new.join("upper"), &layer).on("keeping", &layer)?;
    clear(&new)?;
    Ok(layer)
}

fn clear(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).on("removing", dir),
        _ => Ok(()),
    }
}
