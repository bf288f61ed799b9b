"""Tree → streams. A guest made the tree: nothing is followed, everything is opened relative to its directory, and however deep
or wide it is, few descriptors are open and memory holds the names of the directories on the way down and one chunk."""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hutch.blobs.manifest import (
    CHUNK_BYTES,
    MAX_EXTENTS,
    Entry,
    Kind,
    Ref,
    digest_of,
    encode_entry,
    extents_of,
    pack_extents,
    pack_ref,
)

SMALL_BYTES = CHUNK_BYTES
"""Files below this are put together with their neighbours."""
LEAST_GROUP_BYTES = 128 * 1024
MAX_NAMES = 2_000_000
"""In one directory, because they are sorted."""
BLOCK_BYTES = 4096
OPAQUE = "trusted.overlay.opaque"
REFUSED_XATTRS = frozenset({"trusted.overlay.redirect", "trusted.overlay.metacopy"})
"""A layer with these says things of the image below by name. Hutch mounts without what makes them."""
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""How what a guest named is opened and made: nothing is followed, nothing that is there is written to."""
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Put = Callable[[Ref, bytes], None]
"""Keeps a chunk."""


class Unpackable(ValueError):
    """A tree that this form has no place for."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The references of both streams, and what they hold."""

    entries: bytes
    data: bytes
    files: int
    bytes: int


@dataclass(slots=True)
class _Level:
    """A directory on the way down: its inode, and the names in it that are still to come."""

    inode: tuple[int, int]
    names: Iterator[str]


class Stream:
    """Bytes that are kept in chunks."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._waiting = bytearray()
        self._refs: list[bytes] = []

    def add(self, data: bytes) -> None:
        """More bytes; a chunk is cut whenever one is full."""
        self._waiting += data
        while len(self._waiting) >= CHUNK_BYTES:
            self._cut(CHUNK_BYTES)

    def before(self, name: bytes, size: int) -> None:
        """A small file comes: cut where it would not fit, or where its name says so."""
        full = len(self._waiting) + size > CHUNK_BYTES
        if full or (len(self._waiting) >= LEAST_GROUP_BYTES and zlib.crc32(name) % 16 == 0):
            self.cut()

    def cut(self) -> None:
        if self._waiting:
            self._cut(len(self._waiting))

    def _cut(self, size: int) -> None:
        chunk = bytes(self._waiting[:size])
        del self._waiting[:size]
        ref = Ref(digest_of(chunk), len(chunk))
        self._put(ref, chunk)
        self._refs.append(pack_ref(ref))

    def close(self) -> bytes:
        """The references of all chunks."""
        self.cut()
        return b"".join(self._refs)


def pack(tree: Path, put: Put) -> Packed:
    """Every entry of a tree that nobody writes to. Raises `OSError`, and `Unpackable`."""
    return _Packing(put).run(tree)


class _Packing:
    def __init__(self, put: Put) -> None:
        self._entries, self._data = Stream(put), Stream(put)
        self._linked: dict[tuple[int, int], int] = {}
        self._files = self._bytes = 0

    def run(self, tree: Path) -> Packed:
        for entry, fd in walk(tree, self._linked):
            self._entries.add(encode_entry(entry))
            if entry.kind is not Kind.UP:
                self._files += 1
            if entry.kind is Kind.FILE:
                self._add_file(entry, fd)
        return Packed(self._entries.close(), self._data.close(), self._files, self._bytes)

    def _add_file(self, entry: Entry, fd: int) -> None:
        small = entry.size < SMALL_BYTES
        if small:
            self._data.before(entry.name, entry.size)
        else:
            self._data.cut()
        for piece in contents(entry, fd):
            self._data.add(piece)
            self._bytes += len(piece)
        if not small:
            self._data.cut()


def walk(tree: Path, linked: dict[tuple[int, int], int] | None = None) -> Iterator[tuple[Entry, int]]:
    """Each entry in its order, and of a file its open descriptor (else that of its directory), good until the next one.

    `linked` numbers the things with several names as they come by.
    """
    linked = {} if linked is None else linked
    here = os.open(tree, OPEN_DIRECTORY)
    try:
        levels: list[_Level] = []
        yield _open_level(here, "", levels), here
        while levels:
            name = next(levels[-1].names, None)
            if name is None:
                levels.pop()
                yield Entry(kind=Kind.UP), here
                here = _parent(here, levels)
                continue
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                below = os.open(name, OPEN_DIRECTORY, dir_fd=here)
                os.close(here)
                here = below
                yield _open_level(here, name, levels), here
            elif stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in linked:
                yield from _file(name, here, linked)
            else:
                yield _other(name, here, found, linked), here
    finally:
        os.close(here)


def _open_level(fd: int, name: str, levels: list[_Level]) -> Entry:
    found = os.fstat(fd)
    with os.scandir(fd) as listing:
        names = []
        for one in listing:
            names.append(os.fsencode(one.name))
            if len(names) > MAX_NAMES:
                raise Unpackable(f"A directory has more than {MAX_NAMES} names.")
    names.sort()
    levels.append(_Level((found.st_dev, found.st_ino), map(os.fsdecode, names)))
    attributes = set(os.listxattr(fd))
    if attributes & REFUSED_XATTRS:
        raise Unpackable(f"{name!r} refers to a directory of its image.")
    return Entry(
        kind=Kind.DIRECTORY,
        name=os.fsencode(name),
        xattrs=_xattrs(fd, attributes),
        opaque=OPAQUE in attributes and os.getxattr(fd, OPAQUE) == b"y",
        **_common(found),
    )


def _parent(here: int, levels: list[_Level]) -> int:
    """Go up. Nobody moves directories of a sealed tree; if one was moved all the same, this is not its way."""
    if not levels:
        return here
    above = os.open("..", OPEN_DIRECTORY, dir_fd=here)
    os.close(here)
    found = os.fstat(above)
    if (found.st_dev, found.st_ino) != levels[-1].inode:
        os.close(above)
        raise Unpackable("A directory was moved while its tree was read.")
    return above


def _file(name: str, here: int, linked: dict[tuple[int, int], int]) -> Iterator[tuple[Entry, int]]:
    fd = os.open(name, _OPEN_FILE, dir_fd=here)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Unpackable(f"{name!r} was replaced while its tree was read.")
        attributes = set(os.listxattr(fd))
        if attributes & REFUSED_XATTRS:
            raise Unpackable(f"{name!r} has its contents in the image.")
        _number(found, linked)
        entry = Entry(
            kind=Kind.FILE,
            name=os.fsencode(name),
            xattrs=_xattrs(fd, attributes),
            size=found.st_size,
            extents=_extents(fd, name, found),
            names=found.st_nlink,
            **_common(found),
        )
        yield entry, fd
    finally:
        os.close(fd)


def _other(name: str, here: int, found: os.stat_result, linked: dict[tuple[int, int], int]) -> Entry:
    raw = os.fsencode(name)
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
        # One inode may be all whiteouts of a layer.
        return Entry(kind=Kind.WHITEOUT, name=raw)
    number = _number(found, linked)
    if number is not None:
        return Entry(kind=Kind.LINK, name=raw, of=number)
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    if kind is None:
        raise Unpackable(f"{name!r} is of a kind that is not known: {stat.S_IFMT(found.st_mode):o}.")
    target = os.fsencode(os.readlink(name, dir_fd=here)) if kind is Kind.SYMLINK else b""
    return Entry(kind=kind, name=raw, target=target, names=found.st_nlink, device=found.st_rdev, **_common(found))


_KINDS = {
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
}


def _number(found: os.stat_result, linked: dict[tuple[int, int], int]) -> int | None:
    """The number of a thing that came by before under another name; None the first time."""
    if found.st_nlink == 1:
        return None
    inode = (found.st_dev, found.st_ino)
    if inode in linked:
        return linked[inode]
    linked[inode] = len(linked)
    return None


def _common(found: os.stat_result) -> dict[str, Any]:
    return {
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "mtime_ns": found.st_mtime_ns,
    }


def _xattrs(fd: int, names: set[str]) -> list[tuple[bytes, bytes]]:
    mine = sorted(os.fsencode(name) for name in names if name.startswith("user."))
    return [(name, os.getxattr(fd, name)) for name in mine]


def _extents(fd: int, name: str, found: os.stat_result) -> bytes | None:
    """Where the data of a file with holes lies; None when it has none."""
    if found.st_size == 0 or found.st_blocks * 512 >= found.st_size:
        return None
    extents: list[tuple[int, int]] = []
    at = 0
    while at < found.st_size:
        try:
            start = at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        # In whole blocks, so that another file system, whose blocks are smaller, has the same ones.
        start -= start % BLOCK_BYTES
        at = min(-(-os.lseek(fd, at, os.SEEK_HOLE) // BLOCK_BYTES) * BLOCK_BYTES, found.st_size)
        if extents and sum(extents[-1]) >= start:
            start = extents.pop()[0]
        extents.append((start, at - start))
        if len(extents) > MAX_EXTENTS:
            raise Unpackable(f"{name!r} has more than {MAX_EXTENTS} holes.")
    return None if extents == [(0, found.st_size)] else pack_extents(extents)


def contents(entry: Entry, fd: int) -> Iterator[bytes]:
    """The data of a file, without its holes. Raises `Unpackable` when it is shorter than it was."""
    for offset, length in extents_of(entry):
        at, end = offset, offset + length
        while at < end:
            piece = os.pread(fd, min(CHUNK_BYTES, end - at), at)
            if not piece:
                raise Unpackable(f"{entry.name!r} became shorter while it was read.")
            yield piece
            at += len(piece)
