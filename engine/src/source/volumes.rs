//! The container's mounts: what travels, what does not, and what is in the way.
//!
//! Volumes of the local driver travel by themselves. What else is mounted
//! from outside (paths of the host, volumes of other drivers) may be the very
//! same files on both hosts, or mean something else on each: there the user
//! has to choose a [`Way`].

use crate::docker::{Docker, DockerError, Inspection};
use crate::mounts::{LOCAL, Mount, Origin, Probe, Way};
use crate::protocol::Finding;
use blip_transport::units::{ByteSize, TreeId};
use bollard::models::MountPoint;
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What the user wants of one mount: `copy=/data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What becomes of it.
    pub way: Way,
    /// Which: where it is in the container, its path here, or its name.
    pub which: String,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not copy=PATH, shared=PATH or exclude=PATH");
        let (way, which) = text.split_once('=').ok_or_else(wrong)?;
        let way = match way {
            "copy" => Way::Copy,
            "shared" => Way::Shared,
            "exclude" => Way::Exclude,
            _ => return Err(wrong()),
        };
        let which = if which.len() > 1 { which.trim_end_matches('/') } else { which };
        if which.is_empty() { Err(wrong()) } else { Ok(Self { way, which: which.to_owned() }) }
    }
}

/// A mount and where its files are here.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What the target hears of it.
    pub mount: Mount,
    /// Its files on this host.
    pub path: PathBuf,
}

/// All mounts of a container and what is wrong with them.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Every mount that comes from outside the container.
    pub mounts: Vec<Planned>,
    /// What stands in the way.
    pub findings: Vec<Finding>,
}

impl Plan {
    /// Looks at the mounts of a container. Touches nothing.
    pub async fn of(
        docker: &Docker,
        inspection: &Inspection,
        choices: &[Choice],
    ) -> Result<Self, DockerError> {
        let mut plan = Self::default();
        let mut unused: BTreeSet<usize> = (0..choices.len()).collect();
        for mount in inspection.all.mounts.iter().flatten() {
            let destination = mount.destination.clone().unwrap_or_default();
            let names = [Some(&destination), mount.name.as_ref(), mount.source.as_ref()];
            let meant = |choice: &Choice| names.iter().flatten().any(|name| **name == choice.which);
            let chosen = choices.iter().rposition(meant);
            unused.retain(|&number| !meant(&choices[number]));
            plan.add(docker, inspection, mount, chosen.map(|at| choices[at].way)).await?;
        }
        for number in unused {
            let known: Vec<_> =
                plan.mounts.iter().map(|planned| planned.mount.destination.as_str()).collect();
            plan.findings.push(Finding::blocker(
                format!("nothing is mounted at {}", choices[number].which),
                format!("--bind takes one of: {}", known.join(" ")),
            ));
        }
        plan.number();
        Ok(plan)
    }

    /// The mounts as the target hears of them.
    pub fn told(&self) -> Vec<Mount> {
        self.mounts.iter().map(|planned| planned.mount.clone()).collect()
    }

    async fn add(
        &mut self,
        docker: &Docker,
        inspection: &Inspection,
        mount: &MountPoint,
        chosen: Option<Way>,
    ) -> Result<(), DockerError> {
        let destination = mount.destination.clone().unwrap_or_default();
        let path = PathBuf::from(mount.source.clone().unwrap_or_default());
        let origin = match mount.typ.as_deref() {
            // In CRIU's images.
            Some("tmpfs") => return Ok(()),
            Some("volume") => volume(docker, inspection, mount).await?,
            Some("bind") => Origin::Path { directory: path.is_dir(), path: path.clone() },
            other => {
                let kind = other.unwrap_or("unknown");
                self.findings.push(Finding::blocker(
                    format!("{destination} is a mount of the kind '{kind}'"),
                    "blip carries volumes, bind mounts and tmpfs: run it without this one",
                ));
                return Ok(());
            }
        };
        let travels = matches!(&origin, Origin::Volume { driver, options, .. }
            if driver == LOCAL && options.is_empty());
        let Some(way) = chosen.or(travels.then_some(Way::Copy)) else {
            self.findings.push(undecided(inspection, &origin, &destination));
            return Ok(());
        };
        self.findings.extend(unfit(&origin, &path, way, &destination));
        if let (Origin::Volume { name, .. }, Way::Copy) = (&origin, way) {
            self.findings.extend(shared_here(docker, inspection, name).await?);
        }
        let size = match way {
            Way::Copy => self.measure(&path).await,
            _ => ByteSize(0),
        };
        let mount = Mount { destination, origin, way, tree: None, probe: None, size };
        self.mounts.push(Planned { mount, path });
        Ok(())
    }

    async fn measure(&mut self, path: &Path) -> ByteSize {
        let root = path.to_owned();
        let measured = tokio::task::spawn_blocking(move || usage(&root)).await;
        let (size, inner) = measured.unwrap_or_default();
        self.findings.extend(inner.map(|inner| {
            Finding::blocker(
                format!(
                    "{} is another file system, mounted below {}",
                    inner.display(),
                    path.display()
                ),
                "blip copies one file system at a time: unmount it, or use shared or exclude",
            )
        }));
        size
    }

    /// Each place travels once, however often it is mounted.
    fn number(&mut self) {
        let mut known: Vec<PathBuf> = Vec::new();
        for planned in &mut self.mounts {
            if planned.mount.way != Way::Copy || known.contains(&planned.path) {
                continue;
            }
            known.push(planned.path.clone());
            planned.mount.tree = Some(TreeId(known.len() as u32));
        }
    }
}

/// Files written where the target should see them; they go when this is
/// dropped.
#[derive(Debug, Default)]
pub struct Probes(Vec<PathBuf>);

impl Probes {
    /// Writes one into every mount that is said to be shared.
    pub fn write(plan: &mut Plan) -> Self {
        let mut probes = Self::default();
        for Planned { mount, path } in &mut plan.mounts {
            if mount.way != Way::Shared {
                continue;
            }
            let random = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
            let (name, content) =
                (format!(".blip-probe-{}", &random[..8.min(random.len())]), random);
            let file = path.join(&name);
            match fs::OpenOptions::new().write(true).create_new(true).open(&file).and_then(
                |mut f| {
                    io::Write::write_all(&mut f, content.as_bytes())?;
                    f.sync_all()
                },
            ) {
                Ok(()) => mount.probe = Some(Probe { name, content }),
                Err(error) => plan.findings.push(Finding::blocker(
                    format!(
                        "cannot write to {} to see whether it is shared: {error}",
                        path.display()
                    ),
                    format!("if you know what is there, use --bind exclude={}", mount.destination),
                )),
            }
            probes.0.push(file);
        }
        probes
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = fs::remove_file(file);
        }
    }
}

async fn volume(
    docker: &Docker,
    inspection: &Inspection,
    mount: &MountPoint,
) -> Result<Origin, DockerError> {
    let name = mount.name.clone().unwrap_or_default();
    let found = docker.volume(&name).await?.unwrap_or_default();
    let destination = mount.destination.as_deref().unwrap_or_default();
    Ok(Origin::Volume {
        anonymous: is_anonymous(inspection, destination),
        driver: mount.driver.clone().unwrap_or_else(|| LOCAL.to_owned()),
        options: found.options.into_iter().collect(),
        labels: found.labels.into_iter().collect(),
        name,
    })
}

/// Whether Docker made up the volume's name: the container was given only its
/// place. Docker then removes it with the container (`docker rm -v`).
fn is_anonymous(inspection: &Inspection, destination: &str) -> bool {
    let all = &inspection.all;
    let host = all.host_config.as_ref();
    let asked = host.and_then(|host| host.mounts.as_deref()).unwrap_or_default();
    let unnamed = asked.iter().any(|mount| {
        mount.target.as_deref() == Some(destination)
            && mount.source.as_deref().unwrap_or_default().is_empty()
    });
    let config = all.config.as_ref();
    let places = config.and_then(|config| config.volumes.as_ref());
    let declared = places.is_some_and(|places| places.iter().any(|place| place == destination));
    unnamed || declared && !crate::docker::is_bound(all, destination)
}

fn undecided(inspection: &Inspection, origin: &Origin, destination: &str) -> Finding {
    Finding::blocker(
        format!("container '{}' mounts {} at {destination}", inspection.name, origin.name()),
        format!(
            "say what becomes of it: --bind copy={destination} (its files are copied), \
             --bind shared={destination} (both hosts see the same files) or \
             --bind exclude={destination} (the target has its own)"
        ),
    )
}

/// What cannot be done with such a thing.
fn unfit(origin: &Origin, path: &Path, way: Way, destination: &str) -> Option<Finding> {
    let Origin::Path { directory, .. } = origin else { return None };
    let plain = *directory || fs::metadata(path).is_ok_and(|meta| meta.is_file());
    match way {
        Way::Copy if !plain => Some(Finding::blocker(
            format!("{} is neither a directory nor a file", path.display()),
            format!("it cannot be copied: use --bind exclude={destination}"),
        )),
        Way::Shared if !directory => Some(Finding::blocker(
            format!("{} is a single file: blip cannot tell whether it is shared", path.display()),
            format!("use --bind copy={destination} or --bind exclude={destination}"),
        )),
        _ => None,
    }
}

/// Others that write to a volume while it moves, or after.
async fn shared_here(
    docker: &Docker,
    inspection: &Inspection,
    volume: &str,
) -> Result<Option<Finding>, DockerError> {
    let users = docker.volume_users(volume).await?;
    let other = users.into_iter().find(|user| user.running && user.id != inspection.id);
    Ok(other.map(|user| {
        Finding::blocker(
            format!("container '{}' uses the volume {volume}, too", user.name),
            format!("a volume moves with one container: stop it first: docker stop {}", user.name),
        )
    }))
}

/// The disk that a tree takes, and what else is mounted in it.
fn usage(root: &Path) -> (ByteSize, Option<PathBuf>) {
    let Ok(top) = fs::metadata(root) else { return (ByteSize(0), None) };
    let (mut size, mut inner) = (top.blocks() * 512, None);
    let mut linked = HashSet::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() {
                inner = Some(entry.path());
                continue;
            }
            if meta.nlink() == 1 || meta.is_dir() || linked.insert(meta.ino()) {
                size += meta.blocks() * 512;
            }
            if meta.is_dir() {
                left.push(entry.path());
            }
        }
    }
    (ByteSize(size), inner)
}

/// The disk that a directory's files take.
pub fn size_of(root: &Path) -> ByteSize {
    usage(root).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_strictly() {
        let choice: Choice = "copy=/data/".parse().unwrap();
        assert_eq!(choice, Choice { way: Way::Copy, which: "/data".into() });
        for bad in ["copy", "copy=", "move=/data", "/data"] {
            assert!(bad.parse::<Choice>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tree_is_as_large_as_its_blocks_and_links_count_once() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), vec![1; 100_000]).unwrap();
        let once = size_of(root.path());
        fs::hard_link(root.path().join("a"), root.path().join("b")).unwrap();
        assert_eq!(size_of(root.path()), once);
        assert!(once.0 >= 100_000 && once.0 < 300_000, "{once}");
    }

    #[test]
    fn one_place_travels_once() {
        let planned = |destination: &str, path: &str| Planned {
            mount: Mount {
                destination: destination.into(),
                origin: Origin::Path { path: path.into(), directory: true },
                way: Way::Copy,
                tree: None,
                probe: None,
                size: ByteSize(0),
            },
            path: path.into(),
        };
        let mounts = vec![planned("/x", "/1"), planned("/y", "/2"), planned("/z", "/1")];
        let mut plan = Plan { mounts, findings: Vec::new() };
        plan.number();
        let trees: Vec<_> = plan.mounts.iter().map(|p| p.mount.tree.map(|t| t.0)).collect();
        assert_eq!(trees, [Some(1), Some(2), None]);
    }
}
