"""A snapshot into a store, out of it, compared with it; and what nobody needs collected. All calls block.

The order of writes is what makes a death at any moment harmless: chunks, manifest, pointer. What has no pointer is not in the
store, and is collected once it is old.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from hutch.blobs.jobs import About, Collected, Reached, Stored, Verified, nothing
from hutch.blobs.manifest import VERSION, Damaged, Entry, Kind, Manifest, Ref, decode_entries, encode, extents_of, refs
from hutch.blobs.pack import Packed, pack
from hutch.blobs.store import BlobStore
from hutch.blobs.unpack import unpack

log = logging.getLogger(__name__)

AHEAD = 4
"""Chunks on their way per thread."""

# -- into the store ---------------------------------------------------------------------------------


class Sender:
    """Writes chunks with several threads. A chunk that was put may still be on its way until `finish`."""

    def __init__(self, blobs: BlobStore, concurrency: int, fresh: timedelta | None, reached: Reached) -> None:
        self._blobs = blobs
        self._fresh = fresh
        self._reached = reached
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="blobs")
        self._room = threading.Semaphore(concurrency * AHEAD)
        self._failure: BaseException | None = None
        self._asked: set[bytes] = set()
        self._count = threading.Lock()
        self.written = 0

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def put(self, ref: Ref, content: bytes) -> None:
        """Raises what an earlier one failed with."""
        if ref.digest in self._asked:
            return
        self._asked.add(ref.digest)
        self._room.acquire()
        self._check()
        self._pool.submit(self._send, ref, content).add_done_callback(lambda _: self._room.release())

    def _send(self, ref: Ref, content: bytes) -> None:
        if self._failure is not None:
            return
        try:
            new = self._blobs.put(ref, content, self._fresh)
            self._reached("chunk")
            with self._count:
                self.written += new
        except BaseException as error:  # noqa: BLE001 - told to the thread that puts
            self._failure = error

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def finish(self) -> int:
        """All are there; how many different ones."""
        self._pool.shutdown(wait=True)
        self._check()
        return len(self._asked)


def store(
    tree: Path, about: About, blobs: BlobStore, *, concurrency: int = 4, grace_s: float | None = None, reached: Reached = nothing
) -> Stored:
    """Pack a sealed tree into a store. What is there is not written again. Raises `OSError`, `Unpackable`, `UnavailableError`."""
    fresh = timedelta(seconds=grace_s / 2) if grace_s is not None else None
    began = time.monotonic()
    packed, chunks, written = _send_all(tree, blobs, concurrency, fresh, reached)
    if grace_s is not None and time.monotonic() - began > grace_s / 4:
        # So long that what was young may not be so any more.
        packed, chunks, _ = _send_all(tree, blobs, concurrency, fresh, reached)
    reached("chunks")
    manifest = blobs.put_manifest(encode(_manifest(about, packed)))
    reached("manifest")
    blobs.point(about.snapshot_id, manifest)
    reached("pointer")
    return Stored(manifest=manifest, files=packed.files, bytes=packed.bytes, chunks=chunks, written=written)


def _send_all(
    tree: Path, blobs: BlobStore, concurrency: int, fresh: timedelta | None, reached: Reached
) -> tuple[Packed, int, int]:
    with Sender(blobs, concurrency, fresh, reached) as sender:
        packed = pack(tree, sender.put)
        chunks = sender.finish()
        return packed, chunks, sender.written


def _manifest(about: About, packed: Packed) -> Manifest:
    return Manifest(
        version=VERSION,
        snapshot_id=about.snapshot_id,
        parent_id=about.parent_id,
        image=about.image,
        created_at=about.created_at,
        size_bytes=about.size_bytes,
        uid_map="identity",
        files=packed.files,
        data_bytes=packed.bytes,
        entries=packed.entries,
        data=packed.data,
    )


# -- out of it --------------------------------------------------------------------------------------


def fetched(blobs: BlobStore, packed: Iterable[Ref], pool: ThreadPoolExecutor, ahead: int) -> Iterator[bytes]:
    """Chunks in their order, some read ahead."""
    waiting: deque[Future[bytes]] = deque()
    coming = iter(packed)
    try:
        while True:
            waiting.extend(pool.submit(blobs.get, ref) for ref in itertools.islice(coming, ahead - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for one in waiting:
            one.cancel()


def restore(
    blobs: BlobStore, snapshot_id: str, name: str, tree: Path, *, concurrency: int = 4, reached: Reached = nothing
) -> Manifest:
    """Make `tree` what a snapshot's manifest says. Raises `Damaged`, `OSError` and `UnavailableError`; what was made by then is
    for the caller to remove."""
    manifest = _manifest_of(blobs, snapshot_id, name)
    with ThreadPoolExecutor(concurrency, thread_name_prefix="blobs") as pool:
        entries = decode_entries(fetched(blobs, refs(manifest.entries), pool, concurrency))
        data = fetched(blobs, refs(manifest.data), pool, concurrency)
        unpack(_told(entries, reached), data, tree)
    return manifest


def _told(entries: Iterable[Entry], reached: Reached) -> Iterator[Entry]:
    for entry in entries:
        yield entry
        reached("entry")


def verify(blobs: BlobStore, snapshot_id: str, name: str, tree: Path | None, *, concurrency: int = 4) -> Verified:
    """Read everything that a snapshot has in the store, and compare it with its tree. Raises `Damaged`, `UnavailableError`."""
    manifest = _manifest_of(blobs, snapshot_id, name)
    with ThreadPoolExecutor(concurrency, thread_name_prefix="blobs") as pool:
        files, size = _counted(decode_entries(fetched(blobs, refs(manifest.entries), pool, concurrency)))
        there = sum(len(chunk) for chunk in fetched(blobs, refs(manifest.data), pool, concurrency))
    if (files, size, there) != (manifest.files, manifest.data_bytes, manifest.data_bytes):
        raise Damaged("the manifest does not count what is in it")
    if tree is not None:
        packed = pack(tree, _dropped)
        if (packed.entries, packed.data) != (manifest.entries, manifest.data):
            raise Damaged("the copy in the store and the local files differ")
    return Verified(manifest=name, files=files, bytes=size, compared=tree is not None)


def _manifest_of(blobs: BlobStore, snapshot_id: str, name: str) -> Manifest:
    manifest = blobs.get_manifest(name)
    if manifest.snapshot_id != snapshot_id:
        raise Damaged(f"manifest {name} is of {manifest.snapshot_id[:80]!r}")
    return manifest


def _counted(entries: Iterable[Entry]) -> tuple[int, int]:
    files = size = 0
    for entry in entries:
        files += entry.kind is not Kind.UP
        size += sum(length for _, length in extents_of(entry)) if entry.kind is Kind.FILE else 0
    return files, size


def _dropped(ref: Ref, content: bytes) -> None:
    """Only its name was wanted."""


# -- what nobody needs ------------------------------------------------------------------------------


def collect(blobs: BlobStore, grace_s: float, *, reached: Reached = nothing) -> Collected:
    """Remove manifests that no pointer names and chunks that no such manifest needs, when they are older than `grace_s`.

    Another host may be uploading to the same store: it writes again what it finds older than half of that, and its pointer
    within a quarter. Raises `Damaged`, with nothing removed, when a manifest can't be read: nobody knows what it needs.
    """
    named = {name for snapshot_id in blobs.snapshots() if (name := blobs.pointer(snapshot_id)) is not None}
    needed = {ref.digest for name in named for ref in blobs.get_manifest(name).chunks()}
    reached("marked")
    manifests = _sweep(blobs, "manifests", grace_s, named.__contains__, reached)
    chunks = _sweep(blobs, "chunks", grace_s, lambda name: _is_needed(name, needed), reached)
    reached("swept")
    return Collected(manifests=manifests, chunks=chunks, kept=len(needed))


def _is_needed(name: str, needed: set[bytes]) -> bool:
    try:
        return bytes.fromhex(name) in needed
    except ValueError:
        # Not ours.
        return True


def _sweep(blobs: BlobStore, prefix: str, grace_s: float, keeps: Callable[[str], bool], reached: Reached) -> int:
    removed, grace = 0, timedelta(seconds=grace_s)
    for found in blobs.below(prefix):
        if keeps(found.name.rpartition("/")[2]) or blobs.now() - found.modified < grace:
            continue
        again = blobs.modified(found.name)
        if again is not None and blobs.now() - again >= grace:
            blobs.delete([found.name])
            reached("removed")
            removed += 1
    return removed
