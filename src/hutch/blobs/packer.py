"""A packer: one job in a process of its own, so that what a guest made takes no memory and no time from the host.

It ends with its host: when nobody holds the other end of its input any more.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from hutch.blobs import oci, stream, tarball, transfer
from hutch.blobs.jobs import (
    FRAME,
    LENGTH,
    AnyJob,
    CollectJob,
    Done,
    ExportJob,
    Failed,
    ForgetJob,
    ImportJob,
    Reached,
    ReceiveJob,
    RestoreJob,
    Result,
    SendJob,
    StoreJob,
    VerifyJob,
    nothing,
)
from hutch.blobs.manifest import Damaged
from hutch.blobs.pack import Unpackable
from hutch.blobs.store import BlobStore
from hutch.errors import BadRequestError, ConflictError, HutchError, InternalError, UnavailableError

MAX_MEMORY_BYTES = 4 * 1024 * 1024 * 1024
"""Of private memory; the rest is for a bug."""
NICE = 19


def main() -> int:
    """Do the job that standard input asks for."""
    given, out = sys.stdin.buffer, sys.stdout.buffer
    job = msgspec.msgpack.decode(_exactly(given, LENGTH.unpack(_exactly(given, LENGTH.size))[0]), type=AnyJob)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    os.umask(0o077)
    if job.patient:
        os.nice(NICE)
    pieces = _pieces(given)
    if not isinstance(job, ImportJob | ReceiveJob):
        threading.Thread(target=_end_with_host, args=(given,), daemon=True).start()
    try:
        _write(out, b"R", msgspec.msgpack.encode(run(job, pieces, lambda piece: _write(out, b"D", piece))))
    except HutchError as error:
        _write(out, b"E", msgspec.msgpack.encode(Failed(error.status, error.code, error.message)))
    except MemoryError:
        fault = InternalError("packing_failed", "The snapshot needs more memory than a packer may have.")
        _write(out, b"E", msgspec.msgpack.encode(Failed(fault.status, fault.code, fault.message)))
    return 0


def _write(out: BinaryIO, kind: bytes, content: bytes) -> None:
    out.write(FRAME.pack(kind, len(content)) + content)
    out.flush()


def _pieces(given: BinaryIO) -> Iterator[bytes]:
    while length := LENGTH.unpack(_exactly(given, LENGTH.size))[0]:
        yield _exactly(given, length)


def _exactly(given: BinaryIO, size: int) -> bytes:
    found = given.read(size)
    if len(found) < size:
        os._exit(1)
    return found


def _end_with_host(given: BinaryIO) -> None:
    given.read(1)
    os._exit(1)


def run(
    job: AnyJob, given: Iterable[bytes] = (), send: Callable[[bytes], None] = lambda _: None, reached: Reached = nothing
) -> Result:
    """Do it. Raises `HutchError`."""
    try:
        return _run(job, given, send, reached)
    except Damaged as error:
        raise ConflictError("snapshot_damaged", f"The snapshot's copy in the blob store is damaged: {error}.") from error
    except tarball.Refused as error:
        raise BadRequestError("invalid_archive", f"The archive can't become a snapshot: {error}.") from error
    except Unpackable as error:
        raise ConflictError("snapshot_unpackable", f"The snapshot can't be copied: {error}") from error
    except OSError as error:
        raise _failed(error) from error


def _run(job: AnyJob, given: Iterable[bytes], send: Callable[[bytes], None], reached: Reached) -> Result:
    if isinstance(job, StoreJob):
        blobs, concurrency = BlobStore(job.store), job.store.concurrency
        return transfer.store(Path(job.tree), job.about, blobs, concurrency=concurrency, grace_s=job.grace_s, reached=reached)
    if isinstance(job, RestoreJob):
        blobs, concurrency = BlobStore(job.store), job.store.concurrency
        tree = Path(job.tree)
        return Done(transfer.restore(blobs, job.snapshot_id, job.manifest, tree, concurrency=concurrency, reached=reached).files)
    if isinstance(job, VerifyJob):
        local = Path(job.tree) if job.tree is not None else None
        return transfer.verify(BlobStore(job.store), job.snapshot_id, job.manifest, local, concurrency=job.store.concurrency)
    if isinstance(job, ForgetJob):
        BlobStore(job.store).forget(job.snapshot_id)
        return Done()
    if isinstance(job, CollectJob):
        return transfer.collect(BlobStore(job.store), job.grace_s, reached=reached)
    if isinstance(job, ExportJob):
        return Done(_export(job, send))
    if isinstance(job, SendJob):
        return Done(stream.send(Path(job.tree), send))
    if isinstance(job, ReceiveJob):
        return Done(_receive(job, given))
    return Done(tarball.load(given, Path(job.tree), max_bytes=job.max_bytes, max_files=job.max_files))


def _receive(job: ReceiveJob, given: Iterable[bytes]) -> int:
    try:
        return stream.receive(given, Path(job.tree), max_bytes=job.max_bytes, max_files=job.max_files)
    except (Damaged, stream.TooLarge) as error:
        raise ConflictError("snapshot_unpackable", f"The disk's files can't be taken out of it: {error}.") from error
    except OSError as error:
        if error.errno not in tarball.ITS_FAULT:
            raise
        reason = f"they are what this host's file system can't have: {error.strerror}"
        raise ConflictError("snapshot_unpackable", f"The disk's files can't be taken out of it: {reason}.") from error


def _export(job: ExportJob, send: Callable[[bytes], None]) -> int:
    if not job.oci:
        return tarball.export(Path(job.tree), send, max_bytes=job.max_bytes)
    about = job.about
    named = {"snapshot_id": about.snapshot_id, "image": about.image}
    return oci.export(Path(job.tree), send, **named, created_at=about.created_at, max_bytes=job.max_bytes)


def _failed(error: OSError) -> HutchError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError("disk_full", f"There is no room for the snapshot: {error}", retry_after_s=30)
    return InternalError("packing_failed", f"The snapshot's files could not be read or written: {error}")


if __name__ == "__main__":
    sys.exit(main())
