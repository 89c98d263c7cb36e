//! A real overlay mount, gone when it is dropped or its thread ends.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

thread_local! {
    static PRIVATE: Cell<bool> = const { Cell::new(false) };
}

/// Gives this thread mounts of its own, which end with it.
pub(crate) fn private_mounts() {
    if !PRIVATE.replace(true) {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
    }
}

/// Overlay over a lower directory that is always the same.
pub(crate) struct Overlay {
    dir: tempfile::TempDir,
}

impl Overlay {
    /// Mounts it with Docker's options.
    pub(crate) fn mount() -> Self {
        private_mounts();
        let dir = tempfile::tempdir().unwrap();
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let overlay = Self { dir };
        overlay.fill_lower();
        let part = |name: &str| overlay.dir.path().join(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=off,redirect_dir=off,metacopy=off",
            part("lower"),
            part("upper"),
            part("work")
        );
        let merged = overlay.merged();
        let options = Some(options.as_str());
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), options).unwrap();
        overlay
    }

    /// The writable layer.
    pub(crate) fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    /// What a container would see.
    pub(crate) fn merged(&self) -> PathBuf {
        self.dir.path().join("merged")
    }

    /// Under the names the random steps use.
    fn fill_lower(&self) {
        let lower = self.dir.path().join("lower");
        for dir in ["a", "a/b", "b", "b/deep", "sp ace", "sp ace/a"] {
            fs::create_dir(lower.join(dir)).unwrap();
        }
        for (file, size) in [
            ("a/file", 3),
            ("a/b/a", 70_000),
            ("b/deep/b", 10),
            ("b/a", 200_000),
            ("sp ace/a/b", 1),
        ] {
            fs::write(lower.join(file), vec![b'l'; size]).unwrap();
        }
        std::os::unix::fs::symlink("a/file", lower.join("d")).unwrap();
        fs::hard_link(lower.join("b/a"), lower.join("sp ace/b")).unwrap();
        // The same on every host, as an image's files are.
        let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        set_times(&lower, when);
    }
}

fn set_times(path: &std::path::Path, when: std::time::SystemTime) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            set_times(&entry.unwrap().path(), when);
        }
    }
    let since = when.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let spec = rustix::fs::Timespec { tv_sec: since, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: spec, last_modification: spec };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = umount2(&self.merged(), MntFlags::MNT_DETACH);
    }
}
