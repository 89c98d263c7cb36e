//! What is mounted into a container besides its own root, and what becomes of
//! it when the container moves. Both hosts speak of it in these words.

use blip_transport::units::{ByteSize, TreeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The driver of volumes that are plain directories of their host.
pub const LOCAL: &str = "local";

/// What becomes of a mount's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// It is copied to the same place on the target.
    Copy,
    /// Both hosts see the same files already.
    Shared,
    /// The target has its own.
    Exclude,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy",
            Self::Shared => "shared",
            Self::Exclude => "exclude",
        })
    }
}

/// A tmpfs of the container's own. Its files travel, if it can have any; the
/// file system is made anew on the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Tells it from the container's others.
    pub number: u32,
    /// Where in the container; one place or several.
    pub destinations: Vec<PathBuf>,
    /// The file system's options, as mount(2) takes them.
    pub options: String,
    /// Under which number its files travel, if they do.
    pub tree: Option<TreeId>,
}

impl Tmpfs {
    /// What it is called in CRIU's images.
    pub fn key(&self) -> String {
        format!("blip-tmpfs-{}", self.number)
    }
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A volume.
    Volume {
        /// Its name.
        name: String,
        /// Docker named it, and names it anew on the target.
        anonymous: bool,
        /// Its driver; [`LOCAL`] on the target if the content is copied.
        driver: String,
        /// Its driver's options.
        options: BTreeMap<String, String>,
        /// Its labels.
        labels: BTreeMap<String, String>,
    },
    /// A path of the host.
    Path {
        /// Which; the same on both hosts.
        path: PathBuf,
        /// Whether it is a directory rather than a file.
        directory: bool,
    },
}

impl Origin {
    /// What to call it in a message.
    pub fn name(&self) -> String {
        match self {
            Self::Volume { name, .. } => format!("the volume {name}"),
            Self::Path { path, .. } => path.display().to_string(),
        }
    }
}

/// A file that the source has just written where both hosts should see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Its name in the mounted directory.
    pub name: String,
    /// What it says.
    pub content: String,
}

/// One mount of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where in the container.
    pub destination: String,
    /// What is mounted there.
    pub origin: Origin,
    /// What becomes of its content.
    pub way: Way,
    /// Under which number its files travel, if they do.
    pub tree: Option<TreeId>,
    /// How the target can tell that it sees the same files.
    pub probe: Option<Probe>,
    /// What its files take on the source's disk; 0 if they do not travel.
    pub size: ByteSize,
}
