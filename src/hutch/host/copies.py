"""Copies of snapshots in the blob store: made behind everybody's back, used when this machine's own is gone.

What is restored is made under a name of its own, then sealed like a session's layer: it is there whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

from hutch.blobs.jobs import (
    About,
    Collected,
    CollectJob,
    Done,
    ExportJob,
    ForgetJob,
    ImportJob,
    Reached,
    RestoreJob,
    Stored,
    StoreJob,
    StoreSpec,
    Verified,
    VerifyJob,
    nothing,
)
from hutch.errors import ConflictError, GoneError
from hutch.host import kernel
from hutch.host.packing import Packing, Send
from hutch.host.protocol import CopyState, SnapshotExport, SnapshotRecord
from hutch.host.storage import UPPER, WritableLayers
from hutch.settings import Settings

log = logging.getLogger(__name__)

RESTORING = "restoring-"
"""What the layers of restores and imports are called until they are sealed."""
SLACK_BYTES = 64 * 1024 * 1024


def store_spec(settings: Settings) -> StoreSpec | None:
    """The blob store that is configured; None without one."""
    blobs = settings.blobs
    if not blobs.url:
        return None
    url = f"file://{settings.host_dir / 'blobs'}" if blobs.url == "local" else blobs.url
    return StoreSpec(
        url=url,
        endpoint=blobs.endpoint,
        region=blobs.region,
        access_key_id=blobs.access_key_id,
        secret_access_key=blobs.secret_access_key,
        concurrency=blobs.concurrency,
    )


class Copies:
    """The blob store as a host uses it."""

    def __init__(
        self,
        spec: StoreSpec | None,
        layers: WritableLayers,
        packing: Packing,
        *,
        grace_s: float,
        disk_bytes: int,
        reached: Reached = nothing,
    ) -> None:
        self.spec = spec
        self._layers = layers
        self._packing = packing
        self._grace_s = grace_s
        self._disk_bytes = disk_bytes
        self._reached = reached

    def sweep(self) -> None:
        """Remove what a restore left that died. Blocks."""
        for name in self._layers.names():
            if name.startswith(RESTORING):
                self._layers.remove(name)

    async def upload(self, record: SnapshotRecord, name: str) -> Stored:
        """Make the copy of a snapshot, whose tree is called `name` here. Raises `HutchError`, and `FileNotFoundError` when that
        is gone."""
        assert self.spec is not None
        async with self._reading(name) as tree:
            job = StoreJob(store=self.spec, about=_about(record), tree=str(tree), grace_s=self._grace_s)
            stored = await self._packing.run(job, Stored)
            await self._sync_store()
            return stored

    async def _sync_store(self) -> None:
        """Have a store in a directory survive a power cut, too."""
        assert self.spec is not None
        if self.spec.url.startswith("file://"):
            await asyncio.to_thread(kernel.sync_file_system, Path(self.spec.url.removeprefix("file://")))

    async def restore(self, record: SnapshotRecord, name: str) -> int:
        """Have this machine hold a snapshot again, as a tree called `name`; its size. Raises `HutchError`, and nothing is left
        then."""
        if self.spec is None or record.copy is not CopyState.STORED or record.manifest is None:
            raise GoneError(
                "snapshot_not_found",
                f"The files of snapshot '{record.snapshot_id}' are not on this machine, and there is no copy.",
            )
        async with self._receiving(name, record.size_bytes) as tree:
            job = RestoreJob(store=self.spec, snapshot_id=record.snapshot_id, manifest=record.manifest, tree=str(tree))
            await self._packing.run(job, Done)
        return await self._sealed_size(name)

    async def load(self, snapshot_id: str, given: AsyncIterable[bytes], max_bytes: int, max_files: int) -> int:
        """A new snapshot out of a tar; its size. Raises `HutchError`, and nothing is left then."""
        async with self._receiving(snapshot_id, max_bytes) as tree:
            await self._packing.run(ImportJob(tree=str(tree), max_bytes=max_bytes, max_files=max_files), Done, given)
        return await self._sealed_size(snapshot_id)

    async def export(self, record: SnapshotRecord, name: str, request: SnapshotExport, send: Send) -> None:
        """A snapshot's tree, which is called `name` here, as a tar, piece by piece. Raises `HutchError`."""
        async with self._reading(name) as tree:
            job = ExportJob(tree=str(tree), about=_about(record), oci=request.oci, max_bytes=request.max_bytes)
            await self._packing.run(job, Done, send=send)

    async def verify(self, record: SnapshotRecord, name: str) -> Verified:
        """Read a snapshot's copy, and compare it with its tree `name` where that is here. Raises `HutchError`."""
        if self.spec is None or record.copy is not CopyState.STORED or record.manifest is None:
            raise ConflictError("snapshot_not_stored", f"Snapshot '{record.snapshot_id}' has no copy in a blob store.")
        async with contextlib.AsyncExitStack() as reading:
            tree = None
            with contextlib.suppress(FileNotFoundError):
                tree = str(await reading.enter_async_context(self._reading(name)))
            job = VerifyJob(store=self.spec, snapshot_id=record.snapshot_id, manifest=record.manifest, tree=tree)
            return await self._packing.run(job, Verified)

    async def forget(self, snapshot_id: str) -> None:
        """Take a snapshot out of the store."""
        assert self.spec is not None
        await self._packing.run(ForgetJob(store=self.spec, snapshot_id=snapshot_id), Done)

    async def collect(self) -> Collected:
        """Remove from the store what no snapshot needs."""
        assert self.spec is not None
        return await self._packing.run(CollectJob(store=self.spec, grace_s=self._grace_s), Collected)

    @contextlib.asynccontextmanager
    async def _reading(self, name: str) -> AsyncIterator[Path]:
        reading = self._layers.reading(name)
        tree = await asyncio.to_thread(reading.__enter__)
        try:
            yield tree
        finally:
            await asyncio.shield(asyncio.to_thread(reading.__exit__, None, None, None))

    @contextlib.asynccontextmanager
    async def _receiving(self, sealed: str, size_bytes: int) -> AsyncIterator[Path]:
        """Where a tree is made that becomes a snapshot when the block ends well."""
        name = f"{RESTORING}{secrets.token_hex(10)}"
        try:
            layer = await asyncio.to_thread(self._layers.create, name, max(self._disk_bytes, 2 * size_bytes + SLACK_BYTES))
            self._reached("layer")
            # The tree brings its own; what is here is ours, and only what a new layer has.
            await asyncio.to_thread(kernel.run, ["rm", "-rf", "--", str(layer / UPPER)])
            yield layer / UPPER
            self._reached("filled")
            await asyncio.to_thread(self._layers.sync)
            await asyncio.to_thread(self._layers.seal, name, sealed)
            self._reached("sealed")
        finally:
            await asyncio.shield(asyncio.to_thread(self._layers.remove, name))

    async def _sealed_size(self, sealed: str) -> int:
        await asyncio.to_thread(self._layers.sync)
        return await asyncio.to_thread(self._layers.size, sealed, 0)


def _about(record: SnapshotRecord) -> About:
    return About(
        snapshot_id=record.snapshot_id,
        parent_id=record.parent_id,
        image=record.image,
        created_at=record.created_at,
        size_bytes=record.size_bytes,
    )
