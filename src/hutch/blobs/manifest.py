"""What is known of a packed snapshot: the manifest, its entries, and how both become bytes.

The same tree always becomes the same bytes: entries are in the order of their names, and nothing in them depends on when or
where they were packed.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator

import msgspec
from blake3 import blake3

VERSION = 1
CHUNK_BYTES = 1024 * 1024
DIGEST_BYTES = 32
MAX_RECORD_BYTES = 32 * 1024 * 1024
MAX_NAME_BYTES = 255
MAX_TARGET_BYTES = 4095
MAX_EXTENTS = 1_000_000
"""Of one file. More holes than that are refused, for their list would not fit into a record."""
MAX_DEVICE = (1 << 64) - 1
_REF = struct.Struct(">32sI")
_EXTENT = struct.Struct(">QQ")
_LENGTH = struct.Struct(">I")


class Damaged(ValueError):
    """What was read is not what was written."""


class Kind(enum.IntEnum):
    """What an entry is. `UP` ends the directory that is open; `LINK` is one more name of an earlier entry."""

    DIRECTORY = 1
    FILE = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER_DEVICE = 6
    BLOCK_DEVICE = 7
    WHITEOUT = 8
    LINK = 9
    UP = 10


class Entry(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One name of a tree.

    `mode` has the permission bits only. `names` is how many names the thing has in all; when there is more than one, the others
    are `LINK`s, whose `of` counts such things from 0. A file has `size` bytes; of one with holes, `extents` says which of
    them are data (pairs of offset and length), and only these are in the data stream. `xattrs` are those of `user.`.
    """

    kind: Kind
    name: bytes = b""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: list[tuple[bytes, bytes]] = []
    target: bytes = b""
    size: int = 0
    extents: bytes | None = None
    names: int = 1
    of: int = 0
    opaque: bool = False
    device: int = 0


class Ref(msgspec.Struct, frozen=True):
    """A chunk: the BLAKE3 of its content, and how many bytes that has."""

    digest: bytes
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A packed snapshot. `image` is what its tree lies over; owners in it are the guest's own numbers (`uid_map`). `files` and
    `data_bytes` count what is in the tree, `entries` and `data` are the references of the chunks of both streams."""

    version: int
    snapshot_id: str
    parent_id: str | None
    image: str
    created_at: int
    size_bytes: int
    uid_map: str
    files: int
    data_bytes: int
    entries: bytes
    data: bytes

    def chunks(self) -> Iterator[Ref]:
        """Every chunk that is needed, some more than once."""
        yield from refs(self.entries)
        yield from refs(self.data)


def digest_of(content: bytes) -> bytes:
    found: bytes = blake3(content).digest()
    return found


def encode(manifest: Manifest) -> bytes:
    return msgspec.msgpack.encode(manifest)


def decode(raw: bytes) -> Manifest:
    """Raises `Damaged`."""
    try:
        manifest = msgspec.msgpack.decode(raw, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Damaged(f"the manifest can't be read: {error}") from error
    if manifest.version != VERSION:
        raise Damaged(f"the manifest has version {manifest.version}; this release reads version {VERSION}")
    if len(manifest.entries) % _REF.size or len(manifest.data) % _REF.size:
        raise Damaged("a list of chunks in the manifest is cut")
    if any(not 0 < ref.size <= CHUNK_BYTES for ref in manifest.chunks()):
        raise Damaged("a chunk in the manifest has an impossible size")
    return manifest


def pack_ref(ref: Ref) -> bytes:
    return _REF.pack(ref.digest, ref.size)


def refs(packed: bytes) -> Iterator[Ref]:
    return (Ref(digest, size) for digest, size in _REF.iter_unpack(packed))


def pack_extents(extents: Iterable[tuple[int, int]]) -> bytes:
    return b"".join(_EXTENT.pack(*extent) for extent in extents)


def extents_of(entry: Entry) -> list[tuple[int, int]]:
    """Where a file's data lies: (offset, length), in order. Raises `Damaged`."""
    if entry.extents is None:
        return [(0, entry.size)] if entry.size else []
    if len(entry.extents) % _EXTENT.size or len(entry.extents) > MAX_EXTENTS * _EXTENT.size:
        raise Damaged(f"the extents of {entry.name!r} can't be read")
    found, end = list(_EXTENT.iter_unpack(entry.extents)), 0
    for offset, length in found:
        if offset < end or length == 0 or offset + length > entry.size:
            raise Damaged(f"the extents of {entry.name!r} are not in order")
        end = offset + length
    return found


def encode_entry(entry: Entry) -> bytes:
    record = msgspec.msgpack.encode(entry)
    return _LENGTH.pack(len(record)) + record


def decode_entries(pieces: Iterable[bytes]) -> Iterator[Entry]:
    """Entries out of a stream of bytes. Raises `Damaged`."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        at = 0
        while len(waiting) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(waiting, at)
            if length > MAX_RECORD_BYTES:
                raise Damaged("an entry is larger than any can be")
            if len(waiting) - at - _LENGTH.size < length:
                break
            at += _LENGTH.size
            yield decode_entry(bytes(waiting[at : at + length]))
            at += length
        del waiting[:at]
    if waiting:
        raise Damaged("the last entry is cut")


def decode_entry(record: bytes) -> Entry:
    """An entry out of its record. Raises `Damaged`."""
    try:
        entry = msgspec.msgpack.decode(record, type=Entry)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Damaged(f"an entry can't be read: {error}") from error
    if entry.name in (b".", b"..") or b"/" in entry.name or b"\0" in entry.name or len(entry.name) > MAX_NAME_BYTES:
        raise Damaged(f"{entry.name[:300]!r} is no name")
    numbers = (entry.uid, entry.gid)
    if not all(0 <= number < 2**32 - 1 for number in numbers) or not 0 <= entry.mode <= 0o7777:
        raise Damaged(f"{entry.name!r} has an impossible owner or mode")
    if not 0 <= entry.size < 2**63 or entry.names < 1 or entry.of < 0 or not 0 <= entry.device <= MAX_DEVICE:
        raise Damaged(f"{entry.name!r} has an impossible size or number")
    if not -(2**63) <= entry.mtime_ns < 2**63 or not all(key.startswith(b"user.") for key, _ in entry.xattrs):
        raise Damaged(f"{entry.name!r} has an impossible time or attribute")
    return entry
