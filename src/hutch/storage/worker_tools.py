"""What a project's people said about its workers' tools: whether agents see one, and whether a person has to agree to each call.
Tools that nobody said anything about are not here."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.storage.models import WorkerToolModel
from hutch.storage.scoping import within


@dataclass(frozen=True, slots=True)
class ToolSetting:
    """`confirm`: a person agrees to each call by an agent."""

    enabled: bool = True
    confirm: bool = False


async def of_worker(connection: AsyncConnection, scope: Scope, worker_id: str) -> dict[str, ToolSetting]:
    """By the tools' keys."""
    query = select(WorkerToolModel.key, WorkerToolModel.enabled, WorkerToolModel.confirm).where(
        *within(scope, WorkerToolModel), WorkerToolModel.worker_id == worker_id
    )
    return {row[0]: ToolSetting(row[1], row[2]) for row in await connection.execute(query)}


async def of_all(connection: AsyncConnection, scope: Scope) -> dict[str, dict[str, ToolSetting]]:
    """Those of a project's workers, by the workers' ids and the tools' keys."""
    found: dict[str, dict[str, ToolSetting]] = {}
    query = select(WorkerToolModel.worker_id, WorkerToolModel.key, WorkerToolModel.enabled, WorkerToolModel.confirm).where(
        *within(scope, WorkerToolModel)
    )
    for row in await connection.execute(query):
        found.setdefault(row[0], {})[row[1]] = ToolSetting(row[2], row[3])
    return found


async def put(connection: AsyncConnection, scope: Scope, worker_id: str, key: str, setting: ToolSetting, now: int) -> None:
    """Over what was said before."""
    mine = (*within(scope, WorkerToolModel), WorkerToolModel.worker_id == worker_id)
    await connection.execute(delete(WorkerToolModel).where(*mine, WorkerToolModel.key == key))
    await connection.execute(
        insert(WorkerToolModel).values(
            worker_id=worker_id,
            key=key,
            team_id=scope.team_id,
            project_id=scope.project_id,
            enabled=setting.enabled,
            confirm=setting.confirm,
            updated_at=now,
        )
    )
