//! The messages between the agent, the holder and the hook.
//!
//! One JSON object a line, over a unix stream that only root can reach. The
//! first line of a client is [`Report::HolderUp`] or [`Report::Held`] and
//! tells which of the two it is; orders go the other way.
//!
//! Non-goal: compatibility between versions. Both ends are one binary on one
//! host; an agent older than its binary is told so by a message it cannot read.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The longest line either end accepts, in bytes.
pub const MAX_LINE: usize = 256 * 1024;

/// What the holder and the hook tell the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Docker has created the container; its place is held. Holder's first word.
    HolderUp(HolderUp),
    /// Docker has attached the network and wants the container started: from
    /// here on the holder obeys [`HolderOrder::Restore`].
    StartAsked,
    /// `runc restore` runs, as process `pid`.
    Restoring {
        /// Host pid of runc.
        pid: i32,
    },
    /// Everything is restored and nothing has run. Hook's first and only word.
    Held {
        /// Host pid of the restored init.
        init_pid: i32,
    },
    /// The container runs and Docker is told so.
    Restored {
        /// Host pid of the restored init.
        init_pid: i32,
    },
    /// Nothing runs here and nothing will; the holder ends.
    Failed {
        /// What went wrong, in one sentence.
        why: String,
        /// The lines of the restore log that matter, if there are any.
        log_tail: String,
    },
}

/// Who holds the place of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderUp {
    /// Host pid of the holder, which Docker takes for the container's.
    pub pid: i32,
    /// containerd's bundle of the container.
    pub bundle: PathBuf,
    /// The mounted root file system of the container.
    pub rootfs: PathBuf,
    /// The network namespace the container is going to live in.
    pub netns: PathBuf,
    /// Destinations of bind mounts: what the dump must name as external.
    pub bind_mounts: Vec<PathBuf>,
    /// The cgroup path of the bundle (`linux.cgroupsPath`).
    pub cgroups_path: String,
}

/// What the agent tells the holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HolderOrder {
    /// Restore the container from these images.
    Restore(RestoreSpec),
    /// The container does not come: end, and say why to Docker.
    Die {
        /// One sentence, shown by Docker.
        why: String,
    },
}

/// What the agent tells the hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookOrder {
    /// This host owns the container: let it run.
    Go,
    /// It does not: kill what was restored, before it runs.
    Die,
}

/// How a restore is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreSpec {
    /// Directory of CRIU's images. Needs `descriptors.json` when the order is
    /// given; if `inventory.img` is a FIFO, the rest may come later
    /// ([`StageDir::park_inventory`](super::StageDir::park_inventory)).
    pub images: PathBuf,
    /// Where CRIU works: its log, and `lazy-pages.socket` when `lazy`.
    pub work: PathBuf,
    /// Memory comes over `lazy-pages.socket`, which must listen by the time
    /// the inventory can be read.
    pub lazy: bool,
    /// What becomes of established TCP connections.
    pub tcp: TcpMode,
    /// What CRIU does about cgroups inside the container.
    pub cgroups: CgroupMode,
    /// File systems to make where this restore sees them.
    pub tmpfs: Vec<TmpfsPlace>,
    /// More lines for CRIU's configuration file, such as `ghost-limit 10M`.
    pub criu_options: Vec<String>,
}

/// A tmpfs that CRIU finds mounted and takes into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TmpfsPlace {
    /// What it is called in CRIU's images.
    pub key: String,
    /// An empty directory.
    pub path: PathBuf,
    /// The file system's options, as mount(2) takes them.
    pub options: String,
}

/// What becomes of established TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpMode {
    /// They are restored; address and route must be there.
    Established,
    /// They are closed on arrival (the dump must have been made so, too).
    Close,
}

/// CRIU's `--manage-cgroups` mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupMode {
    /// Restore what does not exist yet.
    Soft,
    /// Leave everything to runc.
    Ignore,
}

impl CgroupMode {
    /// The word runc takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Ignore => "ignore",
        }
    }
}

/// What `start`, `kill` and `delete` tell the holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Answer when the container runs, or why it never will.
    Start,
    /// End; answer when nothing is left.
    End,
}

/// The holder's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Done,
    Failed { why: String },
}

/// `message` as one line.
///
/// # Panics
/// Never: these messages always have a JSON form.
pub fn line<T: Serialize>(message: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Writes one message, whole.
///
/// # Errors
/// Those of the stream.
pub fn send<T: Serialize>(mut to: impl Write, message: &T) -> io::Result<()> {
    to.write_all(&line(message))
}

/// Reads one message; `None` at the end of the stream.
///
/// # Errors
/// Those of the stream, and `InvalidData` for a line that is too long or not
/// such a message.
pub fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    io::Read::take(from, MAX_LINE as u64).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(parse(&line)?)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a message was cut off")),
    }
}

/// One message from its line, without the newline.
///
/// # Errors
/// `InvalidData` when it is not such a message.
pub fn parse<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    serde_json::from_slice(line).map_err(|e| {
        io::Error::new(io::ErrorKind::InvalidData, format!("not a message of this version: {e}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let spec = RestoreSpec {
            images: "/i".into(),
            work: "/w".into(),
            lazy: true,
            tcp: TcpMode::Close,
            cgroups: CgroupMode::Soft,
            tmpfs: Vec::new(),
            criu_options: vec!["ghost-limit 10M".into()],
        };
        let mut bytes = Vec::new();
        send(&mut bytes, &HolderOrder::Restore(spec.clone())).unwrap();
        send(&mut bytes, &HolderOrder::Die { why: "a\nb".into() }).unwrap();
        let mut from = &bytes[..];
        assert_eq!(receive(&mut from).unwrap(), Some(HolderOrder::Restore(spec)));
        assert_eq!(receive(&mut from).unwrap(), Some(HolderOrder::Die { why: "a\nb".into() }));
        assert_eq!(receive::<HolderOrder>(&mut from).unwrap(), None);
    }

    #[test]
    fn a_cut_or_foreign_line_is_an_error_never_an_order() {
        for bad in [&b"\"go\""[..], b"go\n", b"\"run\"\n", b"\n", b"\"g", b"{}\n"] {
            let mut from = bad;
            assert!(receive::<HookOrder>(&mut from).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_endless_line_ends() {
        let mut from = io::BufReader::new(io::repeat(b'x'));
        assert!(receive::<HookOrder>(&mut from).is_err());
    }
}
