"""Files with holes: where there is something in them, and copies of no more than that."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

BLOCK_BYTES = 1024 * 1024


def pieces(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Where a file's data begins and ends, up to `size_bytes`, in order. Raises `OSError`."""
    place = 0
    while place < size_bytes:
        try:
            place = os.lseek(descriptor, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            # There is only a hole up to its end.
            return
        end = min(os.lseek(descriptor, place, os.SEEK_HOLE), size_bytes)
        if place < end:
            yield place, end
        place = end


def blocks(descriptor: int, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    """What a file's data is, and where, in blocks of `BLOCK_BYTES` at most. Raises `OSError`, also where it became shorter."""
    for start, end in pieces(descriptor, size_bytes):
        place = start
        while place < end:
            block = os.pread(descriptor, min(BLOCK_BYTES, end - place), place)
            if not block:
                raise OSError(errno.EIO, "a file became shorter while it was read")
            yield place, block
            place += len(block)


def copy(source: int, sink: int) -> int:
    """Make an empty file what another one is, and say how many bytes of data that were. Raises `OSError`."""
    size, written = os.fstat(source).st_size, 0
    os.ftruncate(sink, size)
    for start, block in blocks(source, size):
        done = 0
        while done < len(block):
            done += os.pwrite(sink, block[done:], start + done)
        written += done
    return written
