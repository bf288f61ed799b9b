"""What a packer is asked to do, and how it does it. All of it blocks."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from hutch.blobs import tarball, transfer
from hutch.blobs.manifest import Damaged
from hutch.blobs.pack import Unpackable
from hutch.blobs.store import BlobStore, StoreSpec
from hutch.blobs.transfer import About, Collected, Reached, Stored, Verified, nothing
from hutch.errors import BadRequestError, ConflictError, HutchError, InternalError, UnavailableError


class Job(msgspec.Struct, frozen=True, kw_only=True, tag_field="job"):
    """Base of all. `patient`: nobody waits for it."""

    @property
    def patient(self) -> bool:
        return False


class StoreJob(Job, frozen=True, kw_only=True, tag="store"):
    """A sealed tree into the store → `Stored`."""

    store: StoreSpec
    about: About
    tree: str
    grace_s: float

    @property
    def patient(self) -> bool:
        return True


class RestoreJob(Job, frozen=True, kw_only=True, tag="restore"):
    """A snapshot out of the store, into a tree that is not there yet → `Done`."""

    store: StoreSpec
    snapshot_id: str
    manifest: str
    tree: str


class VerifyJob(Job, frozen=True, kw_only=True, tag="verify"):
    """A snapshot in the store, compared with its tree where there is one → `Verified`."""

    store: StoreSpec
    snapshot_id: str
    manifest: str
    tree: str | None


class ForgetJob(Job, frozen=True, kw_only=True, tag="forget"):
    """A snapshot's pointer → `Done`."""

    store: StoreSpec
    snapshot_id: str


class CollectJob(Job, frozen=True, kw_only=True, tag="collect"):
    """What nobody needs → `Collected`."""

    store: StoreSpec
    grace_s: float

    @property
    def patient(self) -> bool:
        return True


class ExportJob(Job, frozen=True, kw_only=True, tag="export"):
    """A sealed tree as a tar, in the output → `Done`."""

    tree: str
    max_bytes: int


class ImportJob(Job, frozen=True, kw_only=True, tag="import"):
    """A tar from the input into a tree that is not there yet → `Done`."""

    tree: str
    max_bytes: int
    max_files: int


class Done(msgspec.Struct, frozen=True):
    """It was done; how many entries it was about, where that is known."""

    files: int = 0


AnyJob = StoreJob | RestoreJob | VerifyJob | ForgetJob | CollectJob | ExportJob | ImportJob
Result = Stored | Verified | Collected | Done


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
        return Done(tarball.export(Path(job.tree), send, max_bytes=job.max_bytes))
    return Done(tarball.load(given, Path(job.tree), max_bytes=job.max_bytes, max_files=job.max_files))


def _failed(error: OSError) -> HutchError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError("disk_full", f"There is no room for the snapshot: {error}", retry_after_s=30)
    return InternalError("packing_failed", f"The snapshot's files could not be read or written: {error}")
