"""A container that holds one of everything and checks itself when asked.

    program.py CLIENT4 CLIENT6

Ports: 7000 control (a line a command: `ready`, `check`, `echo WORD`); 7001 takes
connections whose queues are filled both ways; 7002 listens; 7003 and 7004 are
UDP. It connects to port 9000 of the client by itself, and its connected UDP
socket talks to 9001.
"""

import array, ctypes, fcntl, json, mmap, os, select, signal, socket, struct, sys, threading, time

CLIENT = {socket.AF_INET: sys.argv[1], socket.AF_INET6: sys.argv[2]}
FAMILIES = (socket.AF_INET, socket.AF_INET6)
NAME = {socket.AF_INET: "v4", socket.AF_INET6: "v6"}
ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
INBOUND = 300_000
# Before there are threads: each has a mask of its own.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2])
libc = ctypes.CDLL(None, use_errno=True)
checks, keep, errors = {}, [], []


def check(function):
    checks[function.__name__] = function
    return function


def expect(seen, wanted, what=""):
    if seen != wanted:
        text = f"{what}: " if what else ""
        raise AssertionError(f"{text}{str(seen)[:120]!r} instead of {str(wanted)[:120]!r}")


def pattern(seed, length):
    period = bytes((seed * 31 + i * 7 + (i >> 8) * 13) & 255 for i in range(65536))
    return (period * (length // 65536 + 1))[:length]


def listen(family, port, kind=socket.SOCK_STREAM):
    s = socket.socket(family, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((ANY[family], port))
    if kind == socket.SOCK_STREAM:
        s.listen(8)
    return s


# --- TCP with bytes in both queues, at either end, made from either side.


class Stream:
    """Sends until nothing more fits, and reads nothing until it is checked."""

    def __init__(self, name, s, seed):
        self.name, self.s, self.seed = name, s, seed
        s.setblocking(False)
        data, self.sent = pattern(seed, 1 << 23), 0
        quiet = 0
        while quiet < 5 and self.sent < len(data):
            try:
                self.sent += s.send(data[self.sent : self.sent + 65536])
                quiet = 0
            except BlockingIOError:
                quiet += 1
                time.sleep(0.05)
        s.setblocking(True)
        s.settimeout(10)

    def check(self):
        """The peer has sent INBOUND bytes of the pattern of seed + 100."""
        got = b""
        while len(got) < INBOUND:
            more = self.s.recv(65536)
            if not more:
                raise AssertionError(f"ended after {len(got)} bytes")
            got += more
        expect(got == pattern(self.seed + 100, INBOUND), True, "bytes as sent")


streams = {}


def take_streams(family, seed):
    s = listen(family, 7001)
    keep.append(s)
    c, _ = s.accept()
    name = "in_" + NAME[family]
    streams[name] = Stream(name, c, seed)


def make_stream(family, seed):
    s = socket.create_connection((CLIENT[family], 9000), timeout=20)
    name = "out_" + NAME[family]
    streams[name] = Stream(name, s, seed)


for seed, family in enumerate(FAMILIES):
    threading.Thread(target=take_streams, args=(family, 1 + seed)).start()
    threading.Thread(target=make_stream, args=(family, 3 + seed)).start()


@check
def tcp_queues():
    for stream in streams.values():
        try:
            stream.check()
        except Exception as error:
            raise AssertionError(f"{stream.name}: {error}")


listeners = [listen(family, 7002) for family in FAMILIES]


@check
def tcp_listeners():
    for s in listeners:
        s.settimeout(5)
        c, _ = s.accept()
        expect(c.recv(16), b"knock")
        c.sendall(b"come in")


@check
def tcp_options():
    s = streams["in_v4"].s
    expect(s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1, "keepalive")
    expect(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 77, "idle")


# --- UDP.

udp = {family: listen(family, 7003, socket.SOCK_DGRAM) for family in FAMILIES}
connected = {}
for family in FAMILIES:
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((ANY[family], 7004))
    s.connect((CLIENT[family], 9001))
    connected[family] = s


def datagrams(sockets):
    for family, s in sockets.items():
        s.settimeout(2)
        for number in range(3):
            try:
                data, peer = s.recvfrom(2048)
            except TimeoutError:
                raise AssertionError(f"{NAME[family]}: datagram {number} is not there")
            expect(data, b"datagram %d" % number, NAME[family])
            expect(peer[0], CLIENT[family], "sender")
            s.sendto(b"answer %d" % number, peer)


@check
def udp_bound_queue():
    datagrams(udp)


@check
def udp_connected_queue():
    for family, s in connected.items():
        expect(s.getpeername()[:2], (CLIENT[family], 9001), NAME[family])
    datagrams(connected)


# --- Unix sockets.

stream_pair = socket.socketpair()
stream_pair[0].sendall(b"in the stream")
dgram_pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
dgram_pair[0].send(b"one")
dgram_pair[0].send(b"two")
seq_pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
seq_pair[0].send(b"packet")
unix_listener = socket.socket(socket.AF_UNIX)
unix_listener.bind("/tmp/listener")
unix_listener.listen(4)
unix_client = socket.socket(socket.AF_UNIX)
unix_client.connect("/tmp/listener")
unix_accepted, _ = unix_listener.accept()
unix_client.sendall(b"accepted before")
unix_waiting = socket.socket(socket.AF_UNIX)
unix_waiting.connect("/tmp/listener")
unix_named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
unix_named.bind("/tmp/named")
unix_sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
unix_sender.sendto(b"to the name", "/tmp/named")
unix_abstract = socket.socket(socket.AF_UNIX)
unix_abstract.bind("\0abstract")
unix_abstract.listen(4)


@check
def unix_pairs():
    expect(stream_pair[1].recv(64), b"in the stream")
    expect(dgram_pair[1].recv(64), b"one")
    expect(dgram_pair[1].recv(64), b"two")
    expect(seq_pair[1].recv(64), b"packet")
    for a, b in (stream_pair, dgram_pair, seq_pair):
        b.send(b"back")
        expect(a.recv(64), b"back")


@check
def unix_listening():
    expect(unix_accepted.recv(64), b"accepted before")
    unix_listener.settimeout(3)
    c, _ = unix_listener.accept()
    unix_waiting.sendall(b"not accepted before")
    expect(c.recv(64), b"not accepted before")
    for name, s in (("/tmp/listener", unix_listener), ("\0abstract", unix_abstract)):
        fresh = socket.socket(socket.AF_UNIX)
        fresh.connect(name)
        s.settimeout(3)
        c, _ = s.accept()
        c.sendall(b"new")
        expect(fresh.recv(64), b"new")


@check
def unix_datagrams():
    unix_named.settimeout(3)
    expect(unix_named.recv(64), b"to the name")
    unix_sender.sendto(b"again", "/tmp/named")
    expect(unix_named.recv(64), b"again")


rights_pair = socket.socketpair()
rights_read, rights_write = os.pipe()
socket.send_fds(rights_pair[0], [b"a descriptor"], [rights_read])
os.close(rights_read)


@check
def descriptor_in_flight():
    data, fds, _, _ = socket.recv_fds(rights_pair[1], 64, 1)
    expect(data, b"a descriptor")
    os.write(rights_write, b"through it")
    expect(os.read(fds[0], 64), b"through it")


# --- Pipes and files.

pipe = os.pipe()
os.write(pipe[1], b"in the pipe")
os.mkfifo("/tmp/fifo")
fifo = os.open("/tmp/fifo", os.O_RDWR)
os.write(fifo, b"in the fifo")
deleted = open("/tmp/deleted", "w+b")
deleted.write(pattern(9, 200_000))
deleted.flush()
os.unlink("/tmp/deleted")
deleted.seek(1000)
offset = open("/tmp/offset", "w+")
offset.write("0123456789")
offset.flush()
offset.seek(4)
linked = open("/tmp/linked", "w+b")
os.link("/tmp/linked", "/tmp/other")
os.unlink("/tmp/linked")
memfd = os.memfd_create("memory")
os.write(memfd, b"in memory only")
shared = open("/dev/shm/shared", "w+b")
shared.write(b"in shared memory")
shared.flush()


@check
def pipes():
    expect(os.read(pipe[0], 64), b"in the pipe")
    os.write(pipe[1], b"more")
    expect(os.read(pipe[0], 64), b"more")
    expect(os.read(fifo, 64), b"in the fifo")
    other = os.open("/tmp/fifo", os.O_RDWR)
    os.write(other, b"by name")
    expect(os.read(fifo, 64), b"by name")


@check
def files():
    expect(deleted.read(100) == pattern(9, 200_000)[1000:1100], True, "deleted file, offset")
    deleted.seek(0)
    expect(deleted.read() == pattern(9, 200_000), True, "deleted file, content")
    expect(os.path.exists("/tmp/deleted"), False, "its name")
    expect(offset.read(), "456789")
    linked.write(b"through the old name")
    linked.flush()
    expect(open("/tmp/other", "rb").read(), b"through the old name")
    expect(os.pread(memfd, 64, 0), b"in memory only")
    expect(open("/dev/shm/shared", "rb").read(), b"in shared memory")


flocked = open("/tmp/flocked", "w")
fcntl.flock(flocked, fcntl.LOCK_EX)
posix_locked = open("/tmp/posix", "w")
fcntl.lockf(posix_locked, fcntl.LOCK_EX, 10, 5)
F_OFD_SETLK = 37
ofd_locked = open("/tmp/ofd", "w")
fcntl.fcntl(ofd_locked, F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))


def refused(lock):
    try:
        lock()
    except OSError:
        return True
    return False


@check
def locks():
    child = os.fork()
    if child == 0:
        never = fcntl.LOCK_EX | fcntl.LOCK_NB
        held = [
            refused(lambda: fcntl.flock(open("/tmp/flocked", "w"), never)),
            refused(lambda: fcntl.lockf(open("/tmp/posix", "w"), never, 10, 5)),
            not refused(lambda: fcntl.lockf(open("/tmp/posix", "w"), never, 5, 0)),
            refused(lambda: fcntl.lockf(open("/tmp/ofd", "w"), never)),
        ]
        os._exit(sum(1 << n for n, ok in enumerate(held) if not ok))
    expect(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0, "locks that do not hold")


# --- What waits for events.

eventfd = os.eventfd(7)
soon = libc.timerfd_create(time.CLOCK_MONOTONIC, 0)
often = libc.timerfd_create(time.CLOCK_REALTIME, 0)


def arm(fd, first, interval):
    spec = struct.pack("qqqq", *(divmod(int(interval * 1e9), 10**9)), *divmod(int(first * 1e9), 10**9))
    if libc.timerfd_settime(fd, 0, spec, None):
        raise OSError(ctypes.get_errno())


arm(soon, 3600, 0)
arm(often, 0.2, 0.2)
mask = struct.pack("Q", 1 << (signal.SIGUSR1 - 1) | 1 << (signal.SIGUSR2 - 1))
signalfd = libc.signalfd(-1, mask.ljust(128, b"\0"), 0)
os.kill(os.getpid(), signal.SIGUSR1)
os.mkdir("/dev/shm/watched")
inotify = libc.inotify_init1(os.O_NONBLOCK)
libc.inotify_add_watch(inotify, b"/dev/shm/watched", 0x100)  # IN_CREATE
epoll = select.epoll()
ready_pipe, calm_pipe = os.pipe(), os.pipe()
os.write(ready_pipe[1], b"x")
epoll.register(ready_pipe[0], select.EPOLLIN)
epoll.register(calm_pipe[0], select.EPOLLIN)
epoll.register(stream_pair[1].fileno(), select.EPOLLIN | select.EPOLLONESHOT)


@check
def event_descriptors():
    expect(os.eventfd_read(eventfd), 7, "what was in it")
    os.eventfd_write(eventfd, 2)
    expect(os.eventfd_read(eventfd), 2, "what is added")
    left = ctypes.create_string_buffer(32)
    libc.timerfd_gettime(soon, left)
    _, _, seconds, _ = struct.unpack("qqqq", left)
    expect(3000 < seconds < 3600, True, f"{seconds} s left of an hour")
    os.read(often, 8)
    since = time.monotonic()
    os.read(often, 8)
    expect(time.monotonic() - since < 2, True, "the timer goes on")


@check
def signals():
    expect(struct.unpack_from("I", os.read(signalfd, 128))[0], signal.SIGUSR1, "pending")
    os.kill(os.getpid(), signal.SIGUSR2)
    expect(struct.unpack_from("I", os.read(signalfd, 128))[0], signal.SIGUSR2, "new")


@check
def inotify_watch():
    open("/dev/shm/watched/new", "w").close()
    event = os.read(inotify, 4096)
    expect(event[16:19], b"new")


@check
def epoll_set():
    seen = dict(epoll.poll(0))
    expect(ready_pipe[0] in seen, True, "what was ready")
    expect(calm_pipe[0] in seen, False, "what was not")
    os.write(calm_pipe[1], b"x")
    expect(calm_pipe[0] in dict(epoll.poll(2)), True, "what became ready")


# --- Processes.

anonymous = mmap.mmap(-1, 1 << 20)
anonymous[:6] = b"shared"
ask, asked = os.pipe()
answer, answered = os.pipe()
main = os.getpid()
child = os.fork()
if child == 0:
    while os.read(ask, 1):
        anonymous[100:105] = b"child"
        os.write(answered, anonymous[:6] + b" " + str(os.getppid() == main).encode())
    os._exit(23)
ended = os.fork()
if ended == 0:
    os._exit(24)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 3600)


@check
def processes():
    os.write(asked, b"?")
    expect(os.read(answer, 64), b"shared True")
    expect(anonymous[100:105], b"child", "shared memory")
    expect(os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1]), 24, "a zombie's exit code")
    os.kill(child, signal.SIGTERM)
    expect(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), -signal.SIGTERM)
    expect(3000 < signal.getitimer(signal.ITIMER_REAL)[0] <= 3600, True, "the alarm")


# --- Control.


def run_checks():
    seen = {}
    for name, function in checks.items():
        try:
            function()
            seen[name] = "ok"
        except Exception as error:
            seen[name] = f"{type(error).__name__}: {error}"
    seen["sent"] = {name: stream.sent for name, stream in streams.items()}
    return seen


def control(c):
    for line in c.makefile():
        words = line.split()
        if words[0] == "ready":
            while len(streams) < 4:
                time.sleep(0.05)
            s = streams["in_v4"].s
            s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
            c.sendall(json.dumps({name: stream.sent for name, stream in streams.items()}).encode())
        elif words[0] == "check":
            c.sendall(json.dumps(run_checks()).encode())
        else:
            c.sendall(line.strip().encode())
        c.sendall(b"\n")


door = listen(socket.AF_INET, 7000)
while True:
    control(door.accept()[0])
