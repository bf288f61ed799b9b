"""A client of Firecracker's API: HTTP over a Unix socket, one connection for each call.

Firecracker is what a guest attacks first, so what it says is not believed: a head and a body have a bound, an answer a deadline,
and anything that is not an answer of the expected form is a `FirecrackerFailed`. The socket is looked up without following
links, since Firecracker may write to the directory that it is in.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hutch.isolation.firecracker_config import Request

MAX_HEAD_BYTES, MAX_BODY_BYTES = 16 * 1024, 1024 * 1024
MAX_FAULT_CHARACTERS = 1000
RETRY_PAUSE_S = 0.01
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_NOT_YET = frozenset({errno.ECONNREFUSED, errno.ENOENT})
"""The socket's path may exist before anybody listens."""


class FirecrackerFailed(OSError):
    """Firecracker did not do what it was asked, or is gone; the text says which and why."""


class Refused(FirecrackerFailed):
    """It answered, and said no. `status` is HTTP's; `fault` are its own words."""

    def __init__(self, request: Request, status: int, fault: str) -> None:
        super().__init__(f"Firecracker refused {request} ({status}): {fault}")
        self.status = status
        self.fault = fault


class Api:
    """The API of one process. Blocks; each call for at most `timeout_s`, the start of the process included."""

    def __init__(self, path: Path, timeout_s: float, alive: Callable[[], bool] = lambda: True) -> None:
        self.path = path
        self.timeout_s = timeout_s
        self._alive = alive

    def do(self, request: Request) -> dict[str, Any]:
        """What it answers, empty where that is nothing. Raises `Refused` and `FirecrackerFailed`."""
        deadline = time.monotonic() + self.timeout_s
        body = b"" if request.body is None else json.dumps(request.body).encode()
        head = f"{request.method} {request.path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        if request.body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        with self._connected(request, deadline) as connection:
            try:
                connection.settimeout(_left(deadline))
                connection.sendall(head.encode() + b"\r\n" + body)
                status, said = _answer(connection, deadline)
            except TimeoutError as error:
                raise FirecrackerFailed(f"Firecracker did not answer {request} within {self.timeout_s:g} s") from error
            except _Malformed as error:
                raise FirecrackerFailed(f"Firecracker answered {request} with {error}") from error
            except OSError as error:
                raise FirecrackerFailed(f"Firecracker ended while it was asked for {request}: {error}") from error
        return _content(request, status, said)

    def state(self) -> str:
        """`Not started`, `Running` or `Paused`."""
        found = self.do(Request("GET", "/")).get("state")
        if not isinstance(found, str):
            raise FirecrackerFailed("Firecracker told its state in a form that is none")
        return found[:100]

    def _connected(self, request: Request, deadline: float) -> socket.socket:
        while True:
            try:
                return _connect(self.path, _left(deadline))
            except TimeoutError as error:
                raise FirecrackerFailed(f"Firecracker took no {request} within {self.timeout_s:g} s") from error
            except OSError as error:
                if error.errno not in _NOT_YET:
                    raise FirecrackerFailed(f"Firecracker's API can't be reached: {error}") from error
                if not self._alive():
                    raise FirecrackerFailed(f"Firecracker ended before it was asked for {request}") from error
                # Its socket is there before anybody listens, and nobody says when.
                time.sleep(RETRY_PAUSE_S)
                if time.monotonic() >= deadline:
                    raise FirecrackerFailed(
                        f"Firecracker's API did not listen within {self.timeout_s:g} s: {error.strerror}"
                    ) from error


class _Malformed(Exception):
    """An answer that is none; what it is instead."""


def _left(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _connect(path: Path, timeout_s: float) -> socket.socket:
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTSOCK, f"{path.name} is no socket")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(timeout_s)
            connection.connect(f"/proc/self/fd/{descriptor}")
        except BaseException:
            connection.close()
            raise
        return connection
    finally:
        os.close(descriptor)


def _answer(connection: socket.socket, deadline: float) -> tuple[int, bytes]:
    """Status and body. Raises `_Malformed`, `TimeoutError` and `OSError`."""
    received = b""
    while b"\r\n\r\n" not in received:
        if len(received) > MAX_HEAD_BYTES:
            raise _Malformed(f"a head of more than {MAX_HEAD_BYTES} bytes")
        received += _more(connection, deadline, received)
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    found = _STATUS.fullmatch(first)
    if found is None:
        raise _Malformed("something that is not HTTP")
    length = 0
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"transfer-encoding":
            raise _Malformed("a body without a length")
        if name.strip().lower() == b"content-length":
            if not value.strip().isdigit() or len(value) > 20:
                raise _Malformed("a length that is none")
            length = int(value)
    if length > MAX_BODY_BYTES:
        raise _Malformed(f"{length} bytes; {MAX_BODY_BYTES} are accepted")
    while len(body) < length:
        body += _more(connection, deadline, body)
    return int(found[1]), body[:length]


def _more(connection: socket.socket, deadline: float, sofar: bytes) -> bytes:
    connection.settimeout(_left(deadline))
    block = connection.recv(16 * 1024)
    if not block:
        if not sofar:
            raise OSError("it hung up")
        raise _Malformed("half an answer")
    return block


def _content(request: Request, status: int, body: bytes) -> dict[str, Any]:
    content: Any = {}
    if body:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            if 200 <= status < 300:
                raise FirecrackerFailed(f"Firecracker answered {request} with something that is not JSON") from error
    if 200 <= status < 300:
        if not isinstance(content, dict):
            raise FirecrackerFailed(f"Firecracker answered {request} with something that is not an object")
        return content
    fault = content.get("fault_message") if isinstance(content, dict) else None
    if not isinstance(fault, str):
        fault = body[:MAX_FAULT_CHARACTERS].decode(errors="replace") or "it gave no reason"
    raise Refused(request, status, fault[:MAX_FAULT_CHARACTERS])
