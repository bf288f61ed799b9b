"""A real server that is watched, and bare connections to it."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from hutch.client import Client, Server
from tests.conftest import tail, wait_until

MIB = 1024 * 1024
WAIT_S = 30.0
PROMPT_S = 10.0
"""A server that is not wedged answers within this, also on a machine that is busy with other things."""
SPARE_DESCRIPTORS = 4
"""Connections to the database come and go with what is asked at once."""


@dataclass(frozen=True)
class Answer:
    """One answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The error's code; fails for what has not the one shape of errors."""
        assert self.headers["content-type"].startswith("application/json"), self
        error = json.loads(self.body)["error"]
        assert isinstance(error["message"], str), self
        assert 0 < len(error["message"]) < 1000, self
        return str(error["code"])


@dataclass
class Connection:
    """A TCP connection that says what it is told to."""

    socket: socket.socket
    pending: bytes = b""

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def try_send(self, *parts: bytes) -> bool:
        """Whether it could still be sent."""
        try:
            self.send(*parts)
        except (ConnectionError, TimeoutError):
            return False
        return True

    def read(self) -> bytes:
        """Some bytes; none when the server has closed the connection, however."""
        if self.pending:
            found, self.pending = self.pending, b""
            return found
        try:
            return self.socket.recv(65_536)
        except ConnectionError:
            return b""

    def until(self, mark: bytes) -> bytes:
        """All up to and with `mark`; all there is where it does not come."""
        found = b""
        while mark not in found:
            more = self.read()
            if not more:
                return found
            found += more
        head, _, self.pending = found.partition(mark)
        return head + mark

    def exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size and (more := self.read()):
            found += more
        self.pending = found[size:]
        return found[:size]

    def rest(self) -> bytes:
        """All until the server closes."""
        return b"".join(iter(self.read, b""))

    @property
    def is_closed(self) -> bool:
        """Waits for the server to close; False when it says something instead, or nothing."""
        try:
            return self.read() == b""
        except TimeoutError:
            return False

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer, 100 left out."""
        lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        assert lines[0].startswith("HTTP/1.1 "), f"not an answer: {lines[0][:100]!r}"
        status = int(lines[0].split()[1])
        if status == 100:
            return self.head()
        return status, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}

    def answer(self) -> Answer:
        """The next answer, whole."""
        status, headers = self.head()
        if headers.get("transfer-encoding") != "chunked":
            return Answer(status, headers, self.exactly(int(headers.get("content-length", "0"))))
        body = b""
        while size := int(self.until(b"\r\n"), 16):
            body += self.exactly(size)
            self.until(b"\r\n")
        self.until(b"\r\n")
        return Answer(status, headers, body)

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def stop_writing(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class Held:
    """What the API process holds. `host` has the descriptors of the host process."""

    connections: int
    descriptors: int
    threads: int
    requests: int
    host: int
    memory: int


@dataclass
class Target:
    """A real `hutch serve`, its API process, and what that held when it was idle."""

    process: Popen[bytes]
    data_dir: Path
    log: Path
    where: Server
    idle: Held | None = None
    session_id: str = ""
    _logged: int = 0
    open: list[Connection] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.where.url.removeprefix("http://").partition(":")
        return host, int(port)

    @property
    def ingress(self) -> tuple[str, int]:
        host, _, port = self.where.ingress_url.removeprefix("http://").partition(":")
        return host, int(port)

    def child(self, module: str) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (pid,) = (int(pid) for pid in children if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
        return pid

    # -- as a client ---------------------------------------------------------------------------------

    def connect(self, address: tuple[str, int] | None = None, *, receive_bytes: int | None = None) -> Connection:
        """A connection, closed at the end of the test. `receive_bytes`: how little the kernel takes for a client that does not
        read."""
        made = socket.socket()
        if receive_bytes is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        made.settimeout(WAIT_S)
        made.connect(address or self.address)
        self.open.append(Connection(made))
        return self.open[-1]

    def say(self, *parts: bytes) -> Connection:
        connection = self.connect()
        connection.try_send(*parts)
        return connection

    def ask(self, *parts: bytes) -> Answer:
        """The answer to bytes on a connection of their own."""
        connection = self.say(*parts)
        answer = connection.answer()
        connection.socket.close()
        self.open.remove(connection)
        return answer

    def head(self, method: str, path: str, *lines: str, token: bool = True) -> bytes:
        """The head of a request."""
        own = [f"authorization: Bearer {self.where.token}"] if token else []
        return "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", *own, *lines, "", ""]).encode("latin-1")

    def post(self, path: str, body: bytes, *lines: str, token: bool = True) -> bytes:
        """A whole request."""
        return self.head("POST", path, f"content-length: {len(body)}", *lines, token=token) + body

    def in_session(self, path: str) -> str:
        return f"/v2/sandboxes/sessions/{self.session_id}/{path}"

    def start(self, *argv: str, **more: Any) -> bytes:
        """The request that starts a command."""
        return self.post(self.in_session("cmd"), json.dumps({"command": argv[0], "args": argv[1:], **more}).encode())

    def run(self, *argv: str) -> str:
        """The output of a command of an ordinary client."""
        with Client(self.where) as client:
            ran = client.commands.run(self.session_id, list(argv))
        assert ran[0] == 0, ran
        return ran[1]

    def detached(self, *argv: str) -> str:
        """The id of a command that runs on."""
        return str(json.loads(self.ask(self.start(*argv)).body)["command"]["id"])

    def kill(self, command_id: str) -> None:
        answer = self.ask(self.post(self.in_session(f"cmd/{command_id}/kill"), b'{"signal":9}'))
        assert answer.status == 200, answer

    # -- what it holds -------------------------------------------------------------------------------

    def answers(self) -> None:
        """A normal request is answered promptly."""
        began = time.monotonic()
        connection = self.connect()
        connection.send(self.head("GET", "/v2/sandboxes", "connection: close"))
        assert connection.answer().status == 200
        assert time.monotonic() - began < PROMPT_S
        connection.socket.close()

    def held(self) -> Held:
        connection = self.connect()
        connection.send(self.head("GET", "/metrics", "connection: close", token=False))
        metrics = connection.answer().body.decode()
        connection.socket.close()
        running = next(line for line in metrics.splitlines() if line.startswith("hutch_http_requests_running "))
        api, host = self.child("hutch.api.main"), self.child("host")
        return Held(
            connections=len(self._connections(api)),
            descriptors=count(f"/proc/{api}/fd"),
            threads=count(f"/proc/{api}/task"),
            requests=int(float(running.split()[1])) - 1,
            host=count(f"/proc/{host}/fd"),
            memory=memory_of(api),
        )

    def _connections(self, pid: int) -> set[str]:
        """Sockets of the process that are connections of clients."""
        own = {f"{self.address[1]:04X}", f"{self.ingress[1]:04X}"}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        inodes = {row[9] for row in rows if row[1].partition(":")[2] in own and row[3] != "0A"}
        return {name for name in descriptors(pid) if name.removeprefix("socket:[").rstrip("]") in inodes}

    def settle(self, *, growth: int = 48 * MIB) -> None:
        """Fails unless the server comes back to what it held when it was idle, has said nothing of a fault, and answers."""
        for connection in self.open:
            connection.socket.close()
        self.open.clear()
        self.answers()
        idle, now = self.idle, self.held()
        assert idle is not None

        def settled() -> bool:
            nonlocal now
            now = self.held()
            return (
                now.connections == 0
                and now.requests == 0
                and now.descriptors <= idle.descriptors + SPARE_DESCRIPTORS
                and now.threads <= idle.threads + SPARE_DESCRIPTORS
                and now.host <= idle.host + SPARE_DESCRIPTORS
            )

        wait_until(settled, WAIT_S, lambda: f"held when idle: {idle}; now: {now}\n{tail(self.log, 20)}")
        assert now.memory <= idle.memory + growth, (idle, now)
        said = self.log.read_text(errors="replace")[self._logged :]
        self._logged += len(said)
        assert "Traceback" not in said, said


def memory_of(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def count(directory: str) -> int:
    return sum(1 for _ in Path(directory).iterdir())


def descriptors(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            yield str(entry.readlink())
        except FileNotFoundError:
            continue


@contextmanager
def bounded_memory(pid: int, most: int = 48 * MIB) -> Iterator[None]:
    """Fails when the process grew by more than `most` bytes."""
    before = memory_of(pid)
    yield
    assert memory_of(pid) - before < most


# -- WebSockets --------------------------------------------------------------------------------------

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KEY = "AAAAAAAAAAAAAAAAAAAAAA=="


def frame(
    opcode: int, data: bytes = b"", *, fin: bool = True, masked: bool = True, reserved: int = 0, size: int | None = None
) -> bytes:
    """A frame as a client sends it, or as it must not. `size`: what its head says instead of the truth."""
    length = len(data) if size is None else size
    first, mask = (0x80 if fin else 0) | reserved << 4 | opcode, 0x80 if masked else 0
    if length < 126:
        head = bytes([first, mask | length])
    elif length < 65_536:
        head = struct.pack("!BBH", first, mask | 126, length)
    else:
        head = struct.pack("!BBQ", first, mask | 127, length)
    # A mask of zeros leaves the data as it is.
    return head + (bytes(4) if masked else b"") + data


def read_frame(connection: Connection) -> tuple[int, bytes]:
    """Opcode and data of a frame of the server."""
    head = connection.exactly(2)
    if len(head) < 2:
        return -1, b""
    size = head[1] & 0x7F
    if size >= 126:
        size = int.from_bytes(connection.exactly(2 if size == 126 else 8))
    return head[0] & 0x0F, connection.exactly(size)


def frames(connection: Connection) -> Iterable[tuple[int, bytes]]:
    """All until the server closes."""
    while (found := read_frame(connection))[0] >= 0:
        yield found


def close_code(connection: Connection) -> int:
    """What the server closes the WebSocket with; 0 when it closes without a word."""
    return next((int.from_bytes(data[:2]) for opcode, data in frames(connection) if opcode == CLOSE), 0)
