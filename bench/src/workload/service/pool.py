"""A pool of worker processes behind one that takes requests.

Requests go to workers over socket pairs, chosen by key, and wait there in line.
A worker owns its counters and its pages. Between requests it rewrites pages,
each with what follows from its number and how often it was written, and looks
at the page it is about to write: what came back wrong is counted, and told.

POST /count/KEY  counts KEY up and answers its value
GET  /count/KEY  answers its value
GET  /self       answers which processes these are, and how many pages are wrong
"""

import os
import select
import selectors
import socket
import sys
import zlib

PAGE = 4096
WORKERS = int(sys.argv[1])
PAGES = int(sys.argv[2]) // PAGE // WORKERS
BORN = os.urandom(8).hex()


def page(number, turn):
    seed = b"%16d%16d" % (number, turn)
    return seed * (PAGE // 32)


def work(pipe):
    """A worker: answers lines with lines."""
    memory = bytearray(PAGE * PAGES)
    turns = [0] * PAGES
    counts = {}
    wrong = 0
    for number in range(PAGES):
        memory[number * PAGE:(number + 1) * PAGE] = page(number, 0)

    def rewrite(number):
        nonlocal wrong
        at = slice(number * PAGE, (number + 1) * PAGE)
        wrong += memory[at] != page(number, turns[number])
        turns[number] += 1
        memory[at] = page(number, turns[number])

    def answer(verb, key):
        nonlocal wrong
        if verb == "check":
            for number in range(PAGES):
                rewrite(number)
            return f"{os.getpid()}:{wrong}"
        counts[key] = counts.get(key, 0) + (verb == "count")
        return str(counts[key])

    rest = b""
    turn = 0
    while True:
        # A page about every millisecond, of a fifth of them.
        if not select.select([pipe], [], [], 0.001)[0]:
            turn += 1
            rewrite(turn * 7 % max(PAGES // 5, 1))
            continue
        rest += pipe.recv(65536)
        while b"\n" in rest:
            line, rest = rest.split(b"\n", 1)
            verb, key = line.decode().split()
            pipe.sendall(answer(verb, key).encode() + b"\n")


def start():
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        work(theirs)
    theirs.close()
    return ours, ours.makefile("rb")


def ask(worker, words):
    worker[0].sendall(words.encode() + b"\n")
    return worker[1].readline().decode().strip()


def reply(path, method):
    if path == "/self":
        told = [ask(worker, "check all") for worker in POOL]
        return " ".join([BORN, str(os.getpid()), *told])
    key = path.rsplit("/", 1)[-1]
    worker = POOL[zlib.crc32(key.encode()) % WORKERS]
    return ask(worker, ("count " if method == "POST" else "look ") + key)


def serve(client, rest):
    """Answers what is whole of `rest`; gives what is not, or None at the end."""
    try:
        more = client.recv(65536)
    except ConnectionError:
        more = b""
    if not more:
        return None
    rest += more
    out = b""
    while b"\r\n\r\n" in rest:
        head, rest = rest.split(b"\r\n\r\n", 1)
        method, path = head.decode().split(" ")[:2]
        body = reply(path, method).encode()
        out += b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    client.sendall(out)
    return rest


POOL = [start() for _ in range(WORKERS)]
door = socket.create_server(("", 8000), backlog=1024)
ready = selectors.DefaultSelector()
ready.register(door, selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        if key.fileobj is door:
            client, _ = door.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ready.register(client, selectors.EVENT_READ, b"")
            continue
        rest = serve(key.fileobj, key.data)
        if rest is None:
            ready.unregister(key.fileobj)
            key.fileobj.close()
        else:
            ready.modify(key.fileobj, selectors.EVENT_READ, rest)
