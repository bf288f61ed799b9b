"""Layers, decompressed while they are read: counted against bounds, and hashed.

An image is read twice. `merge` reads every layer whole and keeps names; what it returns is what `write` (`hutch.oci.unpack`)
writes, reading the same bytes again.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import zstandard

from hutch.errors import UnavailableError
from hutch.oci import tar
from hutch.oci.documents import invalid
from hutch.oci.tree import Tree

MAX_RATIO = 200
"""How many times larger than its blob a layer may be, beyond `RATIO_FROM_BYTES`: text is 3 to 10 times, zeros 1000 times as
large."""
RATIO_FROM_BYTES = 64 * 1024 * 1024
WINDOW_LOG_MAX = 27
"""128 MiB: the most that a decompressor must support (RFC 8878, 3.1.1.1.2, and `zstd --long`)."""


class LayerFile(msgspec.Struct, frozen=True, kw_only=True):
    """A layer's blob, whose digest was checked. `compression` is "", "gzip" or "zstd"; `diff_id` the digest of what it holds."""

    path: str
    compression: str
    diff_id: str


@dataclass(slots=True)
class Budget:
    """Bytes that all layers together may still unpack to, and for how many of them there is room."""

    left: int
    room: int = sys.maxsize

    def take(self, size: int) -> None:
        self.left -= size
        self.room -= size
        if self.left < 0:
            raise invalid("it unpacks to more bytes than an image may have (image.max_bytes)")
        if self.room < 0:
            raise UnavailableError("disk_full", "The host's disk has no room for what the image unpacks to.")


class _Counted:
    """A decompressed layer, as it is read."""

    def __init__(self, source: BinaryIO, blob_bytes: int, budget: Budget) -> None:
        self._source = source
        self._most = max(RATIO_FROM_BYTES, blob_bytes * MAX_RATIO)
        self._budget = budget
        self._bytes = 0
        self.hash = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        try:
            data = self._source.read(size)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise invalid(f"a layer can't be decompressed: {error}") from error
        self._bytes += len(data)
        self._budget.take(len(data))
        if self._bytes > self._most:
            raise invalid(f"a layer unpacks to more than {MAX_RATIO} times its size")
        self.hash.update(data)
        return data


@contextlib.contextmanager
def _opened(layer: LayerFile, budget: Budget) -> Iterator[_Counted]:
    path = Path(layer.path)
    with path.open("rb") as blob:
        source: BinaryIO
        if layer.compression == "gzip":
            source = gzip.GzipFile(fileobj=blob)  # type: ignore[assignment]
        elif layer.compression == "zstd":
            decompressor = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG_MAX)
            source = decompressor.stream_reader(blob, read_across_frames=True, closefd=False)
        else:
            source = blob
        with source:
            # Reading a few bytes at a time through two layers of Python would cost more than the rest.
            buffered = io.BufferedReader(source, tar.CHUNK) if source is not blob else source  # type: ignore[type-var]
            yield _Counted(buffered, path.stat().st_size, budget)


Visit = Callable[[int, tar.Entry, tar.Reader], None]


def read(layers: list[LayerFile], budget: Budget, visit: Visit) -> None:
    """Have `visit` see every entry of every layer, in order, with its layer's number. Raises `BadRequestError` (`image_invalid`)
    also for a layer that does not have the content that its digest promises."""
    for number, layer in enumerate(layers):
        with _opened(layer, budget) as source:
            reader = tar.Reader(source)
            for entry in reader.entries():
                visit(number, entry, reader)
            if (actual := f"sha256:{source.hash.hexdigest()}") != layer.diff_id:
                raise invalid(f"layer {number + 1} unpacks to content with the digest {actual}, not {layer.diff_id}")


def merge(layers: list[LayerFile], budget: Budget, max_entries: int) -> Tree:
    """All layers as one tree. Raises `BadRequestError` (`image_invalid`), `UnavailableError` (`disk_full`)."""
    tree = Tree(max_entries)
    read(layers, budget, lambda number, entry, _: tree.apply(number, entry))
    return tree
