"""The first files of a virtual machine, as bytes: an archive in the kernel's format `newc`.

The same files give the same bytes: sorted by name, all root's, all of time 0, inodes counted.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. `mode` has the type and the permissions; `device` is the number of a character device."""

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, content: bytes, permissions: int = 0o644) -> Entry:
    return Entry(name, stat.S_IFREG | permissions, content)


def pack(entries: Iterable[Entry]) -> bytes:
    """The archive. A directory sorts before what is in it. Raises `ValueError` for a name that is there twice or not relative."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    names = [entry.name for entry in ordered]
    if len(set(names)) != len(names):
        raise ValueError("a name is in the archive twice")
    if any(not name or name.startswith("/") or name == _TRAILER for name in names):
        raise ValueError("a name in the archive is not a relative path")
    parts = [_member(entry, number) for number, entry in enumerate(ordered, start=1)]
    return b"".join([*parts, _member(Entry(_TRAILER, 0), 0)])


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # Owner, group and time are 0; so are the device that it is on and the checksum, which this format does not use.
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    head = _MAGIC + b"".join(b"%08x" % field for field in fields) + name
    return _padded(head) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
