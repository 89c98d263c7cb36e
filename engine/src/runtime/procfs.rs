//! What `/proc` tells about a process, read with care for processes that end.

use std::fs;
use std::path::{Path, PathBuf};

/// Kernel flag `PF_EXITING`: the task never returns to user mode.
const PF_EXITING: u64 = 0x4;

fn stat_fields(path: &Path) -> Option<Vec<String>> {
    let stat = fs::read_to_string(path).ok()?;
    // The command name may hold spaces and parentheses: count from the last.
    let after = stat.rsplit_once(") ")?.1;
    Some(after.split_whitespace().map(str::to_owned).collect())
}

/// When the process started, in clock ticks since boot (proc(5), stat field 22).
pub(crate) fn starttime(pid: i32) -> Option<u64> {
    stat_fields(Path::new(&format!("/proc/{pid}/stat")))?.get(19)?.parse().ok()
}

/// True when no thread of it will ever again execute an instruction of its
/// program: gone, dead, or on its way out inside the kernel.
pub(crate) fn is_ending(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    tasks.filter_map(Result::ok).all(|task| {
        let Some(fields) = stat_fields(&task.path().join("stat")) else { return true };
        let dead = fields.first().is_some_and(|s| s == "Z" || s == "X");
        let flags = fields.get(6).and_then(|f| f.parse::<u64>().ok());
        dead || flags.is_some_and(|f| f & PF_EXITING != 0)
    })
}

/// This process's pid.
pub(crate) fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// Its parent's pid.
pub(crate) fn parent(pid: i32) -> Option<i32> {
    stat_fields(Path::new(&format!("/proc/{pid}/stat")))?.get(1)?.parse().ok()
}

/// Its command name, at most 15 bytes.
pub(crate) fn name(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok()
}

/// Its children, as the kernel lists them for all its threads.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .filter_map(Result::ok)
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace().filter_map(|w| w.parse().ok()).collect::<Vec<i32>>()
        })
        .collect()
}

/// Identity of its pid namespace; `None` when it has ended.
pub(crate) fn pid_namespace(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// All processes of that pid namespace that can be seen here.
pub(crate) fn in_pid_namespace(namespace: &Path) -> Vec<i32> {
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    all.filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| pid_namespace(pid).as_deref() == Some(namespace))
        .collect()
}

/// The container's real init, given the pid Docker reports for it.
///
/// Docker knows a container that arrived here by the pid of its holder, whose
/// only lasting child is the restored init. Any other pid is returned as it is.
pub fn restored_init(docker_pid: i32) -> i32 {
    let cmdline = fs::read(format!("/proc/{docker_pid}/cmdline")).unwrap_or_default();
    let mut words = cmdline.split(|b| *b == 0).skip(1);
    if (words.next(), words.next()) != (Some(b"runtime"), Some(b"holder")) {
        return docker_pid;
    }
    let own = pid_namespace(docker_pid);
    children(docker_pid)
        .into_iter()
        .find(|&child| pid_namespace(child).is_some_and(|ns| Some(ns) != own))
        .unwrap_or(docker_pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_living_from_the_ended() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!is_ending(me));
        assert!(starttime(me).is_some_and(|t| t > 0));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let begun = std::time::Instant::now();
        while !is_ending(pid) && begun.elapsed().as_secs() < 5 {
            std::thread::yield_now();
        }
        assert!(is_ending(pid), "a zombie has ended");
        child.wait().unwrap();
        assert!(is_ending(pid), "so has one that is gone");
    }

    #[test]
    fn an_ordinary_pid_is_its_own_init() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert_eq!(restored_init(me), me);
    }

    #[test]
    fn finds_children() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(children(me).contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
