"""A program on a terminal of its own: what is typed, what is shown, its size, and its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DEADLINE_S = 30.0
# Colours, cursor movements, and the second carriage return of a line's end that passed two terminals.
_STYLE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|[\x01\x02]|\r+(?=\n)")


class Terminal:
    """`shown` is all that was written to the terminal, without colours and cursor movements, lines ended by \\n."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self._process = process
        self._master = master
        self._raw = b""
        self._seen = 0

    @classmethod
    @contextlib.contextmanager
    def start(cls, command: list[str], cwd: Path, environment: dict[str, str], *, rows: int, cols: int) -> Iterator[Terminal]:
        master, slave = os.openpty()
        try:
            _set_size(slave, rows, cols)
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                # Only the owner of a terminal is told when its size changes.
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one system call, no lock
            )
        finally:
            os.close(slave)
        try:
            yield cls(process, master)
        finally:
            os.close(master)
            process.kill()
            process.wait()

    @property
    def shown(self) -> str:
        return _STYLE.sub(b"", self._raw).decode("utf-8", "replace")

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until what was shown since the last match has `pattern`."""
        end = time.monotonic() + DEADLINE_S
        while True:
            found = re.compile(pattern, re.DOTALL).search(self.shown, self._seen)
            if found:
                self._seen = found.end()
                return found
            if not self._read(end):
                pytest.fail(f"{pattern!r} was not shown:\n{self.shown}")

    def type(self, text: str | bytes) -> None:
        left = text.encode() if isinstance(text, str) else text
        while left:
            # Who types more than is read would wait for a reader that waits for them.
            ready, writable, _ = select.select([self._master], [self._master], [], DEADLINE_S)
            if ready:
                self._read(time.monotonic())
            if writable:
                left = left[os.write(self._master, left[:512]) :]
            elif not ready:
                pytest.fail(f"nothing takes what is typed:\n{self.shown}")

    def resize(self, rows: int, cols: int) -> None:
        _set_size(self._master, rows, cols)

    def hang_up(self) -> None:
        """What closing the window does."""
        self._process.send_signal(1)

    def ended(self) -> int:
        """Wait for the program's end, give its exit code."""
        end = time.monotonic() + DEADLINE_S
        while self._read(end):
            pass
        try:
            return self._process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            pytest.fail(f"it goes on:\n{self.shown}")

    def _read(self, end: float) -> bool:
        """Take what is shown next. False at the program's end, or when the time is over."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says that the last one closed the other side with EIO.
            return False
        self._raw += data
        return bool(data)


def _set_size(terminal: int, rows: int, cols: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
