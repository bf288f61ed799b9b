"""Chunks, manifests and pointers in a directory or an object store.

    chunks/ab/abcd…      a chunk, compressed
    manifests/abcd…      a manifest, compressed
    snapshots/snap_…     the digest of the manifest that a snapshot has

Nothing that is read is believed: a chunk is what its name says, and so is a manifest. All calls block.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import obstore
import zstandard
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from hutch.blobs.jobs import StoreSpec
from hutch.blobs.manifest import Damaged, Manifest, Ref, decode, digest_of
from hutch.errors import UnavailableError

log = logging.getLogger(__name__)

T = TypeVar("T")
LEVEL = 3
MAX_MANIFEST_BYTES = 256 * 1024 * 1024
POINTER = re.compile(rb"[0-9a-f]{64}")
SNAPSHOT = re.compile(r"snap_[A-Za-z0-9]{1,58}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Found:
    """An object of a listing. `modified` is the store's clock."""

    name: str
    modified: datetime


class BlobStore:
    """Raises `Damaged` for what is not there or is not what it should be, and `UnavailableError` (`blob_store_unavailable`) when
    the store does not do what it is asked to, again and again."""

    def __init__(self, spec: StoreSpec) -> None:
        self._spec = spec
        try:
            self._store = _open(spec)
        except (BaseError, OSError) as error:
            raise _unavailable(error) from error
        self.directory = Path(urlsplit(spec.url).path) if spec.url.startswith("file://") else None

    # -- chunks and manifests ----------------------------------------------------------------------

    def put(self, ref: Ref, content: bytes, fresh: timedelta | None = None) -> bool:
        """Keep a chunk; whether it had to be written. One that is there, but was written longer than `fresh` ago, is written
        again, so that it is young: a collection may be looking at it."""
        path = _chunk(ref.digest.hex())
        there = self._head(path)
        if there is not None and (fresh is None or self.now() - there < fresh):
            return False
        self._write(path, _compressed(content))
        return True

    def get(self, ref: Ref) -> bytes:
        """A chunk."""
        name = ref.digest.hex()
        return self._read(_chunk(name), ref.digest, f"chunk {name}", ref.size)

    def put_manifest(self, raw: bytes) -> str:
        """Keep a manifest; its name."""
        name = digest_of(raw).hex()
        self._write(f"manifests/{name}", _compressed(raw))
        return name

    def get_manifest(self, name: str) -> Manifest:
        if _HEX.fullmatch(name) is None:
            raise Damaged(f"{name[:80]!r} is no name of a manifest")
        return decode(self._read(f"manifests/{name}", bytes.fromhex(name), f"manifest {name}", None))

    # -- pointers ----------------------------------------------------------------------------------

    def point(self, snapshot_id: str, manifest: str) -> None:
        """From here on the snapshot is in the store."""
        self._write(_pointer(snapshot_id), manifest.encode())

    def pointer(self, snapshot_id: str) -> str | None:
        """The manifest of a snapshot; None when it is not in the store."""
        raw = self._try(lambda: self._get(_pointer(snapshot_id), 256))
        if raw is None:
            return None
        if POINTER.fullmatch(raw) is None:
            raise Damaged(f"the pointer of {snapshot_id} is none")
        return raw.decode()

    def forget(self, snapshot_id: str) -> None:
        """Take a snapshot out of the store; nothing happens when it is not there. Its chunks go when they are collected."""
        self.delete([_pointer(snapshot_id)])

    # -- listings ----------------------------------------------------------------------------------

    def snapshots(self) -> list[str]:
        """Every snapshot in the store."""
        return [found.name.rpartition("/")[2] for found in self.below("snapshots")]

    def below(self, prefix: str) -> Iterator[Found]:
        """Every object below a prefix. Not tried again in the middle: what was missed would look as if it were gone."""
        try:
            for batch in obstore.list(self._store, prefix=prefix):
                for one in batch:
                    yield Found(one["path"], one["last_modified"])
        except (BaseError, OSError) as error:
            raise _unavailable(error) from error

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            self._try(functools.partial(self._delete, path))

    def modified(self, path: str) -> datetime | None:
        """When an object was written; None when it is not there."""
        return self._head(path)

    def now(self) -> datetime:
        return datetime.now(UTC)

    # -- the object store --------------------------------------------------------------------------

    def _read(self, path: str, digest: bytes, what: str, size: int | None) -> bytes:
        most = size if size is not None else MAX_MANIFEST_BYTES
        raw = self._try(lambda: self._get(path, most + most // 128 + 1024))
        if raw is None:
            raise Damaged(f"{what} is missing")
        try:
            claimed = zstandard.get_frame_parameters(raw).content_size
            if claimed > most or (size is not None and claimed != size):
                raise Damaged(f"{what} has another size than it should have")
            content = zstandard.ZstdDecompressor().decompress(raw, max_output_size=most, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Damaged(f"{what} can't be unpacked: {error}") from error
        if digest_of(content) != digest:
            raise Damaged(f"{what} was changed")
        return content

    def _get(self, path: str, most: int) -> bytes | None:
        try:
            found = obstore.get(self._store, path)
        except FileNotFoundError:
            return None
        if found.meta["size"] > most:
            raise Damaged(f"{path} is larger than it can be")
        return bytes(found.bytes())

    def _head(self, path: str) -> datetime | None:
        def head() -> datetime | None:
            try:
                return obstore.head(self._store, path)["last_modified"]
            except FileNotFoundError:
                return None

        return self._try(head)

    def _write(self, path: str, content: bytes) -> None:
        self._try(lambda: obstore.put(self._store, path, content, use_multipart=False))

    def _delete(self, path: str) -> None:
        try:
            obstore.delete(self._store, path)
        except FileNotFoundError:
            return

    def _try(self, call: Callable[[], T]) -> T:
        """Again and again, with pauses that grow."""
        pause, attempt = self._spec.pause_s, 1
        while True:
            try:
                return call()
            except (BaseError, OSError) as error:
                if attempt >= self._spec.attempts:
                    raise _unavailable(error) from error
                log.debug("attempt %d failed: %s", attempt, _reason(error))
            time.sleep(pause)
            pause, attempt = min(pause * 2, 30.0), attempt + 1


def _unavailable(error: BaseException) -> UnavailableError:
    message = f"The blob store does not answer as it should: {_reason(error)}"
    return UnavailableError("blob_store_unavailable", message, retry_after_s=30)


def _reason(error: BaseException) -> str:
    """One line; what some libraries add has their whole state."""
    return str(error).partition("\n")[0][:300]


def _open(spec: StoreSpec) -> ObjectStore:
    parts = urlsplit(spec.url)
    if parts.scheme == "file":
        return LocalStore(Path(parts.path), mkdir=True)
    prefix = parts.path.strip("/")
    given = {
        "endpoint": spec.endpoint,
        "region": spec.region or "us-east-1",
        "access_key_id": spec.access_key_id,
        "secret_access_key": spec.secret_access_key,
    }
    timeout = timedelta(seconds=spec.timeout_s)
    return S3Store(
        parts.netloc,
        prefix=prefix or None,
        config={key: value for key, value in given.items() if value is not None},  # type: ignore[arg-type]
        client_options={"allow_http": True, "timeout": timeout, "connect_timeout": timedelta(seconds=10)},
        # Ours is the only one, so that a caller knows how long it takes at most.
        retry_config={"max_retries": 0, "retry_timeout": timeout},
    )


def _compressed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL).compress(content)


def _chunk(name: str) -> str:
    return f"chunks/{name[:2]}/{name}"


def _pointer(snapshot_id: str) -> str:
    if SNAPSHOT.fullmatch(snapshot_id) is None:
        raise Damaged(f"{snapshot_id[:80]!r} is no id of a snapshot")
    return f"snapshots/{snapshot_id}"
