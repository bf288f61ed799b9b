"""A real S3 server, and a proxy before it that does to requests what networks and overloaded servers do."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hutch.blobs.jobs import StoreSpec

CHECKOUT = Path(__file__).resolve().parents[2]
SERVER = CHECKOUT / ".hutch" / "bin" / "versitygw"
BUCKET = "blobs"
KEY, SECRET = "test-key", "test-secret"
START_S = 30.0
FAULTS = ("error", "busy", "reset", "torn", "cut", "slow", "lost")
"""A 500, a 503, a reset before the answer, half a request, half an answer, a pause, an answer that is lost after all was done."""


class S3:
    """A server whose objects are files below `directory`."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port

    def spec(self, *, port: int | None = None, **changes: object) -> StoreSpec:
        given: dict[str, object] = {
            "url": f"s3://{BUCKET}/pre/fix",
            "endpoint": f"http://127.0.0.1:{port or self.port}",
            "region": "us-east-1",
            "access_key_id": KEY,
            "secret_access_key": SECRET,
            "pause_s": 0.01,
        }
        return StoreSpec(**(given | changes))  # type: ignore[arg-type]

    def objects(self, kind: str = "") -> list[Path]:
        """The files of all objects, of chunks, of manifests or of pointers."""
        return sorted(path for path in (self.directory / BUCKET / "pre" / "fix" / kind).rglob("*") if path.is_file())


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[S3]:
    """A server with an empty bucket."""
    if not SERVER.exists():
        pytest.fail("The S3 server of the tests is missing. Run `make setup-test`.")
    objects = directory / "objects"
    (objects / BUCKET).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command: list[str | Path] = [
        SERVER,
        "--port",
        f"127.0.0.1:{port}",
        "--access",
        KEY,
        "--secret",
        SECRET,
        "--quiet",
        "posix",
        objects,
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(port, process, directory / "log")
        yield S3(objects, port)
    finally:
        process.terminate()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"the S3 server did not start:\n{log.read_text()}")
        time.sleep(0.02)


class Faults:
    """Which requests go wrong: every one with some chance, by a seed."""

    def __init__(self, seed: int, chance: float, kinds: tuple[str, ...] = FAULTS) -> None:
        self._generator = random.Random(seed)
        self._chance = chance
        self._kinds = kinds
        self._lock = threading.Lock()
        self.happened: Counter[str] = Counter()

    def next(self) -> str:
        with self._lock:
            fault = self._generator.choice(self._kinds) if self._generator.random() < self._chance else ""
            self.happened[fault or "none"] += 1
            return fault


@contextlib.contextmanager
def faulty(upstream: int, faults: Faults) -> Iterator[int]:
    """A proxy before a server; its port."""

    class Handler(_Handler):
        target, plan = upstream, faults

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target: int
    plan: Faults

    def _serve(self) -> None:
        self.close_connection = True
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        fault = self.plan.next()
        if fault == "reset":
            self._reset()
        elif fault == "torn":
            self._tear(body)
            self._reset()
        elif fault in ("error", "busy"):
            status = {"error": 500, "busy": 503}[fault]
            self.wfile.write(f"HTTP/1.1 {status} no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        else:
            answer = self._forward(body)
            if fault == "slow":
                time.sleep(0.1)
            if fault == "lost":
                self._reset()
            else:
                self.wfile.write(answer[: len(answer) // 2] if fault == "cut" else answer)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

    def _forward(self, body: bytes) -> bytes:
        """The whole answer, head and body."""
        upstream = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            content = answer.read()
            kept = [
                (name, value) for name, value in answer.getheaders() if name.lower() not in ("transfer-encoding", "connection")
            ]
            if self.command != "HEAD" and answer.getheader("content-length") is None and answer.status != 204:
                kept.append(("content-length", str(len(content))))
            head = f"HTTP/1.1 {answer.status} {answer.reason}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in kept)
            return (head + "connection: close\r\n\r\n").encode("latin-1") + content
        finally:
            upstream.close()

    def _tear(self, body: bytes) -> None:
        """Break off in the middle of the body."""
        head = f"{self.command} {self.path} HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in self.headers.items()
        )
        with socket.create_connection(("127.0.0.1", self.target)) as upstream:
            upstream.sendall(f"{head}\r\n".encode("latin-1") + body[: len(body) // 2])

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Not to standard error."""
