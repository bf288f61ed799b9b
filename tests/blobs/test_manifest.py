"""Bytes of manifests and entries: read again as they were written, refused otherwise."""

from __future__ import annotations

import random

import msgspec
import pytest

from hutch.blobs.manifest import (
    CHUNK_BYTES,
    Damaged,
    Entry,
    Kind,
    Manifest,
    Ref,
    decode,
    decode_entries,
    encode,
    encode_entry,
    pack_ref,
)

MANIFEST = Manifest(
    version=1,
    snapshot_id="snap_a",
    parent_id=None,
    image="base@sha256:00",
    created_at=1,
    size_bytes=2,
    uid_map="identity",
    files=1,
    data_bytes=5,
    entries=pack_ref(Ref(bytes(32), 7)),
    data=pack_ref(Ref(b"\1" * 32, 5)),
)
ENTRIES = [Entry(kind=Kind.DIRECTORY, mode=0o755), Entry(kind=Kind.FILE, name=b"\xff", size=5, mtime_ns=-1), Entry(kind=Kind.UP)]


def test_they_are_read_as_they_were_written() -> None:
    assert decode(encode(MANIFEST)) == MANIFEST
    assert list(MANIFEST.chunks()) == [Ref(bytes(32), 7), Ref(b"\1" * 32, 5)]
    stream = b"".join(map(encode_entry, ENTRIES))
    for size in (1, 7, len(stream)):
        assert list(decode_entries(stream[at : at + size] for at in range(0, len(stream), size))) == ENTRIES


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"entries": b"x"},
        {"data": b"x" * 35},
        {"data": pack_ref(Ref(bytes(32), 0))},
        {"data": pack_ref(Ref(bytes(32), CHUNK_BYTES + 1))},
    ],
)
def test_manifests_that_can_not_be_are_damage(changes: dict[str, object]) -> None:
    with pytest.raises(Damaged):
        decode(encode(msgspec.structs.replace(MANIFEST, **changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": b"a/b"},
        {"name": b".."},
        {"name": b"."},
        {"name": b"a\0"},
        {"name": b"x" * 256},
        {"uid": -1},
        {"gid": 2**32},
        {"mode": 0o10000},
        {"size": -1},
        {"size": 2**63},
        {"names": 0},
        {"of": -1},
        {"xattrs": [(b"trusted.overlay.redirect", b"/")]},
        {"xattrs": [(b"security.capability", b"x")]},
    ],
)
def test_entries_that_can_not_be_are_damage(changes: dict[str, object]) -> None:
    entry = msgspec.structs.replace(Entry(kind=Kind.FILE, name=b"f"), **changes)
    with pytest.raises(Damaged):
        list(decode_entries([encode_entry(entry)]))


def test_noise_is_damage_or_entries() -> None:
    generator, stream = random.Random(7), b"".join(map(encode_entry, ENTRIES))
    refused = 0
    for _ in range(3000):
        noise = bytearray(stream)
        for _ in range(generator.randrange(1, 4)):
            noise[generator.randrange(len(noise))] = generator.randrange(256)
        try:
            list(decode_entries([bytes(noise[: generator.randrange(len(noise) + 1)])]))
        except Damaged:
            refused += 1
    assert refused > 1000
    for broken in (b"\xff\xff\xff\xff", b"\0\0\0\1\x90x", stream[:-1]):
        with pytest.raises(Damaged):
            list(decode_entries([broken]))
