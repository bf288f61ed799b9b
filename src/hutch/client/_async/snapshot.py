"""One snapshot."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hutch.client import models
from hutch.client._async.local import write_file
from hutch.client.display import table
from hutch.client.inputs import SnapshotSource
from hutch.client.results import shown

if TYPE_CHECKING:
    from hutch.client._async.client import AsyncClient


class AsyncSnapshot:
    """Files that a session left, and its memory if `memory_bytes` is not 0. `record` has all that the API says."""

    def __init__(self, client: AsyncClient, record: models.Snapshot) -> None:
        self._client = client
        self.record = record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def status(self) -> str:
        """`created`, `deleted` or `failed`."""
        return self.record.status

    @property
    def size_bytes(self) -> int:
        return self.record.size_bytes

    @property
    def memory_bytes(self) -> int:
        return self.record.memory_bytes

    @property
    def source_sandbox_name(self) -> str:
        return self.record.source_sandbox_name

    @property
    def source(self) -> SnapshotSource:
        """What a create takes to begin with it."""
        return SnapshotSource(snapshot_id=self.id)

    async def refresh(self) -> AsyncSnapshot:
        self.record = await self._client.snapshots.get(self.id)
        return self

    async def delete(self) -> None:
        """Sandboxes that began with it are not touched."""
        await self._client.snapshots.delete(self.id)

    async def tree(self, *, descendants: bool = False) -> models.SnapshotTree:
        """What it came from, nearest first, or what came from it."""
        return await self._client.snapshots.tree(self.id, descendants=descendants)

    async def verify(self) -> models.SnapshotVerified:
        """Read its copy in the blob store whole. Raises `ConflictError` (`snapshot_damaged`, `snapshot_not_stored`)."""
        return await self._client.snapshots.verify(self.id)

    def export(self, form: Literal["tar", "oci"] = "tar") -> AsyncGenerator[bytes, None]:
        """What it holds over its image as a tar, or in an OCI image layout, as it comes."""
        return self._client.snapshots.export(self.id, form)

    async def export_to(self, target: str | Path, form: Literal["tar", "oci"] = "tar") -> int:
        """The same into a file of this machine, whole or not at all; its bytes. Raises `BadRequestError` (`not_writable`)."""
        return await write_file(Path(target), self.export(form))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown({'id': self.id, 'status': self.status, 'size_bytes': self.size_bytes})})"

    def _repr_html_(self) -> str:
        names = ("id", "source_sandbox_name", "status", "size_bytes", "memory_bytes", "creation_method", "parent_id")
        return table("Snapshot", [(name, getattr(self.record, name)) for name in names])
