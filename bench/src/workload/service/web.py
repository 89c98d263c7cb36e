"""A web application that keeps everything in memory.

POST /count/KEY  counts KEY up and answers its value
GET  /count/KEY  answers its value
GET  /self       answers which process this is, and a digest of its cache
"""

import hashlib
import http.server
import os
import socketserver
import sys
import threading

PAGE = 16384
COUNTS = {}
LOCK = threading.Lock()
BORN = os.urandom(8).hex()
CACHE = {
    f"page:{n}": hashlib.shake_256(f"page {n}".encode()).digest(PAGE // 2) * 2
    for n in range(int(sys.argv[1]) // PAGE)
}


def digest():
    whole = hashlib.blake2b()
    for key, page in CACHE.items():
        whole.update(key.encode())
        whole.update(page)
    return whole.hexdigest()[:32]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def reply(self, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with LOCK:
            key = self.path
            COUNTS[key] = COUNTS.get(key, 0) + 1
            # A page of the session is made for every request, as templates do.
            COUNTS["last"] = hashlib.sha256(str(COUNTS[key]).encode()).hexdigest()
            value = COUNTS[key]
        self.reply(str(value))

    def do_GET(self):
        if self.path == "/self":
            return self.reply(f"{BORN} {os.getpid()} {len(CACHE)} {digest()}")
        with LOCK:
            value = COUNTS.get(self.path, 0)
        self.reply(str(value))


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 1024


Server(("", 8000), Handler).serve_forever()
