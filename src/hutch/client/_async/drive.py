"""One drive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hutch.client import models
from hutch.client.display import table
from hutch.client.inputs import DriveMount
from hutch.client.results import shown

if TYPE_CHECKING:
    from hutch.client._async.client import AsyncClient


class AsyncDrive:
    """A named file system that sandboxes mount. `record` has all that the API says."""

    def __init__(self, client: AsyncClient, record: models.Drive) -> None:
        self._client = client
        self.record = record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def max_size_bytes(self) -> int:
        return self.record.max_size_bytes

    @property
    def current_sandbox_name(self) -> str | None:
        """Who writes to it."""
        return self.record.current_sandbox_name

    def mount(self) -> DriveMount:
        """For the one sandbox that writes to it."""
        return DriveMount(self.name)

    def snapshot(self) -> DriveMount:
        """For a sandbox that reads it as it is when it starts."""
        return DriveMount(self.name, "snapshot")

    async def refresh(self) -> AsyncDrive:
        """Ask again; `record.used_bytes` is there when the host says it."""
        self.record = await self._client.drives.get(self.name)
        return self

    async def fork(self, *, name: str) -> AsyncDrive:
        """A new drive with what this one holds now."""
        return AsyncDrive(self._client, await self._client.drives.fork(self.name, name))

    async def delete(self) -> None:
        """Delete it and what it holds. Raises `ConflictError` (`drive_attached`)."""
        await self._client.drives.delete(self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown({'name': self.name, 'sandbox': self.current_sandbox_name})})"

    def _repr_html_(self) -> str:
        names = ("name", "id", "region", "max_size_bytes", "used_bytes", "current_sandbox_name")
        return table("Drive", [(name, getattr(self.record, name)) for name in names])
