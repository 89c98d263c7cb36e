//! Images of Debian packages as they are, made when a lab asks for them.
//!
//! An application is a small root of Debian's with its packages, built once for
//! each suite and kept beside the hosts' root. The image is that root in one
//! layer; and its clients ([`Lab::client_program`](crate::lab::Lab::client_program))
//! run from the very folder, so that the machine needs none of it.
//!
//! A new one is a constant here and nothing else.

use super::super::error::Context as _;
use super::super::paths::lock;
use super::super::rootfs::mmdebstrap;
use super::super::{Result, Suite, run};
use super::{PATH, bind, folder, seal, tar};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// Counts changes of how applications are made.
const RECIPE: u32 = 1;

/// A program of Debian's that the lab can run in a container.
#[derive(Debug)]
pub struct Application {
    /// What its image is called.
    pub image: &'static str,
    /// Debian packages.
    packages: &'static [&'static str],
    /// Shell commands in the root before the packages are set up.
    before: &'static str,
    /// Shell commands in the root at the end.
    after: &'static str,
    /// Whom it runs as, by a name that the packages make.
    user: &'static str,
    /// Folders of programs besides the usual ones, by shell patterns.
    programs: &'static str,
    /// What a container runs.
    command: &'static [&'static str],
}

/// PostgreSQL with its contributed modules and `pgbench`. A container makes its
/// own cluster in `/data`, which trusts everybody, and takes the server's
/// options as further words of the command.
pub const POSTGRESQL: Application = Application {
    image: "blip/postgresql:latest",
    packages: &["postgresql"],
    before: "mkdir -p /etc/postgresql-common && \
             echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf",
    after: "printf '%s\\n' '#!/bin/sh -e' \
            'initdb --pgdata=/data --auth=trust --no-locale --encoding=UTF8 --no-sync' \
            'echo host all all all trust >>/data/pg_hba.conf' \
            'exec postgres -D /data -c listen_addresses=* -c unix_socket_directories=/tmp \"$@\"' >/usr/bin/postgresql-server && \
            chmod 755 /usr/bin/postgresql-server && \
            mkdir -m 700 /data && chown postgres:postgres /data",
    user: "postgres",
    programs: "/usr/lib/postgresql/*/bin/*",
    command: &["postgresql-server"],
};

/// The folder of an application's root and image, below `home`.
fn place(home: &Path, application: &Application) -> PathBuf {
    let recipe = blake3::hash(format!("{RECIPE} {application:?}").as_bytes()).to_hex();
    let name = application.image.rsplit_once('/').map_or(application.image, |(_, name)| name);
    let name = name.split(':').next().unwrap_or(name);
    home.join("applications").join(format!("{name}-{}", &recipe[..12]))
}

/// The root of an application that was made.
pub(in crate::lab) fn root(home: &Path, application: &Application) -> PathBuf {
    place(home, application).join("root")
}

/// The archive of an application's image, made if need be of the suite's
/// packages, from `mirror()`.
pub(in crate::lab) fn ensure(
    home: &Path,
    application: &Application,
    suite: Suite,
    mirror: impl FnOnce() -> Result<String>,
) -> Result<PathBuf> {
    let place = place(home, application);
    let archive = place.join("images.tar");
    if archive.is_file() {
        return Ok(archive);
    }
    let _lock = lock(&home.join("applications.lock"))?;
    if archive.is_file() {
        return Ok(archive);
    }
    let building = home.join("applications.building");
    let _ = fs::remove_dir_all(&building);
    folder(&building)?;
    build(application, suite, &mirror()?, &building.join("root"))?;
    let (layer, out) = (building.join("layer.tar"), building.join("archive"));
    folder(&out)?;
    // Docker brings devices of its own.
    tar(&building.join("root"), &layer, &["--exclude=./dev/*"])?;
    let config = json!({ "Cmd": application.command, "Env": [PATH], "User": application.user, "WorkingDir": "/" });
    let line = seal(application.image, &layer, &config, &out)?;
    bind(&[line], &out, &building)?;
    fs::remove_dir_all(&out).on("removing", &out)?;
    folder(&home.join("applications"))?;
    fs::rename(&building, &place).on("keeping", &place)?;
    Ok(archive)
}

fn build(application: &Application, suite: Suite, mirror: &str, root: &Path) -> Result<()> {
    let mut command = mmdebstrap("essential");
    let inside = |script: &str| format!("chroot \"$1\" sh -e <<'END'\n{script}\nEND\n");
    // What lies elsewhere is found in the usual place, and there as it is, not
    // wrapped.
    let link =
        format!("for program in {}; do ln -sf \"$program\" /usr/bin/; done", application.programs);
    command.arg(format!("--essential-hook={}", inside(application.before)));
    command.arg(format!("--customize-hook={}", inside(&link)));
    command.arg(format!("--customize-hook={}", inside(application.after)));
    command.arg(format!("--include={}", application.packages.join(",")));
    command.arg(suite.to_string()).arg(root).arg("-");
    let doing = format!("building the image {} from {mirror}", application.image);
    let sources = format!("deb {mirror} {suite} main\n");
    run::run_with(&doing, &mut command, sources.as_bytes()).map(|_| ())
}
