"""A Git and file server for tests of sources: Git's own smart HTTP behind TLS, with private repositories, redirects and a log.

    git_server.py ROOT CERTIFICATE LOG ADDRESS

`/private/…` wants USER and PASSWORD; `/moved/NAME/PATH` sends to another host; `/slow/…` never answers, `/late/PATH`
after a second. Everything else is there
for all: below `ROOT/git` for Git, below `ROOT/files` as files.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from urllib.parse import urlsplit

USER, PASSWORD = "builder", "PASSWORD-4c1d9e7f"
WANTED = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    log: Path
    lock = threading.Lock()

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        body = self._body()
        parts = urlsplit(self.path.removeprefix("/late"))
        given = self.headers.get("authorization")
        with self.lock, self.log.open("a") as log:
            log.write(json.dumps({"name": self.headers.get("host"), "path": parts.path, "authorization": given}) + "\n")
        if parts.path.startswith("/slow/"):
            threading.Event().wait(60)
        if self.path.startswith("/late/"):
            threading.Event().wait(1)
        if parts.path.startswith("/moved/"):
            _, _, name, rest = parts.path.split("/", 3)
            query = f"?{parts.query}" if parts.query else ""
            self._reply(302, b"", {"location": f"https://{name}/{rest}{query}"})
        elif parts.path.startswith("/private/") and given != WANTED:
            self._reply(401, b"who are you?\n", {"www-authenticate": 'Basic realm="tests"'})
        elif (file := self.root / "files" / parts.path.lstrip("/")).is_file():
            self._reply(200, file.read_bytes(), {})
        else:
            self._git(parts.path, parts.query, body)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            chunks = b""
            while size := int(self.rfile.readline(), 16):
                chunks += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return chunks
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _git(self, path: str, query: str, body: bytes) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root / "git"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        done = subprocess.run(["git", "http-backend"], env=environment, input=body, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(fields.pop("Status", "200").split()[0])
        self._reply(status, content, fields)

    def _reply(self, status: int, content: bytes, fields: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # Not that of `HTTPServer`, which asks for the name of the address: there is nobody to answer, and that takes ten seconds.
        TCPServer.server_bind(self)


def main() -> None:
    root, certificate, log, address = sys.argv[1:]
    Handler.root, Handler.log = Path(root), Path(log)
    plain = Server((address, 80), Handler)
    secure = Server((address, 443), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
    for server in (plain, secure):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
