"""The audit of sandboxes' networks: one file of JSON lines for each sandbox, in the order of their numbers.

The gateway numbers and chains records; a gateway that starts again goes on from the last one that is here. A file that has
reached its bound becomes the old one, and what was the old one goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import mmap
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

from hutch.host.gateway import AuditEvent

MAX_FILE_BYTES = 32 * 1024 * 1024
KEEP_S = 7 * 86_400
"""How long the audit of a sandbox is kept after its last record."""
_SEQ = re.compile(rb'"seq":(\d+)')
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(slots=True)
class _Tail:
    seq: int
    digest: str


class AuditStore:
    """Files below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tails: dict[str, _Tail] = {}
        self._whole: set[str] = set()
        """Sandboxes whose file ends with a whole line, as far as we know."""
        self._changed = asyncio.Event()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _file(self, sandbox_id: str) -> Path:
        # Ids are ours; one that is not must not name another file.
        if _ID.fullmatch(sandbox_id) is None:
            raise ValueError(f"{sandbox_id!r} is no sandbox's id")
        return self._directory / f"{sandbox_id}.jsonl"

    def position(self, sandbox_id: str) -> tuple[int, str]:
        """Number and hash of the last record; (0, "") where there is none."""
        if not sandbox_id:
            return 0, ""
        tail = self._tails.get(sandbox_id)
        if tail is None:
            file = self._file(sandbox_id)
            last = _last_line(file) or _last_line(_old(file))
            tail = _Tail(_number(last), hashlib.sha256(last).hexdigest()) if last else _Tail(0, "")
            self._tails[sandbox_id] = tail
        return tail.seq, tail.digest

    async def store(self, events: Sequence[AuditEvent]) -> None:
        """Append records; those that are here already are passed over."""
        await asyncio.to_thread(self._append, events)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _append(self, events: Sequence[AuditEvent]) -> None:
        by_sandbox: dict[str, list[tuple[int, bytes]]] = {}
        for event in events:
            if not event.sandbox_id:
                continue
            lines = by_sandbox.get(event.sandbox_id)
            seq = lines[-1][0] if lines else self.position(event.sandbox_id)[0]
            if event.seq > seq:
                by_sandbox.setdefault(event.sandbox_id, []).append((event.seq, event.record.encode()))
        for sandbox_id, lines in by_sandbox.items():
            file = self._file(sandbox_id)
            if sandbox_id not in self._whole:
                _cut_off(file)
            self._whole.discard(sandbox_id)
            try:
                with file.open("ab", buffering=0) as output:
                    _write_all(output, b"".join(line + b"\n" for _, line in lines))
                    full = output.tell() > MAX_FILE_BYTES
            except OSError:
                # What is there is found out before it is tried again.
                self._tails.pop(sandbox_id, None)
                raise
            seq, last = lines[-1]
            self._tails[sandbox_id] = _Tail(seq, hashlib.sha256(last).hexdigest())
            self._whole.add(sandbox_id)
            if full:
                file.replace(_old(file))

    async def read(self, sandbox_id: str, after: int, limit: int) -> tuple[list[str], int]:
        """Up to `limit` records with numbers above `after`, and the number of the last one (`after` where there is none)."""
        return await asyncio.to_thread(self._read, sandbox_id, after, limit)

    def _read(self, sandbox_id: str, after: int, limit: int) -> tuple[list[str], int]:
        file = self._file(sandbox_id)
        found: list[bytes] = []
        for path in (_old(file), file):
            found += _lines_after(path, after, limit - len(found))
        return [line.decode("utf-8", "replace") for line in found], _number(found[-1]) if found else after

    def forget(self, sandbox_id: str) -> None:
        """Remove the audit of a sandbox. Blocks."""
        file = self._file(sandbox_id)
        for path in (file, _old(file)):
            path.unlink(missing_ok=True)
        self._tails.pop(sandbox_id, None)
        self._whole.discard(sandbox_id)

    def tidy(self) -> None:
        """Remove what nothing was added to for long. Blocks."""
        oldest = time.time() - KEEP_S
        for file in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime < oldest:
                    file.unlink()
                    self._tails.pop(file.name.partition(".")[0], None)


def _old(file: Path) -> Path:
    return file.with_suffix(".old")


def _number(line: bytes) -> int:
    found = _SEQ.search(line)
    return int(found[1]) if found else 0


def _write_all(output: RawIOBase, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[output.write(left) or 0 :]


def _cut_off(file: Path) -> None:
    """Take away what a kill, or a full disk, has left of a line."""
    with contextlib.suppress(FileNotFoundError), file.open("r+b") as lines:
        size = lines.seek(0, 2)
        lines.seek(max(0, size - 1024 * 1024))
        end = lines.read()
        if end and not end.endswith(b"\n"):
            lines.truncate(size - len(end) + end.rfind(b"\n") + 1)


def _last_line(file: Path) -> bytes:
    """The last complete line; what a kill cut off is none."""
    try:
        with file.open("rb") as source:
            size = source.seek(0, 2)
            source.seek(max(0, size - 1024 * 1024))
            lines = source.read().split(b"\n")
    except FileNotFoundError:
        return b""
    return lines[-2] if len(lines) > 1 else b""


def _lines_after(file: Path, after: int, limit: int) -> list[bytes]:
    """Lines with numbers above `after`, found by halving: the numbers only grow."""
    if limit <= 0:
        return []
    try:
        with file.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
            low, high = 0, len(data)
            while low < high:
                middle = (low + high) // 2
                start = data.rfind(b"\n", low, middle) + 1 or low
                end = data.find(b"\n", start)
                if end < 0 or _number(data[start:end]) > after:
                    high = start
                else:
                    low = end + 1
            found: list[bytes] = []
            while len(found) < limit and (end := data.find(b"\n", low)) >= 0:
                found.append(bytes(data[low:end]))
                low = end + 1
            return found
    except (FileNotFoundError, ValueError):
        # An empty file can't be mapped.
        return []
