"""A server for the guest: `python3 program.py PORT`. It says what it was asked, streams, takes uploads and echoes tunnels."""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PIECE = b"x" * 65536
go_on = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if self.headers.get("Upgrade") == "websocket":
            self.tunnel()
        elif path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"data: 1\n\n")
            self.wfile.flush()
            go_on.wait(30)
            self.wfile.write(b"data: 2\n\n")
            self.close_connection = True
        elif path == "/go-on":
            go_on.set()
            self.answer(b"ok")
        elif path.startswith("/download/"):
            left = int(path.rpartition("/")[2])
            self.send_response(200)
            self.send_header("Content-Length", str(left))
            self.end_headers()
            while left:
                piece = PIECE[:left]
                self.wfile.write(piece)
                left -= len(piece)
        elif path == "/liar":
            self.send_response(200)
            self.send_header("X-Hutch-Error", "SANDBOX_STOPPED")
            self.send_header("Connection", "X-Hop")
            self.send_header("X-Hop", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer(json.dumps({"path": self.path, "headers": self.headers.items()}).encode())

    def do_POST(self) -> None:
        digest, count = hashlib.sha256(), 0
        for piece in self.pieces():
            digest.update(piece)
            count += len(piece)
        self.answer(json.dumps({"sha256": digest.hexdigest(), "bytes": count, "headers": self.headers.items()}).encode())

    def pieces(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(left, 65536))
            left -= len(piece)
            yield piece

    def tunnel(self) -> None:
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.end_headers()
        self.wfile.flush()
        while line := self.rfile.readline():
            self.wfile.write(b"echo " + line)
            self.wfile.flush()
        self.close_connection = True

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
