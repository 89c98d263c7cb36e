//! The stage directory: its files, and what they prove.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::runtime::procfs;

/// A stage directory could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A container id that could leave the directory.
    #[error("'{0}' is no container id")]
    BadId(String),
    /// The file system said no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// CRIU never came to read the images.
    #[error("CRIU did not open {} within {after:?}; the restore log of the container tells why", path.display())]
    NoReader {
        /// The FIFO.
        path: PathBuf,
        /// How long was waited.
        after: Duration,
    },
}

impl StageError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// What is known of the container on this host, from files and processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The hook was never given the word; nothing ran here.
    NotGranted,
    /// The word was given and the container lives.
    Runs {
        /// Host pid of its init.
        init_pid: i32,
    },
    /// The word was given; the container has ended since, or its restore
    /// failed in its very last step.
    Ended,
}

/// Who holds the place; survives in `holder.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderRecord {
    /// Host pid of the holder.
    pub pid: i32,
    /// Its start time in clock ticks since boot: tells it from a later
    /// process with the same pid.
    pub starttime: u64,
    /// containerd's bundle.
    pub bundle: PathBuf,
    /// The mounted root file system.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
}

/// One container's stage directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageDir {
    path: PathBuf,
}

impl StageDir {
    /// Makes the directory, private to root. An old one of the same container
    /// is removed first.
    ///
    /// # Errors
    /// For an id that is none, or when the directory cannot be made.
    pub fn make(root: &Path, id: &str) -> Result<Self, StageError> {
        let stage = Self::at(root, id).ok_or_else(|| StageError::BadId(id.to_owned()))?;
        stage.remove()?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&stage.path)
            .map_err(StageError::io("make", &stage.path))?;
        Ok(stage)
    }

    /// The directory of this container, which may not exist. `None` when `id`
    /// cannot be a container's.
    pub fn at(root: &Path, id: &str) -> Option<Self> {
        let sane = !id.is_empty()
            && !id.starts_with(['.', '-'])
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        sane.then(|| Self { path: root.join(id) })
    }

    /// The directory a runtime command was told of by path.
    pub(crate) fn given(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Removes the directory and all in it; that it is not there is no error.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove(&self) -> Result<(), StageError> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StageError::io("remove", &self.path)(e))
            }
            _ => Ok(()),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Staged, and not restored yet: its runtime commands are blip's.
    pub fn is_open(&self) -> bool {
        self.path.is_dir() && !self.restored_mark().exists()
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("stage.sock")
    }

    pub(crate) fn holder_socket(&self) -> PathBuf {
        self.path.join("holder.sock")
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.path.join("bundle")
    }

    pub(crate) fn criu_conf(&self) -> PathBuf {
        self.path.join("criu.conf")
    }

    /// Where runc gives the container's terminal to the holder.
    pub(crate) fn console_socket(&self) -> PathBuf {
        self.path.join("console.sock")
    }

    pub(crate) fn init_pid_file(&self) -> PathBuf {
        self.path.join("init.pid")
    }

    /// runc's own log of the restore, in JSON.
    pub fn runc_log(&self) -> PathBuf {
        self.path.join("runc.log")
    }

    fn granted_mark(&self) -> PathBuf {
        self.path.join("granted")
    }

    fn restored_mark(&self) -> PathBuf {
        self.path.join("restored")
    }

    /// Notes that the word was given, before it is obeyed.
    pub(crate) fn mark_granted(&self, init_pid: i32) -> io::Result<()> {
        let record = format!("{init_pid} {}", procfs::starttime(init_pid).unwrap_or(0));
        self.replace("granted", record.as_bytes())
    }

    /// Notes that runc owns the container now.
    pub(crate) fn mark_restored(&self) -> io::Result<()> {
        self.replace("restored", b"")
    }

    /// What became of the container here, as far as files and `/proc` prove it.
    pub fn fate(&self) -> Fate {
        let Ok(record) = fs::read_to_string(self.granted_mark()) else { return Fate::NotGranted };
        let mut words = record.split_whitespace();
        let init_pid: i32 = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
        let started: u64 = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
        if init_pid > 0
            && procfs::starttime(init_pid) == Some(started)
            && !procfs::is_ending(init_pid)
        {
            Fate::Runs { init_pid }
        } else {
            Fate::Ended
        }
    }

    pub(crate) fn write_record(&self, record: &HolderRecord) -> io::Result<()> {
        self.replace("holder.json", &serde_json::to_vec(record)?)
    }

    /// Who holds the place, alive or not; `None` before `create`.
    pub fn record(&self) -> Option<HolderRecord> {
        serde_json::from_slice(&fs::read(self.path.join("holder.json")).ok()?).ok()
    }

    /// The holder, if it still lives.
    pub fn living_holder(&self) -> Option<HolderRecord> {
        self.record()
            .filter(|r| procfs::starttime(r.pid) == Some(r.starttime) && !procfs::is_ending(r.pid))
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let fresh = self.path.join(format!(".{name}.new"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        fs::rename(fresh, self.path.join(name))
    }

    /// Makes `inventory.img` in `images` a FIFO, so that a restore ordered
    /// now waits in front of the images until [`release_inventory`].
    ///
    /// CRIU reads the inventory once, front to back, before any other image,
    /// and after all its own start-up: that, runc's start and mount
    /// preparation are then over before the source is frozen.
    ///
    /// # Errors
    /// When the FIFO cannot be made.
    ///
    /// [`release_inventory`]: Self::release_inventory
    pub fn park_inventory(images: &Path) -> Result<(), StageError> {
        let fifo = images.join("inventory.img");
        nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|e| StageError::io("make the FIFO", &fifo)(e.into()))
    }

    /// Lets a parked restore go on, with the real inventory; everything else
    /// must be in place. Blocks until CRIU has come, at most `patience`: call
    /// it off the async threads.
    ///
    /// # Errors
    /// [`StageError::NoReader`] when CRIU does not come, and what the file
    /// system says.
    pub fn release_inventory(
        images: &Path,
        inventory: &[u8],
        patience: Duration,
    ) -> Result<(), StageError> {
        let fifo = images.join("inventory.img");
        let begun = Instant::now();
        let mut writer: File = loop {
            let open = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo);
            match open {
                Ok(file) => break file,
                Err(e) if e.raw_os_error() == Some(libc::ENXIO) && begun.elapsed() < patience => {
                    std::thread::sleep(Duration::from_micros(500));
                }
                Err(e) if e.raw_os_error() == Some(libc::ENXIO) => {
                    return Err(StageError::NoReader { path: fifo, after: patience });
                }
                Err(e) => return Err(StageError::io("open", &fifo)(e)),
            }
        };
        writer.write_all(inventory).map_err(StageError::io("write", &fifo))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_climb() {
        let root = Path::new("/r");
        for bad in ["", ".", "..", "../x", "a/b", "-f", ".x", "a b"] {
            assert_eq!(StageDir::at(root, bad), None, "{bad}");
        }
        assert!(StageDir::at(root, "0123abc").is_some());
    }

    #[test]
    fn a_stage_is_private_and_open_until_restored() {
        let root = tempfile::tempdir().unwrap();
        let stage = StageDir::make(root.path(), "c1").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(stage.path()).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o700);
        assert!(stage.is_open());
        stage.mark_restored().unwrap();
        assert!(!stage.is_open());
        let again = StageDir::make(root.path(), "c1").unwrap();
        assert!(again.is_open(), "a new stage does not inherit the old one's marks");
        again.remove().unwrap();
        again.remove().unwrap();
        assert!(!again.is_open());
    }

    #[test]
    fn fate_needs_the_very_process_that_was_granted() {
        let root = tempfile::tempdir().unwrap();
        let stage = StageDir::make(root.path(), "c1").unwrap();
        assert_eq!(stage.fate(), Fate::NotGranted);
        let me = i32::try_from(std::process::id()).unwrap();
        stage.mark_granted(me).unwrap();
        assert_eq!(stage.fate(), Fate::Runs { init_pid: me });
        stage.replace("granted", format!("{me} 1").as_bytes()).unwrap();
        assert_eq!(stage.fate(), Fate::Ended, "same pid, another process");
    }

    #[test]
    fn a_parked_inventory_arrives_whole_and_ends() {
        let images = tempfile::tempdir().unwrap();
        StageDir::park_inventory(images.path()).unwrap();
        let path = images.path().join("inventory.img");
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            fs::read(path).unwrap()
        });
        StageDir::release_inventory(images.path(), b"inventory", Duration::from_secs(5)).unwrap();
        assert_eq!(reader.join().unwrap(), b"inventory");
    }

    #[test]
    fn nobody_reading_is_told() {
        let images = tempfile::tempdir().unwrap();
        StageDir::park_inventory(images.path()).unwrap();
        let err =
            StageDir::release_inventory(images.path(), b"x", Duration::from_millis(5)).unwrap_err();
        assert!(matches!(err, StageError::NoReader { .. }), "{err}");
    }
}
