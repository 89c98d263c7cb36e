//! Kernel parameters of the container's network.
//!
//! Those of its other namespaces are in CRIU's images. The network is Docker's,
//! which CRIU leaves alone, and `runc restore` sets none; so they are set here,
//! as runc does when it makes a container.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// Sets those of `all` that a network namespace has, in `netns`.
pub(super) fn set(all: Vec<(String, String)>, netns: &Path) -> Result<(), String> {
    let ours: Vec<_> = all.into_iter().filter(|(name, _)| name.starts_with("net.")).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let netns = File::open(netns).map_err(|e| format!("open the container's network: {e}"))?;
    // A thread of its own: the holder stays where it is.
    let setting = std::thread::spawn(move || {
        setns(&netns, CloneFlags::CLONE_NEWNET).map_err(|e| format!("enter its network: {e}"))?;
        ours.iter().try_for_each(|(name, value)| {
            fs::write(path(name), value).map_err(|e| format!("set the sysctl {name}: {e}"))
        })
    });
    setting.join().unwrap_or_else(|_| Err("the thread that sets sysctls panicked".into()))
}

/// Dots part the words of a name; a slash stands for a dot within a word.
fn path(name: &str) -> PathBuf {
    let words = name.split('.').map(|word| word.replace('/', "."));
    Path::new("/proc/sys").join(words.collect::<PathBuf>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_files() {
        let file = path("net.ipv4.conf.eth0/100.rp_filter");
        assert_eq!(file, Path::new("/proc/sys/net/ipv4/conf/eth0.100/rp_filter"));
    }

    #[test]
    fn what_is_no_networks_is_left_to_others() {
        let all = vec![("kernel.no_such_thing".to_owned(), "1".to_owned())];
        assert_eq!(set(all, Path::new("/nowhere")), Ok(()));
    }
}
