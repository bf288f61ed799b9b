"""Entries of a tar: ustar, pax and GNU's long names; strict where readers of tar differ.

`Reader.entries` yields each entry once; its content may be read with `Reader.content` before the next one is asked for. Nothing
is allocated on the word of a header beyond `MAX_EXTENDED_BYTES`. Bytes after the end of the archive must be zero: what a reader
takes for the end because it does not understand it would be a hole for the next reader.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from hutch.oci.documents import invalid

BLOCK = 512
MAX_EXTENDED_BYTES = 1024 * 1024
CHUNK = 1024 * 1024
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
MAX_TIME_S = 2**33
"""In the year 2242: later files were made then."""
_KINDS = frozenset({FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO})


class Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; `number` counts from 0. `mode` has the lower twelve bits."""

    number: int
    kind: bytes
    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int


class Reader:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = 0
        self._padding = 0

    def entries(self) -> Iterator[Entry]:
        """Every entry. Raises `BadRequestError` (`image_invalid`)."""
        number = 0
        extended: dict[str, bytes] = {}
        while True:
            self._skip()
            header = self._exactly(BLOCK)
            if not header.strip(b"\0"):
                self._end()
                return
            kind = header[156:157]
            if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
                _check_sum(header)
                content = self._extended(_number(header[124:136], "size"))
                if kind == _LONG_NAME:
                    extended["path"] = content.rstrip(b"\0")
                elif kind == _LONG_LINK:
                    extended["linkpath"] = content.rstrip(b"\0")
                elif kind == _PAX:
                    extended |= _records(content)
                # A default for all that follows has no meaning that all readers share, beyond comments.
                elif _records(content).keys() & {"path", "linkpath", "size", "uid", "gid"}:
                    raise invalid("a layer gives a path, an owner or a size to all of its entries at once")
                continue
            entry = _entry(number, header, extended)
            extended = {}
            self._left = entry.size
            self._padding = -entry.size % BLOCK
            yield entry
            number += 1

    def content(self) -> Iterator[bytes]:
        """The content of the entry that was yielded last."""
        while self._left:
            data = self._source.read(min(CHUNK, self._left))
            if not data:
                raise invalid("a layer ends within a file")
            self._left -= len(data)
            yield data

    def _skip(self) -> None:
        for _ in self.content():
            pass
        if self._padding:
            self._exactly(self._padding)
            self._padding = 0

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            data = self._source.read(size)
            if not data:
                raise invalid("a layer ends within an entry")
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _extended(self, size: int) -> bytes:
        if size > MAX_EXTENDED_BYTES:
            raise invalid(f"a layer has an extended header of {size} bytes")
        content = self._exactly(size)
        self._exactly(-size % BLOCK)
        return content

    def _end(self) -> None:
        while data := self._source.read(CHUNK):
            if data.strip(b"\0"):
                raise invalid("a layer goes on after its end")


def _entry(number: int, header: bytes, extended: dict[str, bytes]) -> Entry:
    _check_sum(header)
    kind = header[156:157]
    if kind in (b"\0", b"7"):
        kind = FILE
    if any(key.startswith("GNU.sparse") for key in extended) or kind == b"S":
        raise invalid("a layer has a sparse file, which is not supported")
    if kind not in _KINDS:
        raise invalid(f"a layer has an entry of the unknown type {kind!r}")
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    size = _decimal(extended, "size")
    if size is None:
        size = _number(header[124:136], "size")
    if kind != FILE:
        # Old writers give a size to what has no content.
        size = 0
    uid, gid = _decimal(extended, "uid"), _decimal(extended, "gid")
    uid = _number(header[108:116], "owner") if uid is None else uid
    gid = _number(header[116:124], "group") if gid is None else gid
    if max(uid, gid) > 2**32 - 2:
        raise invalid("a layer has an owner or group beyond 32 bits")
    name = extended.get("path", name)
    link = extended.get("linkpath", header[157:257].split(b"\0", 1)[0])
    # What ends with a slash is a directory, whatever it says; the oldest writers knew no other way.
    if kind == FILE and name.endswith(b"/"):
        kind = DIRECTORY
        size = 0
    mtime = _time(extended.get("mtime"), header[136:148])
    return Entry(number, kind, name, link, _number(header[100:108], "mode") & 0o7777, uid, gid, size, mtime)


def _check_sum(header: bytes) -> None:
    stored = _number(header[148:156], "checksum")
    blanked = header[:148] + b" " * 8 + header[156:]
    if stored not in (sum(blanked), sum(struct.unpack("512b", blanked))):
        raise invalid("a layer is no tar: the checksum of an entry is wrong")


def _number(field: bytes, what: str) -> int:
    """An octal number, or one in base 256."""
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:]) - ((1 << 8 * (len(field) - 1)) if field[0] == 0xFF else 0)
    else:
        text = field.split(b"\0", 1)[0].strip()
        try:
            value = int(text or b"0", 8) if b"_" not in text else -1
        except ValueError:
            value = -1
    if value < 0 and what != "time":
        raise invalid(f"a layer has an entry whose {what} is no number")
    return value


def _decimal(extended: dict[str, bytes], key: str) -> int | None:
    if key not in extended:
        return None
    text = extended[key]
    if not text.isdigit() or len(text) > 19:
        raise invalid(f"a layer has an entry whose {key} is no number")
    return int(text)


def _time(extended: bytes | None, field: bytes) -> int:
    """Whole seconds since the epoch, within what file systems keep."""
    if extended is not None:
        try:
            seconds = int(extended.split(b".", 1)[0])
        except ValueError as error:
            raise invalid("a layer has an entry whose time is no number") from error
    else:
        seconds = _number(field, "time")
    return min(max(seconds, 0), MAX_TIME_S)


def _records(content: bytes) -> dict[str, bytes]:
    """Records of a pax header: `LENGTH KEY=VALUE\\n`."""
    found: dict[str, bytes] = {}
    place = 0
    while place < len(content):
        space = content.find(b" ", place, place + 20)
        length = content[place:space]
        if space < 0 or not length.isdigit():
            raise invalid("a layer has a damaged extended header")
        end = place + int(length)
        record = content[space + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(content) or end <= space or not record.endswith(b"\n") or not equals:
            raise invalid("a layer has a damaged extended header")
        found[key.decode("utf-8", "replace")] = value
        place = end
    return found
