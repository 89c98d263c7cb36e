//! What a machine is made of, in the lab's cache: the emulator, a kernel, and
//! a disk with the lab's root and the kernel's modules.
//!
//! As with the lab's roots, a part is made beside its place and renamed into
//! it, and its folder's name carries a hash of how it is made.

use super::{Result, VmError, VmSpec};
use crate::lab::{LabError, LabSpec, extra, on, rootfs, run};
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Whose kernel to boot: all keep soft-dirty bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernel {
    /// Linux 6.1: soft-dirty bits, but neither WP_ASYNC nor PAGEMAP_SCAN.
    Bookworm,
    /// Linux 6.12: both ways to track.
    Trixie,
    /// The newest.
    Forky,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        })
    }
}

/// The suite whose QEMU is used: older ones are flaky with two processors.
const QEMU_SUITE: &str = "trixie";
/// Counts changes of how the parts are made.
const RECIPE: u32 = 1;
/// The disk's size: sparse, so that only what is used takes room.
const DISK: u64 = 8 << 30;
const INIT: &str = include_str!("init.sh");

/// The parts, ready.
#[derive(Debug)]
pub(super) struct Parts {
    /// The folder of QEMU's packages.
    pub(super) emulator: PathBuf,
    /// The kernel, uncompressed: the emulator would take long to unpack it.
    pub(super) kernel: PathBuf,
    /// The disk.
    pub(super) disk: PathBuf,
}

/// Makes what is not there yet.
pub(super) fn ensure(spec: &VmSpec) -> Result<Parts> {
    let lab = LabSpec {
        suite: spec.suite,
        peers: spec.peers,
        mirror: spec.mirror.clone(),
        progress: spec.progress,
        ..LabSpec::default()
    };
    crate::lab::install(&TOOLS, spec.progress)?;
    let root = rootfs::ready(&lab)?;
    let extra = extra::ensure(&lab, &root)?;
    let folders: Vec<PathBuf> = iter::once(root).chain(extra).collect();
    let mirror = rootfs::mirror(&lab)?;
    let emulator = part("qemu", QEMU_SUITE, "", |to| {
        (spec.progress)("fetching QEMU (once)");
        Ok(unpack(QEMU_SUITE, "qemu-system-x86", &mirror, &to.join("root"))?)
    })?;
    let suite = spec.kernel.to_string();
    let kernel = part("linux", &suite, "", |to| {
        (spec.progress)("fetching a kernel (once)");
        unpack(&suite, "linux-image-cloud-amd64", &mirror, &to.join("root"))?;
        extract(&to.join("root/boot"), &to.join("vmlinux"))
    })?;
    let salt = format!("{INIT} {folders:?}");
    let disk = part("disk", &suite, &salt, |to| {
        (spec.progress)("making the disk (once)");
        make_disk(&folders, &kernel, to)
    })?;
    Ok(Parts {
        emulator: emulator.join("root"),
        kernel: kernel.join("vmlinux"),
        disk: disk.join("disk.img"),
    })
}

/// Programs of the machine that this needs beyond the lab's, and their packages.
const TOOLS: [(&str, &str); 5] = [
    ("mmdebstrap", "mmdebstrap"),
    ("zstd", "zstd"),
    ("xz", "xz-utils"),
    ("lz4", "lz4"),
    ("mke2fs", "e2fsprogs"),
];

/// A folder of the cache, made by `make` if it is not there.
fn part(
    name: &str,
    variant: &str,
    salt: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let hash = blake3::hash(format!("{RECIPE} {name} {variant} {salt}").as_bytes()).to_hex();
    let home = rootfs::folder().join(format!("vm-{name}-{variant}-{}", &hash[..12]));
    if home.is_dir() {
        return Ok(home);
    }
    let _lock = rootfs::build_lock()?;
    if home.is_dir() {
        return Ok(home);
    }
    let building = rootfs::folder().join("vm-building");
    let _ = fs::remove_dir_all(&building);
    fs::create_dir_all(&building).map_err(|e| on("making", &building, e))?;
    make(&building)?;
    fs::rename(&building, &home).map_err(|e| on("keeping", &home, e))?;
    Ok(home)
}

/// Unpacks a package with all it depends on, without setting anything up.
fn unpack(
    suite: &str,
    package: &str,
    mirror: &str,
    to: &Path,
) -> std::result::Result<(), LabError> {
    let mut command = run::leashed("mmdebstrap");
    command.args(["--mode=root", "--variant=extract", "--format=directory"]);
    command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    command.arg("--aptopt=Apt::Install-Recommends \"false\"");
    command.arg(format!("--include={package}"));
    if Path::new(rootfs::KEYRING).exists() {
        command.arg(format!("--keyring={}", rootfs::KEYRING));
    }
    command.arg(suite).arg(to).arg("-");
    let sources = format!("deb {mirror} {suite} main\n");
    let doing = format!("unpacking {package} of {suite}");
    run::run_with(&doing, &mut command, sources.as_bytes()).map(|_| ())
}

/// Takes the kernel out of its self-extracting image.
fn extract(boot: &Path, to: &Path) -> Result<()> {
    const PACKERS: [(&[u8], &str); 4] = [
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x02!L\x18", "lz4"),
    ];
    let entries = fs::read_dir(boot).map_err(|e| on("reading", boot, e))?;
    let mut images = entries.flatten().map(|entry| entry.path());
    let image = images
        .find(|path| path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"vmlinuz")))
        .ok_or_else(|| VmError::NoKernel(boot.to_owned()))?;
    let bytes = fs::read(&image).map_err(|e| on("reading", &image, e))?;
    for (magic, packer) in PACKERS {
        for at in places(&bytes, magic) {
            let kernel = unpacked(packer, &bytes[at..]);
            if kernel.starts_with(b"\x7fELF") && kernel.len() > 1 << 20 {
                return Ok(fs::write(to, kernel).map_err(|e| on("writing", to, e))?);
            }
        }
    }
    Err(VmError::NoKernel(image))
}

/// Where a magic number stands.
fn places<'a>(bytes: &'a [u8], magic: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(magic.len()).enumerate().filter(move |(_, w)| *w == magic).map(|(at, _)| at)
}

/// What a program unpacks, up to what it objects to: the kernel's code goes on
/// behind the packed part.
fn unpacked(packer: &str, packed: &[u8]) -> Vec<u8> {
    let mut command = run::program(packer);
    command.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return Vec::new() };
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let mut kernel = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Write as _;
            stdin.map(|mut stdin| stdin.write_all(packed))
        });
        if let Some(mut stdout) = stdout {
            let _ = stdout.read_to_end(&mut kernel);
        }
    });
    let _ = child.wait();
    kernel
}

/// Makes the disk: folders of the lab's cache, of which the first has the root
/// and is given the kernel's modules, and the first program.
fn make_disk(folders: &[PathBuf], kernel: &Path, to: &Path) -> Result<()> {
    let tree = to.join("tree");
    for folder in ["bin", "proc", "sys", "dev", "new", "rw", "cache"] {
        let folder = tree.join(folder);
        fs::create_dir_all(&folder).map_err(|e| on("making", &folder, e))?;
    }
    let copy = |from: &Path, to: &Path| {
        let mut command = run::program("cp");
        command.args(["--archive", "--reflink=auto"]).arg(from).arg(to);
        run::run("copying the lab's root", &mut command)
    };
    for folder in folders {
        copy(folder, &tree.join("cache"))?;
    }
    let own = tree.join("cache").join(folders[0].file_name().unwrap_or_default()).join("rootfs");
    copy(&own.join("usr/bin/busybox"), &tree.join("bin/busybox"))?;
    let path = tree.join("init");
    fs::write(&path, INIT).map_err(|e| on("writing", &path, e))?;
    run::run("the first program", run::program("chmod").arg("755").arg(&path))?;

    let modules = own.join("usr/lib/modules");
    copy(&kernel.join("root/usr/lib/modules"), &modules)
        .or_else(|_| copy(&kernel.join("root/lib/modules"), &modules))?;
    for version in fs::read_dir(&modules).map_err(|e| on("reading", &modules, e))?.flatten() {
        let mut depmod = run::program("chroot");
        depmod.arg(&own).arg("/usr/sbin/depmod").arg(version.file_name());
        run::run("listing the kernel's modules", &mut depmod)?;
    }
    let image = to.join("disk.img");
    let file = fs::File::create(&image).map_err(|e| on("making", &image, e))?;
    file.set_len(DISK).map_err(|e| on("making", &image, e))?;
    let mut mke2fs = run::program("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&tree).arg(&image);
    run::run("making the disk", &mut mke2fs)?;
    Ok(fs::remove_dir_all(&tree).map_err(|e| on("removing", &tree, e))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_found_behind_false_starts() {
        let kernel: Vec<u8> =
            b"\x7fELF".iter().copied().chain((0..2 << 20).map(|at| (at >> 9) as u8)).collect();
        let mut gzip = std::process::Command::new("gzip");
        let mut gzip =
            gzip.arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
        let mut stdin = gzip.stdin.take().expect("stdin");
        let input = kernel.clone();
        let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input));
        let packed = gzip.wait_with_output().expect("gzip").stdout;
        writer.join().expect("thread").expect("written");
        let boot = tempfile::tempdir().expect("a folder");
        let image =
            [b"start \x1f\x8b\x08 false ".as_slice(), &packed, b" and code behind"].concat();
        fs::write(boot.path().join("vmlinuz-1"), image).expect("written");
        let to = boot.path().join("vmlinux");
        extract(boot.path(), &to).expect("a kernel");
        assert_eq!(fs::read(&to).expect("read"), kernel);
        fs::write(boot.path().join("vmlinuz-1"), b"no kernel").expect("written");
        assert!(matches!(extract(boot.path(), &to), Err(VmError::NoKernel(_))));
    }
}
