//! What makes a dump independent of how much memory there is.
//!
//! CRIU looks at every present page of the container, even of the memory that
//! blip ships and CRIU only marks lazy. The dumping CRIU is therefore started
//! with a library of ours (`preload/lib.rs`, carried in this binary) that
//! answers its question for pages with "none" in the ranges that blip lists.
//! Those pages then appear nowhere in the images, and blip adds them to what the
//! target brings lazily. CRIU registers whole mappings for that, whether or not
//! an image names any page of them (criu: `vma_remap`, `enable_uffd`).
//!
//! Likewise for memory that processes share, which CRIU writes into its images:
//! of listed objects it finds no content, and restores them empty.
//!
//! And CRIU learns resource limits that only CAP_SYS_RESOURCE may ask for.
//!
//! Library and list are files in memory, reached through `/proc/<blip>/fd`, so
//! that nothing is left behind.
//!
//! **Invariant**: it is an optimisation. Where the library cannot be loaded, or
//! does not do its work, CRIU names the pages as it always did, and blip's plan
//! holds the same pages. What is in a shared object then is in the images, too,
//! and put in place twice.

use super::rpc::Environment;
use crate::track::runs::Runs;
use crate::track::shared::Inode;
use blip_transport::units::PAGE_SIZE;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// The library for CRIU where it restores, or nothing where it could not be built.
const RESTORE_LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/blip_restore.so"));
/// The library, or nothing where it could not be built.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/blip_preload.so"));
/// Length of the list's file, the same as in `preload/lib.rs`.
const LIST_BYTES: usize = 1 << 20;
/// A process and two addresses.
const ENTRY: usize = 3 * 8;
/// Entries behind the count. More are left to CRIU.
const ENTRIES: usize = (LIST_BYTES - 8) / ENTRY;
/// `MFD_EXEC`, since Linux 6.3: this file is to be executed.
const MFD_EXEC: u32 = 0x10;

/// Memory of one process that CRIU need not look at.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// Host process ID.
    pub pid: i32,
    /// Its pages.
    pub pages: Runs,
}

/// The library and its list, open as long as CRIU may need them.
#[derive(Debug)]
pub struct Preload {
    library: File,
    list: File,
}

impl Preload {
    /// Whether this build of blip has the library.
    pub fn is_built_in() -> bool {
        !LIBRARY.is_empty()
    }

    /// Lays the library out in memory, with an empty list.
    ///
    /// # Errors
    /// If the machine forbids executing files in memory (`vm.memfd_noexec`), or
    /// this build of blip has no library.
    pub fn new() -> io::Result<Self> {
        if !Self::is_built_in() {
            return Err(io::Error::other("blip was built without the library"));
        }
        let library = executable(c"blip-preload", LIBRARY)?;
        let list = memory(c"blip-hidden", MFdFlags::MFD_CLOEXEC)?;
        list.set_len(LIST_BYTES as u64)?;
        Ok(Self { library, list })
    }

    /// What the environment of CRIU must say.
    pub fn environment(&self) -> Environment {
        vec![("LD_PRELOAD", path_of(&self.library)), ("BLIP_SKIP", path_of(&self.list))]
    }

    /// Hides memory from CRIU. To be called once, while CRIU waits.
    pub fn hide(&self, hidden: &[Hidden], objects: &[Inode]) -> io::Result<()> {
        let (count, list) = encode(hidden, objects);
        // Entries before count: the library trusts what the count covers.
        self.list.write_all_at(&list, 8)?;
        self.list.write_all_at(&count.to_ne_bytes(), 0)
    }
}

/// The library for the CRIU that restores (`preload/restore.rs`); it must stay open
/// until that has begun. `None`: it restores without.
pub fn for_restore() -> Option<File> {
    if RESTORE_LIBRARY.is_empty() {
        return None;
    }
    executable(c"blip-restore", RESTORE_LIBRARY).ok()
}

/// Where other processes of this host find an open file.
pub fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// A file in memory that may be executed.
fn executable(name: &CStr, content: &[u8]) -> io::Result<File> {
    let plain = MFdFlags::MFD_CLOEXEC;
    let flags = plain | MFdFlags::from_bits_retain(MFD_EXEC);
    let mut file = match memory(name, flags) {
        Err(Errno::EINVAL) => memory(name, plain)?,
        other => other?,
    };
    file.write_all(content)?;
    Ok(file)
}

fn memory(name: &CStr, flags: MFdFlags) -> Result<File, Errno> {
    memfd_create(name, flags).map(File::from)
}

/// The list's entries by process and address, and their number; objects are
/// those of process 0.
fn encode(hidden: &[Hidden], objects: &[Inode]) -> (u64, Vec<u8>) {
    let objects = objects.iter().map(|object| [0, object.device, object.number]);
    let mut sorted: Vec<_> = hidden.iter().collect();
    sorted.sort_by_key(|hidden| hidden.pid);
    let runs = sorted.iter().flat_map(|hidden| {
        hidden.pages.as_slice().iter().map(|run| {
            let page = PAGE_SIZE as u64;
            [u64::from(hidden.pid.unsigned_abs()), run.start.0 * page, run.end() * page]
        })
    });
    let list: Vec<u8> = objects
        .chain(runs)
        .take(ENTRIES)
        .flatten()
        .flat_map(|number| number.to_ne_bytes())
        .collect();
    ((list.len() / ENTRY) as u64, list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pagemap::{PFNZERO, PRESENT, Pagemap, Query, Region, SWAPPED};

    fn runs(of: &[(u64, u64)]) -> Runs {
        let mut runs = Runs::default();
        of.iter().for_each(|&(start, end)| runs.push(start, end));
        runs
    }

    #[test]
    fn the_list_is_sorted_and_never_too_long() {
        let hidden = [
            Hidden { pid: 9, pages: runs(&[(1, 2), (5, 9)]) },
            Hidden { pid: 7, pages: runs(&[(3, 4)]) },
        ];
        let (count, list) = encode(&hidden, &[Inode { device: 1, number: 77 }]);
        let numbers: Vec<u64> = list
            .chunks_exact(8)
            .map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap()))
            .collect();
        assert_eq!(count, 4);
        assert_eq!(numbers, [0, 1, 77, 7, 0x3000, 0x4000, 9, 0x1000, 0x2000, 9, 0x5000, 0x9000]);

        let many: Vec<_> = (0..ENTRIES as u64 + 10).map(|at| (2 * at, 2 * at + 1)).collect();
        let (count, list) = encode(&[Hidden { pid: 1, pages: runs(&many) }], &[]);
        assert_eq!((count as usize, list.len()), (ENTRIES, ENTRIES * ENTRY));
        assert!(8 + list.len() <= LIST_BYTES);
    }

    /// All pages of a process with content, through the library if `preload`,
    /// asked for as CRIU asks, by a Python that was started with it.
    const ASK: &str = r#"
import ctypes, os, struct, sys
pid, start, end, room = (int(word) for word in sys.argv[1:])
sys.stdin.readline()
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
vec = (ctypes.c_uint64 * (3 * room))()
assert "LD_PRELOAD" not in os.popen("env").read()
while start < end:
    arg = ctypes.create_string_buffer(struct.pack("12Q", 96, 0, start, end, 0,
        ctypes.addressof(vec), room, 0, 0x24, 0x24, 0x18, 0x18), 96)
    count = libc.ioctl(fd, ctypes.c_ulong(0xC0606610), arg)
    if count < 0:
        sys.exit(f"errno {ctypes.get_errno()}")
    walk_end = struct.unpack("12Q", arg.raw)[4]
    for at in range(count):
        if vec[3 * at] < walk_end:
            print(vec[3 * at], min(vec[3 * at + 1], walk_end))
    assert walk_end > start, (start, walk_end, count)
    start = walk_end
assert libc.ioctl(0, ctypes.c_ulong(0x5401), 0) == -1 and ctypes.get_errno() == 25
"#;

    /// Python itself: what the search path has may be a script that starts it,
    /// and the library leaves no trace in what the first program starts.
    fn interpreter() -> Option<String> {
        let mut python = std::process::Command::new("python3");
        let output = python.args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    }

    fn ask(preload: &Preload, range: (u64, u64), room: usize) -> Option<Runs> {
        let words = [std::process::id() as u64, range.0, range.1, room as u64];
        let child = std::process::Command::new(interpreter()?)
            .args(["-c", ASK])
            .args(words.map(|word| word.to_string()))
            .envs(preload.environment())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn();
        let mut child = child.ok()?;
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        let mut found = Runs::default();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let (start, end) = line.split_once(' ').unwrap();
            let page = |word: &str| word.parse::<u64>().unwrap() / PAGE_SIZE as u64;
            found.push(page(start), page(end));
        }
        Some(found)
    }

    /// `None`: this machine has no Python to ask with.
    fn check() -> Option<()> {
        let pages = 4000;
        let mut memory = vec![0_u8; (pages + 1) * PAGE_SIZE];
        let first = (memory.as_ptr() as usize).div_ceil(PAGE_SIZE);
        let offset = first * PAGE_SIZE - memory.as_ptr() as usize;
        // Every other page, so that each is a region of its own.
        (0..pages).step_by(2).for_each(|page| memory[offset + page * PAGE_SIZE] = 1);
        let first = first as u64;
        let range = (first * PAGE_SIZE as u64, (first + pages as u64) * PAGE_SIZE as u64);
        let query = Query {
            all: 0,
            none: PFNZERO,
            any: PRESENT | SWAPPED,
            report: PRESENT | SWAPPED,
            protect: false,
        };
        let mut present = Runs::default();
        let mut map = Pagemap::open(std::process::id() as i32).unwrap();
        let page = PAGE_SIZE as u64;
        map.scan(range.0, range.1, query, |region: Region| {
            present.push(region.start / page, region.end / page);
        })
        .unwrap();
        assert!(present.pages().0 >= pages as u64 / 2);

        let preload = Preload::new().unwrap();
        assert_eq!(ask(&preload, range, 32768)?, present, "nothing is listed");
        let hidden = runs(&[
            (first - 50, first + 3),
            (first + 10, first + 11),
            (first + 100, first + 2100),
            (first + 2101, first + 2200),
            (first + 3990, first + 4100),
        ]);
        let pid = std::process::id() as i32;
        let others = Hidden { pid: pid + 1, pages: runs(&[(first, first + 4000)]) };
        let ours = Hidden { pid, pages: hidden.clone() };
        preload.hide(&[others, ours], &[]).unwrap();
        for room in [32768, 1000, 7, 1] {
            let seen = ask(&preload, range, room)?;
            assert_eq!(seen, present.subtract(&hidden), "room for {room}");
        }
        Some(())
    }

    #[test]
    fn exactly_the_listed_pages_are_hidden() {
        if check().is_none() {
            tracing::warn!("no python3: not tested");
        }
    }

    /// What a CRIU that restores sees through its library, asked by a Python of
    /// that name. Processes are traced, ended, let go of.
    const PART: &str = r#"
import ctypes, os, signal, time
assert "LD_PRELOAD" not in os.environ
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t]
libc.ptrace.restype = ctypes.c_long
PEEKDATA, SETREGS, ATTACH, DETACH, ESRCH, ALL = 2, 13, 16, 17, 3, 0x40000000
def traced():
    pid = os.fork()
    if pid == 0:
        while True: time.sleep(10)
    assert libc.ptrace(ATTACH, pid, 0, 0) == 0
    os.waitpid(pid, ALL)
    return pid
def ended():
    pid = traced()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, ALL)
    return pid
def refused(request, pid):
    return libc.ptrace(request, pid, 0, 0) == -1 and ctypes.get_errno() == ESRCH
assert refused(DETACH, ended()) and refused(SETREGS, ended())
word = ctypes.c_long(0x1122334455667788)
alive = traced()
assert libc.ptrace(PEEKDATA, alive, ctypes.addressof(word), 0) == word.value
assert libc.ptrace(DETACH, alive, 0, 0) == 0
os.kill(alive, signal.SIGKILL)
assert libc.ptrace(DETACH, ended(), 0, 0) == 0 and libc.ptrace(SETREGS, ended(), 0, 0) == 0
assert refused(ATTACH, ended()) and refused(PEEKDATA, ended())
def runs(file, point):
    pid = os.fork()
    if pid == 0:
        for name, value in (("BLIP_ACTION", "/bin/false"), ("CRTOOLS_SCRIPT_ACTION", point)):
            libc.setenv(name.encode(), value.encode(), 1)
        arguments = (ctypes.c_char_p * 2)(file.encode(), None)
        libc.execvp(file.encode(), arguments)
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert runs("/bin/false", "post-restore") == 0, "a script that nobody wants is started"
assert runs("/bin/false", "pre-resume") == 1, "the one that is wanted is not"
assert runs("false", "post-restore") == 1 and runs("true", "pre-resume") == 0
"#;

    #[test]
    fn a_thread_that_ends_while_criu_lets_go_of_others_is_no_failure() {
        use std::os::unix::process::CommandExt as _;
        let (Some(library), Some(python)) = (for_restore(), interpreter()) else {
            return tracing::warn!("no library or no python3: not tested");
        };
        let mut criu = std::process::Command::new(python);
        criu.arg0("criu").args(["-c", PART]).env("LD_PRELOAD", path_of(&library));
        let output = criu.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}
