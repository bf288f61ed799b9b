"""What sandboxes read of their images, remembered beyond a restart of the machine.

The first sandboxes after a boot read programs and libraries from a disk that knows nothing of them yet. What was read before is
in the page cache; where that is, is written down from time to time, and read ahead at the next start.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)

PAGE = mmap.PAGESIZE
MAX_RANGES = 20_000
MAX_BYTES = 256 * 1024 * 1024
"""Of one file: what is in memory may be all of it, because something else read it."""
FORGET_S = 30 * 86_400
GAP_PAGES = 8
"""Ranges that are no further apart are one: a disk reads the gap sooner than it finds the next."""

Ranges = list[tuple[int, int]]
"""Offsets and lengths in bytes."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def resident(file: Path) -> Ranges:
    """What of a file is in the page cache. Blocks; raises `OSError`."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size == 0:
            return []
        # Private and writable, so that its address can be had; nothing is written.
        with mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            pages = -(-size // PAGE)
            found = ctypes.create_string_buffer(pages)
            view = (ctypes.c_char * size).from_buffer(mapped)
            try:
                if _libc.mincore(ctypes.addressof(view), size, found) != 0:
                    raise OSError(ctypes.get_errno(), f"mincore {file}: {os.strerror(ctypes.get_errno())}")
            finally:
                del view
    return [(first * PAGE, (end - first) * PAGE) for first, end in _runs(found.raw)]


def _runs(pages: bytes) -> Iterator[tuple[int, int]]:
    """Where pages with the lowest bit set begin and end, small gaps left out."""
    begun, last = -1, -1
    for number, page in enumerate(pages):
        if not page & 1:
            continue
        if begun >= 0 and number - last > GAP_PAGES:
            yield begun, last + 1
            begun = number
        if begun < 0:
            begun = number
        last = number
    if begun >= 0:
        yield begun, last + 1


class Prefetch:
    """Remembers, in a directory, what is read of image files. All methods block; none fails."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def remember(self, files: list[Path]) -> None:
        """Write down what of these files is in memory now; what was not asked about for a month is forgotten."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for entry in self._directory.iterdir():
                # One that is being written may have got its name meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat().st_mtime < time.time() - FORGET_S:
                        entry.unlink()
        except OSError as error:
            log.warning("what was read of images can't be remembered: %s", error)
            return
        for file in files:
            with contextlib.suppress(OSError):
                ranges = resident(file)[:MAX_RANGES]
                part = self._directory / f".{file.name}"
                part.write_bytes(msgspec.msgpack.encode(ranges))
                part.rename(self._directory / file.name)

    def read_ahead(self, files: list[Path]) -> int:
        """Have the kernel read what was remembered, in its own time; how many bytes."""
        total = 0
        for file in files:
            try:
                ranges = msgspec.msgpack.decode((self._directory / file.name).read_bytes(), type=Ranges)
                with file.open("rb") as opened:
                    size = os.fstat(opened.fileno()).st_size
                    room = MAX_BYTES
                    for offset, length in ranges:
                        if 0 <= offset < size and 0 < length <= room:
                            room -= length
                            os.posix_fadvise(opened.fileno(), offset, length, os.POSIX_FADV_WILLNEED)
                            total += min(length, size - offset)
            except FileNotFoundError:
                continue
            except (OSError, OverflowError, msgspec.DecodeError) as error:
                log.warning("what was read of %s is not known: %s", file.name, error)
        return total
