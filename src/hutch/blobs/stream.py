"""A tree as one stream of bytes, and a tree out of such a stream: how files get into a virtual machine's disk and out of it.

    entry    as in a manifest's stream of entries; the root first, an `UP` at the end of each directory
    data     after the entry of a file: what it has without its holes
    end      after the root's `UP`: a length of 0, how many entries u64, how many bytes of data u64, CRC-32 u32 of all before it

The other end is the guest agent (`crates/agent/src/conversion`). What it sends comes from a machine that read what a guest
wrote, and is believed in nothing: every entry is checked, made anew and counted. The end tells what was lost on the way; whoever
lies about it changes only files that are their own.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hutch.blobs.manifest import CHUNK_BYTES, MAX_RECORD_BYTES, Damaged, Entry, Kind, decode_entry, encode_entry, extents_of
from hutch.blobs.pack import contents, walk
from hutch.blobs.unpack import TreeWriter

_LENGTH = struct.Struct(">I")
_END = struct.Struct(">QQI")


class TooLarge(ValueError):
    """More than was to be taken."""


def send(tree: Path, put: Callable[[bytes], None]) -> int:
    """Send a tree that nobody writes to; how many entries it has. Raises `OSError`, and `Unpackable`."""
    pieces = _Pieces(put)
    count = size = 0
    for entry, fd in walk(tree):
        count += 1
        pieces.add(encode_entry(entry))
        if entry.kind is Kind.FILE:
            for piece in contents(entry, fd):
                size += len(piece)
                pieces.add(piece)
    pieces.finish(count, size)
    return count


class _Pieces:
    """Puts small things together."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self._waiting = bytearray()
        self._crc = 0

    def add(self, content: bytes) -> None:
        self._crc = zlib.crc32(content, self._crc)
        self._waiting += content
        if len(self._waiting) >= CHUNK_BYTES:
            self._give()

    def _give(self) -> None:
        self._put(bytes(self._waiting))
        self._waiting.clear()

    def finish(self, count: int, size: int) -> None:
        self._waiting += _LENGTH.pack(0) + _END.pack(count, size, self._crc)
        self._give()


def receive(given: Iterable[bytes], tree: Path, *, max_bytes: int, max_files: int) -> int:
    """Make `tree`, which is not there yet; how many entries it has. Raises `Damaged`, `TooLarge` and `OSError`; what was made
    by then is for the caller to remove."""
    source = _Source(given, max_bytes)
    count = 0
    with TreeWriter(tree) as writer:
        while (entry := source.entry()) is not None:
            count += 1
            if count > max_files:
                raise TooLarge(f"it has more than {max_files} entries")
            if entry.kind is Kind.FILE:
                # Before anything of it is made.
                extents_of(entry)
                writer.file(entry, source.take)
            else:
                writer.add(entry)
    return count


class _Source:
    """What arrives, as entries and data."""

    def __init__(self, given: Iterable[bytes], max_bytes: int) -> None:
        self._given: Iterator[bytes] = iter(given)
        self._now = memoryview(b"")
        self._max_bytes = max_bytes
        self._count = self._size = self._crc = 0

    def entry(self) -> Entry | None:
        """The next one; None at the end, when that is what it should be."""
        head = self._exactly(_LENGTH.size)
        (length,) = _LENGTH.unpack(head)
        if length == 0:
            told = _END.unpack(self._exactly(_END.size))
            if told != (self._count, self._size, self._crc) or self._now or any(self._given):
                raise Damaged("what arrived is not what was sent")
            return None
        if length > MAX_RECORD_BYTES:
            raise Damaged("an entry is larger than any can be")
        record = self._exactly(length)
        self._crc = zlib.crc32(record, zlib.crc32(head, self._crc))
        self._count += 1
        return decode_entry(record)

    def take(self, most: int) -> memoryview:
        """At least one byte of a file's data, at most so many."""
        taken = self._some(most)
        self._size += len(taken)
        if self._size > self._max_bytes:
            raise TooLarge(f"its files have more than {self._max_bytes} bytes")
        self._crc = zlib.crc32(taken, self._crc)
        return taken

    def _some(self, most: int) -> memoryview:
        while not self._now:
            piece = next(self._given, None)
            if piece is None:
                raise Damaged("it is cut")
            self._now = memoryview(piece)
        taken, self._now = self._now[:most], self._now[most:]
        return taken

    def _exactly(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            found += self._some(size - len(found))
        return bytes(found)
