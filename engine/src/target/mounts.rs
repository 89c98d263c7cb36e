//! Places for the container's volumes and paths on this host: whether they are
//! free, making them, finding them, and taking them back.

use crate::docker::{Docker, DockerError, Inspection};
use crate::ledger::{Departed, Ledger, Made};
use crate::mounts::{LOCAL, Mount, Origin, Probe, Way};
use crate::protocol::Finding;
use blip_transport::units::{ByteSize, TreeId};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// How long a file written on the source may take to be seen here.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// What this host has of containers that left it.
pub struct Remains(Vec<Departed>);

impl Remains {
    /// Reads them from the state directory.
    pub fn read(state: &Path) -> Self {
        let ledger = Ledger::open(&state.join("departed"));
        Self(ledger.and_then(|ledger| ledger.all()).unwrap_or_default())
    }

    /// What is left of the container that left by this handover.
    pub fn of(&self, ticket: crate::handover::Ticket) -> Option<&Departed> {
        self.0.iter().find(|departed| departed.ticket == ticket)
    }

    fn has(&self, container: &str) -> bool {
        self.0.iter().any(|departed| departed.container == container)
    }
}

/// What stands in the way of the mounts. Touches nothing.
pub async fn check(
    docker: &Docker,
    remains: &Remains,
    mounts: &[Mount],
) -> Result<Vec<Finding>, DockerError> {
    let mut findings = Vec::new();
    for mount in mounts {
        findings.extend(match &mount.origin {
            Origin::Volume { anonymous: true, .. } => None,
            Origin::Volume { name, driver, .. } => {
                volume(docker, remains, mount, name, driver).await?
            }
            Origin::Path { path, directory } => {
                let left = path_of_remains(docker, remains, path).await?;
                self::path(mount, path, *directory, left)
            }
        });
        if let Some(probe) = &mount.probe {
            findings.extend(probed(docker, mount, probe).await?);
        }
    }
    Ok(findings)
}

/// What the container's files need and this host's disks do not have.
pub async fn room(
    docker: &Docker,
    layer: ByteSize,
    mounts: &[Mount],
) -> Result<Vec<Finding>, DockerError> {
    let root = docker.root().await?;
    // By file system: a directory of it, what is needed, and for what.
    let mut needs: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    let mut need = |path: &Path, size: ByteSize| {
        let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let Ok(meta) = fs::metadata(existing) else { return };
        needs.entry(meta.dev()).or_insert_with(|| (existing.to_owned(), 0)).1 += size.0;
    };
    need(&root, layer);
    for mount in mounts {
        match &mount.origin {
            Origin::Path { path, .. } => need(path, mount.size),
            Origin::Volume { name, .. } => {
                let there = docker.volume(name).await?.map(|volume| volume.mountpoint.into());
                need(&there.unwrap_or_else(|| root.clone()), mount.size);
            }
        }
    }
    let short = |(path, needed): (PathBuf, u64)| {
        let free = free_at(&path)?;
        // What is there already is written over, block by block; some more
        // for what comes while the copy is under way.
        let needed = ByteSize(needed / 20 * 21);
        (free < needed).then(|| {
            Finding::blocker(
                format!(
                    "the target has {free} free at {}; the container's files need about {needed}",
                    path.display()
                ),
                "free some of it, or choose another target",
            )
        })
    };
    Ok(needs.into_values().filter(|(_, needed)| *needed > 0).filter_map(short).collect())
}

fn free_at(path: &Path) -> Option<ByteSize> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some(ByteSize(stat.blocks_available() * stat.fragment_size()))
}

async fn volume(
    docker: &Docker,
    remains: &Remains,
    mount: &Mount,
    name: &str,
    driver: &str,
) -> Result<Option<Finding>, DockerError> {
    let found = docker.volume(name).await?;
    let found = match (found, mount.way) {
        (Some(found), Way::Copy) => found,
        (None, Way::Copy) | (Some(_), _) => return Ok(None),
        (None, way) => {
            return Ok(Some(Finding::blocker(
                format!("the target has no volume '{name}', which is not to be copied ({way})"),
                format!("make it there: docker volume create --driver {driver} {name}"),
            )));
        }
    };
    if found.driver != LOCAL || !found.options.is_empty() {
        return Ok(Some(Finding::blocker(
            format!("the target has a volume '{name}' of another kind ({})", found.driver),
            format!("remove it there, or use --bind exclude={} to mount it", mount.destination),
        )));
    }
    let users = docker.volume_users(name).await?;
    if let Some(user) = users.iter().find(|user| !remains.has(&user.id)) {
        return Ok(Some(Finding::blocker(
            format!("the target has a volume '{name}', which container '{}' uses", user.name),
            format!("remove both there: docker rm {} && docker volume rm {name}", user.name),
        )));
    }
    if users.is_empty() && !is_empty(Path::new(&found.mountpoint)) {
        return Ok(Some(Finding::blocker(
            format!("the target has a volume '{name}' with something in it"),
            format!("remove it there, if nobody needs it: docker volume rm {name}"),
        )));
    }
    Ok(users.first().map(|user| {
        Finding::note(
            format!("the target has the volume '{name}', left by '{}'", user.name),
            "it is brought up to date in place",
        )
    }))
}

/// Whether something that left this host has this path mounted.
async fn path_of_remains(
    docker: &Docker,
    remains: &Remains,
    path: &Path,
) -> Result<bool, DockerError> {
    for departed in &remains.0 {
        let Ok(left) = docker.inspect(&departed.container).await else { continue };
        let mut mounts = left.all.mounts.iter().flatten();
        if mounts.any(|mount| mount.source.as_deref().map(Path::new) == Some(path)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn path(mount: &Mount, path: &Path, directory: bool, left: bool) -> Option<Finding> {
    let shown = path.display();
    if !is_plain(path) {
        let what = format!("{shown} is no absolute path without '..'");
        return Some(Finding::blocker(what, "mount another"));
    }
    let meta = fs::symlink_metadata(path);
    let there = meta.is_ok();
    if mount.way != Way::Copy {
        return (!there).then(|| {
            Finding::blocker(
                format!("the target has no {shown}, which the container mounts"),
                "make it there, or copy it with --bind copy=".to_owned() + &mount.destination,
            )
        });
    }
    let kind = meta.is_ok_and(|meta| if directory { meta.is_dir() } else { meta.is_file() });
    if there && !kind {
        return Some(Finding::blocker(
            format!("{shown} is something else on the target"),
            "move it out of the way there",
        ));
    }
    if there && left {
        return Some(Finding::note(
            format!("the target has {shown}, left by a container that moved"),
            "it is brought up to date in place",
        ));
    }
    (there && !(directory && is_empty(path))).then(|| {
        Finding::blocker(
            format!("the target has {shown} already, and there is something in it"),
            format!("move it out of the way there, or use --bind exclude={}", mount.destination),
        )
    })
}

fn is_plain(path: &Path) -> bool {
    let mut components = path.components();
    components.next() == Some(Component::RootDir)
        && components.all(|component| matches!(component, Component::Normal(_)))
        && path != Path::new("/")
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether this host sees what the source has just written.
async fn probed(
    docker: &Docker,
    mount: &Mount,
    probe: &Probe,
) -> Result<Option<Finding>, DockerError> {
    let root = match &mount.origin {
        Origin::Path { path, .. } => Some(path.clone()),
        Origin::Volume { name, .. } => docker.volume(name).await?.map(|v| v.mountpoint.into()),
    };
    // A name in that directory and no other.
    let seen = |root: &Path| {
        let name = Path::new(&probe.name).file_name()?;
        let text = fs::read_to_string(root.join(name)).ok()?;
        (text == probe.content).then_some(())
    };
    let until = tokio::time::Instant::now() + PROBE_LIMIT;
    while let Some(root) = &root {
        if seen(root).is_some() {
            return Ok(None);
        }
        if tokio::time::Instant::now() > until {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(Some(Finding::blocker(
        format!("{} is not the same on both hosts", mount.origin.name()),
        format!("mount it from where both reach it, or use --bind copy={}", mount.destination),
    )))
}

/// Makes what the container's mounts need. What was made is in `made` even if
/// this fails.
pub async fn make(docker: &Docker, mounts: &[Mount], made: &mut Made) -> Result<(), MakeError> {
    for mount in mounts.iter().filter(|mount| mount.way == Way::Copy) {
        match &mount.origin {
            Origin::Volume { anonymous: true, .. } => {}
            Origin::Volume { name, labels, .. } => {
                if docker.volume(name).await?.is_some() || made.volumes.contains(name) {
                    continue;
                }
                let labels = labels.clone().into_iter().collect();
                docker.create_volume(name, LOCAL, Default::default(), labels).await?;
                made.volumes.push(name.clone());
            }
            Origin::Path { path, directory } => {
                make_path(path, *directory, &mut made.paths)
                    .map_err(|source| MakeError::Path { path: path.clone(), source })?;
            }
        }
    }
    Ok(())
}

/// Why a place could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// Docker.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// A path.
    #[error("cannot make {path:?} for the container's files: {source}")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Docker made no such mount.
    #[error("Docker has mounted nothing at {destination}")]
    Nowhere {
        /// Where in the container.
        destination: String,
    },
}

fn make_path(path: &Path, directory: bool, made: &mut Vec<PathBuf>) -> io::Result<()> {
    if !is_plain(path) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    for &missing in missing.iter().rev() {
        if missing == path && !directory {
            fs::OpenOptions::new().write(true).create_new(true).open(path)?;
        } else {
            fs::DirBuilder::new().mode(0o755).create(missing)?;
        }
        made.push(missing.to_owned());
    }
    Ok(())
}

/// Removes what was made: the container did not come.
pub async fn undo(docker: &Docker, made: &Made) {
    for volume in &made.volumes {
        if let Err(error) = docker.remove_volume(volume).await {
            tracing::warn!("{error}");
        }
    }
    // In the order they were made the first holds all others.
    for path in &made.paths {
        let removed = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(_) => Ok(()),
        };
        if let Err(error) = removed {
            tracing::warn!("cannot remove {path:?}: {error}");
        }
    }
}

/// Where the files of each tree go, in the container that Docker has just
/// created.
pub fn places(
    created: &Inspection,
    mounts: &[Mount],
) -> Result<BTreeMap<TreeId, PathBuf>, MakeError> {
    let mut places = BTreeMap::new();
    for mount in mounts {
        let Some(tree) = mount.tree else { continue };
        let mut there = created.all.mounts.iter().flatten();
        let there = there.find(|m| m.destination.as_deref() == Some(&mount.destination));
        let nowhere = || MakeError::Nowhere { destination: mount.destination.clone() };
        let path = there.and_then(|mount| mount.source.clone()).ok_or_else(nowhere)?;
        let path = PathBuf::from(path);
        let root = match mount.origin {
            Origin::Path { directory: false, .. } => path.parent().ok_or_else(nowhere)?.to_owned(),
            _ => path,
        };
        places.insert(tree, root);
    }
    Ok(places)
}

/// Removes everything in a directory: what Docker copied into a new volume from
/// the image, or what an earlier container left.
pub fn clear(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_absolute_paths_are_made() {
        for bad in ["/", "relative", "/a/../b", "../x", ""] {
            assert!(!is_plain(Path::new(bad)), "{bad}");
        }
        assert!(is_plain(Path::new("/srv/data")));
    }

    #[test]
    fn what_was_made_is_known_and_what_was_there_is_not() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c");
        let mut made = Vec::new();
        make_path(&deep, true, &mut made).unwrap();
        assert_eq!(made, [root.path().join("a"), root.path().join("a/b"), deep.clone()]);
        made.clear();
        make_path(&deep.join("file"), false, &mut made).unwrap();
        assert_eq!(made, [deep.join("file")]);
        assert!(deep.join("file").is_file());
        clear(&deep).unwrap();
        assert!(is_empty(&deep));
    }
}
