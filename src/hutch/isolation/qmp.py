"""A client of QEMU's monitor, QMP: one JSON object a line, over a Unix socket.

QEMU is what a guest attacks first, so what it says is not believed: a line has a bound, an answer a deadline, and anything that
is not an answer of the expected form ends the connection with `MonitorFailed`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from hutch.wire.sockets import address

MAX_LINE_BYTES = 256 * 1024
"""QEMU's longest answer that we ask for has some hundred bytes."""
MAX_EVENTS = 1000
"""Between a question and its answer: a guest may cause some, for example by resets."""
MAX_PORTS = 16
_BLOCK_BYTES = 16 * 1024


class MonitorFailed(OSError):
    """QEMU's monitor did not do what it was asked, or is gone; the text says which and why."""


class Monitor:
    """A connection to a monitor. Blocks; each call for at most `timeout_s`. For one thread at a time."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Connect and leave the negotiation. Raises `MonitorFailed`."""
        self._timeout_s = timeout_s
        self._rest = b""
        self.closed_ports: set[str] = set()
        """Ids of ports that a guest closed while this was connected, as far as answers were read."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._deadline = time.monotonic() + timeout_s
            self._socket.settimeout(timeout_s)
            try:
                with address(path) as short:
                    self._socket.connect(short)
            except OSError as error:
                raise MonitorFailed(f"QEMU's monitor can't be reached: {error}") from error
            if not isinstance(self._message().get("QMP"), dict):
                raise MonitorFailed("QEMU's monitor did not greet")
            self.ask("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, command: str, **arguments: object) -> Any:
        """What a command returns. Raises `MonitorFailed`, also with QEMU's own words when it refuses."""
        return self._asked(command, arguments, [])

    def give(self, name: str, descriptor: int) -> None:
        """Give QEMU a descriptor under a name of its monitor. Raises `MonitorFailed`."""
        self._asked("getfd", {"fdname": name}, [descriptor])

    def lend(self, number: int, descriptor: int) -> None:
        """Give QEMU a descriptor as what it opens as `/dev/fdset/NUMBER`, until `remove-fd`. Raises `MonitorFailed`."""
        self._asked("add-fd", {"fdset-id": number}, [descriptor])

    def _asked(self, command: str, arguments: dict[str, object], descriptors: list[int]) -> Any:
        self._deadline = time.monotonic() + self._timeout_s
        question = {"execute": command, "arguments": arguments} if arguments else {"execute": command}
        line = json.dumps(question).encode() + b"\n"
        try:
            self._socket.settimeout(self._timeout_s)
            # With the first byte.
            sent = socket.send_fds(self._socket, [line], descriptors) if descriptors else 0
            if sent < len(line):
                self._socket.sendall(line[sent:])
        except OSError as error:
            raise MonitorFailed(f"QEMU's monitor took no `{command}`: {error}") from error
        for _ in range(MAX_EVENTS):
            answer = self._message()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                refusal = answer["error"]
                said = refusal.get("desc") if isinstance(refusal, dict) else None
                raise MonitorFailed(f"QEMU refused `{command}`: {str(said)[:500]}")
            self._note_closed(answer)
            if "event" not in answer:
                raise MonitorFailed(f"QEMU's monitor answered `{command}` with something else")
        raise MonitorFailed(f"QEMU's monitor told of {MAX_EVENTS} events and did not answer `{command}`")

    def _note_closed(self, event: dict[str, Any]) -> None:
        told = event.get("data")
        if event.get("event") != "VSERPORT_CHANGE" or not isinstance(told, dict) or told.get("open") is not False:
            return
        if len(self.closed_ports) < MAX_PORTS:
            self.closed_ports.add(str(told.get("id"))[:100])

    def status(self) -> str:
        """`running`, `paused`, `internal-error` …"""
        found = self.ask("query-status")
        if not isinstance(found, dict) or not isinstance(found.get("status"), str):
            raise MonitorFailed("QEMU's monitor told its status in a form that is none")
        return str(found["status"])[:100]

    def _message(self) -> dict[str, Any]:
        line = self._line()
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MonitorFailed("QEMU's monitor said something that is not JSON") from error
        if not isinstance(message, dict):
            raise MonitorFailed("QEMU's monitor said something that is not an object")
        return message

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            if len(self._rest) > MAX_LINE_BYTES:
                raise MonitorFailed(f"QEMU's monitor sent a line of more than {MAX_LINE_BYTES} bytes")
            left_s = self._deadline - time.monotonic()
            block = b""
            if left_s > 0:
                self._socket.settimeout(left_s)
                with contextlib.suppress(TimeoutError):
                    try:
                        block = self._socket.recv(_BLOCK_BYTES)
                    except ConnectionError as error:
                        raise MonitorFailed(f"QEMU's monitor is gone: {error}") from error
                    if not block:
                        raise MonitorFailed("QEMU's monitor is gone")
            if not block:
                raise MonitorFailed(f"QEMU's monitor did not answer within {self._timeout_s:g} s")
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return line
