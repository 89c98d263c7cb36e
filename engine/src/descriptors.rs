//! What a process has open, as `/proc` names it.

use rustix::fs::readlinkat;
use std::fs::{self, File};
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
    let path = format!("/proc/{pid}/fd");
    // Servers have tens of thousands: their links are read from here on.
    let directory = File::open(&path)?;
    let open = fs::read_dir(path)?.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let link = readlinkat(&directory, &name, Vec::new()).ok()?;
        let number = name.to_str()?.parse().ok()?;
        Some(Descriptor { number, link: link.to_string_lossy().into_owned() })
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
