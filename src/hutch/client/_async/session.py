"""One run of a sandbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from hutch.client import models
from hutch.client._async.runner import Runner
from hutch.client.display import table
from hutch.client.results import shown

if TYPE_CHECKING:
    from hutch.client._async.client import AsyncClient

T = TypeVar("T")


class AsyncSession(Runner):
    """A session by its id. Nothing resumes: when it is over, calls raise `GoneError`. `record` has all that the API says; its
    usage is there when it has ended: `active_cpu_duration_ms`, `network_transfer` (bytes), `duration` (ms)."""

    def __init__(self, client: AsyncClient, record: models.Session) -> None:
        super().__init__(client)
        self.record = record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def status(self) -> str:
        return self.record.status

    @property
    def cwd(self) -> str:
        return self.record.cwd

    @property
    def sandbox_name(self) -> str:
        return self.record.source_sandbox_name

    @property
    def network_policy(self) -> models.Json | None:
        return self.record.network_policy

    async def refresh(self) -> AsyncSession:
        self.record = await self._client.sandboxes.session(self.id)
        return self

    async def stop(self) -> AsyncSession:
        """Stop it; of a persistent sandbox the files are kept. Once it is over this changes nothing."""
        self.record = await self._client.sandboxes.stop(self.id)
        return self

    async def _do(self, work: Callable[[str], Awaitable[T]]) -> T:
        return await work(self.id)

    async def _ready(self) -> str:
        return self.id

    def _took(self, session: models.Session) -> None:
        self.record = session

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown({'id': self.id, 'status': self.status, 'sandbox': self.sandbox_name})})"

    def _repr_html_(self) -> str:
        names = ("id", "source_sandbox_name", "status", "vcpus", "memory", "stop_reason", "active_cpu_duration_ms")
        return table("Session", [(name, getattr(self.record, name)) for name in names])
