//! Events of the kernel, in a ring of our own.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Room for events of each CPU, in KiB: some hundred thousand.
const RING_KIB: &str = "8192";
/// Where the kernel's tracing is mounted for a moment, in a directory of its own.
const MOUNT: &str = "/run";

/// A ring of trace events that is nobody else's.
#[derive(Debug)]
pub(super) struct Ring {
    pipe: File,
    /// The directory of all rings, and ours in it.
    instances: File,
    name: String,
    text: Vec<u8>,
    /// Whether it has the events that may be missing, too.
    pub(super) has_all: bool,
}

impl Ring {
    /// A ring that is told of the events `needed`, and of those that would be
    /// `welcome` if the kernel has all of them.
    pub(super) fn open(needed: &[&str], welcome: &[&str]) -> io::Result<Self> {
        // Hosts in namespaces number their processes alike.
        let random = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let name = format!("blip-{}-{}", std::process::id(), random.trim());
        let mounted = Mounted::tracing(&name)?;
        let rings = mounted.0.join("instances");
        remove_abandoned(&rings);
        let ring = rings.join(&name);
        fs::create_dir(&ring)?;
        let begin = || {
            fs::write(ring.join("buffer_size_kb"), RING_KIB)?;
            let switch = |event: &&str| ring.join("events").join(event).join("enable");
            needed.iter().try_for_each(|event| fs::write(switch(event), "1"))?;
            let has_all = welcome.iter().all(|event| switch(event).exists());
            if has_all {
                welcome.iter().try_for_each(|event| fs::write(switch(event), "1"))?;
            }
            let mut options = fs::OpenOptions::new();
            let pipe = options.read(true).custom_flags(libc::O_NONBLOCK);
            let pipe = pipe.open(ring.join("trace_pipe"))?;
            let instances = File::open(&rings)?;
            Ok(Self { pipe, instances, name: name.clone(), text: Vec::new(), has_all })
        };
        begin().inspect_err(|_: &io::Error| drop(fs::remove_dir(&ring)))
    }

    /// The next whole line, if there is one.
    pub(super) fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let mut chunk = [0; 8192];
            match self.pipe.read(&mut chunk) {
                Ok(count) if count > 0 => self.text.extend_from_slice(&chunk[..count]),
                _ => return None,
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A ring that is being read cannot go.
        if let Ok(null) = File::open("/dev/null") {
            self.pipe = null;
        }
        let flags = nix::unistd::UnlinkatFlags::RemoveDir;
        let _ = nix::unistd::unlinkat(&self.instances, self.name.as_str(), flags);
    }
}

/// Rings of processes that ended without a chance to remove them.
fn remove_abandoned(rings: &Path) {
    for entry in fs::read_dir(rings).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix("blip-"));
        let pid = rest.and_then(|rest| rest.split('-').next());
        // One that is in use, by a process we do not see, stays.
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The tracing file system, mounted while this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn tracing(name: &str) -> io::Result<Self> {
        let at = Path::new(MOUNT).join(name);
        fs::create_dir(&at)?;
        let kind = Some("tracefs");
        let done = mount(kind, &at, kind, MsFlags::empty(), None::<&str>);
        // Dropped if this fails: the directory goes again.
        let mounted = Self(at);
        done?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}
