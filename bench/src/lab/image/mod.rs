//! The images that containers of the lab run, made without a registry.
//!
//! Those that every lab has are small; larger ones are made and loaded when a
//! lab asks for them ([`application`]). Each of the small ones is one layer of a few programs and their libraries, taken from the
//! hosts' own root, written as an archive that `docker load` reads. All that
//! goes in is fixed (order, times, owners), so an image's ID depends on its
//! files only and is the same on every host.

mod application;

use super::error::Context as _;
use super::paths::lock;
use super::{LabError, Result, run};
pub use application::{Application, MEMCACHED, NGINX, POSTGRESQL};
pub(super) use application::{ensure as ensure_application, root as application_root};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Counts changes of what goes into the images.
pub(super) const RECIPE: u32 = 1;

/// Where programs are.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One image to make.
struct Image<'a> {
    name: &'a str,
    /// Programs of the root, below `/usr/bin`.
    programs: &'a [&'a str],
    /// A program of the machine.
    guest: Option<&'a Path>,
    /// Whether Python's own library goes along.
    python: bool,
    command: &'a [&'a str],
}

const IMAGES: [Image<'static>; 3] = [
    Image {
        name: "blip/busybox:latest",
        programs: &[],
        guest: None,
        python: false,
        command: &["sh"],
    },
    Image {
        name: "blip/redis:latest",
        programs: &["redis-server", "redis-cli", "redis-benchmark"],
        guest: None,
        python: false,
        command: &["redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no"],
    },
    Image {
        name: "blip/python:latest",
        programs: &["python3"],
        guest: None,
        python: true,
        command: &["python3"],
    },
];

/// The archive of all images for the root in `home`, made if need be.
pub(super) fn ensure(home: &Path, progress: fn(&str)) -> Result<PathBuf> {
    let archive = home.join("images.tar");
    if archive.is_file() {
        return Ok(archive);
    }
    let _lock = lock(&home.join("images.lock"))?;
    if archive.is_file() {
        return Ok(archive);
    }
    progress("making the images");
    let work = home.join("images.building");
    let _ = fs::remove_dir_all(&work);
    let whole = archive_of(&IMAGES, &home.join("rootfs"), &work)?;
    fs::rename(&whole, &archive).on("keeping", &archive)?;
    fs::remove_dir_all(&work).on("removing", &work)?;
    Ok(archive)
}

/// Makes, below `work`, the archive of an image around a program of the
/// machine, with those libraries of the root that it asks for by name: both
/// are Debians, and the root is the newer one.
pub(super) fn around(program: &Path, name: &str, home: &Path, work: &Path) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(work);
    let file = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let command = [file.as_str()];
    let image =
        Image { name, programs: &[], guest: Some(program), python: false, command: &command };
    archive_of(&[image], &home.join("rootfs"), work)
}

fn archive_of(images: &[Image<'_>], root: &Path, work: &Path) -> Result<PathBuf> {
    let out = work.join("archive");
    folder(&out)?;
    let mut manifest = Vec::new();
    for image in images {
        manifest.push(make(image, root, work, &out)?);
    }
    bind(&manifest, &out, work)
}

/// Makes an archive of images that lie sealed in a folder.
fn bind(manifest: &[serde_json::Value], out: &Path, work: &Path) -> Result<PathBuf> {
    write(&out.join("manifest.json"), &json!(manifest))?;
    let whole = work.join("images.tar");
    pack(out, &whole)?;
    Ok(whole)
}

/// Makes one image's layer and configuration; gives its line of the manifest.
fn make(image: &Image<'_>, root: &Path, work: &Path, out: &Path) -> Result<serde_json::Value> {
    let files = work.join("files");
    let _ = fs::remove_dir_all(&files);
    lay_files(image, root, &files)?;
    let layer = work.join("layer.tar");
    pack(&files, &layer)?;
    let config = json!({ "Cmd": image.command, "Env": [PATH, "PYTHONDONTWRITEBYTECODE=1"], "WorkingDir": "/data" });
    seal(image.name, &layer, &config, out)
}

/// Puts a layer and what Docker is to know of it into the folder of an
/// archive; gives the image's line of the manifest.
fn seal(
    name: &str,
    layer: &Path,
    config: &serde_json::Value,
    out: &Path,
) -> Result<serde_json::Value> {
    let digest = sha256(layer)?;
    let layer_name = format!("{digest}.tar");
    fs::rename(layer, out.join(&layer_name)).on("keeping", layer)?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "created": "2025-01-01T00:00:00Z",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        "history": [{ "created": "2025-01-01T00:00:00Z", "created_by": "blip-bench lab" }],
    });
    let draft = out.join("config.json");
    write(&draft, &config)?;
    let config_name = format!("{}.json", sha256(&draft)?);
    fs::rename(&draft, out.join(&config_name)).on("keeping", &draft)?;
    Ok(json!({ "Config": config_name, "RepoTags": [name], "Layers": [layer_name] }))
}

/// Gathers an image's files: busybox for everything ordinary, its programs
/// with the libraries they load.
fn lay_files(image: &Image<'_>, root: &Path, files: &Path) -> Result<()> {
    for dir in ["bin", "data", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin"] {
        folder(&files.join(dir))?;
    }
    copy(root, Path::new("/usr/bin/busybox"), &files.join("bin/busybox"))?;
    let applets = run::run("listing busybox", chroot(root).args(["/usr/bin/busybox", "--list"]))?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|a| *a != "busybox") {
        let link = files.join("bin").join(applet);
        symlink("busybox", &link).on("linking", &link)?;
    }
    for (path, text) in
        [("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("etc/group", "root:x:0:\n")]
    {
        fs::write(files.join(path), text).on("writing", files.join(path))?;
    }
    let mut objects: Vec<PathBuf> = Vec::new();
    for program in image.programs {
        let path = Path::new("/usr/bin").join(program);
        copy(root, &path, &files.join("usr/bin").join(program))?;
        objects.push(path);
    }
    if image.python {
        objects.extend(lay_python(root, files)?);
    }
    let mut listed = String::new();
    if !objects.is_empty() {
        listed += &libraries(chroot(root).arg("ldd").args(&objects))?;
    }
    if let Some(guest) = image.guest {
        let to = files.join("usr/bin").join(guest.file_name().unwrap_or_default());
        fs::copy(guest, &to).on("copying", guest)?;
        listed += &libraries(run::program("ldd").arg(guest))?;
    }
    // Lines read `name => /path (address)`, `/loader (address)`, `/object:`.
    for library in listed.split_whitespace().filter(|w| w.starts_with('/') && !w.ends_with(':')) {
        let library = Path::new(library);
        let to = files.join(library.strip_prefix("/").unwrap_or(library));
        if !to.exists() {
            folder(to.parent().unwrap_or(files))?;
            copy(root, library, &to)?;
        }
    }
    Ok(())
}

/// What `ldd` says.
fn libraries(ldd: &mut std::process::Command) -> Result<String> {
    let said = run::run("finding libraries", ldd)?;
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// Copies Python's library, gives the native modules whose libraries it needs.
fn lay_python(root: &Path, files: &Path) -> Result<Vec<PathBuf>> {
    let lib = files.join("usr/lib");
    folder(&lib)?;
    let mut modules = Vec::new();
    for entry in fs::read_dir(root.join("usr/lib")).on("reading", root.join("usr/lib"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("python3.") {
            continue;
        }
        run::run(
            "copying Python's library",
            run::program("cp").arg("-a").arg(entry.path()).arg(&lib),
        )?;
        let native = Path::new("usr/lib").join(&name).join("lib-dynload");
        for module in fs::read_dir(root.join(&native)).into_iter().flatten().flatten() {
            modules.push(Path::new("/").join(&native).join(module.file_name()));
        }
    }
    Ok(modules)
}

fn chroot(root: &Path) -> std::process::Command {
    let mut command = run::program("chroot");
    command.arg(root);
    command
}

/// Copies what a path of the root means, through any links, as a plain file.
fn copy(root: &Path, path: &Path, to: &Path) -> Result<()> {
    let real = run::run("resolving a path", chroot(root).args(["readlink", "-e"]).arg(path))?;
    let real = String::from_utf8_lossy(&real.stdout).trim().trim_start_matches('/').to_owned();
    fs::copy(root.join(real), to).map(|_| ()).on("copying", to)
}

/// Packs a folder the same way every time, as if all were root's.
fn pack(dir: &Path, archive: &Path) -> Result<()> {
    tar(dir, archive, &["--owner=0", "--group=0", "--exclude=__pycache__"])
}

/// Packs a folder the same way every time.
fn tar(dir: &Path, archive: &Path, options: &[&str]) -> Result<()> {
    run::run(
        "packing an image",
        run::program("tar")
            .args(["--sort=name", "--mtime=@0", "--numeric-owner", "--format=gnu"])
            .args(options)
            .arg("-cf")
            .arg(archive)
            .arg("-C")
            .arg(dir)
            .arg("."),
    )
    .map(|_| ())
}

fn sha256(file: &Path) -> Result<String> {
    let said = run::run("hashing an image", run::program("sha256sum").arg(file))?;
    let said = String::from_utf8_lossy(&said.stdout);
    said.split_whitespace().next().map(str::to_owned).ok_or(LabError::Panicked)
}

fn folder(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).on("making", dir)
}

fn write(path: &Path, value: &serde_json::Value) -> Result<()> {
    fs::write(path, value.to_string()).on("writing", path)
}
