"""Views of workers' databases: named ways to look at one, which stay whatever is deployed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.storage.models import WorkerViewModel
from hutch.storage.scoping import within


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """`filter`: plain values as texts, by property. `sort`: a property, `-` before it for descending; None: in the order of
    creation. `properties`: those that are shown, in this order; None: all."""

    filter: dict[str, str] = {}
    sort: str | None = None
    properties: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class View:
    name: str
    definition: Definition
    updated_at: int


async def of_database(connection: AsyncConnection, scope: Scope, worker_id: str, database: str) -> list[View]:
    """By name."""
    query = select(*_COLUMNS).where(*_views_of(scope, worker_id, database)).order_by(WorkerViewModel.name)
    return [_read(row) for row in await connection.execute(query)]


async def find(connection: AsyncConnection, scope: Scope, worker_id: str, database: str, name: str) -> View | None:
    query = select(*_COLUMNS).where(*_views_of(scope, worker_id, database), WorkerViewModel.name == name)
    row = (await connection.execute(query)).first()
    return _read(row) if row is not None else None


async def put(connection: AsyncConnection, scope: Scope, worker_id: str, database: str, view: View, most: int) -> bool:
    """Over the one of this name; False where a database would have more than `most`."""
    await delete_one(connection, scope, worker_id, database, view.name)
    query = select(func.count()).where(*_views_of(scope, worker_id, database))
    if int((await connection.execute(query)).scalar_one()) >= most:
        return False
    owner = {"team_id": scope.team_id, "project_id": scope.project_id, "worker_id": worker_id, "database": database}
    definition = msgspec.to_builtins(view.definition)
    await connection.execute(
        insert(WorkerViewModel).values(**owner, name=view.name, definition=definition, updated_at=view.updated_at)
    )
    return True


async def delete_one(connection: AsyncConnection, scope: Scope, worker_id: str, database: str, name: str) -> bool:
    """Whether there was one."""
    statement = delete(WorkerViewModel).where(*_views_of(scope, worker_id, database), WorkerViewModel.name == name)
    return (await connection.execute(statement)).rowcount > 0


_COLUMNS = (WorkerViewModel.name, WorkerViewModel.definition, WorkerViewModel.updated_at)


def _views_of(scope: Scope, worker_id: str, database: str) -> tuple[ColumnElement[bool], ...]:
    return (*within(scope, WorkerViewModel), WorkerViewModel.worker_id == worker_id, WorkerViewModel.database == database)


def _read(row: Any) -> View:
    return View(row.name, msgspec.convert(row.definition, Definition), row.updated_at)
