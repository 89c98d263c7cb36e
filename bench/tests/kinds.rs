//! Everything a file can be, in a writable layer, a volume and a tmpfs: what
//! the container sees of it after a move is what it saw before.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod pair;

use pair::Pair;
use std::time::{Duration, Instant};

/// Makes one of each kind in every directory named, holds files open, deleted
/// and locked, and goes on writing into a large sparse file.
const MAKER: &str = r#"
import fcntl, os, random, socket, stat, struct, sys, time
PAGE = 4096
keep = []
def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
def make(root):
    at = lambda name: os.path.join(os.fsencode(root), name)
    for name in [b"plain", b"with space", b"new\nline", b"not-utf8-\xff\xfe", b"-dash", b"tab\t", "\u00fc\u2603".encode()]:
        with open(at(name), "wb") as f: f.write(b"content of " + name)
    os.link(at(b"plain"), at(b"second name")); os.mkdir(at(b"dir"))
    os.link(at(b"plain"), at(b"dir/third name"))
    os.symlink(b"../../../../etc/shadow", at(b"climbs")); os.symlink(b"/abs\nolute", at(b"absolute"))
    os.mkfifo(at(b"fifo"), 0o640)
    s = socket.socket(socket.AF_UNIX); s.bind(at(b"socket")); s.listen(); keep.append(s)
    os.mknod(at(b"null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(at(b"block"), stat.S_IFBLK | 0o600, os.makedev(7, 99))
    with open(at(b"sparse"), "wb") as f:
        f.truncate(1 << 30); f.seek(123 << 20); f.write(b"x" * 5000)
    open(at(b"setuid"), "w").close(); os.chown(at(b"setuid"), 1234, 5678); os.chmod(at(b"setuid"), 0o6755)
    os.mkdir(at(b"sticky")); os.chmod(at(b"sticky"), 0o3777)
    open(at(b"capable"), "w").close()
    os.setxattr(at(b"capable"), "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    os.setxattr(at(b"plain"), "user.note", b"\0binary\xff")
    # user::rw- user:1000:rwx group::r-- mask::rwx other::r--
    rights = acl((1, 6, 0xffffffff), (2, 7, 1000), (4, 4, 0xffffffff), (16, 7, 0xffffffff), (32, 4, 0xffffffff))
    os.setxattr(at(b"with space"), "system.posix_acl_access", rights)
    os.setxattr(at(b"dir"), "system.posix_acl_default", rights)
    for n, name in enumerate([b"plain", b"with space", b"sticky", b"fifo", b"absolute"]):
        os.utime(at(name), ns=(1_000_000_007, 987_654_321_000_000_123 + n), follow_symlinks=False)
    gone = open(at(b"gone"), "w+b"); gone.write(b"still here"); gone.flush(); os.unlink(at(b"gone"))
    # Deleted, and yet elsewhere by another name.
    both = open(at(b"both"), "w+b"); both.write(b"by both"); both.flush()
    os.link(at(b"both"), at(b"dir/other")); os.unlink(at(b"both"))
    keep.extend([gone, both])
    locked = open(at(b"locked"), "w"); fcntl.lockf(locked, fcntl.LOCK_EX, 10, 5)
    flocked = open(at(b"flocked"), "w"); fcntl.flock(flocked, fcntl.LOCK_EX)
    keep.extend([locked, flocked])
for root in sys.argv[1:]: os.makedirs(root, exist_ok=True); make(root)
# In the image: one file goes, one directory is another now.
os.unlink("/etc/group"); web = os.path.dirname(os.__file__) + "/wsgiref"
if os.system("rm -r %s && mkdir %s && echo new >%s/new" % (web, web, web)): os._exit(2)
big = os.open("/root/big", os.O_RDWR | os.O_CREAT)
os.ftruncate(big, 10 << 30)
for n in range(4096): os.pwrite(big, n.to_bytes(8, "little") * 512, n * 2621440)
fifo = os.open(os.path.join(sys.argv[1], "fifo"), os.O_RDWR); os.write(fifo, b"in the pipe")
print("ready", flush=True)
n = 0
while True:
    n += 1
    at = random.randrange(4096)
    os.pwrite(big, n.to_bytes(8, "little") * 512, at * 2621440)
    if os.pread(big, 8, at * 2621440) != n.to_bytes(8, "little"): os._exit(3)
    for f in keep:
        if hasattr(f, "name") and f.name.endswith(b"gone") and os.pread(f.fileno(), 99, 0) != b"still here": os._exit(4)
        if hasattr(f, "name") and f.name.endswith(b"both") and os.pread(f.fileno(), 99, 0) != b"by both": os._exit(5)
    time.sleep(0.005)
"#;

/// Says in lines what is there.
const LISTER: &str = r#"
import errno, fcntl, hashlib, os, stat, sys
def holes(path, size):
    out, at, f = [], 0, os.open(path, os.O_RDONLY)
    while at < size:
        try: data = os.lseek(f, at, os.SEEK_DATA)
        except OSError: break
        at = os.lseek(f, data, os.SEEK_HOLE); out.append((data, at))
    os.close(f); return out
def busy(path, lock):
    with open(path, "r+") as f:
        try: lock(f); return False
        except OSError: return True
for root in sys.argv[1:]:
    exact, groups = not root.startswith("/scratch"), {}
    for top, dirs, files in os.walk(os.fsencode(root)):
        dirs.sort()
        for name in sorted(dirs + files):
            path = os.path.join(top, name); s = os.lstat(path)
            line = [path, oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink, s.st_rdev]
            # CRIU binds a socket anew.
            if exact and not stat.S_ISSOCK(s.st_mode): line.append(s.st_mtime_ns)
            if not stat.S_ISDIR(s.st_mode): groups.setdefault(s.st_ino, []).append(path)
            if stat.S_ISLNK(s.st_mode): line.append(os.readlink(path))
            if stat.S_ISREG(s.st_mode):
                line.append(s.st_size)
                spots = holes(path, s.st_size); sum = hashlib.sha256()
                for start, end in spots:
                    with open(path, "rb") as f: f.seek(start); sum.update(f.read(end - start))
                if s.st_size < 1 << 20: line.append(sum.hexdigest())
                else: line.append(spots)
            if exact: line.append([(x, os.getxattr(path, x, follow_symlinks=False)) for x in sorted(os.listxattr(path, follow_symlinks=False))])
            print(line)
    print(sorted(tuple(sorted(g)) for g in groups.values() if len(g) > 1))
    print("locks", busy(root + "/locked", lambda f: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)),
          busy(root + "/flocked", lambda f: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)))
print(os.path.exists("/etc/group"), os.listdir(os.path.dirname(os.__file__) + "/wsgiref"), os.stat("/root/big").st_size)
"#;

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn every_kind_of_file_moves_and_comes_back_as_it_was() {
    let pair = Pair::up("kinds");
    let (a, b) = (pair.hosts.a(), pair.hosts.b());
    let places = ["/var/proof", "/vol/proof", "/scratch/proof"];
    let options = "--network blipnet --volume kinds:/vol --tmpfs /scratch";
    let command = [&["python3", "-c", MAKER][..], &places].concat();
    pair.hosts.run("kinds", options, "blip/python:latest", &command);
    let until = Instant::now() + Duration::from_secs(90);
    let said = || pair.sh(a, "docker logs kinds 2>&1");
    while said() != "ready" {
        let runs = pair.hosts.inspect(a, "kinds", ".State.Running");
        assert!(runs == "true" && Instant::now() < until, "{}", said());
        std::thread::sleep(Duration::from_millis(100));
    }
    let list = |host| {
        let words = [&["docker", "exec", "kinds", "python3", "-c", LISTER][..], &places].concat();
        blip_bench::lab::Host::run(host, &words).expect("a list")
    };
    let before = list(a);
    assert!(before.lines().count() == 76 && before.contains("locks True True"), "{before}");
    assert!(before.contains("False ['new'] 10737418240"), "{before}");
    for (from, to) in [(a, b), (b, a)] {
        let report = pair.migrate(from, to, &["kinds"]);
        let after = list(to);
        for (line, (was, is)) in before.lines().zip(after.lines()).enumerate() {
            assert_eq!(is, was, "line {line}");
        }
        assert_eq!(before.lines().count(), after.lines().count());
        let (sent, gone) = (report["bytes_sent"].as_u64(), report["downtime_ms"].as_f64());
        eprintln!("{sent:?} bytes, downtime {gone:?} ms, with a file of 10 GiB");
        assert!(sent < Some(256 << 20) && gone < Some(3000.0), "{report}");
        assert_eq!(pair.hosts.inspect(to, "kinds", ".State.Status"), "running");
    }
}
