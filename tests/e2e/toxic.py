"""Proxies that misbehave on demand, between the server and what it depends on."""

import contextlib
import http.client
import random
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class TcpProxy:
    """Passes bytes on. `on_request(data)` sees what goes to the target; if it answers True the data still goes there, and both
    connections are cut before the target's answer comes back; `delay()` seconds lie between the client's end and the data's arrival.
    `is_down` cuts everything."""

    def __init__(self, target):
        self.target, self.is_down, self.cuts = target, False, 0
        self.on_request, self.delay = lambda data: False, lambda: 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.connections = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.is_down:
                client.close()
                continue
            try:
                server = socket.create_connection(self.target, timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = (client, server)
            self.connections.add(pair)
            threading.Thread(target=self._pump, args=(pair, client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(pair, server, client, False), daemon=True).start()

    def _pump(self, pair, source, sink, is_request):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if is_request and self.on_request(data):
                    self.cuts += 1
                    pair[0].shutdown(socket.SHUT_RDWR)
                    time.sleep(self.delay())
                    sink.sendall(data)
                    # The target gets the time to do what it was asked for.
                    time.sleep(0.05)
                    break
                sink.sendall(data)
        self._close(pair)

    def _close(self, pair):
        self.connections.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut_all(self):
        for pair in list(self.connections):
            self._close(pair)

    def close(self):
        self.listener.close()
        self.cut_all()


class Toxics:
    """What goes wrong with requests to a store. Shares are probabilities of a request."""

    def __init__(self):
        self.errors = 0.0  # answered 500, 503 or 429 without asking the store
        self.lost_answers = 0.0  # PUTs that the store keeps and whose answer is lost
        self.truncated = 0.0  # GET bodies that end early
        self.altered = 0.0  # GET bodies with a flipped bit
        self.stalled = 0.0  # GET bodies that stop for ever after the first half
        self.bytes_per_second = None  # of GET bodies
        self.is_down = False
        self.only = ""  # paths that hold this text


class HttpProxy:
    """Passes requests on to an HTTP server, with toxics."""

    def __init__(self, target, seed=1):
        self.toxics, self.counts, self.random = Toxics(), {}, random.Random(seed)
        self.lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def handle_any(self):
                proxy.handle(self, target)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def hits(self, share):
        with self.lock:
            return share > 0 and self.random.random() < share

    def handle(self, request, target):
        toxics = self.toxics
        length = int(request.headers.get("Content-Length", 0))
        body = request.rfile.read(length)
        is_hit = toxics.only in request.path
        self.count(request.command)
        if toxics.is_down:
            request.close_connection = True
            return
        if is_hit and self.hits(toxics.errors):
            self.count("errors")
            return self.answer(request, self.random.choice([500, 503, 429]), {}, b"")
        upstream = http.client.HTTPConnection(*target, timeout=60)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("connection", "content-length")}
        upstream.request(request.command, request.path, body=body, headers=headers)
        response = upstream.getresponse()
        content = response.read()
        upstream.close()
        if is_hit and request.command == "PUT" and self.hits(toxics.lost_answers):
            self.count("lost_answers")
            request.close_connection = True
            return
        kept = {k: v for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date")}
        if request.command == "HEAD":
            kept["Content-Length"] = response.getheader("Content-Length", "0")
        if request.command != "GET" or not is_hit or not content or response.status >= 300:
            return self.answer(request, response.status, kept, content)
        if self.hits(toxics.altered):
            self.count("altered")
            content = bytearray(content)
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        if self.hits(toxics.truncated):
            self.count("truncated")
            self.start(request, response.status, kept, len(content))
            request.wfile.write(content[: len(content) // 2])
            request.close_connection = True
            return
        if self.hits(toxics.stalled):
            self.count("stalled")
            self.start(request, response.status, kept, len(content))
            request.wfile.write(content[: len(content) // 2])
            request.wfile.flush()
            time.sleep(300)
            request.close_connection = True
            return
        if toxics.bytes_per_second:
            self.start(request, response.status, kept, len(content))
            step = max(1, toxics.bytes_per_second // 10)
            for at in range(0, len(content), step):
                request.wfile.write(content[at : at + step])
                request.wfile.flush()
                time.sleep(0.1)
            return
        self.answer(request, response.status, kept, bytes(content))

    def start(self, request, status, headers, length):
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(length))
        request.end_headers()

    def answer(self, request, status, headers, body):
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        if "Content-Length" not in headers:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
