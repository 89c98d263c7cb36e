//! What a process has open, as `/proc` names it.

use std::fs;
use std::io;

/// A descriptor of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub number: i32,
    /// What it stands for: a path, `socket:[inode]`, `anon_inode:[kind]`, …
    pub link: String,
}

/// Those of process `pid` that stay open while they are looked at.
///
/// # Errors
/// If the process is gone, or may not be looked at.
pub fn of(pid: i32) -> io::Result<Vec<Descriptor>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let open = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let link = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        Some(Descriptor { number, link })
    });
    Ok(open.collect())
}

impl Descriptor {
    /// What the kernel says of it beyond that, for the process that has it open.
    pub fn info(&self, pid: i32) -> Option<String> {
        fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", self.number)).ok()
    }

    /// The inode of a socket.
    pub fn socket(&self) -> Option<u32> {
        self.link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn what_is_open_is_listed_by_number() {
        let own = std::process::id() as i32;
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let all = of(own).unwrap();
        let found = all.iter().find(|open| open.number == socket.as_raw_fd()).unwrap();
        assert_eq!(found.link, format!("socket:[{}]", found.socket().unwrap()));
        assert!(found.info(own).unwrap().contains("flags:"));
        let file = Descriptor { number: 3, link: "/socket:[7]".into() };
        assert_eq!(file.socket(), None);
    }
}
