"""What saved memory depends on: this machine's processor, and files."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

_FIELDS = frozenset({"vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features"})


def model(cpuinfo: Path = Path("/proc/cpuinfo"), *, also: frozenset[str] = frozenset()) -> bytes:
    """The model of processor and what it can do: the same on all machines that can go on from one another's memory. `also` are
    more fields that have to be."""
    first, _, _ = cpuinfo.read_text().partition("\n\n")
    return b"".join(line.encode() for line in first.splitlines() if line.partition(":")[0].strip() in _FIELDS | also)


def digest(file: Path) -> bytes:
    """SHA-256 of a file, which is read again once it is another one. Raises `OSError`."""
    found = file.stat()
    return _digest(file, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=32)
def _digest(file: Path, _: tuple[int, ...]) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
