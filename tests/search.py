"""Looking for bytes in all files of a directory, as `grep -r` does, but past the holes of sparse ones, which may be terabytes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

PIECE = 8 * 1024 * 1024


def files_with(directory: Path, wanted: bytes) -> list[str]:
    """The files below a directory that have `wanted` in their contents or their names. What is mounted there is not entered:
    it is of files that are looked at anyway, or of others' images."""
    found = []
    device = directory.stat().st_dev
    for root, directories, files in os.walk(directory):
        inside = [name for name in directories if os.lstat(os.path.join(root, name)).st_dev == device]
        found += [os.path.join(root, name) for name in (*inside, *files) if wanted in os.fsencode(name)]
        found += [path for path in (os.path.join(root, name) for name in files) if holds(path, device, wanted)]
        directories[:] = inside
    return [os.path.relpath(path, directory) for path in found]


def holds(path: str, device: int, wanted: bytes) -> bool:
    """Whether a file has these bytes; what is no regular file of that device, or gone meanwhile, has not."""
    try:
        about = os.lstat(path)
        if not stat.S_ISREG(about.st_mode) or about.st_dev != device:
            return False
        with open(path, "rb", buffering=0) as file:
            return any(wanted in piece for piece in _pieces(file.fileno(), len(wanted)))
    except FileNotFoundError:
        return False


def _pieces(descriptor: int, overlap: int) -> Iterator[bytes]:
    position, before = 0, b""
    while True:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        if start != position:
            before = b""
        while start < end:
            piece = os.pread(descriptor, min(PIECE, end - start), start)
            if not piece:
                return
            yield before + piece
            before = piece[-overlap:]
            start += len(piece)
        position = start
